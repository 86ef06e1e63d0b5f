"""Any JSON value of a text: by a fast parser, and where that refuses by Python's own, which reads more."""

from __future__ import annotations

import json
from typing import Any

import msgspec


def parse(data: bytes | str) -> Any:
    """Return the JSON value that ``data`` is.

    Python's parser reads NaN, infinities, lone surrogates, and bytes in UTF-16 and UTF-32 as well.

    Raises:
        ValueError: It is none, or is nested too deep to be read.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError):
        pass
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
