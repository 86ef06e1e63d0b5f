"""The entry point of ``agl``: parses ``argv``, runs the command, and turns errors into one line and an exit code.

Exit codes: 0 done; 1 a negative answer (``store check`` or ``doctor`` found something, there are no rows, two rollouts
differ, a receiver did not take all); 2 bad usage or bad input, or something that the command needs is not to be had; 70
a defect of ours; 130 interrupted; 141 nobody reads the output any more. ``agl run`` returns that of its program.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn, cast

from .. import _absent
from .._printable import PrintableFormatter, printable
from ..env_var import LightningEnvVar, resolve_setting
from ..errors import LightningError
from . import output
from .options import COMMANDS, MODULES

DONE, NEGATIVE, BAD_INPUT, DEFECT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 70, 130, 141
"""As ``grep`` has them: 1 answers "no", 2 is trouble. 70 is EX_SOFTWARE of ``sysexits.h``; 130 and 141 are 128 + SIGINT
and 128 + SIGPIPE, as a shell reports a program that the signal ended."""

_CURES = {
    errno.ENOENT: "check the name",
    errno.ENOTDIR: "check the name: a part of it is no folder",
    errno.EISDIR: "name a file in it",
    errno.EACCES: "change its rights, or name another place",
    errno.EPERM: "change its rights, or name another place",
    errno.EROFS: "name another place",
    errno.ENOSPC: "make room, or name another place",
    errno.EDQUOT: "make room, or name another place",
    errno.ENAMETOOLONG: "take a shorter name",
}
"""What to do about an error of the operating system."""

_NEGATIVE = re.compile(r"-(\d|\.\d|inf)")
"""How a value begins that is a negative number, or a range from one."""

logger = logging.getLogger("agentlightning")


def main(argv: Iterable[str] | None = None) -> int:
    """Run ``agl`` with these arguments (default: those of the process) and return its exit code.

    Raises:
        SystemExit: For ``--help``, ``--version`` and bad usage, as argparse does.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    output.prepare_streams()
    name = "agl"
    try:
        # Everything is inside, so that Ctrl-C while a command is still being imported shows no traceback either.
        try:
            arguments, store = _without_store(arguments)
            parser = build_parser(_chosen(arguments))
            _check_order(parser, arguments)
            if absent := _absent.command(arguments):
                output.say(f"agl: {absent}")
                return BAD_INPUT
            args = parser.parse_args(arguments)
            name = args.prog
            if store is not None:
                if "store" not in args:
                    parser.error(f"{name} opens no store, so that --store says nothing to it")
                args.store = args.store or store
            with _logging(args.log_level):
                return _run(args)
        finally:
            # A pipe that is closed and a disk that is full show here, where they can be told, also after --help. At the
            # interpreter's exit they would be an "Exception ignored" and exit code 120.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        discard_stdout()
        return BROKEN_PIPE
    except (LightningError, OSError) as error:
        output.say(f"{name}: {printable(_masked(sentence(error)))}")
        _discard_what_cannot_be_written()
        return BAD_INPUT


def _run(args: argparse.Namespace) -> int:
    """Run the command; an error that it does not raise on purpose is told as what it is, a defect."""
    try:
        return cast("int", args.run(args))
    except (LightningError, OSError):
        logger.debug("%s failed", args.prog, exc_info=True)
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is, a person gets a sentence and not a traceback
        logger.debug("%s failed", args.prog, exc_info=True)
        output.say(
            f"{args.prog}: {type(error).__name__}: {printable(_masked(str(error)))}. This is a defect of "
            "agentlightning: please report it, with what --log-level DEBUG prints"
        )
        return DEFECT


def sentence(error: Exception) -> str:
    """Return an error on one line, with what to do. Errors of ours say it; those of the system name a file at best."""
    if isinstance(error, LightningError) or not isinstance(error, OSError) or not error.strerror:
        return str(error)
    what = error.strerror[:1].lower() + error.strerror[1:]
    if error.filename is not None:
        what = f"{error.filename}: {what}"
    elif error.errno == errno.ENOENT and not _in_a_folder():
        return "the current folder is not there any more; change to another one"
    cure = _CURES.get(error.errno or 0)
    return f"{what}; {cure}" if cure else what


