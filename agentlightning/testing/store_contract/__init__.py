"""The contract of :class:`~agentlightning.store.base.LightningStore` as a suite that every store passes.

Whoever writes a store subclasses :class:`StoreContract` in a test module and says how the store is opened::

    import pytest
    from agentlightning.testing import StoreContract


    class TestMyStore(StoreContract):
        @pytest.fixture(autouse=True)
        def _folder(self, tmp_path):
            self.path = tmp_path / "my.db"

        async def open_store(self, clock):
            return MyStore(self.path, clock=clock)

        async def reopen(self, clock):
            return MyStore(self.path, clock=clock)

Nothing in the suite asks which store it has. A test that depends on a declared capability is skipped where the
capability is not declared, and fails where it is declared and not so. It needs ``pytest-asyncio``, in either
mode. For readable failures, call ``pytest.register_assert_rewrite("agentlightning.testing")`` in the
``conftest.py`` before the import.
"""

from __future__ import annotations

from .attempts import AttemptStatusContract, LateResultContract, UpdateAttemptContract, WorkerContract
from .late import LateContract
from .life import CapabilitiesContract, CloseContract, StatisticsContract
from .queries import (
    AliasingContract,
    QueryAttemptsContract,
    QueryRolloutsContract,
    QuerySpansContract,
    QueryWorkersContract,
    ResourcesContract,
)
from .rollouts import QueueContract, StartContract, UpdateRolloutContract
from .seals import SealContract
from .spans import AddSpansContract, OpenSpansContract, ReceiptContract
from .transitions import TransitionsContract
from .values import AwkwardValuesContract, BackwardClockContract, NotJsonContract
from .waiting import ConcurrencyContract, WaitContract

__all__ = ["StoreContract"]


class StoreContract(
    QueueContract,
    StartContract,
    UpdateRolloutContract,
    AttemptStatusContract,
    LateResultContract,
    UpdateAttemptContract,
    WorkerContract,
    AddSpansContract,
    OpenSpansContract,
    ReceiptContract,
    LateContract,
    SealContract,
    QueryRolloutsContract,
    QueryAttemptsContract,
    QuerySpansContract,
    QueryWorkersContract,
    ResourcesContract,
    AliasingContract,
    AwkwardValuesContract,
    NotJsonContract,
    BackwardClockContract,
    WaitContract,
    ConcurrencyContract,
    CapabilitiesContract,
    StatisticsContract,
    CloseContract,
    TransitionsContract,
):
    """The whole suite; define ``open_store`` and, for a durable store, ``reopen``."""
