"""``agl``: the command line.

One file per command: ``add_parser(subparsers)`` declares its arguments, ``run(args)`` does the work and
returns the exit code. Only the module of the chosen command is imported: ``agl --help`` loads nothing else.
"""

from __future__ import annotations

from .entry import main

__all__ = ["main"]
