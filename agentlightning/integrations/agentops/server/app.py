"""The API of AgentOps as its clients need it, on Flask.

Every answer under ``/v2`` and ``/v3`` is JSON, errors too, with their text under ``error`` and ``message``: clients
parse before they look at the status. No key and no token is checked. A POST or GET of an unknown path is answered and
kept. What a stranger sends gives a 400 at worst.
"""

from __future__ import annotations

import base64
import binascii
import importlib
import logging
import uuid
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from ....errors import MissingExtra, NotAnExportRequest
from . import callers, control
from .answers import answer, problem
from .faults import Fault, Faults
from .recorder import Recorder, from_text
from .time_travel import replayable

logger = logging.getLogger(__name__)

TOKEN = "dummy"  # noqa: S105 - clients treat it as opaque text and send it back
PROJECT_ID = "dummy"
BODY_KEPT = 16 * 1024
"""Bytes of a body that are kept with the request, or of what cannot be read; what is decoded is kept whole."""
JWT_PREFIX = "local."


def create_app(
    recorder: Recorder | None = None, faults: Faults | None = None, *, local_only: bool = True
) -> Flask:
    """Return the application.

    Args:
        recorder: Where to keep what comes; default a new one with the limits of ``recorder.LIMITS``.
        faults: Orders to misbehave; default a new, empty list.
        local_only: Whether requests are refused whose ``Host`` is not this machine's; see ``callers``.
    """
    recorder = Recorder() if recorder is None else recorder
    faults = Faults() if faults is None else faults
    app = Flask("agentlightning.agentops", static_folder=None, template_folder=None)
    app.debug = False  # FLASK_DEBUG of the surroundings would turn answers into tracebacks
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False
    _around_each_request(app, recorder, faults, local_only=local_only)
    _current_api(app, recorder)
    _otlp(app, recorder)
    _legacy_api(app, recorder)
    control.add_routes(app, recorder, faults)
    return app


# ---------------------------------------------------------------------- around each request


def _around_each_request(app: Flask, recorder: Recorder, faults: Faults, *, local_only: bool) -> None:
    @app.before_request
    def guard() -> Response | None:
        refused = callers.refusal(recorder, local_only=local_only)
        if refused is None and request.method == "POST" and _takes_json(request.path):
            refused = callers.refusal_of_text(recorder)
        g.refused = refused is not None
        return refused

    @app.before_request
    def misbehave() -> Response | None:
        g.fault = None if control.is_control(request.path) else faults.take(request.path)
        if g.fault is None:
            return None
        g.fault.wait()
        if g.fault.status is None:
            return None
        return problem(g.fault.status, "this answer was ordered by /_fail")

    @app.after_request
    def finish(response: Response) -> Response:
        if g.get("fault") is not None:
            _spoil(response, g.fault)
        if not (g.get("refused") or control.is_control(request.path) or request.path == "/health"):
            recorder.add("requests", _described(response))
        return response

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> Response:
        return problem(error.code or 500, error.description or error.name)

    @app.errorhandler(Exception)
    def fail(error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.path, exc_info=error)
        return problem(500, f"{type(error).__name__}: {error}")


def _takes_json(path: str) -> bool:
    """Whether clients post JSON there and nothing else: the whole of 0.2 and 0.3, and the token of 0.4."""
    return path.startswith(("/v2/", "/v3/"))


