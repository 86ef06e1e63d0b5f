"""Patches give back what was there, in whatever order they are undone."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from agentlightning.instrumentation.patch import (
    AttributePatch,
    Patch,
    Patches,
    defining_class,
)


class Greeter:
    """What is patched here."""

    def greet(self) -> str:
        return "hello"


def louder(word: str) -> Any:
    def wrap(original: Any, patch: Patch) -> Any:
        def greet(self: Any) -> str:
            return f"{original(self)} {word}" if patch.active else str(original(self))

        return greet

    return wrap


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_patches_undone_in_any_order_leave_the_very_object(order: tuple[int, ...]) -> None:
    before = vars(Greeter)["greet"]
    patches = [AttributePatch(Greeter, "greet", louder(str(number))) for number in range(3)]
    assert Greeter().greet() == "hello 0 1 2"
    left = {0, 1, 2}
    for number in order:
        patches[number].undo()
        patches[number].undo()
        left.discard(number)
        assert Greeter().greet() == " ".join(["hello", *map(str, sorted(left))])
    assert vars(Greeter)["greet"] is before


def test_a_strangers_patch_on_top_of_ours_is_left_alone() -> None:
    before = vars(Greeter)["greet"]
    ours = AttributePatch(Greeter, "greet", louder("ours"))
    under = vars(Greeter)["greet"]

    def theirs(self: Any) -> str:
        return f"({under(self)})"

    Greeter.greet = theirs  # type: ignore[method-assign]
    try:
        assert Greeter().greet() == "(hello ours)"
        ours.undo()
        assert vars(Greeter)["greet"] is theirs
        assert Greeter().greet() == "(hello)"
    finally:
        Greeter.greet = before  # type: ignore[method-assign]


def test_a_plain_replacement_is_undone_too() -> None:
    place = SimpleNamespace(name="before")
    patch = AttributePatch(place, "name", lambda _original, _patch: "after")
    assert place.name == "after"
    patch.undo()
    assert place.name == "before"
    assert "undone" in repr(patch)


def test_several_patches_are_undone_last_first_and_later_ones_at_once() -> None:
    undone: list[str] = []
    many = Patches("many", [Patch("a", lambda: undone.append("a")), Patch("b", lambda: undone.append("b"))])
    many.undo()
    many.add(Patch("c", lambda: undone.append("c")))
    assert undone == ["b", "a", "c"]


def test_the_class_that_defines_a_method_is_found_above_a_subclass() -> None:
    class Louder(Greeter):
        pass

    assert defining_class(Louder, "greet") is Greeter
    assert defining_class(Louder, "nothing") is None
