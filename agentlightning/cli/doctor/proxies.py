"""Proxies of the environment: whether calls to a model server on this machine would go to them.

The proxies are not asked. A process gets the same variables with the address of a server of ours in each, and calls
that server directly: libraries differ in how they read ``NO_PROXY``, and this shows what those installed here do. A
request that went through a proxy names the whole URL (RFC 9112, absolute-form).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

from ...testing.fake_openai import FakeOpenAI
from .finding import Finding, Subject, program_environment

VARIABLES = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
LOOPBACK = "127.0.0.1,localhost,::1"
TIMEOUT = 300.0
"""Seconds for the process; its calls are answered at once, but the machine may be slow."""


def proxies(_: Subject) -> Iterator[Finding]:
    """Say what stands between agents and model servers on this machine."""
    named = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not named:
        yield Finding("ok", "proxies", "no proxy is set")
        return
    names = ", ".join(named)
    caught, broken = _through(named)
    cure = f"export NO_PROXY={_no_proxy()} no_proxy={_no_proxy()}"
    for sentence in broken:
        yield Finding("warn", "proxies", f"{names}: {sentence}", "correct or unset the variable")
    if caught:
        hosts = " and ".join(sorted(caught))
        sentence = f"{names}: calls to model servers on {hosts} would go to the proxy and not arrive"
        yield Finding("warn", "proxies", sentence, cure)
    elif not broken:
        yield Finding("ok", "proxies", f"{names}: calls to this machine go around it")


def _no_proxy() -> str:
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return f"{given},{LOOPBACK}" if given else LOOPBACK


def _through(named: dict[str, str]) -> tuple[set[str], list[str]]:
    """Return the hosts whose requests went to the proxy, and the clients that cannot be made at all."""
    with FakeOpenAI() as server:
        # The same variables and another proxy, so that what the real one sees does not change.
        env = {**program_environment(), **dict.fromkeys(named, server.url)}
        port = urlsplit(server.url).port
        broken = _ask(["made"], program_environment())
        broken += _ask(["calls", str(port)], env)
        # Through a proxy, the request line has the whole URL; asked directly, only the path.
        caught = {urlsplit(request.path).hostname for request in server.requests}
    return {host for host in caught if host}, broken


def _ask(arguments: list[str], env: dict[str, str]) -> list[str]:
    command = [sys.executable, "-m", "agentlightning.cli.doctor.caller", *arguments]
    done = subprocess.run(  # noqa: S603 - ours
        command, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        return [(done.stderr.strip().splitlines() or ["a client fails"])[-1]]
    return done.stdout.splitlines()
