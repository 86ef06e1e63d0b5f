"""Which URLs may be connected to. Host names are not resolved: what they resolve to may change after the check."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

from ..errors import ConfigurationError, InsecureEndpoint

_NOT_IN_A_URL = re.compile(r"[\x00-\x20\x7f\\]")
"""Characters that URL parsers treat differently: the host that is checked might not be the one that is connected to."""


def is_loopback(host: str) -> bool:
    """Whether a host name or address can only be reached from this machine."""
    try:
        # No other name: what it resolves to may change after the check. ``ip_address`` knows 127.0.0.0/8,
        # ::1 and IPv4 in IPv6.
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def checked_url(url: str, *, allow_insecure: bool = False) -> str:
    """Return ``url`` if it may be connected to.

    Args:
        url: ``https://…``, or ``http://…`` to this machine.
        allow_insecure: Allow plain http to other machines too. Certificates of https are verified in any case.

    Raises:
        InsecureEndpoint: Plain http to another machine.
        ConfigurationError: It is no http or https URL with a host.
    """
    try:
        # Raises for a port that is no number and for brackets that do not close.
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if _NOT_IN_A_URL.search(url) or not host or parts.scheme not in ("http", "https"):
        raise ConfigurationError(
            f"{_shown(url)!r} is no address of a server; write https://host:port, "
            "or http://127.0.0.1:port on this machine"
        )
    if parts.scheme == "http" and not (allow_insecure or is_loopback(host)):
        place = f"{host}:{port}" if port else host
        raise InsecureEndpoint(
            f"http://{place} is another machine, and without TLS anybody on the way can read and change what is sent. "
            f"Use https://{place}, or allow it with allow_insecure=True (agl: --allow-insecure)"
        )
    return url


def _shown(url: str) -> str:
    """Return the URL without what may be a password or a key."""
    return re.sub(r"//[^/]*@", "//…@", url.partition("?")[0])
