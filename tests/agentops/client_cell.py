"""One whole session of the installed ``agentops`` with the local server: one line of JSON says what came of it.

    python client_cell.py

The client is ``client_session.py`` in a process of its own, and calls a model once. A session is complete if the client
raised nothing, logged no warning and no error but those of ``OWN_WORDS``, got no refusal, asked for no path that the
server does not know, and all that it did is on record: its session with its end, its events or spans, what it printed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from agentlightning.integrations.agentops.probe import version_numbers
from agentlightning.integrations.agentops.server import AgentOpsServerManager
from agentlightning.testing import FakeOpenAI
from agentlightning.testing.fake_openai import Answer

SESSION = Path(__file__).with_name("client_session.py")
SESSION_SECONDS = 300
TEXT = "Hello there"
"""What the model says."""
Release = tuple[int, ...]


class OwnWords(NamedTuple):
    """A line that some releases log whatever a server answers."""

    pattern: str
    said_by: Callable[[Release], bool]
    reason: str


def exporter_is_broken(release: Release) -> bool:
    """Whether these agentops and OpenTelemetry export nothing together."""
    return release >= (0, 4, 19) and installed("opentelemetry-exporter-otlp-proto-http") >= (1, 45)


def installed(package: str) -> Release:
    """Return the numbers of an installed package's version; none where it is absent."""
    try:
        return version_numbers(version(package))
    except PackageNotFoundError:
        return ()


OWN_WORDS = (
    OwnWords(
        r"Calling end\(\) on an ended span\.",
        lambda release: (0, 4, 2) <= release <= (0, 4, 12),
        "its end of a session ends the session's span twice",
    ),
    OwnWords(
        r"shutdown can only be called once",
        lambda release: release >= (0, 4, 13),
        "it and OpenTelemetry each shut its meter provider down when the process ends",
    ),
    OwnWords(
        r"openai\.resources\.beta\.chat",
        lambda release: release >= (0, 4, 16),
        "it patches a module that openai no longer has since 1.92",
    ),
    OwnWords(
        r"Error instrumenting concurrent\.futures: cannot import name 'ThreadPoolExecutor'",
        lambda release: (0, 4, 15) <= release <= (0, 4, 16),
        "its hook of imports looks into concurrent.futures while that is being imported",
    ),
    OwnWords(
        r"Invalid type NoneType for attribute 'gen_ai\.",
        lambda release: release >= (0, 4, 15),
        "it makes attributes of what the model's answer leaves empty, and OpenTelemetry refuses them",
    ),
    OwnWords(
        r"'AuthenticatedOTLPExporter' object has no attribute '_headers'",
        exporter_is_broken,
        "its exporter uses what OpenTelemetry's has no longer since 1.45, so it sends no span",
    ),
)


def judge(told: dict[str, Any], received: dict[str, Any], release: Release) -> Iterator[str]:
    """Yield what is not as it should be."""
    if told["exception"]:
        yield f"it raised: {told['exception'][-1500:]}"
    for level, logger, text in told["log"]:
        if not own_words(text, release):
            yield f"it logged: {level} {logger}: {text}"
    for request in received["requests"]:
        if request["status"] >= 400:
            yield f"{request['method']} {request['path']} was answered with {request['status']}"
        elif not re.match(r"/v1/traces|/v[234]/", request["path"]):
            yield f"{request['method']} {request['path']} is a path that no client is known to ask for"
    errors = [error["reason"] for error in received["errors"]]
    # Where the releases before would get an answer to replay, these get none, and the server says so.
    expected = ["time travel"] if (0, 3, 21) <= release < (0, 4) else []
    if [reason.partition(":")[0] for reason in errors] != expected:
        yield f"the server noted {errors}"
    if release >= (0, 4):
        yield from judge_current(received, release)
    else:
        yield from judge_legacy(received, release)
        yield from judge_time_travel(told.get("replayed"), release)


def own_words(text: str, release: Release) -> list[str]:
    """Return why a line is the client's own; nothing if it is none of these."""
    return [known.reason for known in OWN_WORDS if known.said_by(release) and re.search(known.pattern, text)]


