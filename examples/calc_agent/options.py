"""The options of the command, and what to type after it; loads nothing that takes long."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from .settings import Settings

PICTURES = (".png", ".svg", ".pdf")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options that were given; ends the process, with one sentence, where they cannot be used."""
    found = parser()
    options = found.parse_args(arguments)
    if is_same(options.out_db, options.picture):
        found.error(f"--out-db and --picture are one file: {options.picture} would replace the store")
    return options


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    found = argparse.ArgumentParser(
        "calc_agent", description="A policy learns from the traces of an ordinary agent."
    )
    found.add_argument("--seed", type=int, default=0, help="equal seeds give equal curves (default: 0)")
    found.add_argument(
        "--control",
        action="store_true",
        help="give each rollout's reward to another one: nothing may be learnt",
    )
    found.add_argument(
        "--iterations",
        type=at_least(0),
        default=Settings.iterations,
        help=f"how often it plays and learns; what it promises needs the default ({Settings.iterations})",
    )
    found.add_argument(
        "--out-db",
        type=file,
        default="quickstart.db",
        help="the store; a run adds to it (default: quickstart.db)",
    )
    found.add_argument(
        "--picture",
        type=picture,
        default="quickstart.png",
        help="the curve (default: quickstart.png)",
    )
    found.add_argument(
        "--at-once",
        type=at_least(1),
        default=Settings.at_once,
        help=f"rollouts that run concurrently (default: {Settings.at_once})",
    )
    found.add_argument("--quiet", action="store_true", help="print nothing unless it fails")
    found.add_argument("--json", action="store_true", help="print one JSON document at the end")
    return found


def at_least(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that are not smaller."""

    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, not {text}")
        return int(text)

    return number


def file(text: str) -> Path:
    """Return the path of a file in a folder that exists: what is wrong with it is said before the run, not after."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is no file in a folder that exists")
    return path


def picture(text: str) -> Path:
    """Return the path of a file whose ending says what kind of picture it is."""
    if Path(text).suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"{text} ends in none of {', '.join(PICTURES)}")
    path = file(text)
    target = Path(os.path.realpath(path))
    is_new = not target.exists()
    try:
        # Tried, because the permissions do not tell: nothing can be made in some folders, whoever asks.
        with target.open("ab"):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error.strerror}") from None
    if is_new:
        target.unlink()
    return path


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one file, through links too, which may not be there yet."""
    if one.exists() and other.exists():
        return one.samefile(other)
    return os.path.realpath(one) == os.path.realpath(other)


def next_command(database: Path) -> str:
    """Return what to type after a run, in the same folder, to see what it has recorded."""
    agl = str(Path(sys.executable).with_name("agl"))
    return shlex.join([min(os.path.relpath(agl), agl, key=len), "show", "--store", f"sqlite:///{database}"])
