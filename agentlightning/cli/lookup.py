"""From what a person types to what is in a store: URLs, unique beginnings of ids, ``latest``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from ..env_var import DEFAULT_STORE_URL, LightningEnvVar, resolve_setting
from ..errors import AttemptNotFound, RolloutNotFound, StoreFileError, UsageError
from ..store.base import FINISHED, LightningStore
from ..store.registry import open_store, url_of_file
from ..types import Attempt, Rollout, RolloutStatus

LATEST = "latest"

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)

UNDER_WAY: Final[tuple[RolloutStatus, ...]] = ("preparing", "running", "requeuing")
"""Statuses of rollouts that have begun and not ended."""
BEGUN: Final[tuple[RolloutStatus, ...]] = (*UNDER_WAY, *sorted(FINISHED))
"""Statuses of rollouts that have something to read; those that only wait in a queue are newer, and have nothing."""


def meant_url(given: str | None) -> str:
    """Return the URL that is meant: ``--store``, ``AGL_STORE``, the project's setting, or the default.

    Args:
        given: What ``--store`` says: a URL, or the path of a SQLite file.
    """
    # What begins as a URL is a slip (`sqlite:runs.db`, `file:runs.db`), unless there is a file of that name.
    if given and "://" not in given and (not _SCHEME.match(given) or Path(given).exists()):
        given = url_of_file(given)
    return resolve_setting(LightningEnvVar.AGL_STORE, given, DEFAULT_STORE_URL) or DEFAULT_STORE_URL


def store_url(given: str | None) -> str:
    """Return the URL that is meant, as :func:`meant_url`, of a store that one can look into.

    Raises:
        UsageError: It is ``memory://``, which no other process can look into.
    """
    url = meant_url(given)
    # It would open, empty, and every answer would be "there is nothing".
    if url.startswith("memory:") or url.partition("?")[0] == "sqlite:///:memory:":
        raise UsageError(
            f"{url} lives in the process that opened it; name a store on disk: --store {DEFAULT_STORE_URL}"
        )
    return url


def sqlite_path(url: str) -> Path | None:
    """Return the file behind a ``sqlite:///`` URL, or ``None`` for another scheme."""
    scheme, _, rest = url.partition(":///")
    return Path(unquote(rest.partition("?")[0])) if scheme == "sqlite" and rest else None


def sqlite_file(given: str | None, purpose: str) -> Path:
    """Return the file of the SQLite store that is meant, which need not exist.

    Args:
        given: What ``--store`` says.
        purpose: What is done to it, such as ``copied``.

    Raises:
        UsageError: The store is of another kind.
        StoreFileError: It is a folder.
    """
    url = store_url(given)
    path = sqlite_path(url)
    if path is None:
        hint = "" if "://" in url else f"; did you mean sqlite:///{url} ?"
        raise UsageError(f"only sqlite:/// stores are {purpose}, and {url} is none{hint}")
    if path.is_dir():
        raise StoreFileError(
            f"{path} is a folder; name a file in it, such as {path / DEFAULT_STORE_URL[10:]}"
        )
    return path


def open_existing(given: str | None) -> LightningStore:
    """Open a store to look into it; a SQLite file that is not there is an error and is not made.

    Raises:
        StoreFileError: There is no such file.
    """
    url = store_url(given)
    path = sqlite_path(url)
    if path is not None:
        check_exists(path)
    return open_store(url)


def check_exists(path: Path) -> None:
    """Refuse a file that is not there.

    Raises:
        StoreFileError: There is no such file.
    """
    if not path.exists():
        raise StoreFileError(
            f"there is no store at {path}; name one with --store or AGL_STORE, "
            "or make one with: agl run -- python your_agent.py"
        )


async def find_rollout(store: LightningStore, text: str) -> Rollout:
    """Return the rollout with this id, with the only id that begins so, or the newest that has begun (``latest``).

    Where none has begun, ``latest`` is the newest that waits.

    Raises:
        RolloutNotFound: There is none.
        UsageError: Several ids begin so.
    """
    if text == LATEST:
        newest = await store.query_rollouts(
            status_in=BEGUN, sort_by="start_time", sort_order="desc", limit=1
        ) or await store.query_rollouts(sort_by="start_time", sort_order="desc", limit=1)
        if not newest:
            raise RolloutNotFound(text, "it is empty; record a program with: agl run -- python agent.py")
        return newest[0]
    # First: a whole id may be the beginning of another one.
    exact = await store.get_rollout_by_id(text)
    if exact is not None:
        return exact
    found = await store.query_rollouts(rollout_id_contains=text)
    # A store finds ids by any part of them; what is meant here is the beginning.
    matches = [rollout for rollout in found if rollout.rollout_id.startswith(text)]
    if not matches:
        raise RolloutNotFound(text, "agl rollouts lists them")
    if len(matches) > 1:
        raise UsageError(_ambiguous(text, [rollout.rollout_id for rollout in matches]))
    return matches[0]


async def find_attempt(store: LightningStore, rollout: Rollout, text: str) -> Attempt:
    """Return the attempt with this id, beginning or number, or the last one (``latest``).

    Raises:
        AttemptNotFound: There is none.
        UsageError: Several ids begin so.
    """
    attempts = list(await store.query_attempts(rollout.rollout_id))
    if text == LATEST and attempts:
        return attempts[-1]
    matches: list[Attempt] = [
        attempt
        for attempt in attempts
        if attempt.attempt_id == text or str(attempt.sequence_id) == text
        # Numbers and whole ids win over beginnings: attempt 1 is not the one whose id begins with 1.
    ] or [attempt for attempt in attempts if attempt.attempt_id.startswith(text)]
    if not matches:
        known = ", ".join(f"{attempt.sequence_id} ({attempt.attempt_id})" for attempt in attempts)
        has = known or f"no attempt yet: it is {rollout.status}"
        raise AttemptNotFound(text, f"rollout {rollout.rollout_id} has {has}")
    if len(matches) > 1:
        raise UsageError(_ambiguous(text, [attempt.attempt_id for attempt in matches]))
    return matches[0]


def _ambiguous(text: str, ids: Sequence[str]) -> str:
    some = ", ".join(ids[:5]) + (", …" if len(ids) > 5 else "")
    return f"{text!r} is the beginning of {len(ids)} ids: {some}; type more of it"
