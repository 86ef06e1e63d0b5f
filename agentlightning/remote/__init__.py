"""The rules for addresses that a user configures: which may be connected to, and how TLS is verified.

Every client of this package follows them.

* Plain http is for this machine. To another one it is refused, unless the user says ``allow_insecure=True``.
* https always verifies the certificate and its name. ``AGL_CA_BUNDLE`` names authorities of one's own.
* TLS is 1.2 or newer.

``rule`` checks a URL, ``tls`` makes the context of a connection, ``session`` does both for ``requests``.
"""
