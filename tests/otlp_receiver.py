"""A receiver of OTLP over HTTP on loopback, for tests of whatever sends spans."""

from __future__ import annotations

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from agentlightning.codec.otlp import decode_spans
from agentlightning.types import Span


class Receiver:
    """A receiver of OTLP over HTTP on loopback, whose answers are written down before it is asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                outer.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                status, headers, answer = outer.answers.pop(0) if outer.answers else (200, {}, b"")
                self.send_response(status)
                for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()

    def spans(self, request: int | None = None) -> list[Span]:
        """Return the spans of a request; default: the last one that brought some."""
        found = [number for number, (path, *_) in enumerate(self.requests) if path.endswith("/v1/traces")]
        return decode_spans(self._body(found[-1] if request is None else request))

    def all_spans(self) -> list[Span]:
        """Return the spans of all requests, in their order."""
        found = [number for number, (path, *_) in enumerate(self.requests) if path.endswith("/v1/traces")]
        return [span for number in found for span in self.spans(number)]

    def log_records(self, request: int = -1) -> list[Any]:
        """Return the log records of a request."""
        made = ExportLogsServiceRequest.FromString(self._body(request))
        return [
            each for group in made.resource_logs for scope in group.scope_logs for each in scope.log_records
        ]

    def _body(self, request: int) -> bytes:
        _, headers, body = self.requests[request]
        return gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
