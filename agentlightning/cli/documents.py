"""``agl export --format atif`` and ``sts``: whole attempts in formats that other tools read."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..errors import UsageError
from ..exchange import to_atif, to_sessions
from ..exchange.imported import is_half
from ..pipeline.policy import redaction_policy, redactor_of
from ..store.base import LightningStore
from ..store.primitives import packed_spans
from ..types import Attempt, Rollout
from . import lookup, options, output, selection
from .entry import DONE, NEGATIVE
from .whole_file import STDOUT, whole_file

Line = Mapping[str, Any]

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
_LONGEST_NAME = 160
"""Bytes of an id in a name: file systems take 255, and there is more in a name, above all while it is written."""
ENDINGS = {"atif": (".json", ".jsonl"), "sts": (".jsonl",)}
"""Format → endings of a file that takes it; a file may have none."""


async def run(args: argparse.Namespace) -> int:
    """Write the documents.

    Raises:
        UsageError: The file's ending is of another format, or there are more documents than the one that it takes;
            nothing was written.
    """
    is_folder = args.output != STDOUT and (args.output.endswith("/") or Path(args.output).is_dir())
    ending, allowed = Path(args.output).suffix, ENDINGS[args.format]
    if not is_folder and ending and ending.lower() not in allowed:
        raise UsageError(
            f"{args.output}: --format {args.format} writes JSON, and no file that ends with {ending}; take "
            f"{' or '.join(allowed)}, or name a folder, such as trajectories/"
        )
    documents, without = 0, 0
    halves: list[str] = []
    async with lookup.open_existing(args.store) as store:
        rollouts = list(reversed((await selection.matching(store, args, to_read=True)).rollouts))
        with (
            _Target(args, is_folder=is_folder) as target,
            output.progress(len(rollouts), "exporting") as advance,
        ):
            async for rollout, number, found in _documents(store, rollouts, args, halves):
                for lines in found:
                    target.write(_name(rollout, number), lines)
                documents += len(found)
                without += not found
                advance()
            target.keep()
    return _tell(args, documents, len(rollouts), without - len(halves), halves)


class _Target:
    """Where documents go: to standard output or a file, or to a folder with a file each.

    A file takes its name when all is well; one of a folder when it is written.
    """

    def __init__(self, args: argparse.Namespace, *, is_folder: bool) -> None:
        self._output: str = args.output
        self._is_folder = is_folder
        self._ending = ".json" if args.format == "atif" else ".jsonl"
        # One ATIF document is a line, and lines can follow each other; a session has several, and a file to itself.
        self._takes_one = args.format == "sts" or Path(args.output).suffix == ".json"
        self._held: Sequence[Line] = ()
        """The only document of standard output, which takes back nothing, until all is known."""
        self._taken: set[str] = set()
        self._written = 0
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self._is_folder:
            Path(self._output).mkdir(parents=True, exist_ok=True)
        else:
            self._writer, self._keep = self._open.enter_context(whole_file(self._output, "jsonl", {}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return self._open.__exit__(kind, error, trace)

    def write(self, name: str, lines: Sequence[Line]) -> None:
        """Write a document."""
        if self._is_folder:
            with whole_file(str(Path(self._output) / self._free(name)), "jsonl", {}) as (writer, keep):
                for line in lines:
                    writer.write(dict(line))
                keep(True)
            return
        if self._written and self._takes_one:
            raise UsageError(
                f"there are several documents, and {_named(self._output)} takes one; name a folder, which gets a file "
                f"for each: -o {Path(self._output).stem if self._output != STDOUT else 'trajectories'}/"
            )
        self._written += 1
        if self._takes_one and self._output == STDOUT:
            self._held = lines
            return
        for line in lines:
            self._writer.write(dict(line))

    def keep(self) -> None:
        """Give the file its name, if there is something in it."""
        if not self._is_folder:
            for line in self._held:
                self._writer.write(dict(line))
            self._keep(self._written > 0)

    def _free(self, name: str) -> str:
        """Return a name in the folder that no other document of this command has."""
        found, number = f"{name}{self._ending}", 1
        while found in self._taken:
            number += 1
            found = f"{name}.{number}{self._ending}"
        self._taken.add(found)
        return found


def _named(output_: str) -> str:
    return "standard output" if output_ == STDOUT else output_


def _name(rollout: Rollout, number: int | None) -> str:
    """Return the name of a file without its ending: the rollout's id, and the attempt where several are written."""
    own = _NOT_IN_NAMES.sub("_", rollout.rollout_id).strip(".") or "_"
    data = own.encode(errors="replace")
    if len(data) > _LONGEST_NAME:  # several ids may begin with what is left
        digest = hashlib.blake2b(rollout.rollout_id.encode(errors="replace"), digest_size=6).hexdigest()
        own = f"{data[:_LONGEST_NAME].decode(errors='ignore')}-{digest}"
    return own if number is None else f"{own}.attempt-{number}"


async def _documents(
    store: LightningStore, rollouts: Sequence[Rollout], args: argparse.Namespace, halves: list[str]
) -> AsyncIterator[tuple[Rollout, int | None, list[Sequence[Line]]]]:
    """Yield each attempt that is meant: its rollout, its number where several are meant, and its documents.

    ``halves`` gets the rollouts whose import broke off: as documents they would look whole, and are not.
    """
    redactor = redactor_of(redaction_policy())
    mask = None if redactor is None else redactor.value
    for rollout in rollouts:
        attempts: list[Attempt] = list(await store.query_attempts(rollout.rollout_id))
        if not attempts:
            yield rollout, None, []
        for attempt in attempts if args.all_attempts else attempts[-1:]:
            spans = await packed_spans(store, rollout.rollout_id, attempt.attempt_id)
            number = attempt.sequence_id if args.all_attempts else None
            if is_half(spans):
                halves.append(rollout.rollout_id)
                yield rollout, number, []
                continue
            if args.format == "sts":
                name = _title(rollout)
                found = to_sessions(spans, rollout=rollout, attempt=attempt, name=name, mask=mask)
                yield rollout, number, list(found)
            else:
                document = to_atif(spans, rollout=rollout, attempt=attempt, mask=mask)
                yield rollout, number, [] if document is None else [[document]]


def _title(rollout: Rollout) -> str | None:
    """Return what a person calls a rollout."""
    return output.one_line(selection.title(rollout), 120) or None


def _tell(
    args: argparse.Namespace, documents: int, rollouts: int, without: int, halves: Sequence[str]
) -> int:
    where = "" if args.output == STDOUT else f" to {args.output}"
    noun = "session" if args.format == "sts" else "trajectory document"
    if documents:
        output.say(f"{output.count(documents, noun)}{where}")
    elif not rollouts:
        output.say(f"no rollout matches; agl rollouts{options.again(args)} lists what there is")
    if without:
        output.say(
            f"{output.count(without, 'attempt')} gave none, for no call of a model was recorded; agl show "
            f"ROLLOUT{options.again(args)} shows what was"
        )
    if halves:
        first = f"{halves[0]}{', …' if len(halves) > 1 else ''}"
        output.say(
            f"{output.count(len(halves), 'attempt')} left out ({first}): the import broke off, so the document is not "
            "whole; agl import FILE of the same document completes it"
        )
    return DONE if documents and not halves else NEGATIVE
