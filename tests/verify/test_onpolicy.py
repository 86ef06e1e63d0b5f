"""Rows of an agent that talks to a tiny engine, beside the model of that engine: exact, or the right word for the fault.

The engine samples from a random model, whose next token is nearly open: whatever is wrong shows at every token.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="scripts/trainers installs it")
pytest.importorskip("transformers", reason="scripts/trainers installs it")

from openai import AsyncOpenAI  # noqa: E402 - after the skips

from agentlightning import LLM, OtelTracer, build_rows, open_store  # noqa: E402
from agentlightning.dialects.model_call import ModelCall  # noqa: E402
from agentlightning.dialects.spans.genai import call_attributes, read_call  # noqa: E402
from agentlightning.errors import NotVerifiable  # noqa: E402
from agentlightning.rows import RowPolicy, RowSet, TrainingRow  # noqa: E402
from agentlightning.types import Span  # noqa: E402
from agentlightning.verify import Verdict, Verification, verify_onpolicy  # noqa: E402
from examples.grpo_trl.engine import Engine  # noqa: E402
from examples.grpo_trl.model import make_model, make_tokenizer  # noqa: E402

TURNS = 3
HEARD = ("box 5", "and then?", "nothing more")
Spans = list[list[Span]]
"""Those of each rollout."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return make_model(tokenizer, seed=1)


async def talk(client: AsyncOpenAI, seed: int, temperature: float | None, turns: int = TURNS) -> None:
    """An ordinary agent: it answers whatever the model says."""
    messages: list[Any] = [{"role": "user", "content": f"box {seed}"}]
    settings: dict[str, Any] = {} if temperature is None else {"temperature": temperature}
    for turn in range(turns):
        reply = await client.chat.completions.create(
            model="tiny", messages=messages, seed=seed, top_p=1.0, max_tokens=10, **settings
        )
        messages += [
            {"role": "assistant", "content": reply.choices[0].message.content},
            {"role": "user", "content": HEARD[turn % len(HEARD)]},
        ]


async def recorded(
    engine: Engine, temperature: float | None = 1.0, rollouts: int = 4, turns: int = TURNS
) -> Spans:
    endpoint = LLM(endpoint=engine.url, model=engine.name, sampling_defaults={}, logprob_kind="processed")
    tracer = OtelTracer(capture_tokens="request", endpoints=[endpoint], max_wait_time=60_000)
    async with open_store("memory://") as store:

        async def rollout(client: AsyncOpenAI, seed: int) -> list[Span]:
            started = await store.start_rollout({"seed": seed}, "train")
            rollout_id, attempt_id = started.rollout_id, started.attempt.attempt_id
            async with tracer.trace_context("talk", rollout_id=rollout_id, attempt_id=attempt_id):
                await talk(client, seed, temperature, turns)
            receipt = await store.get_receipt(rollout_id, "latest")
            assert receipt.whole
            return list(await store.query_spans(rollout_id, "latest"))

        with tracer.lifespan(store):
            async with AsyncOpenAI(base_url=engine.url, api_key="none", max_retries=0) as client:
                return list(await asyncio.gather(*(rollout(client, seed) for seed in range(rollouts))))


@pytest.fixture(scope="module")
def spans(model: Any, tokenizer: Any) -> Spans:
    """Sampled at temperature 1."""
    with Engine(copy.deepcopy(model), tokenizer) as engine:
        return asyncio.run(recorded(engine))


@pytest.fixture(scope="module")
def cold(model: Any, tokenizer: Any) -> Spans:
    """Sampled at temperature 0.7, and recorded as sampled."""
    with Engine(copy.deepcopy(model), tokenizer) as engine:
        return asyncio.run(recorded(engine, 0.7, rollouts=2))


def rows_of(rollouts: Spans, policy: RowPolicy | None = None) -> list[TrainingRow]:
    rows = [row for own in rollouts for row in build_rows(own, policy)]
    assert rows
    return rows


def changed(spans: Sequence[Span], change: Callable[[ModelCall, int], ModelCall]) -> list[Span]:
    """Spans whose calls are changed, as a wrong recorder would have written them; the number is that of the call."""
    found, number = [], 0
    for span in spans:
        call = read_call(span)
        if call is None:
            found.append(span)
            continue
        found.append(span.model_copy(update={"attributes": call_attributes(change(call, number))}))
        number += 1
    return found


