"""Environment variables, set for a worker and put back."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ...instrumentation.patch import Patch

_PROXIES = ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy")
_LOOPBACK = "127.0.0.1,localhost,::1"


def around_proxies() -> dict[str, str]:
    """Return the variables that keep requests to this machine away from a proxy; none where no proxy is set."""
    if not any(os.environ.get(name) for name in _PROXIES):
        return {}
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    both = f"{given},{_LOOPBACK}" if given else _LOOPBACK
    return {"NO_PROXY": both, "no_proxy": both}


def set_environment(variables: Mapping[str, str]) -> Patch:
    """Set variables; undoing puts each back to what it was, unless somebody has changed it since."""
    before: dict[str, str | None] = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)

    def undo() -> None:
        for name, value in before.items():
            if os.environ.get(name) != variables[name]:
                continue
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return Patch(f"environment: {', '.join(variables)}", undo)
