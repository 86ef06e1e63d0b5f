"""What a JSON object says that another does not, so that the other and the difference give it back exactly.

A difference is ``{"set": {key: value}, "gone": [key, …], "in": {key: difference}}``, each part where it has something;
``in`` is of values that are objects in both. ``1``, ``1.0`` and ``true`` are three values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Json = Mapping[str, Any]


def difference(made: Json, wanted: Json) -> dict[str, Any]:
    """Return what has to be changed in ``made`` so that it is ``wanted``; empty where nothing has."""
    found: dict[str, Any] = {"set": {}, "gone": [key for key in made if key not in wanted], "in": {}}
    for key, value in wanted.items():
        ours = made.get(key)
        if key not in made:
            found["set"][key] = value
        elif isinstance(ours, Mapping) and isinstance(value, Mapping):
            inner = difference(ours, value)
            if inner:
                found["in"][key] = inner
        elif not same(ours, value):
            found["set"][key] = value
    return {part: value for part, value in found.items() if value}


def applied(made: Json, found: Json) -> dict[str, Any]:
    """Return ``made`` with the changes of a difference; ``applied(made, difference(made, wanted)) == wanted``.

    Never raises: what is no difference, as in a span that somebody has changed, changes nothing.
    """
    result = dict(made)
    gone, new, inside = found.get("gone"), found.get("set"), found.get("in")
    for key in gone if isinstance(gone, list) else ():
        result.pop(key, None)
    for key, inner in inside.items() if isinstance(inside, Mapping) else ():
        if isinstance(result.get(key), Mapping) and isinstance(inner, Mapping):
            result[key] = applied(result[key], inner)
    return result | (dict(new) if isinstance(new, Mapping) else {})


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same, and of the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        # Token ids are most of a document.
        if {*map(type, one)} <= {int}:
            return one == other and {*map(type, other)} <= {int}
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
