"""What the tests of AgentOps 0.2 and 0.3 share: the agent's side, written so that every release understands it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from agentlightning.integrations.agentops.probe import probe
from agentlightning.types import Span

FOUND = probe()
NO_LEGACY = (
    f"agentops {FOUND.version or 'is not installed;'} is not of the 0.2 and 0.3 lines; "
    "scripts/matrix runs this with those"
)
needs_legacy = pytest.mark.skipif(not FOUND.legacy, reason=NO_LEGACY)
has_session_objects = FOUND.numbers >= (0, 3)
needs_session_objects = pytest.mark.skipif(not has_session_objects, reason="0.2 has sessions without objects")


def session_id(session: Any) -> str:
    """The id of what ``init`` and ``start_session`` return: a session, or in 0.2 the id itself."""
    return str(getattr(session, "session_id", session))


def named(spans: list[Span], name: str) -> Span:
    """The only span of a name."""
    (found,) = [span for span in spans if span.name == name]
    return found


def told(span: Span) -> dict[str, Any]:
    """A span's attributes without ids that are new each time."""
    fresh = {"agentops.event.id", "agentops.session.id"}
    return {key: value for key, value in span.attributes.items() if key not in fresh}


def patched_objects() -> dict[str, Any]:
    """Every attribute of every module and class of AgentOps: what has to be the very same after an undo."""
    import_module("agentops")
    found: dict[str, Any] = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "agentops":
            continue
        found.update({f"{name}:{key}": value for key, value in vars(module).items()})
        for cls in [each for each in vars(module).values() if isinstance(each, type)]:
            found.update(
                {f"{cls.__module__}.{cls.__qualname__}.{key}": value for key, value in vars(cls).items()}
            )
    client = import_module("agentlightning.integrations.agentops.legacy_guest").client_class(
        sys.modules["agentops.client"]
    )
    found.update({f"Client.{key}": value for key, value in vars(client).items()})
    return found


def tell_of(program: str, *arguments: str, timeout: float = 60) -> dict[str, Any]:
    """Run a program of this folder and return the line of JSON that it writes last."""
    path = Path(__file__).with_name(program)
    ran = subprocess.run(
        [sys.executable, str(path), *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "AGENTOPS_LOGGING_TO_FILE": "false"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    answer: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    answer["stderr"] = ran.stderr
    return answer
