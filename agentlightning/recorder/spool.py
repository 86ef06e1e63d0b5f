"""Where spans wait on disk when their store does not answer.

A spool is a folder of JSON Lines files. Each file is one batch, written under a temporary name, synced, renamed, and
its folder synced, so that a file is either whole or not there. The first line names the format and the store, by the
identity that the store keeps with its data where it has one, and by its URL; the others are arguments of
``add_many_spans``. The next start delivers every file that was meant for its store and deletes it after the store has
acknowledged it; delivering twice is harmless, because ``add_many_spans`` is idempotent. A copy of a store has its
identity too: in a folder that several stores share, what names the URL of the one is not delivered to the other. A
file that cannot be read or that the store cannot keep goes aside, into the folder ``aside`` in the spool, and stops no
other.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import stat
import tempfile
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from .. import types
from .._private_files import create_file, folder_mode
from ..codec.recorded_span import SpanList, built
from ..env_var import LightningEnvVar, resolve_setting
from ..errors import StoreError
from ..store.base import LightningStore, new_writer_id

if TYPE_CHECKING:
    from ..codec.recorded_span import AnySpan
    from ..types import Account, Span

_log = logging.getLogger(__name__)

FORMAT = "agentlightning-spool"
VERSION = 2
"""Version 1 had no ``store_id``; its files are delivered to the store of their URL."""
DEFAULT_MAX_BYTES = 512 * 1024 * 1024
ASIDE = "aside"
"""Folder in the spool for files that can never be delivered."""
MOST_FAILURES = 3
"""After so many files in a row that the store does not take now, the rest waits for the next start."""
MOST_NAMED = 3
"""Files that stay, and are named one by one."""
RACES = 100
"""How often a write finds its folder taken away by a delivery before it gives up."""
_HEAD_BYTES = 64 * 1024

ABOUT_DATA = (ValueError, TypeError, OverflowError, RecursionError, AttributeError, KeyError)
"""What a store may raise because of what is in a batch (an unknown attempt is a ``ValueError``); trying again does
not help, a smaller batch may. Anything else is about the store."""


class Batch(NamedTuple):
    """The arguments of one ``add_many_spans``."""

    spans: list[AnySpan]
    opened: list[Span]
    accounts: list[Account]

    def attempts(self) -> set[tuple[str, str]]:
        """Return rollout and attempt of all that is in it."""
        return {(each.rollout_id, each.attempt_id) for kind in self for each in kind}

    def by_attempt(self) -> list[Batch]:
        """Return the same as one batch for each attempt, with order kept."""
        parts: dict[tuple[str, str], Batch] = {}
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
        return Path(f"{os.path.realpath(store.local_path)}.spool")  # the same for a link to the file
    state = os.environ.get("XDG_STATE_HOME")
    if state:
        return Path(state, "agentlightning", "spool")
    try:
        home = Path.home()
    except RuntimeError:  # a user that nobody knows, as in many containers
        return Path(tempfile.gettempdir(), f"agentlightning-{os.getuid()}", "spool")
    return home / ".local" / "state" / "agentlightning" / "spool"


def store_key(store: LightningStore) -> str:
    """Return what names a store that has no identity of its own in a spool file: its URL, else its class.

    A store that is neither durable nor elsewhere ends with its process, so its name says which process that is.
    """
    if store.url:
        return store.url
    kind = f"{type(store).__module__}.{type(store).__qualname__}"
    return kind if store.capabilities.get("durable") else f"{kind} in {new_writer_id(0)}"


class _UnusableError(Exception):
    """A spool file that can never be delivered, and why."""


class Spool:
    """The spool of one store."""

    def __init__(self, store: LightningStore, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self._store = store
        self.folder = spool_dir_for(store)
        self._max_bytes = max_bytes
        self._to_send: deque[Path] = deque()
        self._failures = 0
        self._removed = 0
        self._stayed = 0
        """Files of which the store does not know an attempt."""
        # What lies beside a file belongs to it, also where both were copied or moved together.
        self._is_shared = bool(resolve_setting(LightningEnvVar.AGL_SPOOL_DIR)) or not store.local_path
        self._copies: dict[str, bool] = {}

    # ------------------------------------------------------------------ writing

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
                    if _is_something_else(self.folder):
                        raise
            _log.error("spool %s is taken away again and again", self.folder)
        except Exception as error:  # noqa: BLE001 - see above
            _log.error("spool %s cannot be written: %s", self.folder, error)
        return False

    def _encode(self, batch: Batch) -> bytes:
        lines: list[dict[str, Any]] = [
            {
                "format": FORMAT,
                "version": VERSION,
                "store": store_key(self._store),
                "store_id": self._store.store_id,
            }
        ]
        lines += [{"span": built(span).model_dump()} for span in batch.spans]
        lines += [{"opened": span.model_dump()} for span in batch.opened]
        lines += [{"account": account.model_dump()} for account in batch.accounts]
        return "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines).encode("ascii")

    def _put(self, data: bytes, name: str) -> bool:
        make_private_folder(self.folder)
        if self._used() + len(data) > self._max_bytes:
            _log.error("spool %s is full (%d bytes); the batch is dropped", self.folder, self._max_bytes)
            return False
        temporary = self.folder / f".{name}.tmp"
        descriptor = create_file(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                # Without the lock a delivery would take it for one that a dead process left.
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                temporary.rename(self.folder / f"{name}.jsonl")
        except BaseException:  # half of a file would keep a full disk full
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(self.folder)
        return True

    def _used(self) -> int:
        return sum(status.st_size for _, status in self._waiting())

    # ------------------------------------------------------------------ what waits

    def _waiting(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.glob("*.jsonl"):
            with contextlib.suppress(OSError):  # delivered meanwhile
                found.append((path, path.lstat()))
        return found

    def files(self) -> list[Path]:
        """Return the files that wait, oldest first (of every store that shares this folder)."""
        try:
            waiting = self._waiting()
        except OSError:
            return []
        return [
            path for path, status in sorted(waiting, key=lambda each: (each[1].st_mtime_ns, each[0].name))
        ]

    def own_files(self) -> list[Path]:
        """Return the files that wait for this store, oldest first."""
        found = []
        for path in self.files():
            with contextlib.suppress(OSError, _UnusableError), _opened(path) as file:
                if self._is_for_this_store(_head_of(file)):
                    found.append(path)
        return found

    def aside(self) -> list[Path]:
        """Return the files that went aside, of whatever store they are."""
        try:
            return sorted((self.folder / ASIDE).iterdir())
        except OSError:
            return []

    def _is_for_this_store(self, head: dict[str, Any]) -> bool:
        if head.get("version") not in (1, VERSION):  # a newer release will read it
            return False
        own = self._store.store_id
        if own is not None and head.get("store_id") is not None:
            return bool(head["store_id"] == own) and not self._is_of_a_copy(head.get("store"))
        return bool(head.get("store") == store_key(self._store))

    def _is_of_a_copy(self, url: Any) -> bool:
        """Whether a file was written for a copy of this store, or for the one of which this is a copy."""
        if not self._is_shared or not isinstance(url, str) or url == store_key(self._store):
            return False
        if url not in self._copies:
            self._copies[url] = self._store.has_copy_at(url)
        return self._copies[url]

    def files_of_copies(self) -> dict[str, list[Path]]:
        """Return the files that wait for copies of this store, by URL."""
        self.own_files()
        copies = [url for url, there in self._copies.items() if there]
        found: dict[str, list[Path]] = {}
        for path in self.files() if copies else ():
            with contextlib.suppress(OSError, _UnusableError), _opened(path) as file:
                head = _head_of(file)
                if head.get("store_id") == self._store.store_id and head.get("store") in copies:
                    found.setdefault(head["store"], []).append(path)
        return found

    def waiting_spans(self) -> dict[tuple[str, str], int]:
        """Return how many finished spans of each attempt wait for this store."""
        found: dict[tuple[str, str], int] = {}
        for path in self.own_files():
            with contextlib.suppress(OSError, _UnusableError), _opened(path) as file:
                batch = self._read(file)
                for span in batch.spans if batch is not None else ():
                    ids = span.rollout_id, span.attempt_id
                    found[ids] = found.get(ids, 0) + 1
        return found

    # ------------------------------------------------------------------ delivering

    async def deliver(self) -> int:
        """Send what waits for this store; return the number of spans that it acknowledged.

        A file of which the store refuses a part (an attempt that it does not know) stays where it is, and is named
        in the log; one that cannot be read goes aside. A failing store ends the delivery with its own exception.
        """
        delivered = 0
        self.begin_delivery()
        while (number := await self.deliver_next()) is not None:
            delivered += number
        return delivered

    def begin_delivery(self) -> bool:
        """Look at what waits now; return whether there is anything for :meth:`deliver_next`."""
        self._remove_unfinished()
        self._to_send = deque(self.files())
        self._failures = self._stayed = self._removed = 0
        self._copies = {}
        return bool(self._to_send)

    async def deliver_next(self) -> int | None:
        """Send the oldest file that was found; return how many spans the store acknowledged, ``None`` at the end."""
        try:
            path = self._to_send.popleft()
        except IndexError:
            if (
                self._removed
            ):  # else a delivery that finds nothing takes the folder from one who writes, for ever
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
            self._say_what_stays()
            return None
        try:
            with _claimed(path) as file:
                return await self._deliver_file(path, file) if file is not None else 0
        except _UnusableError as error:
            self._put_aside(path, error)
            return 0

    async def _deliver_file(self, path: Path, file: IO[bytes]) -> int:
        batch = self._read(file)
        if batch is None:
            return 0
        try:
            taken, refusal = await self._send(batch)
        except Exception as error:
            self._failures += 1
            if self._failures == MOST_FAILURES or not self._to_send:
                raise
            _log.warning("spooled spans in %s stay there: %s", path, error)
            return 0
        self._failures = 0
        if refusal is None:
            path.unlink(missing_ok=True)
            self._removed += 1
            _log.info("delivered %d spooled spans from %s", taken, path)
        elif isinstance(refusal, ABOUT_DATA):
            self._stayed += 1
            if self._stayed <= MOST_NAMED:
                _log.warning("spooled spans in %s stay there: %s", path, refusal)
        else:
            raise _UnusableError(str(refusal))
        return taken

    def _say_what_stays(self) -> None:
        if self._stayed > MOST_NAMED:
            _log.warning(
                "… and %d more files in %s; `agl store check` names their attempts",
                self._stayed - MOST_NAMED,
                self.folder,
            )
        for url, is_there in self._copies.items():
            if is_there:
                _log.warning(
                    "spans in %s wait for %s, which has the same identity as this store: one of them is a copy",
                    self.folder,
                    url,
                )

    async def _send(self, batch: Batch) -> tuple[int, Exception | None]:
        """Send a batch, attempt by attempt if the store refuses it whole; return how much, and what was refused."""
        try:
            return await self._add(batch), None
        except ABOUT_DATA:
            pass
        except StoreError as error:
            # Of those with a name of their own only these are about the data.
            if type(error) is not StoreError:
                raise
        taken = 0
        refusal: Exception | None = None
        for part in batch.by_attempt():
            try:
                taken += await self._add(part)
            except ABOUT_DATA as error:
                refusal = error
            except StoreError as error:
                if type(error) is not StoreError:
                    raise
                refusal = error
        return taken, refusal

    async def _add(self, batch: Batch) -> int:
        return len(
            await self._store.add_many_spans(
                SpanList(batch.spans), opened=batch.opened, accounts=batch.accounts
            )
        )

    def _read(self, file: IO[bytes]) -> Batch | None:
        """Return what a file holds; ``None`` where it is another store's.

        Raises:
            _UnusableError: It cannot be read.
        """
        head = _head_of(file)
        if not self._is_for_this_store(head):
            return None
        if os.fstat(file.fileno()).st_size > self._max_bytes:
            raise _UnusableError(f"it has more than {self._max_bytes} bytes")
        batch = Batch([], [], [])
        try:
            for text in file:
                line = json.loads(text)
                if "span" in line:
                    batch.spans.append(types.Span(**line["span"]))
                elif "opened" in line:
                    batch.opened.append(types.Span(**line["opened"]))
                elif "account" in line:
                    batch.accounts.append(types.Account(**line["account"]))
        except Exception as error:
            raise _UnusableError(f"{type(error).__name__}: {str(error)[:200]}") from error
        return batch

    def _put_aside(self, path: Path, why: Exception) -> None:
        """Move a file out of the way of the others; nobody reads it again."""
        try:
            folder = self.folder / ASIDE
            folder.mkdir(mode=0o700, exist_ok=True)
            path.rename(folder / path.name)
            _log.warning("spool file %s cannot be delivered and lies in %s now: %s", path.name, folder, why)
        except OSError as error:
            _log.warning("spool file %s cannot be delivered (%s) nor moved: %s", path, why, error)

    def _remove_unfinished(self) -> None:
        """Remove what processes that are gone were writing when they died."""
        try:
            unfinished = list(self.folder.glob(".*.tmp"))
        except OSError:  # the folder has just been taken away
            return
        for path in unfinished:
            with contextlib.suppress(OSError, _UnusableError), _claimed(path) as file:
                if file is not None:
                    path.unlink()


def make_private_folder(folder: Path) -> None:
    """Make a folder that is the user's alone, unless the one above says otherwise; or find it.

    Raises:
        PermissionError: Somebody else made it, in a place where everybody may.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        mode = folder_mode(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o777 if mode is None else mode)
        _sync_folder(folder.parent)
    for status in (folder.lstat(), folder.stat()):  # a link, and where it leads
        if status.st_uid not in (os.geteuid(), 0) and _is_open_to_all(folder.parent):
            raise PermissionError(f"{folder} belongs to another user; set AGL_SPOOL_DIR to a folder of yours")