def answered(call: ModelCall, **fields: Any) -> ModelCall:
    """The call with another answer; what contradicts it is left out, so that it is as sound as any other."""
    choice = replace(call.choices[0], token_strings=None, policy=(), **fields)
    return replace(call, choices=(choice,), usage=None)


def said(found: Verification) -> tuple[str, set[str]]:
    return found.verdict.code, set(found.counts)


# ------------------------------------------------------------------ D2: on policy


@pytest.mark.parametrize("sampled", ["spans", "cold"])
def test_d2_an_exact_record_is_on_policy(model: Any, sampled: str, request: pytest.FixtureRequest) -> None:
    rollouts = request.getfixturevalue(sampled)
    rows = rows_of(rollouts)
    found = verify_onpolicy(rows, model)

    assert said(found) == ("exact", {"exact"}), found
    assert found.exact
    assert len(rows) == len(rollouts)  # one for each rollout: its turns are merged
    assert {len(row.segments) for row in rows} == {TURNS}
    assert found.total.tokens == sum(row.trained_tokens for row in rows) >= 40
    assert found.total.ratio == pytest.approx(1.0, abs=1e-4)
    assert found.total.k1 == pytest.approx(0.0, abs=1e-4)
    assert found.total.k3 == pytest.approx(0.0, abs=1e-4)
    assert found.total.largest is not None
    assert found.total.largest.size < 1e-4
    assert found.dtype == "float32"


def test_batches_and_padding_change_nothing(model: Any, spans: Spans) -> None:
    rows = [row for limit in (25, 48, 60, 70, 1000) for row in rows_of(spans, RowPolicy(max_tokens=limit))]
    assert len({len(row) for row in rows}) > 3
    alone, together = (verify_onpolicy(rows, model, batch_size=size) for size in (1, 16))

    assert alone.exact
    assert together.exact
    for one, other in zip(alone.rows, together.rows, strict=True):
        assert one.agreement.k1 == pytest.approx(other.agreement.k1, abs=1e-5)


def test_the_model_is_left_as_it_was(model: Any, spans: Spans) -> None:
    own = copy.deepcopy(model).train()
    own.model.layers[0].eval()
    before = [module.training for module in own.modules()]

    assert verify_onpolicy(rows_of(spans), own).exact

    assert [module.training for module in own.modules()] == before
    assert all(parameter.grad is None for parameter in own.parameters())


def test_a_function_of_token_ids_is_a_model(model: Any, spans: Spans) -> None:
    def logits(ids: Any) -> Any:
        return model(ids).logits

    def log_probabilities(ids: Any) -> Any:
        return model(ids).logits.log_softmax(-1)

    for function in (logits, log_probabilities):
        found = verify_onpolicy(rows_of(spans), function)
        assert found.exact, found
        assert found.dtype == "unknown"


# ------------------------------------------------------------------ D2: each fault by its name


def test_raw_log_probabilities_are_caught(model: Any, tokenizer: Any) -> None:
    with Engine(copy.deepcopy(model), tokenizer, logprobs_mode="raw_logprobs") as engine:
        found = verify_onpolicy(rows_of(asyncio.run(recorded(engine, 0.7, rollouts=2))), model)

    assert said(found) == ("raw_logprobs", {"raw_logprobs"}), found
    assert abs(found.total.ratio - 1) > 1e-3
    assert found.total.differing > 0.9 * found.total.tokens
    assert "recorded is temperature 0.7" in found.detail


def test_a_wrong_temperature_is_caught_and_solved(model: Any, cold: Spans) -> None:
    """The server's own default is not what the request's record says."""

    def forget(call: ModelCall, _: int) -> ModelCall:
        return replace(call, sampling_effective={**call.sampling_effective, "temperature": 1.0})

    rows = rows_of([changed(each, forget) for each in cold])
    found = verify_onpolicy(rows, model)

    assert said(found) == ("wrong_temperature", {"wrong_temperature"}), found
    assert "those of temperature 0.7, recorded is 1" in found.detail
    assert verify_onpolicy(rows, model, temperature=0.7).exact


