"""The one part of the server that needs pydantic and protobuf: an export request → one JSON text per span."""

from __future__ import annotations

from ....codec.json_text import dumps
from ....codec.otlp import decode_request
from .wsgi import MAX_BODY


def span_texts(body: bytes, content_type: str, content_encoding: str) -> tuple[list[str], list[str]]:
    """Return the spans as ``codec.json_text`` writes them, and a sentence for each that was left out.

    Raises:
        NotAnExportRequest: The body is no OTLP trace request.
        MissingExtra: It is protobuf, and ``opentelemetry-proto`` is not installed.
    """
    decoded = decode_request(body, content_type, content_encoding, limit=MAX_BODY)
    return [dumps(span.model_dump()) for span in decoded.spans], decoded.rejected
