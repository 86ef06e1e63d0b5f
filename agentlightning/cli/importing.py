"""``agl import``: trajectories and sessions of other tools, into a store.

All files are read and checked, also against what the store has, before anything is written: one that is bad leaves the
store as it was. What breaks off later, as on a full disk, says how many documents were stored by then; a document that
was stored by half is completed when it is imported again.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DocumentDiffers, ImportBrokeOff, LightningError, NotADocument
from ..exchange import Imported, read_documents
from ..exchange.documents import FORMATS
from ..pipeline.policy import RedactionPolicy, redaction_policy
from ..store.importing import check_imports, store_document
from ..store.registry import open_store
from . import lookup, options, output
from .entry import BROKEN_PIPE, DONE, discard_stdout, sentence

if TYPE_CHECKING:
    from ..store.base import LightningStore

STDIN = "-"


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "import",
        run,
        details="Each document becomes a rollout, once, however often it is imported. All files are checked before "
        "anything is written. Token ids in them are kept and never trained: nobody here saw them sampled.",
    )
    parser.add_argument(
        "files",
        nargs="+",
        type=options.not_empty,
        metavar="FILE",
        help="an ATIF document, one a line, or a session in Hugging Face's STS-Format; - is standard input",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: as recognised in each file")


def run(args: argparse.Namespace) -> int:
    """Import the files."""
    return asyncio.run(_run(args))


class _File(NamedTuple):
    """What is read twice: once to check it, and once to store it."""

    name: str
    path: Path
    digests: list[str]
    """Those of its documents, as they were checked. The documents are read again: together they may be large."""

    def documents(self, args: argparse.Namespace) -> Iterator[Imported]:
        return read_documents(self.path, format=args.format, name=self.name)


async def _run(args: argparse.Namespace) -> int:
    redaction = redaction_policy()
    done = _Done()
    with TemporaryDirectory(prefix="agl-import-") as folder:
        files = [_File(name, _readable_twice(name, Path(folder)), []) for name in args.files]
        known: dict[str, str] = {}
        with output.progress(len(files), "checking") as advance:
            for file in files:
                for document in file.documents(args):
                    if known.setdefault(document.rollout_id, document.digest) != document.digest:
                        raise DocumentDiffers(document.own_id or document.digest, document.rollout_id)
                    file.digests.append(document.digest)
                advance()
        async with open_store(lookup.store_url(args.store)) as store:
            await check_imports(store, known)
            with output.progress(len(files), "importing") as advance:
                for file in files:
                    try:
                        await _store(store, file, args, redaction, done)
                    except (LightningError, OSError) as error:
                        raise ImportBrokeOff(done.new, sentence(error)) from error
                    advance()
    output.say(_told(args, done))
    return DONE if done.is_read else BROKEN_PIPE


@dataclass
class _Done:
    new: int = 0
    again: int = 0
    is_read: bool = True
    """Whether somebody still reads what is printed; the import goes on where nobody does."""


async def _store(
    store: LightningStore, file: _File, args: argparse.Namespace, redaction: RedactionPolicy, done: _Done
) -> None:
    checked = iter(file.digests)
    try:
        for document in file.documents(args):
            if document.digest != next(checked, None):
                raise _changed(file)
            stored = await store_document(store, document, redaction=redaction)
            done.new += stored.is_new
            done.again += not stored.is_new
            if stored.is_new:
                _print(
                    f"{stored.rollout_id}  {document.format}, {output.count(stored.spans, 'span')}  {file.name}",
                    done,
                )
    except NotADocument as error:
        raise _changed(file) from error
    if next(checked, None) is not None:
        raise _changed(file)


def _print(line: str, done: _Done) -> None:
    try:
        output.out(line)
        sys.stdout.flush()
    except BrokenPipeError:
        discard_stdout()
        done.is_read = False


def _changed(file: _File) -> NotADocument:
    return NotADocument(file.name, "it has changed since it was checked")


def _readable_twice(name: str, folder: Path) -> Path:
    """Return where a file can be read as often as one likes: of standard input, a pipe or a device, a copy of it."""
    path = Path(name)
    if name != STDIN and (path.is_file() or path.is_dir() or not path.exists()):
        return path
    copy = folder / str(len([*folder.iterdir()]))
    with copy.open("wb") as taken:
        if name == STDIN:
            shutil.copyfileobj(sys.stdin.buffer, taken)
        else:
            with path.open("rb") as given:
                shutil.copyfileobj(given, taken)
    return copy


def _told(args: argparse.Namespace, done: _Done) -> str:
    new, again = done.new, done.again
    said = [f"{output.count(new, 'document')} imported" if new else ""]
    said += [f"{again:,} {'was' if again == 1 else 'were'} there already" if again else ""]
    shown = f"; agl show ROLLOUT{options.again(args)} shows one" if new else ""
    return ", ".join(word for word in said if word) + shown
