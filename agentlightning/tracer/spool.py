"""Where spans wait on disk when their store does not answer.

A spool is a folder of JSON Lines files. Each file is one batch, written under a temporary name, synced, and
renamed, so that a file is either whole or not there. The first line names the format and the store; the others
are arguments of ``add_many_spans``. The next start delivers every file that was meant for its store and deletes
it after the store has acknowledged it; delivering twice is harmless, because ``add_many_spans`` is idempotent.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from ..env_var import LightningEnvVar, resolve_setting
from ..store.base import LightningStore, add_batch, new_writer_id
from ..types import Account, Span

_log = logging.getLogger(__name__)

FORMAT = "agentlightning-spool"
VERSION = 1
DEFAULT_MAX_BYTES = 512 * 1024 * 1024
RACES = 100
"""How often a write finds its folder taken away by a delivery before it gives up."""

ABOUT_DATA = (ValueError, TypeError, OverflowError, RecursionError, AttributeError, KeyError)
"""What a store may raise because of what is in a batch (an unknown attempt is a ``ValueError``); trying again does
not help, a smaller batch may. Anything else is about the store."""


class Batch(NamedTuple):
    """The arguments of one ``add_many_spans``."""

    spans: List[Span]
    opened: List[Span]
    accounts: List[Account]

    def by_attempt(self) -> List[Batch]:
        """Return the same as one batch for each attempt, with order kept."""
        parts: Dict[Tuple[str, str], Batch] = {}
        for whole, kind in ((self.spans, 0), (self.opened, 1), (self.accounts, 2)):
            for each in whole:
                part = parts.setdefault((each.rollout_id, each.attempt_id), Batch([], [], []))
                part[kind].append(each)  # type: ignore[arg-type]
        return list(parts.values())


def spool_dir_for(store: LightningStore) -> Path:
    """Return the folder in which spans for ``store`` wait.

    ``AGL_SPOOL_DIR`` if set; ``<store file>.spool`` beside a store that is a file; else
    ``$XDG_STATE_HOME/agentlightning/spool`` (``~/.local/state`` where the variable is not set, as the XDG base
    directory specification says; below the folder for temporary files where the user has no home).
    """
    named = resolve_setting(LightningEnvVar.AGL_SPOOL_DIR)
    if named:
        return Path(named)
    if store.local_path:
        return Path(f"{store.local_path}.spool")
    state = os.environ.get("XDG_STATE_HOME")
    if state:
        return Path(state, "agentlightning", "spool")
    try:
        home = Path.home()
    except RuntimeError:  # a user that nobody knows, as in many containers
        return Path(tempfile.gettempdir(), f"agentlightning-{os.getuid()}", "spool")
    return home / ".local" / "state" / "agentlightning" / "spool"


def store_key(store: LightningStore) -> str:
    """Return what names a store in a spool file: its URL, else its class.

    A store that is neither durable nor elsewhere ends with its process, so its name says which process that is.
    """
    if store.url:
        return store.url
    kind = f"{type(store).__module__}.{type(store).__qualname__}"
    return kind if store.capabilities.get("durable") else f"{kind} in {new_writer_id(0)}"


class Spool:
    """The spool of one store."""

    def __init__(self, store: LightningStore, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._store = store
        self.folder = spool_dir_for(store)
        self._max_bytes = max_bytes

    def write(self, batch: Batch, name: str) -> bool:
        """Put a batch on disk; return whether it is there. Never raises.

        Args:
            batch: What the store did not take.
            name: Part of the file name that no other batch has.
        """
        try:
            data = self._encode(batch)
            for _ in range(RACES):
                try:
                    return self._put(data, name)
                except FileNotFoundError:  # a delivery has just taken the empty folder away
                    continue
                except FileExistsError:  # … between mkdir's try and its look; or something else has the name
                    if self.folder.exists() and not self.folder.is_dir():
                        raise
            _log.error("spool %s is taken away again and again", self.folder)
        except Exception as error:  # noqa: BLE001 - see above
            _log.error("spool %s cannot be written: %s", self.folder, error)
        return False

    def _encode(self, batch: Batch) -> bytes:
        lines: List[Dict[str, Any]] = [
            {"format": FORMAT, "version": VERSION, "store": store_key(self._store)}
        ]
        lines += [{"span": span.model_dump()} for span in batch.spans]
        lines += [{"opened": span.model_dump()} for span in batch.opened]
        lines += [{"account": account.model_dump()} for account in batch.accounts]
        return "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines).encode("ascii")

    def _put(self, data: bytes, name: str) -> bool:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._used() + len(data) > self._max_bytes:
            _log.error("spool %s is full (%d bytes); the batch is dropped", self.folder, self._max_bytes)
            return False
        temporary = self.folder / f".{name}.tmp"
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.folder / f"{name}.jsonl")
        return True

    def _used(self) -> int:
        return sum(status.st_size for _, status in self._waiting())

    def _waiting(self) -> List[Tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.glob("*.jsonl"):
            with contextlib.suppress(OSError):  # delivered meanwhile
                found.append((path, path.stat()))
        return found

    def files(self) -> List[Path]:
        """Return the files that wait, oldest first (of every store that shares this folder)."""
        try:
            waiting = self._waiting()
        except OSError:
            return []
        return [
            path for path, status in sorted(waiting, key=lambda each: (each[1].st_mtime_ns, each[0].name))
        ]

    async def deliver(self) -> int:
        """Send what waits for this store; return the number of spans that it acknowledged.

        A file of which the store refuses a part (an attempt that it does not know) stays where it is, and is named
        in the log; so does one that cannot be read. A failing store ends the delivery with its own exception.
        """
        delivered = 0
        for path in self.files():
            with _claimed(path) as mine:
                batch = self._read(path) if mine else None
                if batch is None:
                    continue
                taken, refusal = await self._send(batch)
                delivered += taken
                if refusal is None:
                    path.unlink(missing_ok=True)
                else:
                    _log.warning("spooled spans in %s stay there: %s", path, refusal)
        if delivered:
            _log.info("delivered %d spooled spans from %s", delivered, self.folder)
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        return delivered

    async def _send(self, batch: Batch) -> Tuple[int, Optional[Exception]]:
        """Send a batch, attempt by attempt if the store refuses it whole; return how much, and what was refused."""
        try:
            return await self._add(batch), None
        except ABOUT_DATA:
            pass
        taken, refusal = 0, None
        for part in batch.by_attempt():
            try:
                taken += await self._add(part)
            except ABOUT_DATA as error:
                refusal = error
        return taken, refusal

    async def _add(self, batch: Batch) -> int:
        stored = await add_batch(self._store, batch.spans, opened=batch.opened, accounts=batch.accounts)
        return len(batch.spans if stored is None else stored)

    def _read(self, path: Path) -> Optional[Batch]:
        try:
            head, *lines = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
            if head.get("format") != FORMAT or head.get("version") != VERSION:
                raise ValueError(f"it is not a spool file of version {VERSION}")  # noqa: TRY301
            if head["store"] != store_key(self._store):
                return None
            return Batch(
                [Span(**line["span"]) for line in lines if "span" in line],
                [Span(**line["opened"]) for line in lines if "opened" in line],
                [Account(**line["account"]) for line in lines if "account" in line],
            )
        except (OSError, ValueError, KeyError, AttributeError) as error:
            _log.warning("spool file %s stays there, it cannot be read: %s", path, error)
            return None


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Hold an advisory lock on a file; yields whether this process has it and the file still exists."""
    try:
        file = path.open("rb")
    except OSError:
        yield False
        return
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield path.exists()
