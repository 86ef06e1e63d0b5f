"""One run of one subject: ``child.py FIGURE SUBJECT SIZE``. Prints the sample as the last line, as JSON."""

from __future__ import annotations

import importlib
import json
import logging
import sys


def main() -> None:
    """Run the subject and print what it returns."""
    figure, subject, size = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR)
    sample = getattr(importlib.import_module(figure), subject)(json.loads(size))
    sys.stdout.write(f"\n{json.dumps(sample)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
