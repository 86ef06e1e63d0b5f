"""Frozen dataclasses that are made by the thousand, at the price of those that are not frozen.

What ``dataclass(frozen=True)`` generates sets each field by a call of ``object.__setattr__``. To make a value with
twenty fields takes three times as long as to make one that is not frozen, and rows make several for each model call.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, cast

T = TypeVar("T")


def maker(cls: type[T]) -> type[T]:
    """Return what is called as ``cls`` is, and makes the same values in less time.

    It is a subclass whose fields can be set. A value that it makes becomes one of ``cls`` when the last field is set,
    before anybody else sees it; so nothing has the subclass for its type.

    Args:
        cls: A frozen dataclass with slots.
    """
    finish = getattr(cls, "__post_init__", None)

    def freeze(self: Any) -> None:
        self.__class__ = cls
        if finish is not None:
            finish(self)

    fields = [(each.name, each.type, _again(each)) for each in dataclasses.fields(cast("Any", cls))]
    # The `__init__` that is generated ends with a call of `__post_init__` where the class has one.
    plain = dataclasses.make_dataclass(cls.__name__, fields, namespace={"__post_init__": freeze})
    made = type(
        cls.__name__,
        (cls,),
        {
            "__slots__": (),
            # Both, or the interpreter looks one of them up in the class for each field that is set.
            "__setattr__": object.__setattr__,
            "__delattr__": object.__delattr__,
            "__init__": plain.__init__,  # type: ignore[misc]
            "__post_init__": freeze,
        },
    )
    return cast("type[T]", made)


def _again(field: dataclasses.Field[Any]) -> Any:
    """Return a field as another one: one that a class has cannot be given to a second."""
    return dataclasses.field(
        default=field.default,
        default_factory=field.default_factory,
        init=field.init,
        kw_only=field.kw_only,
    )
