"""Who may call the server: programs of this machine, and its own page. No page of another site.

A browser lets any page send requests to this machine. It names the page in ``Origin``, and the host that the page meant
in ``Host`` (Fetch standard, 3.2; RFC 9110, 7.2): a page that had its own name resolve to this machine (DNS rebinding)
gives itself away by the second. Clients of AgentOps send no ``Origin``.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from flask import Response, request

from ....remote.rule import is_loopback
from .answers import problem
from .recorder import Recorder

WITHOUT_PREFLIGHT: Final = frozenset(
    {"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"}
)
"""Content types that a page may send anywhere without asking first (Fetch standard, CORS-safelisted)."""


def refusal(recorder: Recorder, *, local_only: bool) -> Response | None:
    """Return the answer to a request that is refused because of who sent it, or ``None``.

    Args:
        recorder: Where the refusal is noted.
        local_only: Whether ``Host`` must name this machine.
    """
    host, origin = request.headers.get("Host"), request.headers.get("Origin")
    if local_only and host is not None and not _is_this_machine(host):
        return _refused(recorder, 403, "call this server by its address, such as http://127.0.0.1")
    if origin is not None and origin != f"http://{host}":
        return _refused(recorder, 403, "a page of another site may not call this server")
    if request.headers.get("Sec-Fetch-Site") == "cross-site" and not _is_visit():
        return _refused(recorder, 403, "a page of another site may not call this server")
    return None


def refusal_of_text(recorder: Recorder) -> Response | None:
    """Return the answer to a body that says that it is no JSON, or ``None``."""
    if request.mimetype in WITHOUT_PREFLIGHT:
        return _refused(recorder, 415, "the body is JSON, and its Content-Type is application/json")
    return None


def _is_visit() -> bool:
    """Whether a person follows a link to the page."""
    return (
        request.method == "GET"
        and request.path == "/"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
    )


def _is_this_machine(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _refused(recorder: Recorder, status: int, text: str) -> Response:
    recorder.add("errors", {"path": request.path[:1000], "reason": f"refused: {text}"})
    return problem(status, text)
