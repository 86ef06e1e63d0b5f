"""The marked blocks of a page of the documentation: what its fence says is done with it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_BLOCK = re.compile(
    r"^```(?P<lang>\w+) (?:(?P<what>run|tour|output)|file=(?P<name>\S+))\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block.

    Attributes:
        what: ``run``: executed by ``tests/repo/test_docs.py``. ``tour``: executed by ``tests/first_hour``, in an
            environment that the page installs. ``output``: what the ``tour`` block before it prints. ``file``: saved.
        name: Of the file.
    """

    lang: str
    what: str
    name: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """Yield the marked blocks of a page, in their order."""
    for found in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        yield Block(found["lang"], found["what"] or "file", found["name"] or "", found["text"])
