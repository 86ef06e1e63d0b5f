"""Which endpoint a request goes to, told by its URL.

URLs are compared in one form: scheme and host in lower case, no default port, no user name or password, no slash at
the end. A ``ProxyLLM`` names the attempt in the path: ``…/rollout/<id>/attempt/<id>/v1``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import SplitResult, urlsplit

from .raw_call import Endpoint

_DEFAULT_PORTS = {"http": 80, "https": 443}
_ATTEMPT = re.compile(r"/rollout/[^/]+/attempt/[^/]+(?=/|$)")


def plain_url(url: str) -> str:
    """Return a URL in the form in which it is compared; one that cannot be read as it is."""
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=_host(parts), path=parts.path.rstrip("/")).geturl()
    except ValueError:  # a port that is no number, an address without its bracket
        return url


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


def without_attempt(url: str) -> str:
    """Return a URL without the first ``/rollout/<id>/attempt/<id>`` of its path."""
    return _ATTEMPT.sub("", url, count=1)


def find(url: str, endpoints: Iterable[Endpoint]) -> Endpoint | None:
    """Return the endpoint that a request belongs to, or ``None``; of several, the first with the longest URL."""
    asked = plain_url(url)
    found = [each for each in endpoints if _is_under(asked, each)]
    return max(found, key=lambda each: len(plain_url(each.url)), default=None)


def _is_under(url: str, endpoint: Endpoint) -> bool:
    """Whether a URL is the endpoint's or below it: hosts, ports and names of folders are whole."""
    own = plain_url(endpoint.url)
    if f"{url}/".startswith(f"{own}/"):
        return True
    base = own.removesuffix("/v1")
    if not endpoint.names_attempts or not url.startswith(base):
        return False
    named = _ATTEMPT.match(url, len(base))
    return named is not None and f"{base}{url[named.end() :]}/".startswith(f"{own}/")