def _is_something_else(path: Path) -> bool:
    """Whether a path names what is no folder. One look: a folder may be taken away between two."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return path.is_symlink()  # a link that leads nowhere stays in the way


def _is_open_to_all(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IWOTH)


def _sync_folder(folder: Path) -> None:
    """Make a name in a folder survive a loss of power."""
    with contextlib.suppress(OSError):  # some file systems cannot
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _opened(path: Path) -> IO[bytes]:
    """Open a file of the spool for reading; nothing else than a file, and no link.

    Raises:
        OSError: It is gone, or cannot be opened now.
        _UnusableError: It is no file.
    """
    try:
        # Without O_NONBLOCK a named pipe would wait for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise _UnusableError("it is no file") from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _UnusableError("it is no file")
    return os.fdopen(descriptor, "rb")


def _head_of(file: IO[bytes]) -> dict[str, Any]:
    """Read the first line.

    Raises:
        _UnusableError: It is not that of a spool file.
    """
    try:
        head = json.loads(file.readline(_HEAD_BYTES))
    except (ValueError, RecursionError) as error:
        raise _UnusableError(f"it does not begin as a spool file does: {str(error)[:200]}") from error
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise _UnusableError("it is no spool file")
    return head


@contextlib.contextmanager
def _claimed(path: Path) -> Iterator[IO[bytes] | None]:
    """Hold an advisory lock on a file; yields the file, or ``None`` where it is another process's or gone."""
    try:
        opened = _opened(path)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            _log.warning("spool file %s stays there: %s", path, error)
        yield None
        return
    with opened as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield None
            return
        yield file if path.exists() else None
