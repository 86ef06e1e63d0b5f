"""Run one program under one recorder and write its spans: ``record.py RECORDER PROGRAM FILE``.

Runs in the environment of the library, as a process of its own: most instrumentations cannot be taken back.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import distributions
from pathlib import Path

import programs
from recorders import RECORDERS


def main() -> None:
    """Record."""
    recorder, program, target = sys.argv[1:]
    with RECORDERS[recorder]() as spans:
        programs.program(program)()
    found = {
        "spans": spans(),
        "versions": {each.metadata["Name"].lower(): each.version for each in distributions()},
    }
    Path(target).write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(0)  # some libraries wait at their end for servers that nobody runs


if __name__ == "__main__":
    main()
