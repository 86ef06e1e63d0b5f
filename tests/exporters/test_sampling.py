"""What no trainer could train rightly is refused in words: media, another temperature, a distribution that was cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sample_rows import LINEAR, rollout_of, rows_of, spans_of

from agentlightning.dialects.spans.genai import call_attributes, read_call
from agentlightning.errors import NotExportable
from agentlightning.exporters.openenv import to_training_trace
from agentlightning.exporters.skyrl import to_generator_output
from agentlightning.exporters.tinker import loss_inputs, to_trajectory_groups
from agentlightning.exporters.triplets import to_trajectory_triplets
from agentlightning.exporters.trl import check_tokens, rollout_dict
from agentlightning.exporters.verifiers import to_wire_traces
from agentlightning.exporters.verl import padded_batch, to_agent_loop_outputs
from agentlightning.rows import TrainingRow, build_rows
from agentlightning.rows.media import Media
from agentlightning.types import Span

WIDTHS: dict[str, Any] = {"max_prompt_length": 16, "max_response_length": 16, "pad_token_id": 0}

COMPUTING: dict[str, Callable[..., Any]] = {
    "trl": lambda rows, **setting: rollout_dict([rows], **setting),
    "openenv": to_training_trace,
    "verl session": to_agent_loop_outputs,
    "verl batch": lambda rows, **setting: padded_batch(rows, **WIDTHS, **setting),
    "skyrl": to_generator_output,
    "tinker datum": lambda rows, **setting: loss_inputs(rows[0], 0.5, **setting),
    "tinker groups": to_trajectory_groups,
}
"""Exporters to trainers that compute log-probabilities at one temperature of their own."""
WITHOUT_LOGPROBS: dict[str, Callable[..., Any]] = {
    "trl": COMPUTING["trl"],
    "verl session": lambda rows, **setting: to_agent_loop_outputs(rows, with_logprobs=False, **setting),
    "verl batch": lambda rows, **setting: padded_batch(rows, with_logprobs=False, **WIDTHS, **setting),
}
"""Those that take rows whose log-probabilities are not proven."""
ALL: dict[str, Callable[..., Any]] = {
    **COMPUTING,
    "trl tokens": lambda rows: check_tokens(rows[0]),
    "verifiers": lambda rows: to_wire_traces(rows, [rollout_of("ro-1", "g")]),
}


def changed(span: Span, **fields: Any) -> Span:
    """Return the span of a call with other fields."""
    call = read_call(span)
    assert call is not None
    written = call_attributes(dataclasses.replace(call, **fields))
    others = {name: value for name, value in span.attributes.items() if "sampling" not in name}
    return span.model_copy(update={"attributes": {**others, **written}})


@pytest.mark.parametrize(
    ("stated", "temperatures", "expected"),
    [(1.0, (1.0, 1.0), 1.0), (None, (0.7, 0.7), 0.7), (None, (1.0, 0.7), None), (None, (0.0, 0.0), None)],
)
def test_a_batch_for_verl_says_at_which_temperature_to_compute(
    stated: float | None, temperatures: Sequence[float], expected: float | None
) -> None:
    before, after = temperatures
    *calls, last, reward = spans_of(LINEAR, "ro-1", 1.0)
    asked = [changed(each, sampling_effective={"temperature": before}) for each in calls]
    spans = [*asked, changed(last, sampling_effective={"temperature": after}), reward]
    rows = build_rows(spans, rollout=rollout_of("ro-1", "g"))
    batch = padded_batch(rows, with_logprobs=False, temperature=stated, advantage=None, **WIDTHS)

    assert batch.temperature == expected


def sampled(**sampling: Any) -> Sequence[TrainingRow]:
    """Return the row of a conversation whose last answer was sampled so."""
    first, second, last, reward = spans_of(LINEAR, "ro-1", 1.0)
    spans = [first, second, changed(last, sampling_effective=sampling), reward]
    return build_rows(spans, rollout=rollout_of("ro-1", "g"))


@pytest.mark.parametrize("export", ALL.values(), ids=ALL)
def test_rows_that_saw_media_are_refused(export: Callable[..., Any]) -> None:
    export(rows_of(LINEAR))
    seen = [dataclasses.replace(row, media=(Media("image_url", "0" * 64),)) for row in rows_of(LINEAR)]
    with pytest.raises(NotExportable, match=r"row 0 of rollout ro-1.* saw media \(image_url\)"):
        export(seen)


@pytest.mark.parametrize("export", COMPUTING.values(), ids=COMPUTING)
def test_rows_of_another_temperature_are_refused(export: Callable[..., Any]) -> None:
    warm = sampled(temperature=0.7)
    with pytest.raises(NotExportable, match=r"span 0000000000000002\) that was sampled at temperature 0\.7"):
        export(warm)
    with pytest.raises(NotExportable, match=r"at temperature 1, and this trainer .* at temperature 0\.7"):
        export(rows_of(LINEAR), temperature=0.7)
    assert export(warm, temperature=None)


@pytest.mark.parametrize("export", COMPUTING.values(), ids=COMPUTING)
@pytest.mark.parametrize(
    ("sampling", "says"),
    [
        ({"temperature": 0}, "at temperature 0,"),
        ({}, "at a temperature that nobody knows"),
        ({"temperature": 1.0, "top_p": 0.9, "top_k": -1, "min_p": 0.05}, r"with top_p=0\.9, min_p=0\.05,"),
    ],
    ids=["greedy", "unknown", "cut"],
)
def test_rows_of_another_distribution_are_refused(
    export: Callable[..., Any], sampling: dict[str, Any], says: str
) -> None:
    with pytest.raises(NotExportable, match=says):
        export(sampled(**sampling))
    with pytest.raises(NotExportable):
        export(sampled(**sampling), temperature=0.0)


@pytest.mark.parametrize("export", WITHOUT_LOGPROBS.values(), ids=WITHOUT_LOGPROBS)
@pytest.mark.parametrize("temperature", [0, None], ids=["greedy", "unknown"])
def test_whoever_compares_nothing_may_have_them(
    export: Callable[..., Any], temperature: float | None
) -> None:
    sampling = {} if temperature is None else {"temperature": temperature}
    assert export(sampled(**sampling), temperature=None)


def test_a_distribution_that_nobody_knows_to_be_cut_is_taken_where_none_needs_log_probabilities() -> None:
    """What servers do where a request names nothing is rarely known, and the row says so by ``unproven``."""
    *calls, reward = spans_of(LINEAR, "ro-1", 1.0)
    spans = [*(changed(span, sampling_defaults=None) for span in calls), reward]
    rows = build_rows(spans, rollout=rollout_of("ro-1", "g"))

    assert [code.code for code in rows[0].unproven] == ["sampling_unknown"]
    for export in WITHOUT_LOGPROBS.values():
        assert export(rows)


def seeing(part: dict[str, Any]) -> Sequence[TrainingRow]:
    """Return the row of a call whose prompt has a part that is no text."""
    call, reward = spans_of(LINEAR[:1], "ro-1", 1.0)
    asked = ({"role": "user", "content": [part]},)
    return build_rows([changed(call, request_messages=asked), reward], rollout=rollout_of("ro-1", "g"))


def test_triplets_carry_images_and_refuse_what_else_the_policy_saw() -> None:
    (found,) = to_trajectory_triplets(seeing({"type": "image_url", "image_url": {"url": "http://a/cat.png"}}))
    assert found.prompt["image_urls"] == ["http://a/cat.png"]

    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    with pytest.raises(NotExportable, match=r"row 0 of rollout ro-1.*saw media \(input_audio\)"):
        to_trajectory_triplets(seeing(sound))
