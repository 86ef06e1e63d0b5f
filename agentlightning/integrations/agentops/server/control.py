"""Routes for people and tests: ``/``, ``/health``, ``/_recorded``, ``/_fail``, and what no route knows."""

from __future__ import annotations

from typing import Any

from flask import Flask, Response, request

from .answers import answer, problem
from .faults import Faults, parse
from .page import render
from .recorder import Recorder, from_text, to_text


def is_control(path: str) -> bool:
    """Whether a path is ours and not of AgentOps' API."""
    return path in {"/", "/_recorded", "/_fail"}


def add_routes(app: Flask, recorder: Recorder, faults: Faults) -> None:
    """Declare them."""

    @app.get("/health")
    def health() -> Response:
        return answer({"message": "Server Up"})

    @app.get("/")
    def page() -> Response:
        return render(recorder, faults)

    @app.get("/_recorded")
    def recorded() -> Response:
        return _recorded(recorder)

    @app.delete("/_recorded")
    def clear() -> Response:
        recorder.clear()
        return answer({"status": "success"})

    _fault_routes(app, faults)

    @app.route("/<path:unknown>", methods=["GET", "POST"])
    def catch_all(unknown: str) -> Response:
        del unknown  # it is kept as any other request
        return answer({"status": "success"})


def _fault_routes(app: Flask, faults: Faults) -> None:
    @app.post("/_fail")
    def fail() -> Response:
        try:
            faults.add(parse(_orders()))
        except ValueError as error:
            return problem(400, str(error))
        return answer({"open": faults.open()})

    @app.get("/_fail")
    def open_faults() -> Response:
        return answer({"open": faults.open()})

    @app.delete("/_fail")
    def take_back() -> Response:
        faults.clear()
        return answer({"open": []})


def _orders() -> dict[str, Any]:
    body = request.get_data()
    found = from_text(body) if body.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("the body is a JSON object")  # noqa: TRY004 - one kind of complaint about a request
    return {**request.args.to_dict(), **found}


def _recorded(recorder: Recorder) -> Response:
    kinds = request.args.getlist("kind") or recorder.kinds
    unknown = [kind for kind in kinds if kind not in recorder.kinds]
    after, newest = (_whole(request.args.get(name)) for name in ("after", "newest"))
    if unknown or after is False or newest is False:
        return problem(400, f"kind is one of {', '.join(recorder.kinds)}; after and newest are whole numbers")
    # Read before the records: what comes between is then asked for again rather than missed.
    fields = [b'"last":%d' % recorder.last_number]
    for kind in dict.fromkeys(kinds):
        texts = recorder.read(kind, after=after or 0, newest=newest)
        fields.append(b'"%s":[%s]' % (kind.encode(), b",".join(texts)))
    fields.append(b'"counts":' + to_text(recorder.counts()).encode())
    return Response(b"{" + b",".join(fields) + b"}\n", content_type="application/json")


def _whole(text: str | None) -> Any:
    """Return a number, ``None`` where there is none, ``False`` where it is something else."""
    if text is None:
        return None
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else False
