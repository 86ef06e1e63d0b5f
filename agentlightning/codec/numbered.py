"""Attributes whose names count what they list, gathered into one value and spread again.

OpenLLMetry and AgentOps write the messages of a call as ``gen_ai.prompt.0.role``, ``gen_ai.prompt.0.content``,
``gen_ai.prompt.1.role`` …, OpenInference as ``llm.input_messages.0.message.role`` …: hundreds of short attributes,
which each call of a conversation says again, with some more at their end. Gathered, they are one value that begins with
that of the call before. ``spread(gather(attributes)) == attributes``, in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from .json_text import Slot, is_utf8

LEAST_CHARACTERS: Final = 4_096
"""Text that attributes have together before they are gathered."""
# Nine digits at most: `int` refuses thousands of them. No other digits than those that instrumentations count with.
_NUMBERED: Final = re.compile(r"(.+?\.)([0-9]{1,9})(?:\.|\Z)")


_APART: Final = frozenset({list, Slot})


class Gathered(NamedTuple):
    """Attributes with the same beginning of their names; stands under that beginning."""

    members: dict[str, Any]
    """In their order, under their whole names."""


def is_numbered(key: str) -> bool:
    """Whether a part of the name, which is not its first, is a number."""
    return _NUMBERED.match(key) is not None


def gather(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes with a :class:`Gathered` in the place of each long list of numbered ones.

    A list is what stands together in rising order: ``gen_ai.prompt.0.…``, ``gen_ai.prompt.1.…``. It stands under the
    beginning of its names, ``gen_ai.prompt.``. Values that are lists are left where they are.
    """
    gathered: dict[str, Any] = {}
    for prefix, run in _runs(attributes):
        # An attribute or an earlier list may have the very name under which this one would stand.
        is_free = prefix and prefix not in attributes and prefix not in gathered
        # JSON has no names with lone surrogates, and what is gathered has to be an object of JSON.
        if is_free and len(run) > 1 and _characters(run) >= LEAST_CHARACTERS and all(map(is_utf8, run)):
            gathered[prefix] = Gathered(run)
        else:
            gathered.update(run)
    return gathered


def spread(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes as they were before they were gathered."""
    found: dict[str, Any] = {}
    for key, value in attributes.items():
        if type(value) is Gathered:
            found.update(value.members)
        else:
            found[key] = value
    return found


def _runs(attributes: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield lists of numbered attributes, each with the beginning of its names, and with none what is no list."""
    prefix, number, run = "", 0, dict[str, Any]()
    item = following = ""
    for key, value in attributes.items():
        # Lists of numbers, such as the token ids of a choice, are packed each by itself, or have been: SQL reads them
        # by their names.
        may_be = type(value) not in _APART
        # Nearly every name is of the message of the one before, or of the next: the expression costs ten times more.
        if may_be and item and key.startswith(item):
            pass
        elif may_be and following and key.startswith(following):
            number += 1
            item, following = following, f"{prefix}{number + 1}."
        else:
            found = _NUMBERED.match(key) if may_be else None
            begins, at = (found[1], int(found[2])) if found else ("", 0)
            if run and (begins != prefix or at < number):
                yield prefix, run
                run = {}
            prefix, number = begins, at
            item, following = (f"{begins}{at}.", f"{begins}{at + 1}.") if begins else ("", "")
        run[key] = value
    if run:
        yield prefix, run


def _characters(run: Mapping[str, Any]) -> int:
    return sum([len(value) for value in run.values() if type(value) is str])
