"""The table of 0.3's names is whole, and says of each what an import finds."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = json.loads((Path(__file__).parent / "names_of_0_3.json").read_text(encoding="utf-8"))
"""Module → its public names that 0.3 documents or tests, as the distribution ``agentlightning`` 0.3.0 has them."""
STATES = {"same": True, "differs": True, "not yet": False, "never": False}


def _rows() -> Iterator[tuple[str, str, str, str]]:
    module = ""
    for line in (ROOT / "docs/reference/compatibility.md").read_text(encoding="utf-8").splitlines():
        if heading := re.fullmatch(r"## `(.+)`", line):
            module = heading[1]
        elif row := re.fullmatch(r"\| `(\w+)` \| ([\w ]+) \| (.*) ?\|", line):
            yield module, row[1], row[2], row[3].strip()


ROWS = list(_rows())


def _is_there(module: str, name: str) -> bool:
    """Whether ``from module import name`` finds something, which looks for a module of that name in the end."""
    try:
        if hasattr(importlib.import_module(module), name):
            return True
        importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def test_every_name_of_0_3_stands_in_the_table_once() -> None:
    listed = [(module, name) for module, name, _, _ in ROWS]
    assert sorted(listed) == sorted((module, name) for module, names in NAMES.items() for name in names)


@pytest.mark.parametrize("module", sorted(NAMES))
def test_the_table_says_what_can_be_imported(module: str) -> None:
    wrong = [
        (name, state)
        for of_module, name, state, _ in ROWS
        if of_module == module and STATES[state] is not _is_there(module, name)
    ]
    assert wrong == []


def test_a_difference_and_a_refusal_say_why() -> None:
    assert [row for row in ROWS if (row[2] != "same") is not bool(row[3])] == []
