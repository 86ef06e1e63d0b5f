"""Releases of Agent Lightning, each in an environment of its own, made once: its import name is ours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harness import ROOT

RELEASES = ("0.3.0", "0.2.2")
INSTALL_LIMIT = 1200.0


def folder(release: str) -> Path:
    """Return where the environment of a release is, or would be."""
    return ROOT / f".venv-peer-{release}"


def interpreter(release: str) -> Path:
    """Return where its interpreter is, or would be."""
    return folder(release) / "bin" / "python"


def install(release: str, say: Callable[[str], None]) -> str | None:
    """Make the environment from its lock unless it is there; return its interpreter, or ``None`` where that fails.

    Needs uv, which ``scripts/bench`` installs; ``UV`` names it.
    """
    place, lock = folder(release), ROOT / "scripts" / "locks" / f"peer-{release}.txt"
    wanted = f"{sys.version}\n{lock.read_text(encoding='utf-8')}"
    # Written last: an installation that was interrupted is made again.
    marker = place / ".installed"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return str(interpreter(release))
    say(f"installing Agent Lightning {release} into {place.name} (once; minutes, 0.8 GB)")
    uv = [os.environ.get("UV", "uv"), "-q"]
    sync = [*uv, "pip", "sync", "--python", str(interpreter(release)), "--require-hashes", str(lock)]
    try:
        for command in ([*uv, "venv", "--clear", "--python", sys.executable, str(place)], sync):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT)
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        say(f"Agent Lightning {release} could not be installed; going on without it: {error}")
        return None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        say(f"Agent Lightning {release} cannot be installed; going on without it: {last}")
        return None
    marker.write_text(wanted, encoding="utf-8")
    return str(interpreter(release))


def version_line(release: str) -> str:
    """Return which versions a peer runs with."""
    code = (
        "import platform; from importlib.metadata import version as v; "
        "print('agentlightning', v('agentlightning'), 'opentelemetry-sdk', v('opentelemetry-sdk'), "
        "'agentops', v('agentops'), 'pydantic', v('pydantic'), 'python', platform.python_version())"
    )
    done = subprocess.run(
        [str(interpreter(release)), "-c", code], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