@pytest.mark.parametrize("by", [1, -1])
def test_a_shifted_pairing_is_caught(model: Any, spans: Spans, by: int) -> None:
    def shift(call: ModelCall, _: int) -> ModelCall:
        values = call.choices[0].logprobs
        assert values is not None
        return answered(call, logprobs=(*values[by:], *values[:by]))

    found = verify_onpolicy(rows_of([changed(each, shift) for each in spans]), model)

    assert said(found) == ("shifted", {"shifted"}), found


@pytest.mark.parametrize(("at", "lost"), [(0, "last value"), (4, "value")])
def test_a_dropped_token_is_caught_and_found(model: Any, spans: Spans, at: int, lost: str) -> None:
    """The last call of each rollout lost a token, and its value with it or the value of the last token."""
    dropped = []

    def drop(call: ModelCall, number: int) -> ModelCall:
        ids, values = call.choices[0].token_ids, call.choices[0].logprobs
        if number < TURNS - 1:
            return call
        assert ids is not None
        assert values is not None
        dropped.append(ids[at])
        kept = (*values[:at], *values[at + 1 :]) if lost == "value" else values[:-1]
        return answered(call, token_ids=(*ids[:at], *ids[at + 1 :]), logprobs=kept)

    rows = rows_of([changed(each, drop) for each in spans[:2]])
    assert all(len(row) - row.segments[-1].start > at + 3 for row in rows)
    found = verify_onpolicy(rows, model)

    assert said(found) == ("dropped_token", {"dropped_token"}), found
    named = {int(row.detail.partition("token ")[2].partition(" ")[0]) for row in found.rows}
    assert named <= set(dropped)
    assert [row.detail.partition("position ")[2].partition(";")[0] for row in found.rows] == [
        str(row.segments[-1].start + at) for row in rows
    ]


def test_a_token_that_is_dropped_between_two_answers_is_found_at_the_end_of_the_first(
    model: Any, spans: Spans
) -> None:
    """An answer lost its last token, and the next prompt with it, so the rows are still merged."""

    def drop(call: ModelCall, number: int) -> ModelCall:
        ids, values, prompt = call.choices[0].token_ids, call.choices[0].logprobs, call.prompt_token_ids
        assert ids is not None
        assert values is not None
        assert prompt is not None
        if number == 0:
            return answered(call, token_ids=ids[:-1], logprobs=values[:-1])
        return replace(call, prompt_token_ids=(*prompt[: ends[0] - 1], *prompt[ends[0] :]), usage=None)

    found = []
    for own in spans[:2]:
        (row,) = rows_of([own])
        ends = [segment.end for segment in row.segments]
        found += rows_of([changed(own, drop)])
    assert [len(row.segments) for row in found] == [TURNS, TURNS]

    verdict = verify_onpolicy(found, model)
    assert said(verdict) == ("dropped_token", {"dropped_token"}), verdict


def test_exchanged_rollouts_are_caught(model: Any, spans: Spans) -> None:
    """Each rollout got the values of the next one, so far as they are of equal length."""
    rows = rows_of(spans)
    same = [row for row in rows if [len(_values(row, at)) for at in range(TURNS)] == [10] * TURNS]
    assert len(same) >= 2
    exchanged = [
        replace(row, logprobs=_with_values_of(row, same[(at + 1) % len(same)])) for at, row in enumerate(same)
    ]
    found = verify_onpolicy(exchanged, model)

    assert said(found) == ("exchanged_rollouts", {"exchanged_rollouts"}), found


def _values(row: TrainingRow, number: int) -> tuple[float | None, ...]:
    segment = row.segments[number]
    return row.logprobs[segment.start : segment.end]


def _with_values_of(row: TrainingRow, other: TrainingRow) -> tuple[float | None, ...]:
    values = list(row.logprobs)
    for number, segment in enumerate(row.segments):
        values[segment.start : segment.end] = _values(other, number)
    return tuple(values)


# ------------------------------------------------------------------ weights


def updated(model: Any, rows: Sequence[TrainingRow], rate: float) -> Any:
    """The model after one step of gradient descent on the rows."""
    trained = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=rate)
    loss_of(trained, rows).backward()
    optimizer.step()
    return trained.eval()


