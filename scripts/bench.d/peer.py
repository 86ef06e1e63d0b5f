"""Releases of Agent Lightning, each in an environment of its own, made once: its import name is ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from harness import ROOT

# What a fresh install brings beyond these breaks both releases: their exporter writes to a private field that 1.45
# moved, a server imports pkg_resources, and newer FastAPI and openai releases change what they patch.
_SURROUNDINGS = ("opentelemetry-sdk<1.45", "openai<3", "fastapi<0.163", "setuptools<81")
PINS: Mapping[str, tuple[str, ...]] = {
    "0.3.0": ("agentlightning==0.3.0", *_SURROUNDINGS),
    # The newest agentops that it takes: the one that our own environment has.
    "0.2.2": ("agentlightning==0.2.2", "agentops==0.4.21", *_SURROUNDINGS),
}
"""Release → what is installed."""
INSTALL_LIMIT = 1200.0


def folder(release: str) -> Path:
    """Return where the environment of a release is, or would be."""
    return ROOT / f".venv-peer-{release}"


def interpreter(release: str) -> Path:
    """Return where its interpreter is, or would be."""
    return folder(release) / "bin" / "python"


def install(release: str, say: Callable[[str], None]) -> str | None:
    """Make the environment unless it is there; return its interpreter, or ``None`` where it cannot be had."""
    pins, place = PINS[release], folder(release)
    wanted = "\n".join((*pins, sys.version))
    marker = place / ".installed"
    if marker.is_file() and marker.read_text(encoding="utf-8") == wanted:
        return str(interpreter(release))
    say(f"installing Agent Lightning {release} into {place.name} (once; minutes, 0.8 GB)")
    shutil.rmtree(place, ignore_errors=True)
    pip = [str(interpreter(release)), "-m", "pip", "install", "-qq", "--disable-pip-version-check", *pins]
    try:
        subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, capture_output=True, text=True)
        subprocess.run(pip, check=True, capture_output=True, text=True, timeout=INSTALL_LIMIT)
    except subprocess.TimeoutExpired:
        say(f"Agent Lightning {release} could not be installed in time; going on without it")
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