def _spoil(response: Response, fault: Fault) -> None:
    if fault.content_type:
        response.headers["Content-Type"] = fault.content_type
    if fault.cut:
        whole = response.get_data() or b'{"status":"success"}'
        response.set_data(whole[: len(whole) // 2])
        response.headers["Content-Length"] = str(len(whole))


def _described(response: Response) -> dict[str, Any]:
    body = request.get_data()
    described: dict[str, Any] = {
        "method": request.method,
        "path": request.path,
        "query": request.query_string.decode("latin-1"),
        "headers": dict(request.headers),
        "status": response.status_code,
        "fault": g.get("fault") is not None,
        "size": len(body),
    }
    kept = body[:BODY_KEPT]
    try:
        described["body"] = kept.decode()
    except UnicodeDecodeError:
        described["body_base64"] = base64.b64encode(kept).decode("ascii")
    return described


def _json_body() -> Any:
    """Return the JSON of the request; ``None`` where it is none."""
    try:
        return from_text(request.get_data())
    except ValueError:
        return None


def _object() -> dict[str, Any]:
    """Return the JSON object of the request; empty for anything else."""
    found = _json_body()
    return found if isinstance(found, dict) else {}


def _is_object() -> bool:
    return isinstance(_json_body(), dict)


# ---------------------------------------------------------------------- 0.4


def _current_api(app: Flask, recorder: Recorder) -> None:
    @app.post("/v3/auth/token")
    def token() -> Response:
        if not _is_object():
            return problem(400, "the body is a JSON object with api_key")
        return answer({"token": TOKEN, "project_id": PROJECT_ID, "project_prem_status": "pro"})

    @app.get("/v3/auth/token")
    def verify() -> Response:
        return answer({"token": TOKEN, "project_id": PROJECT_ID, "project_prem_status": "pro"})

    @app.post("/v4/logs/upload/")
    def upload_logs() -> Response:
        return _upload(recorder, "logs", {"trace_id": _trace_id(request.headers.get("Trace-Id", ""))})

    @app.post("/v4/objects/upload/")
    def upload_object() -> Response:
        return _upload(recorder, "objects", {})


def _upload(recorder: Recorder, kind: str, more: Mapping[str, Any]) -> Response:
    """Keep the text of an upload: a JSON string, ``{"body": text}`` (0.4.19 on), or whatever else came."""
    found = _json_body()
    text = found.get("body") if isinstance(found, dict) else found
    if not isinstance(text, str):
        text = request.get_data().decode(errors="replace")
    recorder.add(kind, {**more, "text": text})
    return answer({"url": f"{request.host_url}_recorded?kind={kind}", "size": len(request.get_data())})


def _trace_id(text: str) -> str:
    """Return 32 hex digits: clients send the trace id of a log upload as a decimal number."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 40 else -1
    return f"{number:032x}" if 0 <= number < 2**128 else text


# ---------------------------------------------------------------------- OTLP


def _otlp(app: Flask, recorder: Recorder) -> None:
    @app.post("/v1/traces")
    def traces() -> Response:
        # What decodes loads pydantic and protobuf; a server that gets no span does without.
        decoding = importlib.import_module(".decoding", __package__)
        try:
            texts, rejected = decoding.span_texts(request.get_data(), *_encodings())
        except NotAnExportRequest as error:
            _unreadable(recorder, str(error))
            return problem(400, str(error))
        except MissingExtra as error:  # the client is right, so it must not hear of it
            _unreadable(recorder, str(error))
            return _otlp_accepted()
        recorder.add_texts("spans", texts)
        for reason in rejected:
            _unreadable(recorder, reason)
        return _otlp_accepted()

    @app.post("/v1/metrics", defaults={"signal": "metrics"})
    @app.post("/v1/logs", defaults={"signal": "logs"})
    def others(signal: str) -> Response:
        signals = importlib.import_module(".signals", __package__)
        try:
            found = signals.records(signal, request.get_data(), *_encodings())
        except (NotAnExportRequest, MissingExtra) as error:
            recorder.add(signal, _posted())
            _unreadable(recorder, str(error))
            # Without the package the client is right, so it must not hear of it.
            return _otlp_accepted() if isinstance(error, MissingExtra) else problem(400, str(error))
        for each in found:
            recorder.add(signal, each)
        return _otlp_accepted()


def _encodings() -> tuple[str, str]:
    return request.headers.get("Content-Type", ""), request.headers.get("Content-Encoding", "")


def _otlp_accepted() -> Response:
    if "json" in request.headers.get("Content-Type", ""):
        return answer({})
    return Response(b"", 200, content_type="application/x-protobuf")


def _posted() -> dict[str, Any]:
    content_type, content_encoding = _encodings()
    return {
        "content_type": content_type,
        "content_encoding": content_encoding,
        "size": len(request.get_data()),
        "body_base64": base64.b64encode(request.get_data()[:BODY_KEPT]).decode("ascii"),
    }


def _unreadable(recorder: Recorder, reason: str) -> None:
    recorder.add("errors", {"path": request.path, "reason": reason})


# ---------------------------------------------------------------------- 0.2 and 0.3


def _legacy_api(app: Flask, recorder: Recorder) -> None:
    @app.post("/v2/create_session")
    @app.post("/v2/update_session")
    def session() -> Response:
        found = _object().get("session")
        if not isinstance(found, dict):
            return problem(400, "the body is a JSON object with an object under session")
        session_id = str(found.get("session_id") or _session_of_token() or uuid.uuid4())
        recorder.merge("sessions", session_id, {**found, "session_id": session_id})
        if request.path.rstrip("/") == "/v2/update_session":
            return answer({"status": "success", "token_cost": "0.00", "session_url": request.host_url})
        return answer({"status": "Success", "jwt": _jwt(session_id), "session_url": request.host_url})

    @app.post("/v2/reauthorize_jwt")
    def reauthorize() -> Response:
        session_id = str(_object().get("session_id") or uuid.uuid4())
        return answer({"status": "Success", "jwt": _jwt(session_id)})

    @app.post("/v2/create_events")
    def events() -> Response:
        body = _object()
        found = body.get("events")
        if not isinstance(found, list):
            return problem(400, "the body is a JSON object with a list under events")
        session_id = str(body.get("session_id") or _session_of_token())
        for event in found:
            fields = event if isinstance(event, dict) else {"event": event}
            recorder.add("events", {"session_id": session_id, **fields})
        return answer({"status": "success"})

    @app.post("/v2/create_agent")
    def agent() -> Response:
        recorder.add("agents", {"session_id": _session_of_token(), **_object()})
        return answer({"status": "success"})

    @app.post("/v2/developer_errors")
    def developer_error() -> Response:
        recorder.add("errors", {"path": request.path, "reason": "reported by a client", **_object()})
        return answer({"status": "success"})

    @app.get("/v2/ttd/<path:branch>")
    @app.post("/v2/get_ttd")
    def time_travel(branch: str = "") -> Response:
        session_id = branch or str(_object().get("ttd_id", ""))
        found = replayable(recorder.read("events"), session_id)
        if not found:  # the client says "activated" to an empty list, and nobody else would tell
            _unreadable(recorder, f"time travel: no whole answer of a model is on record for {session_id!r}")
        return answer(found)


def _jwt(session_id: str) -> str:
    """Return a token that says whose it is: from 0.3 on, events name their session by nothing else."""
    return JWT_PREFIX + base64.urlsafe_b64encode(session_id.encode(errors="replace")).decode("ascii")


def _session_of_token() -> str:
    _, _, token = request.headers.get("Authorization", "").partition(" ")
    if not token.startswith(JWT_PREFIX):
        return ""
    try:
        return base64.urlsafe_b64decode(token.removeprefix(JWT_PREFIX).strip()).decode()
    except (binascii.Error, ValueError):
        return ""
