"""The page that a person sees: what was received, newest first, in one piece of HTML that loads nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from flask import Response

from .faults import Faults
from .recorder import Recorder, from_kept

SPANS_SHOWN, OTHERS_SHOWN = 200, 50
VALUE_SHOWN = 4000
"""Characters of one record; ``/_recorded`` has all of them."""

_JSON = json.JSONEncoder(indent=2, ensure_ascii=False)
_INLINE = "'unsafe-inline'"
_STYLE = """
body{font:14px/1.45 system-ui,sans-serif;margin:1.5rem auto;max-width:76rem;padding:0 1rem;color:#1b1b1f}
h1{font-size:1.3rem}h2{font-size:1.05rem;margin-top:1.6rem}table{border-collapse:collapse}a{color:#0b57d0}
th,td{text-align:left;padding:.2rem 1.6rem .2rem 0;border-bottom:1px solid #ddd}
.n{text-align:right;font-variant-numeric:tabular-nums}pre{white-space:pre-wrap;word-break:break-word;margin:.3rem 0}
code,pre,.id{font:12px/1.6 ui-monospace,monospace}.ERROR>summary,p.ERROR{color:#b00020}.quiet{color:#666}
summary{cursor:pointer}.wide{overflow-x:auto}.row,.span{min-width:66rem}.row{display:grid;gap:1rem;
grid-template-columns:minmax(14rem,1fr) 4rem 5rem 8rem 8rem 16rem;border-bottom:1px solid #ddd;padding:.2rem 0}
.row>:first-child{overflow-wrap:anywhere}summary.row>:first-child::before{content:"▸ "}
[open]>summary.row>:first-child::before{content:"▾ "}
@media(prefers-color-scheme:dark){body{color:#e6e6ea;background:#16161a}th,td,.row{border-color:#333}a{color:#8ab4f8}
.ERROR>summary,p.ERROR{color:#ff6b81}.quiet{color:#999}}
"""
# An opened detail is being read, so the page keeps still.
_SCRIPT = """
setInterval(async()=>{if(document.hidden||document.querySelector("details[open]"))return;
try{const t=await(await fetch("/")).text();
const m=new DOMParser().parseFromString(t,"text/html").querySelector("main");
document.querySelector("main").replaceWith(m)}catch{}},2000)
"""


def render(recorder: Recorder, faults: Faults) -> Response:
    """Return the page."""
    main = "".join([_counts(recorder), _faults(faults), _spans(recorder), *_others(recorder)])
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>AgentOps on this machine</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head><body><h1>AgentOps on this machine</h1>"
        '<p class="quiet">What agentops clients sent to this server, newest first. Nothing leaves the machine. '
        'As JSON: <a href="/_recorded">/_recorded</a></p>'
        f"<main>{main}</main><script>{_SCRIPT}</script></body></html>"
    )
    policy = (
        f"default-src 'none'; style-src {_INLINE}; script-src {_INLINE}; connect-src 'self'; img-src data:"
    )
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": policy,
        "Referrer-Policy": "no-referrer",
    }
    return Response(page, content_type="text/html; charset=utf-8", headers=headers)


def _counts(recorder: Recorder) -> str:
    rows = [
        (kind, count["received"], count["kept"], count["dropped"])
        for kind, count in recorder.counts().items()
        if count["received"]
    ]
    if not rows:
        return "<p>Nothing has been received yet.</p>"
    lines = "".join(
        f'<tr><td><a href="/_recorded?kind={kind}">{kind}</a></td>'
        + "".join(f'<td class="n">{number}</td>' for number in numbers)
        + "</tr>"
        for kind, *numbers in rows
    )
    heads = "".join(f"<th class=n>{name}" for name in ("received", "kept", "given up for room"))
    return f"<table><tr><th>kind{heads}</tr>{lines}</table>"


def _faults(faults: Faults) -> str:
    found = faults.open()
    lines = _plain("\n".join(map(json.dumps, found)), VALUE_SHOWN)
    return f"<p class=ERROR>{len(found)} ordered to go wrong:</p><pre>{lines}</pre>" if found else ""


def _spans(recorder: Recorder) -> str:
    texts = recorder.read("spans", newest=SPANS_SHOWN)
    if not texts:
        return ""
    names = ("name", "status", "seconds", "rollout", "attempt", "trace")
    heads = "".join(f"<strong{' class=n' if name == 'seconds' else ''}>{name}</strong>" for name in names)
    rows = "".join(_span(from_kept(text)) for text in reversed(texts))
    return f'<h2>Spans</h2><div class="wide"><div class="row">{heads}</div>{rows}</div>'


def _span(span: dict[str, Any]) -> str:
    start, end = span.get("start_time"), span.get("end_time")
    seconds = f"{end - start:.3f}" if isinstance(start, float) and isinstance(end, float) else ""
    code = _plain(span["status"]["status_code"])
    ids = "".join(
        f'<span class="id">{_plain(span[name])}</span>' for name in ("rollout_id", "attempt_id", "trace_id")
    )
    return (
        f'<details class="span {code}"><summary class="row"><span>{_plain(span["name"]) or "(no name)"}</span>'
        f'<span>{code}</span><span class="n">{seconds}</span>{ids}</summary>{_shown(span)}</details>'
    )


def _others(recorder: Recorder) -> Iterable[str]:
    for kind in recorder.kinds:
        texts = [] if kind == "spans" else recorder.read(kind, newest=OTHERS_SHOWN)
        if texts:
            lines = "".join(_other(kind, from_kept(text)) for text in reversed(texts))
            yield f"<h2>{kind.capitalize()}</h2>{lines}"


def _other(kind: str, value: dict[str, Any]) -> str:
    titles: dict[str, list[str]] = {
        "requests": ["method", "path", "status"],
        "sessions": ["session_id", "end_state"],
        "events": ["event_type", "name", "action_type", "model"],
        "logs": ["severity", "text"],
        "metrics": ["name"],
        "errors": ["path", "reason"],
        "agents": ["name"],
    }
    # Requests hold keys, in headers and in one body; who needs them finds them in /_recorded.
    hidden = {"headers", "body"} if value.get("path") == "/v3/auth/token" else {"headers"}
    shown = {name: item for name, item in value.items() if kind != "requests" or name not in hidden}
    title = " ".join(_plain(value[name]) for name in titles.get(kind, []) if value.get(name) is not None)
    status = value.get("status")
    went_wrong = kind == "errors" or (kind == "requests" and isinstance(status, int) and status >= 400)
    return f"<details{' class=ERROR' if went_wrong else ''}><summary>{title or kind}</summary>{_shown(shown)}</details>"


def _shown(value: Any) -> str:
    """Return the beginning; writing all of it takes long where it is large or deep."""
    text = ""
    for piece in _JSON.iterencode(value):
        text += piece
        if len(text) > VALUE_SHOWN:
            return f"<pre>{_plain(text[:VALUE_SHOWN], VALUE_SHOWN)} … (all of it: /_recorded)</pre>"
    return f"<pre>{_plain(text, VALUE_SHOWN)}</pre>"


def _plain(value: Any, width: int = 200) -> str:
    """Return text that means nothing to a browser; half characters become question marks."""
    return escape(str(value)[:width].encode(errors="replace").decode())
