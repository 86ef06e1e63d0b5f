"""A local AgentOps server as a test sees it: empty at the start of the test, and healthy."""

from __future__ import annotations

from typing import Any

from ..integrations.agentops.server.manager import AgentOpsServerManager
from ..types import Span
from .clock import wait_until


class AgentOpsServer:
    """What came to a running local AgentOps server since this object was made.

    Clients send in batches and in the background: :meth:`wait_for_spans` waits for what they send.

    Args:
        manager: Of the server; it is started if it does not run, and emptied, and its open faults are taken back.
    """

    def __init__(self, manager: AgentOpsServerManager) -> None:
        self.manager = manager
        """What started the server; give it to ``AgentOpsTracer(server=…)``."""
        # A server is shared by the tests of a session, since it takes a process; the test before may have
        # left it failing.
        if not manager.is_alive():
            manager.start()
        self.recover()
        self.clear()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:port``."""
        return self.manager.url

    @property
    def spans(self) -> list[Span]:
        """The spans that came over OTLP."""
        return self.manager.spans()

    def wait_for_spans(self, count: int = 1, *, deadline: float = 60.0) -> list[Span]:
        """Return the spans when there are at least ``count``.

        Raises:
            TimeoutError: There were fewer for ``deadline`` seconds.
        """
        wait_until(
            # The number alone: reading all spans anew for each look would take longer than what is
            # waited for.
            lambda: len(self.recorded("spans")) >= count,
            deadline=deadline,
            what=f"the AgentOps server has {count} spans",
        )
        return self.spans

    def environment(self) -> dict[str, str]:
        """Return the variables that lead every version of ``agentops`` here."""
        return self.manager.environment()

    def recorded(self, kind: str | None = None) -> Any:
        """Return everything that came, by kind; see ``AgentOpsServerManager.recorded``."""
        return self.manager.recorded(kind)

    def clear(self) -> None:
        """Forget what came."""
        self.manager.clear()

    def fail(self, status: int | None = None, **options: Any) -> None:
        """Make the next requests go wrong; see ``AgentOpsServerManager.fail``."""
        self.manager.fail(status, **options)

    def recover(self) -> None:
        """Take back what ``fail`` ordered."""
        self.manager.recover()
