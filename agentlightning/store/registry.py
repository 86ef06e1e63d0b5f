"""``open_store(url)``: the one way from a URL to a store.

Schemes come from the entry-point group ``agentlightning.stores``: a name (the scheme) and a callable
``open_url(url) -> LightningStore``. Our own backends register there like a stranger's, so this module
imports none of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from .._garbage import collector_paused
from .._printable import without_password
from ..env_var import DEFAULT_STORE_URL, LightningEnvVar, resolve_setting
from ..errors import UnknownStoreScheme
from .base import LightningStore

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "agentlightning.stores"
DISTRIBUTION = "agentlightning-otel"
_NEARLY_A_URL = re.compile(r"^(sqlite|file):")


def open_store(url: str | os.PathLike[str] | None = None) -> LightningStore:
    """Open the store behind a URL, for ``async with``, or for ``with``: see :class:`~.sync.SyncStore`.

    Args:
        url: ``memory://``, ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or a scheme that an installed
            package registers; or a ``Path``, which is a SQLite file. ``None`` takes ``AGL_STORE``, else
            ``[tool.agentlightning] store``, else ``sqlite:///agentlightning.db``.

    Raises:
        UnknownStoreScheme: Nothing registers the scheme, or the text is not a URL.
        StoreFileError: The file cannot be opened as a store.
    """
    if isinstance(url, os.PathLike):
        url = url_of_file(url)
    address = resolve_setting(LightningEnvVar.AGL_STORE, url, DEFAULT_STORE_URL) or DEFAULT_STORE_URL
    scheme, separator, _ = address.partition("://")
    entry = _registered(scheme) if separator else None
    if entry is not None:
        with collector_paused():
            open_url = cast("Callable[[str], LightningStore]", entry.load())
        return open_url(address)
    from importlib.metadata import entry_points

    known = ", ".join(sorted({f"{each.name}://" for each in entry_points(group=GROUP)})) or "none"
    hint = "" if separator else f" Did you mean sqlite:///{_NEARLY_A_URL.sub('', address)} ?"
    shown = without_password(address)
    raise UnknownStoreScheme(f"no store is registered for {shown!r}; installed schemes: {known}.{hint}")


def url_of_file(path: str | os.PathLike[str]) -> str:
    """Return the URL of the store in a SQLite file; ``?``, ``#`` and ``%`` mean something in URLs."""
    return f"sqlite:///{quote(os.fspath(path))}"


def _registered(scheme: str) -> EntryPoint | None:
    """Return who registers a scheme; ours come first, and whoever uses them reads no stranger's metadata.

    To read what every installed package registers takes 8 ms in an environment of 140 packages, in each worker.
    """
    # Not at the top: with email and zipfile it takes a quarter of the OpenTelemetry SDK's time, and a process that
    # only imports the tracer opens no store by its URL.
    from importlib.metadata import PackageNotFoundError, distribution, entry_points

    try:
        ours = distribution(DISTRIBUTION).entry_points.select(group=GROUP, name=scheme)
    except PackageNotFoundError:  # imported from a folder that was never installed
        ours = None
    for entry in ours or entry_points(group=GROUP, name=scheme):
        return entry
    return None
