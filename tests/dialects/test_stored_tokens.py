"""Ids and log-probabilities of a span that somebody changed behind their verdict are not taken for what was sampled."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.dialects.model_call import Choice, ModelCall
from agentlightning.dialects.spans.genai import CallReader, call_attributes, read_call
from agentlightning.types import Span

PROMPT = "agentlightning.prompt_token_ids"
IDS = "agentlightning.choice.0.token_ids"
LOGPROBS = "agentlightning.choice.0.logprobs"


def span_with(prompt: tuple[int, ...] = (1, 2), verdict: str = "valid", **changed: Any) -> Span:
    call = ModelCall(
        token_capture=verdict,
        prompt_token_ids=prompt,
        choices=(Choice(token_ids=(3, 4), logprobs=(-0.5, -0.1), token_capture=verdict, content="hi"),),
        sampling_defaults={},
        sampling_effective={"temperature": 1.0},
        logprob_kind="processed",
    )
    attributes = {**call_attributes(call), **changed}
    return Span.from_attributes(attributes=attributes, name="chat", rollout_id="ro", attempt_id="at")


NO_IDS = ["[redacted]", "", [1.0, 2.0], ["1", "2"], [True, 5], [-1, -1], [None, 5], {"a": 1}]


@pytest.mark.parametrize("verdict", ["valid", "invalid(left_by_agent)"])
@pytest.mark.parametrize("value", [value for value in NO_IDS if value != ""], ids=repr)
@pytest.mark.parametrize("name", [PROMPT, IDS])
def test_what_is_no_list_of_ids_is_unknown_and_trains_nothing(name: str, value: Any, verdict: str) -> None:
    call = read_call(span_with(verdict=verdict, **{name: value}))
    assert call is not None
    assert call.token_capture == "none(no_token_ids)"
    assert [issue.code for issue in call.issues] == ["token_id_type"]
    if name == PROMPT:
        assert call.prompt_token_ids is None
        assert call.choices[0].token_ids == (3, 4)
    else:
        assert call.prompt_token_ids == (1, 2)
        assert (call.choices[0].token_ids, call.choices[0].logprobs) == (None, None)
        assert call.choices[0].token_capture == "none(no_token_ids)"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([-0.5], "logprob_length"),
        ([-0.5, -0.1, -0.2], "logprob_length"),
        ("12", "logprob_positive"),
        ([-0.5, 0.3], "logprob_positive"),
        ([-0.5, float("nan")], "logprob_not_finite"),
        ([-0.5, float("-inf")], "logprob_not_finite"),
    ],
    ids=repr,
)
def test_log_probabilities_that_the_verdict_cannot_have_meant_are_unknown(value: Any, code: str) -> None:
    call = read_call(span_with(**dict[str, Any]({LOGPROBS: value})))
    assert call is not None
    assert call.token_capture == "valid"
    assert call.choices[0].token_ids == (3, 4)
    assert call.choices[0].logprobs is None
    assert [issue.code for issue in call.issues] == [code]


def test_what_the_verdict_itself_does_not_vouch_for_stays_as_it_is() -> None:
    call = read_call(span_with(verdict="invalid(logprob_length)", **dict[str, Any]({LOGPROBS: [-0.5]})))
    assert call is not None
    assert call.choices[0].logprobs == (-0.5,)
    assert call.issues == ()


def test_what_is_equal_to_an_id_and_is_none_is_found_in_a_prompt_that_continues_another() -> None:
    reader = CallReader()
    first, second = reader.read(span_with((1, 2))), reader.read(span_with((True, 2, 5)))
    assert first is not None
    assert second is not None
    assert (first.token_capture, second.token_capture) == ("valid", "none(no_token_ids)")


def test_prompts_that_continue_each_other_are_looked_at_to_their_ends() -> None:
    reader = CallReader()
    for prompt, is_sound in [
        ((1, 2), True),
        ((1, 2, 3), True),
        ((1, 2, 3, -1), False),
        ((1, 2, 3, 4), True),
        ((1,), True),
        ((1, -2, 3, 4), False),
    ]:
        call = reader.read(span_with(prompt))
        assert call is not None
        assert call.prompt_token_ids == (prompt if is_sound else None)