def loss_of(model: Any, rows: Sequence[TrainingRow]) -> Any:
    """Minus the sum of the log-probabilities of all trained tokens."""
    total = torch.zeros((), dtype=next(model.parameters()).dtype)
    for row in rows:
        ids = torch.tensor([row.token_ids])
        mask = torch.tensor(row.loss_mask[1:], dtype=total.dtype)
        logs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        total = total - (logs.gather(-1, ids[0, 1:, None])[:, 0] * mask).sum()
    return total


def test_weights_after_an_update_are_stale(model: Any, spans: Spans) -> None:
    rows = rows_of(spans)
    found = verify_onpolicy(rows, updated(model, rows, 0.01))

    assert said(found) == ("stale_weights", {"stale_weights"}), found
    assert found.total.k3 > 1e-3


def test_a_small_step_cannot_be_told_from_another_precision(model: Any, spans: Spans) -> None:
    rows = rows_of(spans)
    found = verify_onpolicy(rows, updated(model, rows, 1e-5))
    assert said(found) == ("close", {"close"}), found

    coarse = verify_onpolicy(rows, copy.deepcopy(model).to(torch.bfloat16), tolerance=1e-3)
    assert coarse.dtype == "bfloat16"
    assert not coarse.exact
    assert verify_onpolicy(rows, copy.deepcopy(model).to(torch.bfloat16), tolerance=0.5).exact


def test_with_versions_stale_weights_are_told_for_sure(model: Any, spans: Spans) -> None:
    rows = rows_of(spans)
    assert {row.versions for row in rows} == {(0, 0)}
    found = verify_onpolicy(rows, updated(model, rows, 1e-5), version=1)

    assert said(found) == ("stale_weights", {"stale_weights"}), found
    assert "sampled by version 0, compared with 1" in found.detail


def test_weights_that_came_between_two_turns_are_told_by_their_versions(model: Any, tokenizer: Any) -> None:
    other = make_model(tokenizer, seed=2)

    async def both() -> Spans:
        with Engine(copy.deepcopy(other), tokenizer, version="old") as engine:
            first = await recorded(engine, rollouts=1)
            engine.update_weights(model.state_dict(), "new")
            return first + await recorded(engine, rollouts=1)

    found = verify_onpolicy(rows_of(asyncio.run(both())), model)

    assert found.counts == {"stale_weights": 1, "exact": 1}, found
    assert found.verdict is Verdict.STALE_WEIGHTS


# ------------------------------------------------------------------ context


def test_a_first_token_that_the_ids_do_not_show_is_a_wrong_template(
    model: Any, tokenizer: Any, spans: Spans
) -> None:
    """The engine puts the model's first token in front, and reports the prompt without it."""
    marked = copy.deepcopy(model)
    marked.config.bos_token_id = tokenizer.convert_tokens_to_ids("<|im_start|>")

    def hide(call: ModelCall, _: int) -> ModelCall:
        assert call.prompt_token_ids is not None
        assert call.prompt_token_ids[0] == marked.config.bos_token_id
        return replace(call, prompt_token_ids=call.prompt_token_ids[1:], usage=None)

    rows = rows_of([changed(own, hide) for own in spans])
    found = verify_onpolicy(rows, marked)

    assert said(found) == ("wrong_template", {"wrong_template"}), found
    assert "in front of the row" in found.detail


def test_context_that_changes_between_answers_is_a_wrong_template(model: Any, spans: Spans) -> None:
    def reword(call: ModelCall, number: int) -> ModelCall:
        prompt = list(call.prompt_token_ids or ())
        if number == TURNS - 1:
            for at in range(ends[number - 1] + 2, ends[number - 1] + 6):
                prompt[at] = (prompt[at] + 7) % 300
        return replace(call, prompt_token_ids=tuple(prompt))

    found = []
    for own in spans[:2]:
        (row,) = rows_of([own])
        ends = [segment.end for segment in row.segments]
        found += rows_of([changed(own, reword)])
    verdict = verify_onpolicy(found, model)

    assert said(verdict) == ("wrong_template", {"wrong_template"}), verdict
    assert "up to the end of an answer" in verdict.detail


# ------------------------------------------------------------------ what cannot be compared


