"""Requests to a receiver: tried again where that may help, never led elsewhere.

429, 502, 503 and 504, a connection that breaks and an answer that breaks off are tried again, after the time that
``Retry-After`` names or twice as long each time. The server may have done what it was asked: MLflow,
which would write an assessment twice then, is asked what it has before another try. A redirect is not followed: it
would become a GET of a login page, whose answer looks like success, and keys in headers would go to another host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Self
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests

from .._printable import without_password
from ..codec.otlp_request import read_partial_success, read_partial_success_json
from ..errors import ExportRefused
from ..remote.rule import checked_url
from ..remote.session import open_session

TRIES = 6
_AGAIN = frozenset({429, 502, 503, 504})
_HALF_READ = (requests.exceptions.ChunkedEncodingError, requests.exceptions.ContentDecodingError)
_BROKEN = (requests.ConnectionError, requests.Timeout, *_HALF_READ)
"""What another try may change."""
_LONGEST_WAIT = 30.0
_TIMEOUT = 30.0


class Sender:
    """Sends to one receiver, and counts what became of it; a context manager.

    Args:
        endpoint: Base URL, or the URL that takes traces; requests go to this scheme alone.
        headers: Of every request, such as an API key.
        allow_insecure: Whether plain http may go to another machine.
        sleep: Waits between two tries.

    Raises:
        InsecureEndpoint, ConfigurationError: The rule of ``remote`` does not allow the address.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        headers: Mapping[str, str] | None = None,
        allow_insecure: bool = False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._endpoint = checked_url(endpoint, allow_insecure=allow_insecure)
        self._session = open_session(self._endpoint, allow_insecure=allow_insecure)
        self._headers = dict(headers or {})
        self._sleep = sleep
        self.sent = 0
        """How many spans, or evaluations, the receiver has taken."""
        self.not_taken = 0
        """How many it has not taken, or cannot be sent."""
        self.said: list[str] = []
        """What is to be said of those, and what the receiver says, each sentence once."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._session.close()

    def _say(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.append(sentence)

    def _ask(
        self, url: str, body: bytes | None, headers: Mapping[str, str], *, method: str = "POST"
    ) -> requests.Response:
        """Return the first answer that another try would not change.

        Raises:
            ExportRefused: There is no answer in ``TRIES`` tries.
        """
        answer = self._ask_unless(lambda: False, url, body, headers, method=method)
        assert answer is not None
        return answer

    def _ask_unless(
        self,
        is_done: Callable[[], bool],
        url: str,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        method: str = "POST",
    ) -> requests.Response | None:
        """Return the first answer that another try would not change; ``None`` where an earlier try had done it.

        Args:
            is_done: Is asked before each try but the first.
            url: What is asked.
            body: Of the request.
            headers: Of this request alone.
            method: Of HTTP.

        Raises:
            ExportRefused: There is no answer in ``TRIES`` tries.
        """
        wait = 1.0
        for left in reversed(range(TRIES)):
            try:
                answer = self._session.request(
                    method,
                    url,
                    data=body,
                    headers={**headers, **self._headers},
                    timeout=_TIMEOUT,
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                if not left or not isinstance(error, _BROKEN):
                    is_half = isinstance(error, _HALF_READ)
                    said = "" if is_half else type(error).__name__
                    raise ExportRefused(without_password(url), None, said, broke_off=is_half) from error
            else:
                if answer.status_code not in _AGAIN or not left:
                    return answer
                wait = _retry_after(answer, wait)
            self._sleep(min(wait, _LONGEST_WAIT))
            wait *= 2
            if is_done():
                return None
        raise AssertionError("the last try returns or raises")


def refusal_of(url: str, answer: requests.Response) -> ExportRefused | None:
    """Return what an answer refuses, or ``None`` where it says that it took what it was sent."""
    name = without_password(url)
    if 300 <= answer.status_code < 400:
        # Without its query, which may hold what is secret.
        location = urlsplit(urljoin(url, answer.headers.get("Location", "")))
        leads_to = without_password(urlunsplit(location._replace(query="", fragment="")))
        return ExportRefused(name, answer.status_code, leads_to)
    if not 200 <= answer.status_code < 300:
        return ExportRefused(name, answer.status_code, answer.text)
    if "text/html" in answer.headers.get("Content-Type", ""):
        return ExportRefused(name, answer.status_code, "it is a web page")
    return None


def rejected_of(url: str, answer: requests.Response, number: int) -> tuple[int, str]:
    """Return how many of ``number`` spans or log records a receiver of OTLP has not taken, and why.

    Raises:
        ExportRefused: It says that it answers in protobuf, and what it says is none.
    """
    kind = answer.headers.get("Content-Type", "")
    try:
        read = read_partial_success_json if "json" in kind else read_partial_success
        rejected, why = read(answer.content)
    except ValueError as error:
        if "protobuf" in kind:
            raise ExportRefused(without_password(url), answer.status_code, str(error)) from error
        return 0, ""  # such as the word "ok": it has taken them by its status
    return min(max(rejected, 0), number), why


def beside_traces(endpoint: str, path: str) -> str:
    """Return the URL of a path at an endpoint: a base URL or that of one of OTLP's signals; its query stays."""
    parts = urlsplit(endpoint)
    base = parts.path.rstrip("/").removesuffix("/v1/traces").removesuffix("/v1/logs")
    return urlunsplit(parts._replace(path=base + path))


def _retry_after(answer: requests.Response, otherwise: float) -> float:
    try:
        return max(0.0, float(answer.headers["Retry-After"]))
    except (KeyError, ValueError):
        return otherwise
