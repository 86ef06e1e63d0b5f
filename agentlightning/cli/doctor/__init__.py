"""``agl doctor``: whether this machine records correctly.

Every check is a generator of findings, and a check that fails to run is a finding itself. What a check needs of
strangers' packages, it does in a process of its own, with the environment of the user; nothing leaves the machine.
The modules that do the work are loaded when the command runs, so that those processes load only their own.
"""

from __future__ import annotations

import argparse

from .. import options, output
from ..entry import NEGATIVE

__all__ = ["add_parser"]


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "doctor",
        run,
        details="Makes real model calls to a model on this machine and reads them back; nothing leaves it, and no "
        "store is created or changed. With --endpoint, asks only that endpoint. Exit code 1: a training run "
        "would lose or corrupt data.",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="also list the patches that were in force, and what is done with every release of agentops",
    )
    options.add_endpoints(
        parser,
        "examine this model endpoint instead, by a few short chats: token ids, log-probabilities, versions; repeat for "
        "several",
    )
    parser.add_argument(
        "--model",
        type=options.not_empty,
        metavar="NAME",
        help="with --endpoint: default the first that it lists",
    )
    parser.add_argument(
        "--api-key-env",
        type=options.not_empty,
        metavar="VARIABLE",
        help="with --endpoint: the environment variable that holds its key; no key is sent without",
    )
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Examine the machine, print what was found, and return the exit code."""
    try:
        # Here and not at the top: whoever runs the doctor may have an installation that cannot be imported.
        from . import report
    except Exception as error:  # noqa: BLE001 - what every check needs may be what is broken
        sentence = f"agentlightning itself cannot be loaded: {type(error).__name__}: {error}"
        cure = "pip uninstall -y agentlightning-otel, and install it again as you did before"
        output.say(f"agl doctor: {sentence}\n  {cure}")
        return NEGATIVE
    return report.run(args)
