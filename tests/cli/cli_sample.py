"""A store with one of everything that the command line shows, filled through the public API."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentlightning.cli import main
from agentlightning.codec.attributes import make_tag_attributes
from agentlightning.dialects.model_call import Choice, ModelCall, Usage
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.store.registry import open_store
from agentlightning.types import Account, AttemptedRollout, RolloutConfig, Span, TraceStatus

T0 = 1_700_000_000.0


@dataclass(frozen=True)
class Sample:
    """The store and the rollouts in it."""

    path: Path
    solved: str
    """Two model calls with token ids, a tool call, a reward of 1; whole."""
    retried: str
    """The first attempt failed, the second succeeded; no model call, no reward."""
    cut: str
    """One span open, two dropped."""
    queued: str

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    out: str
    err: str


def agl(*arguments: str, columns: int = 200) -> Outcome:
    """Run a command in this process, for a terminal of so many columns."""
    os.environ["COLUMNS"] = str(columns)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(list(arguments))
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, out.getvalue(), err.getvalue())


def span(
    place: AttemptedRollout,
    name: str,
    span_id: int,
    *,
    parent: int | None = None,
    at: float = 0.0,
    took: float | None = 0.1,
    attributes: dict[str, Any] | None = None,
    error: str | None = None,
) -> Span:
    """A span of an attempt; ``took=None`` leaves it open."""
    made = Span.from_attributes(
        attributes=attributes or {},
        rollout_id=place.rollout_id,
        attempt_id=place.attempt.attempt_id,
        name=name,
        trace_id="0" * 31 + "1",
        span_id=f"{span_id:016x}",
        parent_id=f"{parent:016x}" if parent else None,
        start_time=T0 + at,
        end_time=T0 + at + (took or 0.0),
        status=TraceStatus(status_code="ERROR", description=error) if error else None,
    )
    return made.model_copy(update={"end_time": None}) if took is None else made


def call(prompt_ids: list[int], ids: list[int], content: str) -> dict[str, Any]:
    """Attributes of a model call whose tokens were captured."""
    return call_attributes(
        ModelCall(
            request_model="tiny",
            response_id=f"chatcmpl-{sum(prompt_ids)}",
            request_messages=({"role": "user", "content": "What is 2 + 3?"},),
            choices=(
                Choice(
                    content=content,
                    finish_reason="stop",
                    token_ids=tuple(ids),
                    logprobs=tuple(-0.1 * (1 + index) for index in range(len(ids))),
                    token_capture="valid",
                ),
            ),
            prompt_token_ids=tuple(prompt_ids),
            usage=Usage(len(prompt_ids), len(ids)),
            sampling_effective={"temperature": 1.0},
            sampling_defaults={},
            logprob_kind="processed",
            token_capture="valid",
            http_status=200,
        )
    )


def reward(value: float) -> dict[str, Any]:
    """Attributes of a reward."""
    return {"agentlightning.reward.0.name": "primary", "agentlightning.reward.0.value": value}


def account(place: AttemptedRollout, started: int, **fields: Any) -> Account:
    """What a writer says of an attempt."""
    ids = {
        "rollout_id": place.rollout_id,
        "attempt_id": place.attempt.attempt_id,
        "writer_id": "elsewhere:1:0:0",
    }
    return Account(**ids, started=started, **fields)


async def _fill(path: Path) -> Sample:
    async with open_store(f"sqlite:///{path}") as store:
        solved = await store.start_rollout({"question": "What is 2 + 3?"}, mode="train")
        spans = [
            span(solved, "rollout", 1, took=1.5),
            span(solved, "chat tiny", 2, parent=1, took=0.3, attributes=call([1, 2, 3], [7, 8], "add(2, 3)")),
            span(
                solved,
                "add",
                3,
                parent=1,
                at=0.4,
                took=0.00002,
                attributes=make_tag_attributes(["sums", "night"]),
            ),
            span(
                solved,
                "chat tiny",
                4,
                parent=1,
                at=0.5,
                took=0.25,
                attributes=call([1, 2, 3, 7, 8, 9], [5], "5"),
            ),
            span(solved, "agentlightning.annotation", 5, parent=1, at=1, took=0, attributes=reward(1.0)),
        ]
        await store.add_many_spans(spans, accounts=[account(solved, len(spans), closed=True)])
        await store.update_attempt(solved.rollout_id, solved.attempt.attempt_id, status="succeeded")

        retried = await store.start_rollout(
            "plain text", mode="val", config=RolloutConfig(max_attempts=2, retry_condition=["failed"])
        )
        await store.add_many_spans([span(retried, "tool", 1, error="no such tool")])
        await store.update_attempt(retried.rollout_id, retried.attempt.attempt_id, status="failed")
        again = await store.dequeue_rollout()
        assert again is not None
        late = {
            "agentlightning.late": True,
            "agentlightning.redacted": True,
            **make_tag_attributes(["night"]),
        }
        await store.add_many_spans(
            [span(again, "tool", 2, attributes=late)], accounts=[account(again, 1, late=1, closed=True)]
        )
        await store.update_attempt(again.rollout_id, again.attempt.attempt_id, status="succeeded")

        cut = await store.start_rollout(None, mode="test")
        await store.add_many_spans(
            [span(cut, "first", 1)],
            opened=[span(cut, "endless", 2, parent=1, at=0.05, took=None)],
            accounts=[account(cut, 4, dropped={"queue_full": 2})],
        )
        queued = await store.enqueue_rollout({"later": True})
        return Sample(path, solved.rollout_id, retried.rollout_id, cut.rollout_id, queued.rollout_id)


def build(folder: Path) -> Sample:
    """Make the store in a folder."""
    return asyncio.run(_fill(folder / "sample.db"))
