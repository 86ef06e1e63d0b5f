"""``agl import``: trajectories and sessions of other tools, into a store.

All files are read and checked before anything is written: one that is bad leaves the store as it was.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path

from ..errors import DocumentDiffers
from ..exchange import Imported, read_documents
from ..exchange.documents import FORMATS
from ..pipeline.policy import RedactionPolicy, new_redactor, redaction_policy
from ..store.importing import store_document
from ..store.registry import open_store
from . import lookup, options, output
from .entry import DONE


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
        help="an ATIF document, one a line, or a session in Hugging Face's STS-Format",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: as recognised in each file")


def run(args: argparse.Namespace) -> int:
    """Import the files."""
    return asyncio.run(_run(args, [Path(name) for name in args.files]))


async def _run(args: argparse.Namespace, files: Sequence[Path]) -> int:
    known: dict[str, str] = {}
    """Rollout → digest of each document. The documents themselves are read again: together they may be large."""
    with output.progress(len(files), "checking") as advance:
        for file in files:
            for document in read_documents(file, format=args.format):
                _check(document, known)
            advance()
    redactor = new_redactor() if redaction_policy() is RedactionPolicy.INGEST else None
    new = again = 0
    async with open_store(lookup.store_url(args.store)) as store:
        with output.progress(len(files), "importing") as advance:
            for file in files:
                for document in read_documents(file, format=args.format):
                    stored = await store_document(store, document, redactor=redactor)
                    new += stored.is_new
                    again += not stored.is_new
                    if stored.is_new:
                        output.out(
                            f"{stored.rollout_id}  {document.format}, {output.count(stored.spans, 'span')}  {file}"
                        )
                advance()
    output.say(_told(args, new, again))
    return DONE


def _check(document: Imported, known: dict[str, str]) -> None:
    """Refuse a document of whose id another one says something else."""
    if known.setdefault(document.rollout_id, document.digest) != document.digest:
        raise DocumentDiffers(document.own_id or document.digest, document.rollout_id)


def _told(args: argparse.Namespace, new: int, again: int) -> str:
    said = [f"{output.count(new, 'document')} imported" if new else ""]
    said += [f"{again:,} {'was' if again == 1 else 'were'} there already" if again else ""]
    shown = f"; agl show ROLLOUT{options.again(args)} shows one" if new else ""
    return ", ".join(word for word in said if word) + shown
