"""Stores that stand before another store, made from the table of primitives."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .base import LightningStore, LightningStoreCapabilities
from .primitives import PRIMITIVES, Primitive, perform


class OneWayStore(LightningStore):
    """A store in which every primitive goes one way: through :meth:`handle`. What a wrapper or a client is made of."""

    async def handle(self, primitive: Primitive, value: Any) -> Any:
        """Answer a primitive.

        Args:
            primitive: A row of ``PRIMITIVES``.
            value: Of the type that ``primitive.takes`` says; ``None`` where it takes nothing.

        Returns:
            What ``primitive.answers`` says.
        """
        raise NotImplementedError(f"{type(self).__name__} has no {primitive.name}")


def _handled(primitive: Primitive) -> Callable[..., Awaitable[Any]]:
    async def method(self: OneWayStore, value: Any = None) -> Any:
        return await self.handle(primitive, value)

    method.__name__ = primitive.method
    method.__qualname__ = f"{OneWayStore.__name__}.{primitive.method}"
    method.__doc__ = getattr(LightningStore, primitive.method).__doc__
    return method


# Methods of the class, and no `__getattr__`: `perform` looks a primitive up in the classes' own `__dict__`.
for _primitive in PRIMITIVES.values():
    setattr(OneWayStore, _primitive.method, _handled(_primitive))


class StoreWrapper(OneWayStore):
    """A store that passes everything on to another one; a subclass changes what :meth:`handle` does on the way."""

    def __init__(self, inner: LightningStore) -> None:
        self.inner = inner
        """The store that does the work; closing this one closes it."""

    async def handle(self, primitive: Primitive, value: Any) -> Any:
        """Pass it on."""
        return await perform(self.inner, primitive, value)

    @property
    def url(self) -> str | None:
        """That of the store inside."""
        return self.inner.url

    @property
    def local_path(self) -> str | None:
        """That of the store inside."""
        return self.inner.local_path

    @property
    def store_id(self) -> str | None:
        """That of the store inside."""
        return self.inner.store_id

    def has_copy_at(self, url: str) -> bool:
        """That of the store inside."""
        return self.inner.has_copy_at(url)

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """Those of the store inside."""
        return self.inner.capabilities

    def otlp_traces_endpoint(self) -> str:
        """That of the store inside."""
        return self.inner.otlp_traces_endpoint()

    async def close(self) -> None:
        """Close the store inside."""
        await self.inner.close()
