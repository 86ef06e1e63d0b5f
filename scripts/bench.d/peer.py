"""Agent Lightning 0.3.0 in an environment of its own, made once: its import name is ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from harness import ROOT

FOLDER = ROOT / ".venv-peer-0.3.0"
PINS = (
    "agentlightning==0.3.0",
    # What a fresh install brings beyond these breaks it: its exporter writes to a private field that 1.45 moved, its
    # server imports pkg_resources, and newer FastAPI and openai releases change what it patches.
    "opentelemetry-sdk<1.45",
    "openai<3",
    "fastapi<0.163",
    "setuptools<81",
)
INSTALL_LIMIT = 1200.0


def interpreter() -> Path:
    """Return where its interpreter is, or would be."""
    return FOLDER / "bin" / "python"


def install(say: Callable[[str], None]) -> str | None:
    """Make the environment unless it is there; return its interpreter, or ``None`` where it cannot be had."""
    wanted = "\n".join((*PINS, sys.version))
    marker = FOLDER / ".installed"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return str(interpreter())
    say(f"installing Agent Lightning 0.3.0 into {FOLDER.name} (once; minutes, 0.8 GB)")
    shutil.rmtree(FOLDER, ignore_errors=True)
    pip = [str(interpreter()), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *PINS]
    try:
        subprocess.run(
            [sys.executable, "-m", "venv", str(FOLDER)], check=True, capture_output=True, text=True
        )
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT)
    except subprocess.TimeoutExpired:
        say("Agent Lightning 0.3.0 could not be installed in time; going on without it")
        return None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        say(f"Agent Lightning 0.3.0 cannot be installed; going on without it: {last}")
        return None
    marker.write_text(wanted, encoding="utf-8")
    return str(interpreter())


def version_line() -> str:
    """Return which versions the peer runs with."""
    code = (
        "import platform; from importlib.metadata import version as v; "
        "print('agentlightning', v('agentlightning'), 'opentelemetry-sdk', v('opentelemetry-sdk'), "
        "'pydantic', v('pydantic'), 'python', platform.python_version())"
    )
    done = subprocess.run([str(interpreter()), "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip()
