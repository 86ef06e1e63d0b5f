"""One cell of the version matrix: AgentOps, OpenTelemetry and openai as they are installed; one line of JSON.

    python matrix_cell.py [--small]            # the cell: each part below in a process of its own; small, not the last
    python matrix_cell.py managed REPORT SOCKETS
    python matrix_cell.py before|after REPORT SOCKETS

``managed``: two rounds of an agent that calls its model in every style under ``AgentOpsTracer``, and a third that is
never torn down; every connection and every name that is looked up, to the very end of the process, goes to SOCKETS.
``before`` and ``after``: the agent's user starts AgentOps, before our tracer or after it, and has its spans sent to a
server of the user's own. What is told: everything that is not as it should be, and what AgentOps does by itself.
"""

from __future__ import annotations

import asyncio
import builtins
import ipaddress
import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agentlightning.errors import AgentOpsUnsupported
from agentlightning.integrations.agentops.managed import core_object, core_provider
from agentlightning.integrations.agentops.probe import Found, probe
from agentlightning.integrations.agentops.server.manager import AgentOpsServerManager
from agentlightning.integrations.agentops.table import support

KEY = "00000000-0000-4000-8000-000000000001"
PARTS = ("managed", "before", "after")
SMALL_PARTS = PARTS[:2]
PART_SECONDS = 600  # only ends what hangs: on a busy machine, importing agentops alone takes a minute


# ---------------------------------------------------------------------- the agent under one range


