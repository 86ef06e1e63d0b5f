"""Property: log-probabilities that are called proven are those of the model, and a hidden setting never passes.

The engine really samples. Each setting is named by the request, is the server's own, or is neither; the server's own are
stated or not. The reference is ``log_softmax(logits / temperature)`` over the whole vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_engine import KNOWN, TABLE, TinyEngine, log_softmax

from agentlightning import build_rows
from agentlightning.dialects.distribution import NEUTRAL, SETTINGS
from agentlightning.dialects.openai.reading import decode
from agentlightning.dialects.raw_call import CallStart, Endpoint, LogprobKind, RawCall
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows import RowPolicy, RowSet
from agentlightning.testing.fake_openai import Answer, plain_answer
from agentlightning.types import Span

CLOSE = 1e-4
PROMPT = (3, 5)
VALUES: Mapping[str, tuple[Any, ...]] = {
    "temperature": (1.0, 0.5, 1.7, 0),
    "top_p": (1.0, 0.6),
    "top_k": (0, -1, 3),
    "min_p": (0.0, 0.3),
    "presence_penalty": (0.0, 0.8),
    "frequency_penalty": (0.0, -0.6),
    "repetition_penalty": (1.0, 1.4),
    "logit_bias": ({}, {"4": 2.5}),
    "min_tokens": (0, 3),
    "bad_words": ([], ["t2"]),
    "guided_regex": ("", "([1357]4)*"),
}
NEUTRAL_VALUES = {name: values[0] for name, values in VALUES.items()}
HIDDEN = (
    "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "mirostat", "mirostat_tau", "repetition_detection",
    "logit_processors", "logits_processors", "vllm_xargs", "custom_params", "custom_logit_processor", "typical_p",
    "top_n_sigma", "thinking_token_budget", "allowed_token_ids", "no_repeat_ngram_size", "watermark", "an_invented_name",
    "temperature_last", "quadratic", "smoothing_factor", "Temperature", "top-p",
)  # fmt: skip
HIDDEN_VALUES: Mapping[str, Any] = {"typical_p": 0.5, "allowed_token_ids": [1, 2], "watermark": True}

chosen = st.dictionaries(st.sampled_from(sorted(VALUES)), st.integers(0, 3), max_size=3)


def valued(picked: Mapping[str, int]) -> dict[str, Any]:
    return {name: VALUES[name][at % len(VALUES[name])] for name, at in picked.items()}


def recorded(
    engine: TinyEngine, request: Mapping[str, Any], stated: Mapping[str, Any] | None, kind: LogprobKind
) -> tuple[RowSet, tuple[int, ...], Answer]:
    said = engine.say(request, PROMPT)
    body = {"model": "tiny", "messages": [], **request}
    raw = RawCall(
        start=CallStart("chat", "http://127.0.0.1:8000/v1/chat/completions", "tiny", stream=False),
        request_body=json.dumps(body).encode(),
        status=200,
        content_type="application/json",
        response_body=json.dumps(plain_answer(said.answer, body, chat=True)).encode(),
        complete=True,
        endpoint=Endpoint("http://127.0.0.1:8000/v1", stated, kind),
    )
    span = Span.from_attributes(
        attributes=call_attributes(decode(raw)), name="chat", span_id="a" * 16, start_time=1.0
    )
    return build_rows([span]), said.forced, said.answer


def expected(answer: Answer, temperature: float) -> list[float]:
    ids = [*PROMPT, *(token.id for token in answer.choices[0].tokens)]
    return [
        log_softmax([each / temperature for each in TABLE[ids[at - 1]]])[ids[at]]
        for at in range(len(PROMPT), len(ids))
    ]


@given(
    chosen,
    chosen,
    st.booleans(),
    st.sampled_from(["processed", "raw", "unknown"]),
    st.none() | st.tuples(st.sampled_from(HIDDEN), st.booleans()),
    st.integers(0, 1_000),
)
def test_what_is_called_proven_is_what_the_model_gives_and_a_hidden_setting_never_is(
    asked: dict[str, int],
    own: dict[str, int],
    is_stated: bool,
    kind: LogprobKind,
    hidden: tuple[str, bool] | None,
    seed: int,
) -> None:
    request, defaults = valued(asked), valued(own)
    if hidden is not None:
        name, by_request = hidden
        (request if by_request else defaults)[name] = HIDDEN_VALUES.get(name, 2)
    engine = TinyEngine(defaults, kind, seed)

    rows, forced, answer = recorded(engine, request, defaults if is_stated else None, kind)

    in_force = {**NEUTRAL_VALUES, **defaults, **request}
    for row in rows:
        (segment,) = row.segments
        mask, logprobs = row.loss_mask[len(PROMPT) :], row.logprobs[len(PROMPT) :]
        assert not any(mask[at] for at in forced if at < len(mask))  # never trained
        given_ = [value for value, trained in zip(logprobs, mask, strict=True) if trained]
        if segment.unproven is not None:
            assert given_ == [None] * len(given_)
            continue
        assert hidden is None
        assert is_stated
        assert segment.temperature == in_force["temperature"]
        assert logprobs == pytest.approx(expected(answer, in_force["temperature"]), abs=CLOSE)
    if forced and kind != "processed":
        assert not rows
    plain = {name: value for name, value in NEUTRAL_VALUES.items() if name not in {"temperature", "top_k"}}
    is_plain = plain.items() <= in_force.items() and in_force["top_k"] <= 0 and in_force["temperature"] > 0
    if hidden is None and is_stated and is_plain and (kind == "processed" or in_force["temperature"] == 1):
        assert rows
        assert not rows.unproven  # nothing that is sound is lost


@pytest.mark.parametrize("value", [0.37, "x", [1], {"a": 1}, True])
def test_no_value_of_a_setting_makes_anything_raise(value: Any) -> None:
    answer = TinyEngine({}, "processed").say({}, PROMPT).answer
    for name in sorted(SETTINGS | {"an_invented_name"}):
        body = {"model": "tiny", "messages": [], name: value}
        raw = RawCall(
            start=CallStart("chat", "http://127.0.0.1:8000/v1/chat/completions", "tiny", stream=False),
            request_body=json.dumps(body).encode(),
            status=200,
            content_type="application/json",
            response_body=json.dumps(plain_answer(answer, {}, chat=True)).encode(),
            complete=True,
            endpoint=Endpoint("http://127.0.0.1:8000/v1", {}, "processed"),
        )
        call = decode(raw)
        assert call.choices, name  # else it has raised
        attributes = call_attributes(call)
        spans = [Span.from_attributes(attributes=attributes, name="chat", span_id="a" * 16, start_time=1.0)]
        build_rows(spans, RowPolicy(require_logprobs=True))
        for row in build_rows(spans):
            assert row.trained_tokens + len(row.segments[0].forced) == len(answer.choices[0].tokens), name


def test_every_setting_that_the_engine_knows_is_drawn() -> None:
    assert set(VALUES) == set(KNOWN)
    assert set(NEUTRAL) <= set(VALUES)


def test_verify_onpolicy_agrees_with_every_row_whose_log_probabilities_are_proven() -> None:
    torch = pytest.importorskip("torch", reason="scripts/trainers installs it")
    from agentlightning.verify import verify_onpolicy

    def model(ids: Any) -> Any:
        return torch.tensor(TABLE)[ids]

    proven, left_out = [], 0
    for seed in range(200):
        request: dict[str, Any] = {"temperature": (0.5, 1.0, 1.7)[seed % 3]}
        if seed % 4 == 0:
            request["top_p"] = 0.6
        if seed % 5 == 0:
            request["an_invented_name"] = 1
        rows, _, _ = recorded(TinyEngine({}, "processed", seed), request, {}, "processed")
        left_out += sum(row.unproven != () for row in rows)
        proven += [row for row in rows if not row.unproven]
    found = verify_onpolicy(proven, model)
    assert found.exact, found
    assert found.total.largest is None or found.total.largest.size < CLOSE
    assert len(proven) == 120
    assert left_out == 80
