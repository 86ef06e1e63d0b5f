"""What was changed in a span behind its verdict is not taken for token ids, nor text for a number."""

from __future__ import annotations

from typing import Any

import pytest

from agentlightning.dialects.model_call import Choice, Issue, ModelCall, Usage
from agentlightning.dialects.spans.genai import call_attributes, read_call
from agentlightning.rows import build_rows
from agentlightning.types import Span

PROMPT = "agentlightning.prompt_token_ids"
IDS = "agentlightning.choice.0.token_ids"
NO_IDS = [
    "[redacted]",
    [1.0, 2.0],
    ["1", "2"],
    [True, 5],
    [-1, -1],
    [2**31, 5],
    [None, 5],
    [[1], 2],
    {"a": 1},
]


def span_with(verdict: str = "valid", **changed: Any) -> Span:
    choice = Choice(token_ids=(3, 4), logprobs=(-0.5, -0.1), token_capture=verdict, content="hi")
    call = ModelCall(
        token_capture=verdict,
        prompt_token_ids=(1, 2),
        choices=(choice,),
        usage=Usage(2, 2),
        sampling_defaults={},
        sampling_effective={"temperature": 1.0},
        logprob_kind="processed",
    )
    attributes = {**call_attributes(call), **changed}
    return Span.from_attributes(attributes=attributes, name="chat", rollout_id="ro", attempt_id="at")


def test_what_was_not_changed_is_trusted() -> None:
    call = read_call(span_with())
    assert call is not None
    assert (call.token_capture, call.prompt_token_ids, call.choices[0].token_ids) == ("valid", (1, 2), (3, 4))


@pytest.mark.parametrize("value", NO_IDS, ids=repr)
@pytest.mark.parametrize(
    ("verdict", "read"),
    [
        ("valid", "invalid(token_id_type)"),
        ("invalid(left_by_agent)", "invalid(token_id_type)"),
        ("invalid(partial)", "invalid(partial)"),
    ],
)
def test_what_is_no_id_in_a_prompt_is_unknown(verdict: str, read: str, value: Any) -> None:
    span = span_with(verdict, **{PROMPT: value})
    call = read_call(span)
    assert call is not None
    assert call.token_capture == read
    assert call.prompt_token_ids is None
    assert call.choices[0].token_ids == (3, 4)
    assert call.issues == (Issue("warn", "token_id_type", "prompt"),)
    assert build_rows([span]).counts == {read[len("invalid(") : -1]: 1}


@pytest.mark.parametrize("value", NO_IDS, ids=repr)
def test_what_is_no_id_in_an_answer_is_unknown_and_so_are_its_log_probabilities(value: Any) -> None:
    span = span_with(**{IDS: value})
    call = read_call(span)
    assert call is not None
    assert call.token_capture == "invalid(token_id_type)"
    assert call.prompt_token_ids == (1, 2)
    (choice,) = call.choices
    assert (choice.token_ids, choice.logprobs, choice.token_capture) == (None, None, "invalid(token_id_type)")
    assert call.issues == (Issue("warn", "token_id_type", "choice 0"),)
    assert build_rows([span]).counts == {"token_id_type": 1}


@pytest.mark.parametrize("value", ["000", "12", "[redacted]"])
def test_text_in_the_place_of_log_probabilities_is_not_read_letter_by_letter(value: str) -> None:
    changed: dict[str, Any] = {IDS: [3] * len(value), "agentlightning.choice.0.logprobs": value}
    span = span_with(**changed)
    call = read_call(span)
    assert call is not None
    assert call.token_capture == "none(no_token_ids)"
    assert build_rows([span]).counts == {"no_token_ids": 1}


@pytest.mark.parametrize("value", ["12", "[redacted]", 12.0, True, -1, [12]], ids=repr)
def test_counts_are_whole_numbers_or_unknown(value: Any) -> None:
    names = ["input_tokens", "output_tokens", "cache_read.input_tokens", "reasoning.output_tokens"]
    call = read_call(span_with(**{f"gen_ai.usage.{name}": value for name in names}))
    assert call is not None
    assert call.usage is None
    assert call.token_capture == "valid"
    changed = {"gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": value}
    call = read_call(span_with(**changed))
    assert call is not None
    assert call.usage == Usage(7)


def test_other_numbers_of_a_call_are_numbers_or_unknown() -> None:
    names = [
        "http.response.status_code",
        "http.request.resend_count",
        "gen_ai.response.time_to_first_chunk",
    ]
    call = read_call(span_with(**dict.fromkeys(names, "[redacted]")))
    assert call is not None
    assert (call.http_status, call.retries, call.first_chunk_seconds) == (None, 0, None)
