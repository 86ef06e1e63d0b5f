"""``requests`` sessions that send only to addresses which the rule allows, also after redirects."""

from __future__ import annotations

from collections.abc import Mapping
from ssl import SSLContext
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter

from .rule import checked_url, is_loopback
from .tls import tls_context


def open_session(url: str, *, allow_insecure: bool = False) -> requests.Session:
    """Return a session for a server at ``url``; the caller closes it.

    It talks by the scheme of ``url`` only. A request to this machine goes there directly, whatever proxies the
    environment names. ``verify=`` of its methods changes nothing.

    Raises:
        InsecureEndpoint, ConfigurationError: As :func:`~agentlightning.remote.rule.checked_url`; the session's
            methods raise them too, where a redirect leads to such an address.
    """
    scheme = urlsplit(checked_url(url, allow_insecure=allow_insecure)).scheme
    session = requests.Session()
    # ``requests`` mounts adapters for both schemes, which a redirect from https to http could use.
    session.adapters.clear()
    session.mount(
        f"{scheme}://",
        _CheckedAdapter(tls_context() if scheme == "https" else None, allow_insecure=allow_insecure),
    )
    return session


class _CheckedAdapter(HTTPAdapter):
    """Checks each request's address before it is sent, and gives all connections the same TLS context."""

    def __init__(self, context: SSLContext | None, *, allow_insecure: bool) -> None:
        self._context = context
        self._allow_insecure = allow_insecure
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **self._with_context(kwargs))

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        return super().proxy_manager_for(*args, **self._with_context(kwargs))

    def _with_context(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        return kwargs if self._context is None else {**kwargs, "ssl_context": self._context}

    def cert_verify(self, conn: Any, url: Any, verify: Any, cert: Any) -> None:
        """Leave the authorities to the context; requests would add its own."""
        del url, verify, cert  # the context decides, whatever the caller of the session says
        conn.cert_reqs = "CERT_REQUIRED"
        conn.ca_certs = conn.ca_cert_dir = None

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: None | float | tuple[float, float] | tuple[float, None] = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send, if the rule allows the address."""
        del verify  # certificates are verified in any case
        url = checked_url(request.url or "", allow_insecure=self._allow_insecure)
        # A proxy cannot reach this machine's loopback, and would see what is meant to stay here.
        if is_loopback(urlsplit(url).hostname or ""):
            proxies = None
        return super().send(request, stream, timeout, verify=True, cert=cert, proxies=proxies)
