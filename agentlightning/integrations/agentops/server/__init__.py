"""A local AgentOps server: it answers every request of agentops 0.2 to 0.4, keeps what came, and can misbehave.

The manager and the child process's start need the standard library only; Flask is loaded in the server's own process.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .... import _lazy

if TYPE_CHECKING:
    from .app import create_app as create_app
    from .faults import Faults as Faults
    from .manager import AgentOpsServerManager as AgentOpsServerManager
    from .process import ServerProcess as ServerProcess
    from .recorder import Recorder as Recorder

__getattr__, __dir__, __all__ = _lazy.attach(
    __name__,
    {
        ".app": ("create_app",),
        ".faults": ("Faults",),
        ".manager": ("AgentOpsServerManager",),
        ".process": ("ServerProcess",),
        ".recorder": ("Recorder",),
    },
)