def judge_legacy(received: dict[str, Any], release: Release) -> Iterator[str]:
    """0.2 and 0.3 send sessions, agents and events."""
    (session,) = received["sessions"] or [{}]
    if (session.get("end_state"), session.get("tags")) != ("Success", ["first"]):
        yield f"its session ended as {session.get('end_state')!r} with the tags {session.get('tags')!r}"
    if [agent.get("name") for agent in received["agents"]] != ["worker"]:
        yield f"its agents are {received['agents']}"
    kinds = sorted(event.get("event_type", "") for event in received["events"])
    error = [] if release == (0, 3, 0) else ["errors"]  # the session makes none there
    # One LLM event is recorded by hand, one is of the call.
    if kinds != sorted(["actions", *error, "llms", "llms", "tools"]):
        yield f"its events are {kinds}"
    if any(event["session_id"] != session.get("session_id") for event in received["events"]):
        yield "an event lies in another session"


def judge_time_travel(replayed: dict[str, str] | None, release: Release) -> Iterator[str]:
    """0.3.6 to 0.3.26 download what a model answered; those from 0.3.21 on never sent it."""
    if release < (0, 3, 6):
        return
    wanted = [] if release >= (0, 3, 21) else [("{'messages': [{'role': 'user', 'content': 'Hello'}]}", TEXT)]
    contents = {
        asked: json.loads(answer)["choices"][0]["message"]["content"]
        for asked, answer in (replayed or {}).items()
    }
    if list(contents.items()) != wanted:
        yield f"its time travel got {replayed}"


def judge_current(received: dict[str, Any], release: Release) -> Iterator[str]:
    """0.4 sends spans, and from 0.4.7 on what was printed."""
    if release >= (0, 4, 7) and not any("working on 1" in log["text"] for log in received["logs"]):
        yield f"what it printed was not uploaded: {received['logs']}"
    if exporter_is_broken(release):
        return
    names = [span["name"] for span in received["spans"]]
    wanted = {"a model call": r"openai\.chat", "a session": r"\.session$"}
    if release > (0, 4, 2):  # its decorators raise
        wanted["the decorated function"] = r"^work\b"
    for what, pattern in wanted.items():
        if not any(re.search(pattern, name) for name in names):
            yield f"there is no span of {what} among {names}"


def drive() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the client told, and what the server received."""
    with (
        AgentOpsServerManager() as server,
        FakeOpenAI(Answer.of(TEXT)) as model,
        tempfile.TemporaryDirectory() as folder,
    ):
        ran = subprocess.run(
            [sys.executable, str(SESSION), server.url, model.base_url],
            capture_output=True,
            text=True,
            cwd=folder,  # some releases leave files where they run
            timeout=SESSION_SECONDS,
            check=False,
        )
        lines = ran.stdout.splitlines()
        if ran.returncode or not lines:
            raise RuntimeError(f"the client's exit status is {ran.returncode}: {ran.stderr[-2000:]}")
        return json.loads(lines[-1]), server.recorded()


def shape(path: str) -> str:
    """Return a path without the id in it."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}", "<id>", path)


def cell() -> dict[str, Any]:
    """Drive a session and judge it."""
    began = time.monotonic()
    release = installed("agentops")
    result: dict[str, Any] = {
        "agentops": version("agentops"),
        "opentelemetry": ".".join(map(str, installed("opentelemetry-sdk"))),
        "openai": version("openai"),
    }
    try:
        told, received = drive()
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return {**result, "verdict": "failed", "problems": [str(error)], "notes": []}
    problems = list(judge(told, received, release))
    words = [reason for _, _, text in told["log"] for reason in own_words(text, release)]
    kept = ("sessions", "agents", "events", "spans", "logs")
    return {
        **result,
        "verdict": "failed" if problems else "complete",
        "requests": sorted({f"{each['method']} {shape(each['path'])}" for each in received["requests"]}),
        "kept": [kind for kind in kept if received[kind]],
        "notes": list(dict.fromkeys(words)),
        "problems": problems,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    """Tell it."""
    told = cell()
    print(json.dumps(told))
    return int(told["verdict"] == "failed")


if __name__ == "__main__":
    sys.exit(main())
