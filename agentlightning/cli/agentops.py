"""``agl agentops``; the command is also called ``agentops-server``."""

from __future__ import annotations

from .agentops_server import add_parser

__all__ = ["add_parser"]
