"""Addresses that a user names: which are talked to, and with what certainty who answers. Every client goes by it.

* Plain http is for this machine. To another one it is refused, unless the user says ``allow_insecure=True``.
* https always verifies the certificate and its name. ``AGL_CA_BUNDLE`` names authorities of one's own.
* TLS is 1.2 or newer.

``rule`` judges a URL, ``tls`` makes the context of a connection, ``session`` does both for ``requests``.
"""
