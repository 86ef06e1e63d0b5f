"""What the fixtures of ``agentlightning.pytest_plugin`` are made of; it is imported when a test uses one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import InvalidArgument
from ..store.base import LightningStore
from ..store.registry import open_store
from .captured_spans import from_any_thread


@contextmanager
def fresh_store(url: str) -> Iterator[LightningStore]:
    """Open a store for one test and close it after it.

    Raises:
        InvalidArgument: There are rollouts in it already, so it would mix those of several tests.
        UnknownStoreScheme, StoreFileError: As ``open_store``.
    """
    store = open_store(url)
    try:
        count = from_any_thread(store.statistics()).get("total_rollouts", 0)
        if count:
            raise InvalidArgument(
                f"the store for tests holds {count} rollouts already; a test needs a new one, "
                "for example --lightning-store 'sqlite:///{tmp_path}/store.db'"
            )
        yield store
    finally:
        from_any_thread(store.close())
