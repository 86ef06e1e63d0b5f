"""The context of every TLS connection that code of ours opens."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import certifi

from ..env_var import LightningEnvVar, resolve_setting
from ..errors import ConfigurationError


def tls_context() -> ssl.SSLContext:
    """Return a new client context: certificate and name verified, TLS 1.2 or newer.

    The authorities are those of ``AGL_CA_BUNDLE`` alone where it is set; else those of ``REQUESTS_CA_BUNDLE``, which
    other programs of the machine obey; else those of the system (``SSL_CERT_FILE`` included) and of ``certifi``.

    Raises:
        ConfigurationError: The file or folder of authorities is not there, or holds no certificate.
    """
    context = ssl.create_default_context()
    own = _own_authorities()
    if own is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _load(context, *own)
    else:
        # Beside the system's: Python builds from python.org and slim containers have none of their own.
        context.load_verify_locations(certifi.where())
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _own_authorities() -> tuple[str, str] | None:
    ours = LightningEnvVar.AGL_CA_BUNDLE
    named = resolve_setting(ours)
    if named:
        return ours.value, named
    of_requests = os.environ.get("REQUESTS_CA_BUNDLE")
    return ("REQUESTS_CA_BUNDLE", of_requests) if of_requests else None


def _load(context: ssl.SSLContext, name: str, place: str) -> None:
    path = Path(place).expanduser()
    # OpenSSL reads a folder when a certificate is looked for, so nothing can be checked here.
    if path.is_dir():
        context.load_verify_locations(capath=path)
        return
    try:
        context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"{name}={place!r} has no certificates of authorities that can be read ({error.strerror or error}); "
            "name a PEM file, or a folder made by openssl rehash"
        ) from error
