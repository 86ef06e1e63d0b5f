"""The entry point of ``agl``: parses ``argv``, runs the command, and turns errors into messages and exit codes.

Exit codes: 0 done; 1 a negative answer (``store check`` or ``doctor`` found something, there are no rows); 2 bad
usage or bad input; 130 interrupted; 141 nobody reads the output any more. ``agl run`` returns that of its program.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn, cast

from .._printable import PrintableFormatter, printable
from ..env_var import LightningEnvVar, resolve_setting
from ..errors import LightningError
from . import output
from .options import COMMANDS

DONE, NEGATIVE, BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 130, 141

logger = logging.getLogger("agentlightning")


def main(argv: Iterable[str] | None = None) -> int:
    """Run ``agl`` with these arguments (default: those of the process) and return its exit code.

    Raises:
        SystemExit: For ``--help``, ``--version`` and bad usage, as argparse does.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    args = build_parser(_chosen(arguments)).parse_args(arguments)
    with _logging(args.log_level):
        try:
            code = cast("int", args.run(args))
            sys.stdout.flush()
        except KeyboardInterrupt:
            return INTERRUPTED
        except BrokenPipeError:
            _discard_stdout()
            return BROKEN_PIPE
        except (LightningError, OSError) as error:
            logger.debug("agl %s failed", args.command, exc_info=True)
            output.say(f"agl {args.command}: {printable(_masked(str(error)))}")
            return BAD_INPUT
    return code


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        from importlib.metadata import version  # a quarter of the time of `agl --help`, were it at the top

        del args, kwargs
        print(f"agl {version('agentlightning-otel')}")
        parser.exit()


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; of the commands only ``chosen`` knows its arguments."""
    parser = argparse.ArgumentParser(
        prog="agl",
        description="The flight recorder for agents that are trained with reinforcement learning.",
        epilog="agl COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        if name == chosen:
            import_module(f".{name}", __package__).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def _chosen(arguments: list[str]) -> str | None:
    return next((word for word in arguments if not word.startswith("-")), None)


class _MaskedLog(logging.Filter):
    """Loads what masks secrets only when something is logged."""

    def filter(self, record: logging.LogRecord) -> bool:
        from ..pipeline import SecretFilter

        return SecretFilter().filter(record)


def _masked(text: str) -> str:
    """Return an error's text without keys and passwords, such as that of a store's URL."""
    from ..pipeline.redact import Redactor
    from ..pipeline.rules import KEY_RULES

    return Redactor(KEY_RULES).text(text)


@contextmanager
def _logging(level: str | None) -> Iterator[None]:
    """Show the project's log on stderr while a command runs."""
    wanted = resolve_setting(LightningEnvVar.AGL_LOG_LEVEL, level, "WARNING") or "WARNING"
    number = logging.getLevelNamesMapping().get(wanted.upper(), logging.WARNING)
    handler = logging.StreamHandler()
    handler.addFilter(_MaskedLog())
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(number)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _discard_stdout() -> None:
    """Point stdout to ``/dev/null``: the interpreter flushes it at exit, which would fail again on the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
