"""The environment of each library: what is installed there, and how it is made."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

_NEWEST = ("opentelemetry-sdk",)
_1_44 = ("opentelemetry-sdk==1.44.0", "opentelemetry-exporter-otlp-proto-http==1.44.0")
_1_35 = ("opentelemetry-sdk==1.35.0", "opentelemetry-exporter-otlp-proto-http==1.35.0")
_LANGCHAIN = ("langchain", "langchain-openai", "langgraph")
# Tools need mcp, which it does not declare; the newest asks for more than one index has.
_LITELLM = ("litellm==1.106.2", "mcp>=2")

ENVIRONMENTS: dict[str, tuple[str, ...]] = {
    "own": ("-e", str(ROOT), "openai", *_LANGCHAIN, "openai-agents", *_LITELLM),
    "agentops-0.3.26": ("agentops==0.3.26", "openai==1.91.0", *_1_35),
    "agentops-0.4.9": ("agentops==0.4.9", "openai==1.91.0", *_1_35),
    "agentops-0.4.13": ("agentops==0.4.13", "openai==2.54.0", *_1_44),
    "agentops-0.4.16": ("agentops==0.4.16", "openai==2.54.0", *_1_44),
    "agentops-0.4.21": ("agentops==0.4.21", "openai==2.54.0", *_1_44),
    "openinference-openai": ("openinference-instrumentation-openai", "openai", *_NEWEST),
    "openinference-langchain": ("openinference-instrumentation-langchain", *_LANGCHAIN, *_NEWEST),
    "openinference-litellm": ("openinference-instrumentation-litellm", *_LITELLM, *_NEWEST),
    "openinference-openai-agents": (
        "openinference-instrumentation-openai-agents",
        "openai-agents",
        *_NEWEST,
    ),
    "openllmetry-openai": ("opentelemetry-instrumentation-openai", "openai", *_NEWEST),
    # Its release of OpenTelemetry asks setuptools for pkg_resources.
    "openllmetry-openai-0.33": (
        "opentelemetry-instrumentation-openai==0.33.12",
        "openai==1.91.0",
        "setuptools<81",
        *_NEWEST,
    ),
    "openllmetry-langchain": ("opentelemetry-instrumentation-langchain", *_LANGCHAIN, *_NEWEST),
    "openllmetry-langchain-0.40": (
        "opentelemetry-instrumentation-langchain==0.40.14",
        "langchain<1",
        "langchain-openai<1",
        "wrapt<2",
        *_NEWEST,
    ),
    "otel-openai-v2": (
        "--prerelease",
        "allow",
        "opentelemetry-instrumentation-openai-v2",
        "opentelemetry-util-genai<1",  # it uses what 1.0 took away
        "openai<3",
        *_NEWEST,
    ),
    "litellm": (*_LITELLM, *_NEWEST, "opentelemetry-exporter-otlp-proto-http"),
    "agentlightning-0.2.2": ("agentlightning==0.2.2", *_1_44),
    "agentlightning-0.3.0": ("agentlightning==0.3.0", "openai==2.54.0", *_1_44),
    "pydantic-ai": ("pydantic-ai-slim[openai]", *_NEWEST),
    "strands-agents": ("strands-agents[openai]", *_NEWEST),
}


def python_of(name: str, folder: Path) -> Path:
    """Return the interpreter of an environment, which is made where it is missing or older than a week.

    Raises:
        RuntimeError: It cannot be made; the words of uv are in the message.
    """
    where = folder / f".venv-corpus-{name}"
    python, mark = where / "bin" / "python", where / ".installed"
    wanted = " ".join((*ENVIRONMENTS[name], time.strftime("%G-%V")))  # a newer release may have come
    if not (mark.exists() and mark.read_text(encoding="utf-8") == wanted):
        _uv("venv", "--clear", "--python", sys.executable, str(where))
        _uv("pip", "install", "--python", str(python), *ENVIRONMENTS[name])
        mark.write_text(wanted, encoding="utf-8")
    return python


def _uv(*arguments: str) -> None:
    command = [os.environ.get("UV", "uv"), "-q", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(f"uv {' '.join(arguments)}: {ran.stderr.strip()}")
