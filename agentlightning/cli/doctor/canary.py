"""The canary: model calls with known tokens through the user's own stack, into a scratch store and back.

The agent runs in a process of its own (``agent``), so this process reads what another one wrote, and nothing that a
stranger's package does can hurt it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...dialects.model_call import ModelCall
from ...dialects.spans.genai import read_call
from ...env_var import LightningEnvVar
from ...integrations.agentops.probe import installed_version
from ...store.registry import open_store
from ...types import Receipt
from .. import output, receipts
from .calls import CALLS, Call
from .finding import Finding, Level, Subject, program_environment, scratch

TIMEOUT = 600.0
"""Seconds for the whole process: imports of agentops alone may take ten on a busy machine, a minute on a slow disk."""
CURE = (
    "follow the findings beside this one first; if none is left, report what "
    "agl doctor --json --log-level DEBUG prints"
)
WITHOUT_EXPORT = {
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "none",
    "OTEL_LOGS_EXPORTER": "none",
}
"""A program that is instrumented by its environment must not send the canary anywhere."""


@dataclass(frozen=True)
class Recorded:
    """What the scratch store holds afterwards."""

    calls: Sequence[ModelCall]
    receipts: Sequence[Receipt]


def canary(subject: Subject) -> Iterator[Finding]:
    """Let the agent run, and compare what it saw and what is in the store with what the model said."""
    # On the file system of the real store, with its options: that is what has to work.
    with scratch(subject.folder) as folder:
        url = subject.scratch_url(folder)
        begun = time.monotonic()
        said, trouble = _run_agent(folder, url)
        took = f"took {time.monotonic() - begun:.1f} s"
        if trouble:
            yield Finding("fail", "canary", "a recorded agent does not run to its end", CURE, (trouble,))
            return
        recorded = asyncio.run(_read(url))
        # Looked at while the folder is there; a span in the spool has not reached the store.
        spooled = [path.name for path in (folder / "spool").rglob("*") if path.is_file()]
    yield from _judge(said, recorded, spooled, took)
    patches = tuple(said["patches"])
    sentence = f"{output.count(len(patches), 'patch')} in force meanwhile, and taken back; --all lists them"
    yield Finding("ok", "patches", sentence, details=patches)


def _run_agent(folder: Path, url: str) -> tuple[dict[str, Any], str]:
    """Return what the agent reports, or what went wrong.

    Raises:
        subprocess.TimeoutExpired: It takes too long.
    """
    result = folder / "result.json"
    spool = {LightningEnvVar.AGL_SPOOL_DIR.value: str(folder / "spool")}
    command = [sys.executable, "-m", "agentlightning.cli.doctor.agent", url, str(result)]
    done = subprocess.run(  # noqa: S603 - ours
        command,
        env={**program_environment(), **WITHOUT_EXPORT, **spool},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=TIMEOUT,
        check=False,
    )
    if done.returncode or not result.exists():
        # The last line of a traceback says what was raised.
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {}, f"exit code {done.returncode}: {last}"
    found: dict[str, Any] = json.loads(result.read_text(encoding="ascii"))
    return found, ""


async def _read(url: str) -> Recorded:
    calls: list[ModelCall] = []
    found: list[Receipt] = []
    async with open_store(url) as store:
        for rollout in await store.query_rollouts():
            for attempt in await store.query_attempts(rollout.rollout_id):
                ids = rollout.rollout_id, attempt.attempt_id
                found.append(await store.get_receipt(*ids))
                spans = await store.query_spans(*ids)
                calls += [call for span in spans if (call := read_call(span)) is not None]
    return Recorded(calls, found)


def _judge(said: dict[str, Any], recorded: Recorded, spooled: list[str], took: str) -> Iterator[Finding]:
    expected = CALLS if said["client"] else ()
    problems = [
        *_calls(expected, said["seen"], recorded.calls),
        *_receipts(recorded.receipts),
        *(f"{name} waits in the spool" for name in spooled),
        *(f"the patch {description!r} was not taken back" for description in said["left"]),
    ]
    name = said["client"]
    through = f"through {name} {installed_version(name)} " if name else ""
    way = f"{through}under {said['tracer']}, to a scratch store and back"
    if said["log"]:
        # Errors mean lost spans; a warning may be about something that does not matter here.
        level: Level = "fail" if any(each != "WARNING" for each, _ in said["log"]) else "warn"
        messages = tuple(message for _, message in said["log"])
        yield Finding(level, "canary", "while the canary was recorded, this was logged", CURE, messages)
    if problems:
        sentence = f"model calls with known tokens {way}: not everything arrived as it was"
        yield Finding("fail", "canary", sentence, CURE, tuple(problems))
        return
    if not name:
        sentence = f"spans {way}: all there. No client of models is installed, so no call was made"
        yield Finding("warn", "canary", sentence, "pip install openai")
        return
    styles = ", ".join(call.style for call in expected)
    sentence = (
        f"{output.count(len(expected), 'model call')} {way}: one span each, every token id and log-probability "
        f"exact, receipts whole, spool empty"
    )
    yield Finding("ok", "canary", sentence, details=(styles, took))


def _calls(expected: Sequence[Call], seen: dict[str, str], recorded: Sequence[ModelCall]) -> Iterator[str]:
    by_id = {call.response_id: call for call in recorded}
    counts = Counter(call.response_id for call in recorded)
    for call in expected:
        if seen.get(call.style) != call.said:
            yield f"{call.style}: the agent got {seen.get(call.style)!r} in place of {call.said!r}"
        # What is left in the end belongs to no call: a call was recorded twice by two instrumentations.
        count = counts.pop(call.answer.id, 0)
        if count != 1:
            yield f"{call.style}: {output.count(count, 'span')} in place of one"
        if count:
            yield from _tokens(call, by_id[call.answer.id])
    if counts:
        yield f"{sum(counts.values())} more spans of model calls than there were calls"


def _tokens(call: Call, found: ModelCall) -> Iterator[str]:
    choice = found.choices[0] if found.choices else None
    pairs = (
        ("token ids of the prompt", found.prompt_token_ids, call.prompt_ids),
        ("sampled token ids", choice and choice.token_ids, call.ids),
        ("log-probabilities", choice and choice.logprobs, call.logprobs),
        ("verdict", found.token_capture, "valid"),
    )
    for what, got, wanted in pairs:
        if got != wanted:
            yield f"{call.style}: {what} {got} in place of {wanted}"


def _receipts(found: Sequence[Receipt]) -> Iterator[str]:
    if len(found) != 2:
        yield f"{output.count(len(found), 'attempt')} in the store in place of 2"
    for receipt in found:
        if not receipt.whole or not receipt.started:
            yield f"a receipt is not whole: {receipts.line(receipt)}"
