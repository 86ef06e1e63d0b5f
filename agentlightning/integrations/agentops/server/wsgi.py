"""A small threaded HTTP/1.1 server for one WSGI application on loopback.

Clients of AgentOps keep their connections open, and Werkzeug's own server closes each after one answer. A request is
read whole, within a limit, before the application sees it; half a request is never handled. An application that gives
less than its ``Content-Length`` gets its connection closed: that is how an answer is cut off on purpose. Connections
are bounded in number, because each has a thread.
"""

from __future__ import annotations

import io
import json
import logging
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, ClassVar
from urllib.parse import unquote_to_bytes

logger = logging.getLogger(__name__)

MAX_BODY = 64 * 1024 * 1024
MAX_BODIES = 128 * 1024 * 1024
"""Bytes of all bodies that are being read or handled at one moment."""
MAX_CONNECTIONS = 1000
"""Connections that are open at one moment; one more is answered 503 and closed."""
IDLE_SECONDS = 75.0
"""How long a connection may say nothing."""
BODY_SECONDS = 60.0
"""How long a body may take from its first byte to its last."""
_PART = 64 * 1024

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class WsgiServer(ThreadingMixIn, TCPServer):
    """Serves an application on a socket that listens already; a thread for each connection."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        listener: socket.socket,
        app: WsgiApp,
        *,
        max_bodies: int = MAX_BODIES,
        body_seconds: float = BODY_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        super().__init__(("", 0), _Handler, bind_and_activate=False)
        self.socket.close()  # the base class opened one that it did not bind
        listener.setblocking(False)  # a client that is gone before it is accepted must not hold up the loop
        self.socket = listener
        self.server_address = listener.getsockname()
        self.app = app
        self.room = _Room(max_bodies)
        self.body_seconds = body_seconds
        # One for each connection that may still be opened: taken before its thread begins, given back at its end.
        self._places = threading.BoundedSemaphore(max_connections)
        self._said_full = False  # read and set by the thread that accepts connections alone

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection in a thread of its own, or refuse it where there are too many."""
        if not self._places.acquire(blocking=False):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until its end, and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def _refuse(self, request: Any) -> None:
        if not self._said_full:
            self._said_full = True
            logger.warning("too many connections are open at one moment; more are answered 503 and closed")
        try:
            request.setblocking(False)  # the loop that accepts must not wait for this client
            request.send(_TOO_MANY)
        except OSError:
            pass
        finally:
            self.shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        """Log what a connection raised; a client that went away is no error."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            logger.exception("a connection failed")


_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n"
    b"Retry-After: 1\r\nConnection: close\r\nContent-Length: 53\r\n\r\n"
    b'{"error": "too many connections", "message": "later"}'
)


class _Room:
    """Bytes that bodies may still take, over all connections."""

    def __init__(self, size: int) -> None:
        self._lock = threading.Lock()  # guards ``_free``; each connection has a thread
        self._free = size

    def take(self, size: int) -> bool:
        """Take so many bytes; return whether there was room for them."""
        with self._lock:
            if size > self._free:
                return False
            self._free -= size
            return True

    def give_back(self, size: int) -> None:
        """Give bytes back."""
        with self._lock:
            self._free += size


class _Answer:
    """What an application says through ``start_response``."""

    def __init__(self) -> None:
        self.status = "500 Internal Server Error"
        self.headers: list[tuple[str, str]] = []

    def start(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type, BaseException, TracebackType] | None = None,
    ) -> Callable[[bytes], None]:
        del exc_info  # nothing is sent before the application is done
        self.status, self.headers = status, headers
        return _no_write


def _no_write(data: bytes) -> None:
    raise NotImplementedError(f"write() of PEP 3333 is not offered ({len(data)} bytes)")


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        self.status, self.reason = status, reason
        super().__init__(reason)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "agentlightning"
    sys_version = ""
    timeout = IDLE_SECONDS
    disable_nagle_algorithm = True
    wbufsize = 64 * 1024  # head and body leave in one piece
    server: WsgiServer
    METHODS: ClassVar[tuple[str, ...]] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")

    def __getattr__(self, name: str) -> Any:
        # The base class looks for do_GET, do_POST and so on.
        if name.removeprefix("do_") in self.METHODS and name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def handle_expect_100(self) -> bool:
        """Tell a client that waits for it to go on; the base class leaves that in the buffer."""
        wanted = super().handle_expect_100()
        self.wfile.flush()
        return wanted

    def _serve(self) -> None:
        self._taken = 0
        try:
            self._serve_one()
        finally:
            self.server.room.give_back(self._taken)

    def _serve_one(self) -> None:
        try:
            body = self._body()
        except _Refused as refused:
            self.close_connection = True  # what is left of the request cannot be told from a next one
            self.send_error(refused.status, refused.reason)
            return
        if body is None:
            self.close_connection = True
            return
        answer = _Answer()
        parts = self.server.app(self._environ(body), answer.start)
        try:
            content = b"".join(parts)
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()
        self._send(answer, content)

    def _send(self, answer: _Answer, content: bytes) -> None:
        code, _, reason = answer.status.partition(" ")
        self.log_request(code, len(content))
        self.send_response_only(int(code), reason)
        self.send_header("Date", self.date_time_string())
        length = None
        for name, value in answer.headers:
            length = value if name.lower() == "content-length" else length
            self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        bodiless = self.command == "HEAD" or code in {"204", "304"}
        if length is None and not bodiless:
            self.send_header("Content-Length", str(len(content)))
        elif length is not None and not bodiless and int(length) != len(content):
            self.close_connection = True
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if not bodiless:
            self.wfile.write(content)

    def _environ(self, body: bytes) -> dict[str, Any]:
        path, _, query = self.path.partition("?")
        host, port = self.server.server_address[:2]
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": "",
            # A base URL with a slash at its end gives paths with two at the beginning.
            "PATH_INFO": "/" + unquote_to_bytes(path).decode("latin-1").lstrip("/"),
            "QUERY_STRING": query,
            "SERVER_NAME": str(host),
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": self.request_version,
            "REMOTE_ADDR": self.client_address[0],
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        for name, value in self.headers.items():
            key = name.upper().replace("-", "_")
            if "_" not in name and key not in {"CONTENT_TYPE", "CONTENT_LENGTH", "TRANSFER_ENCODING"}:
                key = f"HTTP_{key}"
                environ[key] = f"{environ[key]},{value}" if key in environ else value
        return environ

    # ------------------------------------------------------------------ the body

    def _body(self) -> bytes | None:
        """Return the body, or ``None`` where the client went away before its end.

        Raises:
            _Refused: It is too large, takes too long, or is more than all bodies together may be.
        """
        self._body_ends = time.monotonic() + self.server.body_seconds
        try:
            return self._whole_body()
        except TimeoutError:
            raise _Refused(408, f"the body took more than {self.server.body_seconds:.0f} s") from None
        finally:
            self.connection.settimeout(self.timeout)

    def _read(self, size: int, body: bytearray) -> bool:
        """Append so many bytes of the connection to ``body``; return whether they came."""
        wanted = len(body) + size
        while len(body) < wanted:
            left = self._body_ends - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.connection.settimeout(left)
            part = self.rfile.read1(min(_PART, wanted - len(body)))
            if not part:
                return False
            if not self.server.room.take(len(part)):
                raise _Refused(503, "too many bodies are under way at this moment")
            self._taken += len(part)
            body += part
        return True

    def _whole_body(self) -> bytes | None:
        coding = self.headers.get("Transfer-Encoding")
        lengths = set(self.headers.get_all("Content-Length", []))
        if coding is not None:
            if coding.strip().lower() != "chunked" or lengths:
                raise _Refused(400, "Transfer-Encoding is chunked, without Content-Length, or absent")
            return self._chunks()
        if not lengths:
            return b""
        (text, *others) = lengths
        if others or not (text.isascii() and text.isdigit() and len(text) < 20):
            raise _Refused(400, "Content-Length is one whole number")
        if int(text) > MAX_BODY:
            raise _Refused(413, f"the body is larger than {MAX_BODY:,} bytes")
        body = bytearray()
        return bytes(body) if self._read(int(text), body) else None

    def _chunks(self) -> bytes | None:
        body = bytearray()
        while True:
            line = self.rfile.readline(1000)
            if not line.endswith(b"\n"):
                return None
            size_text = line.split(b";", 1)[0].strip()
            if not size_text or len(size_text) > 8 or not set(size_text) <= _HEX_BYTES:
                raise _Refused(400, "a chunk begins with its size in hexadecimal")
            size = int(size_text, 16)
            if len(body) + size > MAX_BODY:
                raise _Refused(413, f"the body is larger than {MAX_BODY:,} bytes")
            if not size:
                return bytes(body) if self._skip_trailers() else None
            if not self._read(size + 2, body):
                return None
            del body[-2:]

    def _skip_trailers(self) -> bool:
        for _ in range(100):
            line = self.rfile.readline(10_000)
            if line in {b"\r\n", b"\n"}:
                return True
            if not line.endswith(b"\n"):
                return False
        raise _Refused(400, "too many trailers")

    # ------------------------------------------------------------------ what the base class says and logs

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no proper request, in JSON as everything else."""
        text = message or explain or self.responses.get(code, ("",))[0]
        content = json.dumps({"error": text, "message": text}).encode()
        self.close_connection = True
        self.log_request(code)
        self.send_response_only(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        logger.info(
            "%s %s %s %s", self.command, getattr(self, "path", ""), getattr(code, "value", code), size
        )

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        logger.debug(format, *args)


_HEX_BYTES = frozenset(b"0123456789abcdefABCDEF")