class Agent:
    """The agent's steps, decorated as its AgentOps allows; a span of OpenTelemetry's own is around each."""

    def __init__(self, found: Found, model: Any, expected: dict[str, Any] | None = None) -> None:
        self.found = found
        self.model = model
        self.expected = expected
        """What each style returned without us."""
        self.problems: list[str] = []

    def decorated(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """Return a function under the decorator of its kind."""
        if self.found.range == "none":
            return function
        if self.found.legacy:
            agentops = import_module("agentops")
            named = agentops.record_tool if kind == "tool" else agentops.record_action
            made: Callable[..., Any] = named(function.__name__)(function)
            return made
        decorators = import_module("agentops.sdk.decorators")
        made = getattr(decorators, kind, decorators.operation)(function)
        return made

    def step(self, style: Callable[..., Any]) -> Callable[[Any], Any]:
        """Return a style as a step of the agent: a span, in it a decorated function, in it the call."""
        trace = import_module("opentelemetry.trace")
        run = self.decorated(style, "operation")

        async def steps(client: Any) -> Any:
            with trace.get_tracer("agent").start_as_current_span(f"step {style.__name__}"):
                result = run(client)
                return await result if hasattr(result, "__await__") else result

        return steps

    async def run(self, note: str) -> dict[str, Any]:
        """Do everything once; what differs from ``expected`` is a problem."""
        agent = import_module("matrix_agent")

        def add(left: int, right: int) -> int:
            print("adding", left, right, file=sys.stderr)
            return left + right

        outcomes: dict[str, Any] = await agent.run_all(self.model, self.step)
        if self.decorated(add, "tool")(1, right=2) != 3:
            self.problems.append(f"{note}: the tool does not return what it returns")
        for style, outcome in outcomes.items():
            if self.expected is not None and outcome != self.expected[style]:
                self.problems.append(f"{note}: {style} gave {outcome}, not {self.expected[style]}")
        return outcomes

    async def fails(self, note: str) -> None:
        """Raise in a decorated function: the exception stays the same object."""
        mine = ValueError("mine")

        def fail() -> None:
            raise mine

        try:
            self.decorated(fail, "operation")()
        except ValueError as error:
            if error is not mine:
                self.problems.append(f"{note}: the agent's exception is another one")
        else:
            self.problems.append(f"{note}: the agent's exception is gone")


# ---------------------------------------------------------------------- what must hold of the store


class Rollout:
    """The spans of one rollout."""

    def __init__(self, agent: Agent, spans: list[Any], note: str) -> None:
        self._agent = agent
        self._spans = spans
        self._by_id = {span.span_id: span for span in spans}
        self._note = note

    def check(self, asked: Counter[str], outcomes: dict[str, Any]) -> None:
        """Note what is not as it should be; ``asked`` has what the model's server was asked, by style."""
        cases = import_module("matrix_agent")
        is_model_call = import_module("agentlightning.dialects.spans.foreign").is_model_call
        calls: dict[str, list[Any]] = {}
        for span in self._spans:
            if is_model_call(span.attributes):
                calls.setdefault(str(span.attributes.get("gen_ai.request.model")), []).append(span)
        for style in cases.NAMES:
            found = calls.pop(style, [])
            if len(found) == asked[style] == 1:
                self._check_place(style, found[0])
                # AgentOps broke it before it was read.
                if style == "refused" or outcomes[style][0] != "raised":
                    # AgentOps' streams close nothing: nobody may have ended the call when our worker ended.
                    may_be_open = style in cases.CUT_OFF and outcomes[style][0].startswith("agentops:")
                    if not (may_be_open and is_silent(found[0])):
                        self._check_tokens(style, found[0])
            elif len(found) != asked[style] and outcomes[style][0] != "raised":
                names = [span.name for span in found]
                self._problem(f"{style} is {len(found)} spans {names} for {asked[style]} requests")
        raised = [style for style in cases.NAMES if outcomes[style][0] == "raised" and not asked[style]]
        if len(calls.pop("None", [])) > len(raised) or calls:  # AgentOps' span of a call that it broke itself
            self._problem(f"spans of calls that nobody made: {sorted(calls) or 'without a model'}")
        self._check_agent()

    def _check_tokens(self, style: str, span: Any) -> None:
        cases = import_module("matrix_agent")
        names = import_module("agentlightning.semconv").ModelCallAttributes
        told = span.attributes
        ids = told.get(names.RESPONSE_TOKEN_IDS.at(0))
        logprobs = told.get(names.LOGPROBS.at(0))
        verdict = told.get(names.TOKEN_CAPTURE.value)
        if style == "refused":
            if span.status.status_code != "ERROR" or ids:
                self._problem(f"refused: status {span.status.status_code}, token ids {ids}")
            return
        expected = [token.id for token in cases.TOKENS], [token.logprob for token in cases.TOKENS]
        if style in cases.CUT_OFF:
            expected = expected[0][:1], expected[1][:1]
        # Some releases do not close what the agent leaves, so that the end of the tracer does.
        left = ("invalid(left_by_agent)", "invalid(partial)")
        wanted_verdicts = left if style in cases.CUT_OFF else ("valid",)
        prompt = told.get(names.PROMPT_TOKEN_IDS.value)
        if prompt != list(cases.prompt_ids(style)):
            self._problem(f"{style}: prompt ids {prompt}")
        if (ids, logprobs) != expected or verdict not in wanted_verdicts:
            self._problem(f"{style}: {verdict}, token ids {ids}, log-probabilities {logprobs}")

    def _check_place(self, style: str, span: Any) -> None:
        parent = self._by_id.get(span.parent_id)
        if self._agent.found.range != "none" and not self._agent.found.legacy:
            if parent is None or not parent.name.startswith(f"{style}."):
                self._problem(f"{style} lies under {parent and parent.name}")
                return
            parent = self._by_id.get(parent.parent_id)
        if parent is None or parent.name != f"step {style}":
            self._problem(f"{style} lies in the step {parent and parent.name}")

    def _check_agent(self) -> None:
        """The tool, and the function that failed."""
        if self._agent.found.range == "none":
            return
        if not any(span.name.startswith("add") for span in self._spans):
            self._problem("the tool left no span")
        failed = [span for span in self._spans if span.name.startswith("fail") or span.name == "ValueError"]
        if not failed or any(span.status.status_code != "ERROR" for span in failed):
            self._problem(f"the failing function left {[(s.name, s.status.status_code) for s in failed]}")

    def _problem(self, text: str) -> None:
        self._agent.problems.append(f"{self._note}: {text}")


def is_silent(span: Any) -> bool:
    """Whether a span claims nothing of what was sampled."""
    return not any("token_ids" in name or "token_capture" in name for name in span.attributes)


Check = Callable[[], Coroutine[None, None, None]]


async def rollout(agent: Agent, tracer: Any, store: Any, note: str) -> tuple[dict[str, Any], Check]:
    """Run the agent once under a tracer; return what it saw, and what looks at what the store has of it."""
    agent.model.requests.clear()
    async with tracer.trace_context() as handle:
        outcomes = await agent.run(note)
        await agent.fails(note)
    asked = Counter(request.json()["model"] for request in agent.model.requests)

    async def check() -> None:
        receipt = await store.get_receipt(handle.rollout_id, handle.attempt_id)
        # Where AgentOps raised after the request was sent, nobody has the answer, and nobody ends it.
        unread = sum(asked[style] for style, outcome in outcomes.items() if outcome[0] == "raised")
        lost = receipt.started - receipt.stored - sum(receipt.dropped.values()) - receipt.open
        if lost or receipt.open > unread - asked["refused"] or set(receipt.dropped) - {"same_call"}:
            agent.problems.append(f"{note}: {receipt}")
        spans = await store.query_spans(handle.rollout_id)
        Rollout(agent, list(spans), note).check(asked, outcomes)

    return outcomes, check


# ---------------------------------------------------------------------- what must hold of the process


def surroundings() -> dict[str, Any]:
    """What a tracer could change for others, object by object."""
    openai, httpx = import_module("openai.resources.chat.completions"), sys.modules.get("httpx")
    pool = import_module("concurrent.futures").ThreadPoolExecutor
    logger = logging.getLogger("agentops")
    return {
        "print": builtins.print,
        "__import__": builtins.__import__,
        "environment": dict(os.environ),
        "tracer provider": import_module("opentelemetry.trace")._TRACER_PROVIDER,
        "meter provider": import_module("opentelemetry.metrics._internal")._METER_PROVIDER,
        "SIGINT": signal.getsignal(signal.SIGINT),
        "SIGTERM": signal.getsignal(signal.SIGTERM),
        "excepthook": sys.excepthook,
        "threading.excepthook": threading.excepthook,
        "threads": {each.name for each in threading.enumerate() if "process_request" not in each.name},
        "openai": [vars(each).get("create") for each in (openai.Completions, openai.AsyncCompletions)],
        "httpx": httpx and [vars(each).get("send") for each in (httpx.Client, httpx.AsyncClient)],
        "executor": [pool.submit, pool.map, threading.Thread.start, threading.Thread.run],
        "logger": (logger.level, logger.propagate, list(logger.handlers)),
    }


@contextmanager
def unchanged(problems: list[str], note: str) -> Iterator[None]:
    """Note what is other after the body than before it."""
    before = surroundings()
    yield
    after = surroundings()
    for name, value in before.items():
        if after[name] != value:
            problems.append(f"{note}: {name} is {after[name]}, was {value}")


# ---------------------------------------------------------------------- parts


def managed(agent: Agent) -> dict[str, Any]:
    """Two rounds in one process, and one that ends with it."""
    tracing = import_module("agentlightning.tracer")
    stores = import_module("agentlightning.store")
    strict = support(agent.found).verdict == "captured"
    if not strict:
        _check_refusal(agent, tracing.AgentOpsTracer)
    if agent.found.range != "none":
        # What an import leaves behind is AgentOps', not ours: hooks for the end of the process, a logger.
        import_module("agentops")
    for note in ("first round", "second round"):
        with unchanged(agent.problems, note):
            store = stores.InMemoryLightningStore()
            tracer = tracing.AgentOpsTracer(strict=strict, max_wait_time=60_000)
            with tracer.lifespan(store):
                asyncio.run(_recorded_at_once(agent, tracer, store, note))
    return {}


async def _recorded_at_once(agent: Agent, tracer: Any, store: Any, note: str) -> None:
    """The store has everything as soon as the context is left."""
    _, check = await rollout(agent, tracer, store, note)
    await check()


def left_running(agent: Agent) -> None:
    """A worker that nobody tears down, with an agent that starts AgentOps itself."""
    tracer = import_module("agentlightning.tracer").AgentOpsTracer(max_wait_time=60_000)
    store = import_module("agentlightning.store").InMemoryLightningStore()
    tracer.init()
    tracer.init_worker(0, store)
    import_module("opentelemetry.metrics").get_meter("agent").create_counter("steps").add(1)

    async def last() -> None:
        async with tracer.trace_context():
            if agent.found.range != "none":
                import_module("agentops").init(KEY)
            print("the agent says something", file=sys.stderr)
            await agent.run("last round")
            await agent.fails("last round")

    asyncio.run(last())


def _check_refusal(agent: Agent, tracer_class: Any) -> None:
    """Strict, the words are those of the table."""
    known = support(agent.found)
    tracer = tracer_class(strict=True)
    try:
        tracer.init_worker(0, import_module("agentlightning.store").InMemoryLightningStore())
    except AgentOpsUnsupported as error:
        if known.sentence not in str(error):
            agent.problems.append(f"refused in other words than the table's: {error}")
    else:
        agent.problems.append("not refused, although the table says so")
    tracer.teardown()


def unmanaged(agent: Agent, order: str) -> dict[str, Any]:
    """The user's own AgentOps, recorded beside what it sends."""
    stores = import_module("agentlightning.store")
    tracer = import_module("agentlightning.tracer").AgentOpsTracer(
        agentops_managed=False, strict=True, max_wait_time=60_000
    )
    with AgentOpsServerManager() as server, ExitStack() as undo:
        theirs = Theirs(agent, server)
        if order == "before":
            theirs.start()
            theirs.run_alone()
        with unchanged(agent.problems, "after our tracer") if order == "before" else ExitStack():
            store = stores.InMemoryLightningStore()
            undo.enter_context(tracer.lifespan(store))
            if order == "after":
                agent.expected = None  # the cell compares with "before"
                theirs.start()
            outcomes, check = asyncio.run(rollout(agent, tracer, store, "with us"))
            _, check_again = asyncio.run(rollout(agent, tracer, store, "with us again"))
            theirs.check()
            undo.close()
        # Not before: a stream of AgentOps' that was left ends when Python collects it, or with our worker.
        asyncio.run(check())
        asyncio.run(check_again())
        theirs.end()
    return {"outcomes": outcomes, "notes": theirs.notes}


class Theirs:
    """What the user's AgentOps does and gets, at a server of the user's."""

    def __init__(self, agent: Agent, server: AgentOpsServerManager) -> None:
        self.notes: list[str] = []
        self._agent = agent
        self._server = server
        self._alone: Counter[str] = Counter()

    def start(self) -> None:
        """As users do."""
        url = self._server.url
        os.environ.update(self._server.environment())
        if self._agent.found.range == "A1":
            os.environ["TRACELOOP_METRICS_ENABLED"] = "false"  # they go to its cloud, wherever it is pointed
        agentops: Any = import_module("agentops")
        if self._agent.found.legacy:
            if hasattr(agentops, "check_agentops_update"):
                agentops.check_agentops_update = lambda: None  # asks pypi.org
            agentops.init(KEY, endpoint=url)
        else:
            agentops.init(api_key=KEY, endpoint=url, exporter_endpoint=f"{url}/v1/traces")

    def run_alone(self) -> None:
        """Learn what it gives the agent, and gets, without us."""
        plain = self._agent.expected or {}
        self._agent.expected = None
        alone = asyncio.run(self._agent.run("AgentOps alone"))
        for style, outcome in alone.items():
            if outcome != plain[style]:
                self.notes.append(f"{style}: {difference(plain[style], outcome)}")
        self._agent.expected = alone
        self._alone = self._received()
        self._server.clear()

    def check(self) -> None:
        """It gets with us what it gets without us."""
        wait_until = import_module("agentlightning.testing").wait_until
        if not self._alone:  # after us, or its exporter sends nothing
            try:
                wait_until(lambda: bool(self._received()))
            except AssertionError:
                self._agent.problems.append("its server got nothing")
            return
        twice = Counter({name: 2 * count for name, count in self._alone.items()})
        try:
            wait_until(lambda: not twice - self._received())
        except AssertionError:
            missing = dict(twice - self._received())
            self._agent.problems.append(f"its server lacks spans that it gets without us: {missing}")

    def end(self) -> None:
        """As the end of a process does, but while its server is there."""
        import_module("agentops").end_session("Success")
        if not self._agent.found.legacy:
            core_object(import_module("agentops.sdk.core")).shutdown()

    def _received(self) -> Counter[str]:
        if self._agent.found.legacy:
            events = self._server.recorded("events")
            return Counter(str(event.get("event_type")) for event in events)
        core_provider(import_module("agentops.sdk.core")).force_flush()
        return Counter(span["name"] for span in self._server.recorded("spans"))


def difference(plain: list[str], changed: list[str]) -> str:
    """Say what is other in an outcome than without AgentOps."""
    if changed[0] == "raised":
        return f"raises {changed[1].partition(':')[2]}"
    found = [new for old, new in zip(plain, changed, strict=False) if old != new]
    types = [new.partition(":")[2] for new in found if re.fullmatch(r"\w+:[\w.]+", new)]
    others = ["no .response" if new == "no .response" else "other content" for new in found[len(types) :]]
    return ", ".join([*types, *others])


def run_part(part: str, report: Path, sockets: Path) -> None:
    """One part in this process."""
    listen(sockets)
    found = probe()
    cases = import_module("matrix_agent")
    testing = import_module("agentlightning.testing")
    told: dict[str, Any] = {}
    with testing.FakeOpenAI(cases.answer) as model:
        agent = Agent(found, model)
        agent.expected = asyncio.run(Agent(Found("none"), model).run("alone"))
        told = managed(agent) if part == "managed" else unmanaged(agent, part)
        if part == "managed":
            left_running(agent)
        told["problems"] = agent.problems
        report.write_text(json.dumps(told), encoding="utf-8")


def listen(path: Path) -> None:
    """Write down every peer and every name of this process, to its very end."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(event: str, arguments: Any) -> None:
        if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
            address = arguments[1]
            peer = address[0] if isinstance(address, tuple) else None  # a path: it stays on this machine
        elif event in {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}:
            peer = arguments[0]
        else:
            return
        if peer is not None and peer != "":
            text = peer.decode() if isinstance(peer, bytes) else str(peer)
            os.write(descriptor, f"{text}\n".encode())

    sys.addaudithook(note)


# ---------------------------------------------------------------------- the cell


def is_loopback(peer: str) -> bool:
    """Whether a name or an address is this machine's own."""
    if peer == "localhost":
        return True
    try:
        return ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False


def result_of(part: str) -> dict[str, Any]:
    """Run one part in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        report, sockets = Path(folder, "report"), Path(folder, "sockets")
        try:
            ran = subprocess.run(
                [sys.executable, __file__, part, str(report), str(sockets)],
                capture_output=True,
                text=True,
                cwd=folder,  # AgentOps leaves files where it runs
                timeout=PART_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return {"problems": [f"not over after {PART_SECONDS} s: {str(error.stderr)[-1000:]}"]}
        if not report.exists():
            return {"problems": [f"exit status {ran.returncode}: {ran.stderr[-2000:]}"]}
        told: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        if ran.returncode:
            told["problems"].append(f"exit status {ran.returncode}: {ran.stderr[-2000:]}")
        peers = set(sockets.read_text(encoding="utf-8").split())
        if part == "managed" and not all(map(is_loopback, peers)):
            told["problems"].append(f"it spoke to {sorted(peer for peer in peers if not is_loopback(peer))}")
        if part == "managed" and not peers:
            told["problems"].append("no connection was seen at all, so the listening does not work")
        return told


def cell(wanted: Sequence[str]) -> dict[str, Any]:
    """The parts, and what they come to."""
    began = time.monotonic()
    found = probe()
    known = support(found)
    parts = wanted if known.verdict == "captured" else wanted[:1]
    results = {part: result_of(part) for part in parts}
    problems = [f"{part}: {problem}" for part, result in results.items() for problem in result["problems"]]
    before, after = (results.get(part, {}).get("outcomes", {}) for part in ("before", "after"))
    problems += [
        f"{style} gave {before[style]} before our tracer and {after[style]} after it"
        for style in sorted(before.keys() & after.keys())
        if before[style] != after[style]
    ]
    return {
        "agentops": found.version,
        "opentelemetry": version("opentelemetry-sdk"),
        "openai": version("openai"),
        "verdict": "failed" if problems else known.verdict,
        "sentence": known.sentence,
        "notes": results.get("before", {}).get("notes", []),
        "problems": problems,
        "seconds": round(time.monotonic() - began, 1),
    }


def main() -> int:
    """The cell, or one part of it."""
    if sys.argv[1:] and sys.argv[1] in PARTS:
        run_part(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
        return 0
    told = cell(SMALL_PARTS if sys.argv[1:] == ["--small"] else PARTS)
    print(json.dumps(told))
    return int(told["verdict"] == "failed")


if __name__ == "__main__":
    sys.exit(main())
