from __future__ import annotations

from typing import Any

import pytest

from agentlightning.pipeline.chain import NO_STAGES, Chain
from agentlightning.types import Span


def a_span(name: str = "work") -> Span:
    return Span.from_attributes(attributes={"n": 1}, rollout_id="ro-1", attempt_id="at-1", name=name)


def renamed(span: Span) -> Span:
    return span.model_copy(update={"name": f"{span.name}!"})


def broken(span: Span) -> Span:
    raise RuntimeError(f"cannot read {span.name}")


def test_an_empty_chain_is_false_and_returns_the_span_itself() -> None:
    span = a_span()

    assert not NO_STAGES
    assert NO_STAGES(span) is span


def test_stages_run_in_order_and_the_input_stays_as_it_was() -> None:
    span = a_span()

    result = Chain([renamed, renamed])(span)

    assert result is not None
    assert result.name == "work!!"
    assert span.name == "work"


def test_a_stage_may_take_a_span_out() -> None:
    assert Chain([lambda _: None, broken])(a_span()) is None


def test_a_stage_that_raises_loses_only_its_own_span_and_is_counted() -> None:
    def picky(span: Span) -> Span:
        return broken(span) if span.name == "bad" else span

    chain = Chain([picky])

    assert [chain(a_span(name)) is None for name in ("good", "bad", "good", "bad")] == [
        False,
        True,
        False,
        True,
    ]
    assert list(chain.lost.values()) == [2]


def test_a_stage_cannot_file_a_span_under_another_attempt() -> None:
    chain = Chain([lambda span: span.model_copy(update={"attempt_id": "at-2"})])

    assert chain(a_span()) is None
    assert sum(chain.lost.values()) == 1


def test_a_stage_that_returns_nonsense_loses_its_span() -> None:
    def nonsense(_: Span) -> Any:
        return "no span"

    assert Chain([nonsense])(a_span()) is None


def test_the_error_text_of_a_stage_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    def leaky(span: Span) -> Span:
        raise ValueError("sk-secret in the span")

    Chain([leaky])(a_span())

    assert "ValueError" in caplog.text
    assert "sk-secret" not in caplog.text
