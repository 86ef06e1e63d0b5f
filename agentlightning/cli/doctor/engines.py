"""Engines that serve the OpenAI API: how each is known, and what makes it give token ids."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from urllib.parse import urlsplit

from ...dialects.endpoint_urls import is_local

TRAINABLE = "--generation-config vllm --logprobs-mode processed_logprobs"
"""Options of vLLM: no sampling settings of the model's own, and log-probabilities of what is sampled from."""


@dataclass(frozen=True)
class Engine:
    """One engine."""

    name: str
    version_path: str = ""
    """Where it says its version, from the root of the server; empty = nowhere."""
    version_field: str = "version"
    upgrade: str = ""
    """The command that brings a release that gives ids; empty where no release does."""


UNKNOWN = Engine("an engine that does not say its name, or a gateway")
ENGINES = {
    # ``owned_by`` of what ``GET /v1/models`` lists.
    "vllm": Engine("vLLM", "/version", upgrade="pip install --upgrade 'vllm>=0.10.2'"),
    "sglang": Engine("SGLang", "/server_info", upgrade="pip install --upgrade sglang"),
    "llamacpp": Engine("llama.cpp", "/props", "build_info"),
    "library": Engine("Ollama", "/api/version"),
}


def served_by_vllm(url: str, model: str) -> str:
    """Return the command that serves a model by vLLM, at the same address where that is on this machine."""
    place = ""
    if is_local(url):
        parts = urlsplit(url)
        host = "::1" if parts.hostname == "::1" else "127.0.0.1"
        place = f" --host {host} --port {parts.port or (443 if parts.scheme == 'https' else 80)}"
    return f"vllm serve {shlex.quote(model)}{place} {TRAINABLE}"