def _in_a_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109 - only whether it fails
    except OSError:
        return False
    return True


class Parser(argparse.ArgumentParser):
    """Says what is wrong with arguments on one line, in the name of the command that got them.

    argparse prints the whole usage before it, twelve lines in a narrow terminal; and an argument that a subcommand does
    not know is told by the parser above it, which names the wrong ``--help``.
    """

    def error(self, message: str) -> NoReturn:
        """Print the line and exit with 2."""
        output.say(f"{self.prog}: {message}; {self.prog} --help lists what it takes")
        self.exit(BAD_INPUT)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse; nobody but this parser takes what is left over."""
        words = list(sys.argv[1:] if args is None else args)
        found, unknown = super().parse_known_args(
            _with_signed_values(words, self.get_default("signed") or ()), namespace
        )
        if unknown:
            self.error(f"it does not know {' '.join(unknown)}")
        return found, unknown


def _with_signed_values(words: list[str], signed: Sequence[str]) -> list[str]:
    """Write ``--reward -1..0`` as ``--reward=-1..0``: argparse would look for an option ``-1..0``."""
    found: list[str] = []
    for word in words:
        if found and found[-1] in signed and _NEGATIVE.match(word):
            found[-1] = f"{found[-1]}={word}"
        else:
            found.append(word)
    return found


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> NoReturn:
        from importlib.metadata import version  # a quarter of the time of `agl --help`, were it at the top

        del args, kwargs
        print(f"agl {version('agentlightning-otel')}")
        parser.exit()


def build_parser(chosen: str | None = None) -> argparse.ArgumentParser:
    """Return the parser; of the commands only ``chosen`` knows its arguments."""
    parser = Parser(
        prog="agl",
        description="The flight recorder for agents that are trained with reinforcement learning.",
        epilog="agl COMMAND --help explains a command.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    # Only the module of the chosen command is imported: with all of them, ``agl --help`` would take seconds.
    for name, summary in COMMANDS.items():
        if name == chosen:
            import_module(f".{MODULES.get(name, name).replace('-', '_')}", __package__).add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=summary, add_help=False)
    return parser


def _chosen(arguments: list[str]) -> str | None:
    """Return the command; options of ``agl`` itself take no value, so it is the first word that is no option."""
    return next((word for word in arguments if not word.startswith("-")), None)


def _without_store(arguments: list[str]) -> tuple[list[str], str | None]:
    """Return the arguments without a ``--store`` that stands before the command, and what that names."""
    option, is_one_word, value = (arguments[0] if arguments else "").partition("=")
    if option != "--store" or (not is_one_word and len(arguments) < 2):
        return arguments, None
    return (arguments[1:], value) if is_one_word else (arguments[2:], arguments[1])


def _check_order(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    """Tell who writes ``agl --log-level DEBUG rollouts``; argparse would say that the level is no command."""
    first = arguments[0] if arguments else ""
    if first.startswith("--") and not any(each.startswith(first) for each in ("--help", "--version")):
        parser.error(f"options such as {first} come after the command: agl COMMAND {first} ...")


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
    wanted = (resolve_setting(LightningEnvVar.AGL_LOG_LEVEL, level) or "WARNING").upper()
    number = logging.getLevelNamesMapping().get(wanted)
    if number is None:  # no reason to do nothing: less is logged than was asked for
        output.say(
            f"agl: AGL_LOG_LEVEL is one of DEBUG, INFO, WARNING, ERROR, not {wanted!r}; it is taken as WARNING"
        )
        number = logging.WARNING
    handler = logging.StreamHandler()
    # On the handler and not on the logger: a logger's filter does not see records of the loggers below it.
    handler.addFilter(_MaskedLog())
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    # Undone at the end: in tests, and wherever else ``main`` is called, the process lives on with its own log.
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(number)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def discard_stdout() -> None:
    """Point stdout to ``/dev/null``: the interpreter flushes it at exit, which would fail again on the closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _discard_what_cannot_be_written() -> None:
    """Let the interpreter's flush at exit succeed where the disk behind stdout is full: that has been told by now."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_stdout()
