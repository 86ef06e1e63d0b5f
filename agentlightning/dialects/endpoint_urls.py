"""Which endpoint a request goes to, told by its URL.

URLs are compared in one form: scheme and host in lower case, one name for this machine, no default port, no user name
or password, no slash at the end. A ``ProxyLLM`` names the attempt in the path: ``…/rollout/<id>/attempt/<id>/v1``.
Names of hosts are never resolved: what a name stands for may change between two calls.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ..errors import ConfigurationError
from .raw_call import Endpoint, LogprobKind

_DEFAULT_PORTS = {"http": 80, "https": 443}
_ATTEMPT = re.compile(r"/rollout/[^/]+/attempt/[^/]+(?=/|$)")
_OPERATION = re.compile(r"(/chat)?/completions$")
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})
"""Hosts that are one: what listens on one of them is called by the names of the others."""


def named(urls: str) -> list[str]:
    """Return the URLs in a text that separates them by commas or white space.

    Raises:
        ConfigurationError: One of them is no URL of a server.
    """
    return [checked(each) for each in re.split(r"[\s,]+", urls) if each]


def checked(url: str) -> str:
    """Return the URL of an endpoint without user name, password, query, and the path of a single operation.

    Raises:
        ConfigurationError: It is no URL of a server.
    """
    try:
        parts = urlsplit(url.strip())
        is_url = parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number, an address without its bracket
        is_url = False
    if not is_url or re.search(r"\s", url.strip()):
        raise ConfigurationError(
            f"{url!r} is no URL of a model endpoint; one looks like http://localhost:8000/v1"
        )
    return base_of(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl())


def base_of(url: str) -> str:
    """Return what a client takes as the base URL of a request: without ``/chat/completions`` or ``/completions``."""
    return _OPERATION.sub("", url.rstrip("/"))


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host is this machine by itself: the name ``localhost``, or an address of the loopback network."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def is_local(url: str) -> bool:
    """Whether a URL is of this machine; see :func:`is_loopback`."""
    return on_loopback(url) is not None


@lru_cache(maxsize=256)
def on_loopback(url: str) -> Endpoint | None:
    """Return the endpoint of a request to this machine, of which nobody has said anything; else ``None``."""
    try:
        host = urlsplit(url).hostname
    except ValueError:
        return None
    return Endpoint(base_of(url)) if host is not None and is_loopback(host) else None


@lru_cache(maxsize=256)  # an agent calls few of them, and asks for each call
def plain_url(url: str) -> str:
    """Return a URL in the form in which it is compared; one that cannot be read as it is."""
    try:
        parts = urlsplit(url)
        return parts._replace(netloc=_host(parts), path=parts.path.rstrip("/")).geturl()
    except ValueError:  # a port that is no number, an address without its bracket
        return url


def _host(parts: SplitResult) -> str:
    host = parts.hostname or ""
    if ":" in host:
        # The address has many spellings; one with a zone, or that is none, is compared as it stands.
        with suppress(ValueError):
            host = str(ipaddress.ip_address(host))
    host = "localhost" if host in _THIS_MACHINE else host
    host = f"[{host}]" if ":" in host else host
    return host if parts.port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f"{host}:{parts.port}"


def without_attempt(url: str) -> str:
    """Return a URL without the first ``/rollout/<id>/attempt/<id>`` of its path."""
    return _ATTEMPT.sub("", url, count=1)


def find(url: str, endpoints: Iterable[Endpoint], model: str | None = None) -> Endpoint | None:
    """Return what is known of the endpoint that a request goes to, or ``None``.

    Of several, those with the longest URL count. One server may have several models, and what is said of one of them
    is not said of the others: of the called model counts what is said of it, first what was named first, then what is
    said of the endpoint as a whole. Where statements about different models could be meant and they differ, nothing
    is known.

    Args:
        url: Of the request.
        endpoints: What is known, the most certain first.
        model: The model that the request names; ``None`` = it names none.
    """
    asked = plain_url(url)
    found = [each for each in endpoints if _is_under(asked, each)]
    # `https://host/v1` is also said of `https://host/v1/special`, of which somebody may have said something closer.
    longest = max((len(plain_url(each.url)) for each in found), default=0)
    nearest = [each for each in found if len(plain_url(each.url)) == longest]
    if not nearest:
        return None
    own = _about(model, nearest)
    said = {
        name: _said([each for each in own if each.model == name]) for name in {each.model for each in own}
    }
    disputed = len(said) > 1 and any(each != said[own[0].model] for each in said.values())
    whole = [each for each in nearest if each.model is None]
    defaults, kind = (None, "unknown") if disputed else _said([*own, *whole])
    return replace(
        next(iter(own or whole or nearest)),
        sampling_defaults=defaults,
        logprob_kind=kind,
        may_ask=any(each.may_ask for each in nearest),
        disputed=disputed,
    )


def _about(model: str | None, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
    """Return what may be said of the called model by name; a name may have a provider before it (``vllm/policy``)."""
    named = [each for each in endpoints if each.model is not None]
    if model is None:
        return named
    exact = [each for each in named if each.model == model]
    return exact or [each for each in named if (each.model or "").endswith(f"/{model}")]


def _said(endpoints: Iterable[Endpoint]) -> tuple[Mapping[str, Any] | None, LogprobKind]:
    """Return the first sampling defaults and the first kind of log-probabilities that somebody named."""
    given = list(endpoints)
    defaults = (each.sampling_defaults for each in given if each.sampling_defaults is not None)
    kinds: Iterator[LogprobKind] = (each.logprob_kind for each in given if each.logprob_kind != "unknown")
    return next(defaults, None), next(kinds, "unknown")


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
