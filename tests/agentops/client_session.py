"""Drive whichever ``agentops`` is installed through a whole session against one URL; standard library only.

    python client_session.py http://127.0.0.1:8002 [http://127.0.0.1:9000/v1]

The second URL is that of an OpenAI-compatible model server: one chat call is made there, if ``openai`` is installed.
What happened is one line of JSON on stdout, written when all else is over: the version, the steps that were taken, what
was raised, and each line that any logger was given at WARNING or above. Some releases leave files in the current folder.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import json
import logging
import os
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

API_KEY = "00000000-0000-4000-8000-000000000000"


class Story:
    """What happened, told at the very end."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.told: dict[str, Any] = {"steps": [], "exception": None, "log": []}

    def step(self, name: str, value: Any = None) -> Any:
        """Note a step and hand its result on."""
        self.told["steps"].append([name, round(time.monotonic() - self.started, 3)])
        return value

    def tell(self) -> None:
        self.told["seconds"] = round(time.monotonic() - self.started, 3)
        os.write(1, (json.dumps(self.told) + "\n").encode())  # agentops has replaced print


def set_environment(url: str) -> None:
    """Point everything at the server; what has no setting is switched off."""
    os.environ.update(
        AGENTOPS_API_KEY=API_KEY,
        AGENTOPS_API_ENDPOINT=url,
        AGENTOPS_APP_URL=url,
        AGENTOPS_EXPORTER_ENDPOINT=f"{url}/v1/traces",
        AGENTOPS_LOGGING_TO_FILE="false",
        TRACELOOP_METRICS_ENABLED="false",
    )


def listen_to_all_loggers(lines: list[list[str]]) -> None:
    """agentops and its OpenTelemetry set-up take handlers away and stop propagation, so look before any handler."""
    handle = logging.Logger.handle

    def noted(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            lines.append([record.levelname, record.name, record.getMessage()])
        handle(self, record)

    logging.Logger.handle = noted  # type: ignore[method-assign]


def chat(story: Story, model_url: str) -> None:
    """Make one call, if there is somebody to call."""
    if not model_url:
        return
    openai = importlib.import_module("openai")
    client = openai.OpenAI(base_url=model_url, api_key="unused")
    reply = client.chat.completions.create(
        model="fake-model", messages=[{"role": "user", "content": "Hello"}]
    )
    story.step("chat", reply)


def legacy_session(agentops: Any, story: Story, release: tuple[int, ...], model_url: str) -> None:
    """0.2 and 0.3: events of every kind, a tag, an agent, an end."""
    if hasattr(agentops, "check_agentops_update"):
        agentops.check_agentops_update = lambda *_: None  # asks pypi.org, without a time limit
    session = story.step("init", agentops.init(api_key=API_KEY, endpoint=os.environ["AGENTOPS_API_ENDPOINT"]))
    if session is None:
        raise RuntimeError("init gave no session")
    agentops.add_tags(["first"])
    agentops.create_agent(name="worker", agent_id="00000000-0000-4000-8000-000000000001")
    story.step("tag and agent")
    chat(story, model_url)
    agentops.record(agentops.ActionEvent(action_type="think", params={"deep": True}, returns="so"))
    agentops.record(agentops.ToolEvent(name="add", params={"a": 1}, returns=2))
    agentops.record(
        agentops.LLMEvent(
            prompt=[{"role": "user", "content": "Hi"}],
            completion={"role": "assistant", "content": "Ho"},
            model="m",
        )
    )
    if release != (
        0,
        3,
        0,
    ):  # recurses for ever in 0.3.0 when there is a trigger; without one it is fine elsewhere
        agentops.record(agentops.ErrorEvent(error_type="sample", details="none"))
    story.step("events")
    agentops.end_session("Success")
    story.step("end")
    if importlib.util.find_spec("agentops.time_travel"):
        story.told["replayed"] = downloaded(str(session.session_id))
        story.step("time travel")


def downloaded(session_id: str) -> dict[str, str]:
    """Return what the client's time travel would answer instead of a model; it keeps that in the current folder."""
    importlib.import_module("agentops.time_travel").fetch_time_travel_id(session_id)
    text = Path("agentops_time_travel.json").read_text(encoding="utf-8")
    found: dict[str, str] = json.loads(text)["completion_overrides"]
    return found


def work(number: int) -> int:
    """What the decorator is put on."""
    print(f"working on {number}")  # from 0.4.7 on it is uploaded
    return number + 1


def current_session(agentops: Any, story: Story, release: tuple[int, ...], model_url: str) -> None:
    """0.4: a session or a trace, whichever the release has, with a decorated function in it."""
    own_trace = release >= (0, 4, 13)
    has_auto = (0, 4, 4) <= release < (0, 4, 13)
    session = agentops.init(auto_start_session=has_auto)
    story.step("init")
    if own_trace:
        session = agentops.start_trace("sample", tags=["first"])
    elif release == (0, 4, 2):
        session = importlib.import_module("agentops.legacy").start_session(attributes={})
    elif not has_auto:
        session = agentops.start_session()
    if session is None:
        raise RuntimeError("there is no session")
    story.step("start")
    if release == (0, 4, 2):  # its decorators raise UnboundLocalError, and its record() takes text
        agentops.record("working on 1")
    else:
        story.step("operation", importlib.import_module("agentops.sdk.decorators").operation(work)(1))
    chat(story, model_url)
    if own_trace:
        agentops.end_trace(session, "Success")
    elif release == (0, 4, 2):
        agentops.end_session(*session)
    elif not has_auto:
        agentops.end_session(session)
    else:
        agentops.end_session(end_state="Success")  # 0.4.4 to 0.4.6 do nothing when it is given by position
    story.step("end")


def main() -> None:
    """Take the session from argv."""
    story = Story()
    atexit.register(story.tell)  # the first to be registered is the last to run
    set_environment(sys.argv[1])
    listen_to_all_loggers(story.told["log"])
    model_url = sys.argv[2] if len(sys.argv) > 2 else ""
    try:
        story.told["version"] = version("agentops")
        release = tuple(int(part) for part in story.told["version"].split(".")[:3])
        if model_url:
            importlib.import_module("openai")  # 0.2 and 0.3 patch it only where it is imported already
        agentops = importlib.import_module("agentops")
        story.step("import")
        drive = current_session if release >= (0, 4) else legacy_session
        drive(agentops, story, release, model_url)
    except BaseException:
        story.told["exception"] = traceback.format_exc()


if __name__ == "__main__":
    main()