def test_rows_without_log_probabilities_say_so(model: Any, spans: Spans) -> None:
    def forget(call: ModelCall, _: int) -> ModelCall:
        return answered(call, logprobs=None)

    rows = rows_of([changed(own, forget) for own in spans], RowPolicy(require_logprobs=False))
    found = verify_onpolicy(rows, model)
    assert said(found) == ("no_logprobs", {"no_logprobs"}), found
    assert found.total.tokens == 0
    assert found.total.missing == sum(row.trained_tokens for row in rows)

    mixed = verify_onpolicy([*rows, *rows_of(spans)], model)
    assert mixed.counts == {"no_logprobs": len(rows), "exact": len(spans)}
    assert mixed.verdict is Verdict.NO_LOGPROBS


def test_no_rows_and_another_vocabulary_are_refused(model: Any, spans: Spans) -> None:
    with pytest.raises(NotVerifiable, match="no row"):
        verify_onpolicy(RowSet(), model)
    (row, *_) = rows_of(spans)
    strange = replace(row, token_ids=(5000, *row.token_ids[1:]))
    with pytest.raises(NotVerifiable, match="has token 5,000"):
        verify_onpolicy([strange], model)
    with pytest.raises(NotVerifiable, match="has logits for 5 tokens"):
        verify_onpolicy([row], lambda ids: torch.zeros((*ids.shape, 5)))
    with pytest.raises(NotVerifiable, match="returned no logits"):
        verify_onpolicy([row], lambda ids: torch.zeros(3))
    for wrong in ({"tolerance": -1.0}, {"temperature": 0.0}, {"batch_size": 0}, {"tolerance": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            verify_onpolicy([row], model, **wrong)


def test_what_was_found_is_said_and_is_json(model: Any, spans: Spans) -> None:
    rows = rows_of(spans)
    found = verify_onpolicy(rows, updated(model, rows, 0.01))
    worst = found.total.largest
    assert worst is not None
    assert rows[worst.row].span_of(worst.position) == worst.span_id
    assert rows[worst.row].logprobs[worst.position] == worst.old
    for part in (found.verdict.sentence, found.verdict.cure, worst.span_id, f"{found.total.ratio:.6f}"):
        assert part in str(found)

    told = json.loads(json.dumps(found.as_json()))
    assert told["verdict"] == "stale_weights"
    assert told["total"]["largest"]["size"] == pytest.approx(worst.size)
    assert [row["rollout_id"] for row in told["rows"]] == [row.rollout_id for row in rows]


# ------------------------------------------------------------------ B11


@pytest.fixture
def six_turns(model: Any, tokenizer: Any) -> Iterator[Spans]:
    with Engine(copy.deepcopy(model), tokenizer) as engine:
        yield asyncio.run(recorded(engine, rollouts=2, turns=6))


def test_b11_merged_rows_have_the_gradient_of_one_row_per_call(model: Any, six_turns: Spans) -> None:
    """In float64, where nothing but the sums' order differs; float32 is held to its own noise."""
    merged = rows_of(six_turns)
    apart = [row for own in six_turns for span in own for row in build_rows([span])]
    assert [len(rows) for rows in (merged, apart)] == [2, 12]
    assert sum(row.trained_tokens for row in merged) == sum(row.trained_tokens for row in apart)

    for dtype, least in ((torch.float64, 1e-6), (torch.float32, 1e-4)):
        gradients, losses = [], []
        for rows in (merged, apart):
            own = copy.deepcopy(model).to(dtype)
            loss = loss_of(own, rows)
            loss.backward()
            losses.append(float(loss.detach()))
            gradients.append(torch.cat([each.grad.flatten() for each in own.parameters()]).double())
        one, other = gradients
        relative = float((one - other).norm() / other.norm())
        print(f"{dtype}: relative difference of the gradients {relative:.2g}")
        assert relative < least
        assert losses[0] == pytest.approx(losses[1], rel=least)
    cost = sum(map(len, apart)) / sum(map(len, merged))
    print(f"forward tokens: {sum(map(len, merged))} merged, {sum(map(len, apart))} apart, ratio {cost:.2f}")
    assert cost > 2


# ------------------------------------------------------------------ from the command line's folder


def test_a_model_is_loaded_from_its_folder(model: Any, spans: Spans, tmp_path: Path) -> None:
    from agentlightning.verify.loading import load

    model.save_pretrained(tmp_path / "model")
    assert verify_onpolicy(rows_of(spans), load(tmp_path / "model")).exact
    with pytest.raises(NotVerifiable, match="there is no config"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(NotVerifiable, match="cannot be loaded"):
        load(tmp_path)
