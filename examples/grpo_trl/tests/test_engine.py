"""What the engine says of its tokens is true: ids, texts, counts, log-probabilities, versions, streamed or not."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai import APIStatusError, OpenAI

from agentlightning.dialects.model_call import PolicySpan

torch = pytest.importorskip("torch", reason="needs pip install 'agentlightning-otel[trl]'")
pytest.importorskip("transformers", reason="needs pip install 'agentlightning-otel[trl]'")

from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402 - after the skips

from ..agent import OPEN  # noqa: E402
from ..engine import Engine  # noqa: E402
from ..model import call, corpus, make, make_model, make_tokenizer, practise, render  # noqa: E402
from ..sampling import Batch, Sampling, Weights  # noqa: E402
from ..sampling import Sequence as Sampled  # noqa: E402
from ..wire import versions  # noqa: E402
from .scripted import recomputed, scripted  # noqa: E402

NEAR = 1e-4
"""Log-probabilities that differ by less are the same in float32."""
USER = [{"role": "user", "content": "box 4"}]
SOME_SEEDS = range(6)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    return make_model(tokenizer, seed=1)


@pytest.fixture(scope="module")
def client(model: Any, tokenizer: Any) -> Iterator[OpenAI]:
    """A client of a random model, whose conversations keep their ids."""
    with Engine(copy.deepcopy(model), tokenizer) as engine, connected(engine) as opened:
        yield opened


def connected(engine: Engine) -> OpenAI:
    return OpenAI(base_url=engine.url, api_key="none", max_retries=0)


def asked(client: OpenAI, seed: int | None = 0, messages: Sequence[Any] = USER, **more: Any) -> Any:
    """Ask for a reply with everything that the engine can say of its tokens."""
    body = {"return_token_ids": True, **more.pop("extra_body", {})}
    settings = {"model": "tiny", "seed": seed, "max_tokens": 12, "logprobs": True, **more}
    return client.chat.completions.create(messages=list(messages), extra_body=body, **settings)


def logprobs_of(choice: Any) -> list[float]:
    return [entry.logprob for entry in choice.logprobs.content]


# ------------------------------------------------------------------ the model


def test_the_tokenizer_and_the_weights_are_the_same_each_time(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    make(first, seed=3, lessons=2)
    make(second, seed=3, lessons=2)
    for file in sorted(first.iterdir()):
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {file.name for file in first.iterdir()}


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model, tokenizer = make(tmp_path, seed=3)
    loaded, its_tokenizer = (kind.from_pretrained(tmp_path) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert render(its_tokenizer, USER) == render(tokenizer, USER)
    ids = render(tokenizer, USER)
    assert recomputed(loaded, ids, [5, 6]) == recomputed(model, ids, [5, 6])
    assert (its_tokenizer.pad_token, its_tokenizer.eos_token) == ("<|pad|>", "<|im_end|>")


def test_every_text_encodes_and_comes_back(tokenizer: Any) -> None:
    for text in [*corpus(), "ß 漢字 \N{SNOWMAN}\n\t", call(4)]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text


def test_practice_makes_replies_likelier(tokenizer: Any) -> None:
    model = make_model(tokenizer, seed=0)
    prompt, reply = render(tokenizer, USER), tokenizer.encode(call(4), add_special_tokens=False)
    before = sum(recomputed(model, prompt, reply))
    practise(model, tokenizer, steps=8, seed=0, batch=8)
    assert sum(recomputed(model, prompt, reply)) > before + 1


# ------------------------------------------------------------------ releases of transformers


def test_a_deprecation_in_a_library_is_not_what_the_server_answers(model: Any, tokenizer: Any) -> None:
    class Warns(type(model)):  # type: ignore[misc]
        @functools.wraps(type(model).forward)
        def forward(self, *values: Any, **named: Any) -> Any:
            warnings.warn("`forward` is deprecated", FutureWarning, stacklevel=2)
            return super().forward(*values, **named)

    warns = copy.deepcopy(model)
    warns.__class__ = Warns
    with Engine(warns, tokenizer) as engine, connected(engine) as opened:
        assert asked(opened).choices[0].token_ids


def test_the_cache_goes_by_the_name_that_the_model_has_for_it(model: Any, tokenizer: Any) -> None:
    """Transformers calls it ``past_key_values``, and ``cache`` since 5.24."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"

    class Before(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any, past_key_values: Any = None, **more: Any) -> Any:
            found = super().forward(input_ids, **{name: past_key_values}, **more)
            return SimpleNamespace(logits=found.logits, past_key_values=getattr(found, name))

    class Since(type(model)):  # type: ignore[misc]
        def forward(self, input_ids: Any, cache: Any = None, **more: Any) -> Any:
            found = super().forward(input_ids, **{name: cache}, **more)
            return SimpleNamespace(logits=found.logits, cache=getattr(found, name))

    answers = []
    for kind in (Before, Since):
        named = copy.deepcopy(model)
        named.__class__ = kind
        with Engine(named, tokenizer) as engine, connected(engine) as opened:
            answers.append(asked(opened).choices[0].token_ids)
    assert answers[0] == answers[1]
    assert len(answers[0]) > 1


# ------------------------------------------------------------------ what an answer says of its tokens


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
def test_log_probabilities_are_those_of_the_model(client: OpenAI, model: Any, temperature: float) -> None:
    with ThreadPoolExecutor(8) as pool:  # so that they are sampled in batches
        answers = list(pool.map(lambda seed: asked(client, seed, temperature=temperature), range(16)))
    for answer in answers:
        (choice,) = answer.choices
        expected = recomputed(model, answer.prompt_token_ids, choice.token_ids, temperature)
        assert logprobs_of(choice) == pytest.approx(expected, abs=NEAR)


def test_raw_log_probabilities_know_nothing_of_the_temperature(model: Any, tokenizer: Any) -> None:
    with (
        Engine(copy.deepcopy(model), tokenizer, logprobs_mode="raw_logprobs") as engine,
        connected(engine) as client,
    ):
        answer = asked(client, temperature=0.7)
    (choice,) = answer.choices
    raw = recomputed(model, answer.prompt_token_ids, choice.token_ids)
    processed = recomputed(model, answer.prompt_token_ids, choice.token_ids, temperature=0.7)
    assert logprobs_of(choice) == pytest.approx(raw, abs=NEAR)
    assert max(abs(a - b) for a, b in zip(raw, processed, strict=True)) > 100 * NEAR


def test_ids_texts_and_counts_agree(client: OpenAI, tokenizer: Any) -> None:
    for seed in SOME_SEEDS:
        answer = asked(client, seed)
        (choice,) = answer.choices
        assert answer.prompt_token_ids == tokenizer.encode(
            tokenizer.apply_chat_template(USER, add_generation_prompt=True, tokenize=False)
        )
        assert tokenizer.decode(choice.token_ids, skip_special_tokens=True) == choice.message.content
        assert answer.usage.prompt_tokens == len(answer.prompt_token_ids)
        assert answer.usage.completion_tokens == len(choice.token_ids) == len(choice.logprobs.content)
        assert choice.weight_versions == [{"version": "0", "start": 0, "end": len(choice.token_ids)}]
        ended = choice.token_ids[-1] == tokenizer.eos_token_id
        assert choice.finish_reason == ("stop" if ended else "length")


def test_ids_and_log_probabilities_come_only_when_asked_for(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=USER, max_tokens=3)  # type: ignore[arg-type]
    said = answer.model_dump(exclude_none=True)
    assert "prompt_token_ids" not in said
    assert not {"token_ids", "logprobs"} & said["choices"][0].keys()


def test_a_token_may_be_named_by_its_id(client: OpenAI) -> None:
    answer = asked(client, extra_body={"return_token_ids": True, "return_tokens_as_token_ids": True})
    (choice,) = answer.choices
    assert [entry.token for entry in choice.logprobs.content] == [
        f"token_id:{each}" for each in choice.token_ids
    ]


def test_the_same_request_gets_the_same_answer_and_another_seed_another_one(client: OpenAI) -> None:
    answers = [asked(client, seed).choices[0].token_ids for seed in (1, 1, 2, 3)]
    assert answers[0] == answers[1]
    assert len({tuple(each) for each in answers}) == 3
    assert asked(client, None).choices[0].token_ids != asked(client, None).choices[0].token_ids


def test_several_choices_are_several_answers_to_one_prompt(client: OpenAI, model: Any) -> None:
    answer = asked(client, n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({tuple(choice.token_ids) for choice in answer.choices}) == 3
    assert answer.usage.prompt_tokens == len(answer.prompt_token_ids)
    assert answer.usage.completion_tokens == sum(len(choice.token_ids) for choice in answer.choices)
    assert answer.choices[0].token_ids == asked(client).choices[0].token_ids
    for choice in answer.choices:
        expected = recomputed(model, answer.prompt_token_ids, choice.token_ids)
        assert logprobs_of(choice) == pytest.approx(expected, abs=NEAR)


def test_temperature_0_takes_the_likeliest_token(client: OpenAI, model: Any) -> None:
    answer = asked(client, temperature=0, max_tokens=4, top_logprobs=1)
    for entry in answer.choices[0].logprobs.content:
        assert entry.token == entry.top_logprobs[0].token
    row = torch.tensor([answer.prompt_token_ids])
    with torch.inference_mode():
        assert int(model(input_ids=row).logits[0, -1].argmax()) == answer.choices[0].token_ids[0]


@pytest.mark.parametrize("cut", [{"top_p": 0.2}, {"extra_body": {"top_k": 5}}], ids=["top_p", "top_k"])
def test_a_cut_distribution_is_sampled_and_reported_as_it_is(client: OpenAI, cut: dict[str, Any]) -> None:
    answer = asked(client, top_logprobs=20, **copy.deepcopy(cut))
    whole = asked(client, top_logprobs=20)
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 20
    for entry in answer.choices[0].logprobs.content:
        kept = [top.logprob for top in entry.top_logprobs]
        if "extra_body" in cut:
            assert len(kept) == 5
            assert sum(map(math.exp, kept)) == pytest.approx(1, abs=NEAR)
            assert entry.logprob in kept
        else:
            assert entry.logprob > -math.inf
    assert logprobs_of(answer.choices[0])[0] > logprobs_of(whole.choices[0])[0]


# ------------------------------------------------------------------ streams


@pytest.mark.parametrize("n", [1, 2])
def test_a_stream_says_what_a_plain_answer_says(client: OpenAI, n: int) -> None:
    silent = 0
    for seed in SOME_SEEDS:
        plain = asked(client, seed, n=n)
        streamed = list(asked(client, seed, n=n, stream=True, stream_options={"include_usage": True}))
        silent += sum(
            bool(choice.model_extra["token_ids"]) and not choice.delta.content
            for chunk in streamed
            for choice in chunk.choices
            if "token_ids" in (choice.model_extra or {})
        )
        assert streamed[-1].usage == plain.usage
        for choice in plain.choices:
            of_choice = [
                chunk for chunk in streamed if chunk.choices and chunk.choices[0].index == choice.index
            ]
            assert of_choice[0].prompt_token_ids == plain.prompt_token_ids
            assert of_choice[0].choices[0].delta.role == "assistant"
            deltas = [chunk.choices[0] for chunk in of_choice[1:]]
            assert [each for delta in deltas for each in delta.token_ids] == choice.token_ids
            assert "".join(delta.delta.content or "" for delta in deltas) == choice.message.content
            logprobs = [e.logprob for delta in deltas if delta.logprobs for e in delta.logprobs.content]
            assert logprobs == pytest.approx(logprobs_of(choice), abs=NEAR)
            assert deltas[-1].finish_reason == choice.finish_reason
            assert deltas[-1].weight_versions == choice.weight_versions
    assert silent  # tokens came without text, as they do in real engines


def test_a_streamed_tool_call_is_the_plain_one(tokenizer: Any) -> None:
    with Engine(scripted(tokenizer, "Hm! " + call(4)), tokenizer) as engine, connected(engine) as client:
        plain = asked(client, tools=[OPEN], max_tokens=32).choices[0]
        streamed = [chunk.choices[0] for chunk in asked(client, tools=[OPEN], max_tokens=32, stream=True)]
    assert plain.finish_reason == streamed[-1].finish_reason == "tool_calls"
    assert plain.message.content == "".join(each.delta.content or "" for each in streamed) == "Hm! "
    (called,) = plain.message.tool_calls
    assert (called.function.name, json.loads(called.function.arguments)) == ("open", {"box": 4})
    ((again,),) = [each.delta.tool_calls for each in streamed if each.delta.tool_calls]
    assert (again.id, again.function.name, again.function.arguments) == (
        called.id, called.function.name, called.function.arguments,
    )  # fmt: skip
    assert [each for delta in streamed[1:] for each in delta.token_ids] == plain.token_ids


@pytest.mark.parametrize(
    "script", ["<tool_call>{broken</tool_call>", "<tool_call>[4]</tool_call>", "<tool_c"]
)
def test_what_is_no_tool_call_is_text(tokenizer: Any, script: str) -> None:
    with Engine(scripted(tokenizer, script), tokenizer) as engine, connected(engine) as client:
        plain = asked(client, tools=[OPEN], max_tokens=64, temperature=0).choices[0]
        chunks = asked(client, tools=[OPEN], max_tokens=64, temperature=0, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert plain.message.content == streamed == script
    assert plain.message.tool_calls is None
    assert plain.finish_reason == "stop"


def test_without_tools_nothing_is_a_tool_call(tokenizer: Any) -> None:
    with Engine(scripted(tokenizer, call(4)), tokenizer) as engine, connected(engine) as client:
        (choice,) = asked(client).choices
        (forbidden,) = asked(client, tools=[OPEN], tool_choice="none").choices
    assert choice.message.content == forbidden.message.content == call(4)


# ------------------------------------------------------------------ conversations


def continued(client: OpenAI, seed: int) -> tuple[list[int], list[int]]:
    """Return the ids of a prompt and its reply, and those of the next prompt of the conversation."""
    first = asked(client, seed)
    reply = {"role": "assistant", "content": first.choices[0].message.content}
    second = asked(client, seed, [*USER, reply, {"role": "user", "content": "and now?"}])
    return first.prompt_token_ids + first.choices[0].token_ids, second.prompt_token_ids


def test_a_conversation_that_goes_on_keeps_its_ids(client: OpenAI, tokenizer: Any) -> None:
    ends = set()
    for seed in SOME_SEEDS:
        known, prompt = continued(client, seed)
        assert prompt[: len(known)] == known
        ends.add(known[-1] == tokenizer.eos_token_id)
        rest = tokenizer.decode(prompt[len(known) :])
        closed = "" if known[-1] == tokenizer.eos_token_id else "<|im_end|>"
        assert rest == closed + "\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n"
    assert False in ends


def test_a_conversation_that_is_encoded_anew_drifts(model: Any, tokenizer: Any) -> None:
    with Engine(copy.deepcopy(model), tokenizer, keep_ids=False) as engine, connected(engine) as client:
        drifted = sum(
            prompt[: len(known)] != known
            for known, prompt in (continued(client, seed) for seed in SOME_SEEDS)
        )
    assert drifted > len(SOME_SEEDS) / 2  # a random model's text hardly ever encodes to what it sampled


def test_the_ids_are_kept_over_tool_calls_and_over_many_turns(tokenizer: Any) -> None:
    messages: list[Any] = [*USER]
    with Engine(scripted(tokenizer, call(4), call(5)), tokenizer) as engine, connected(engine) as client:
        known: list[int] = []
        for turn in range(4):
            answer = asked(client, turn, messages, tools=[OPEN], max_tokens=32)
            assert answer.prompt_token_ids[: len(known)] == known
            known = answer.prompt_token_ids + answer.choices[0].token_ids
            message = answer.choices[0].message
            messages += [
                message.model_dump(include={"role", "content", "tool_calls"}),
                {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "box 5"},
            ]


def test_a_changed_history_is_encoded_anew(client: OpenAI) -> None:
    first = asked(client, 0)
    reply = {"role": "assistant", "content": first.choices[0].message.content + "!"}
    second = asked(client, 0, [*USER, reply, {"role": "user", "content": "and now?"}])
    known = first.prompt_token_ids + first.choices[0].token_ids
    assert second.prompt_token_ids[: len(known)] != known


# ------------------------------------------------------------------ weights


def test_new_weights_are_served_under_their_version(model: Any, tokenizer: Any) -> None:
    other = make_model(tokenizer, seed=2)
    with Engine(copy.deepcopy(model), tokenizer) as engine, connected(engine) as client:
        before = asked(client)
        engine.update_weights(other.state_dict(), 7)
        after = asked(client)
        engine.update_weights(model.named_parameters(), "8")
        again = asked(client)
    for answer, of, version in ((before, model, "0"), (after, other, "7"), (again, model, "8")):
        (choice,) = answer.choices
        expected = recomputed(of, answer.prompt_token_ids, choice.token_ids)
        assert logprobs_of(choice) == pytest.approx(expected, abs=NEAR)
        assert [each["version"] for each in choice.weight_versions] == [version]


def test_weights_that_do_not_fit_change_nothing(model: Any) -> None:
    engine = Weights(copy.deepcopy(model), "0")
    short = dict(list(model.state_dict().items())[1:])
    with pytest.raises(ValueError, match="missing or unknown"):
        engine.update(short, "1")
    narrow = {name: tensor[..., :1] for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="other shapes"):
        engine.update(narrow, "1")
    assert engine.version == "0"


def test_weights_that_come_between_two_tokens_are_told_apart(model: Any, tokenizer: Any) -> None:
    prompt = render(tokenizer, USER)
    weights = Weights(copy.deepcopy(model), "old")
    sequence = Sampled(prompt, Sampling(max_tokens=8, ignore_eos=True), seed=5)
    batch = Batch(weights, [sequence], tokenizer.eos_token_id, "processed_logprobs")
    for _ in range(3):
        batch.step()
    weights.update(make_model(tokenizer, seed=2).state_dict(), "new")
    while not batch.done:
        batch.step()
    assert versions(sequence.tokens) == (PolicySpan("old", 0, 3), PolicySpan("new", 3, 8))
    by_old = recomputed(model, prompt, sequence.ids)
    assert [token.logprob for token in sequence.tokens][:3] == pytest.approx(by_old[:3], abs=NEAR)
    assert [token.logprob for token in sequence.tokens][3:] != pytest.approx(by_old[3:], abs=NEAR)


def test_a_paused_engine_samples_when_it_goes_on(model: Any, tokenizer: Any) -> None:
    with (
        Engine(copy.deepcopy(model), tokenizer) as engine,
        connected(engine) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        engine.weights.pause()
        waiting = pool.submit(asked, client)
        engine.update_weights(make_model(tokenizer, seed=2).state_dict(), "1")
        engine.weights.resume()
        (span,) = waiting.result().choices[0].weight_versions
    assert span["version"] == "1"


# ------------------------------------------------------------------ the rest of the API


def test_completions_take_text_and_ids(client: OpenAI, model: Any, tokenizer: Any) -> None:
    texts = ["box 4", "a pearl"]
    ids = [tokenizer.encode(text) for text in texts]
    options: dict[str, Any] = {
        "model": "tiny", "max_tokens": 4, "seed": 3, "logprobs": 2, "extra_body": {"return_token_ids": True},
    }  # fmt: skip
    by_text, by_ids = (client.completions.create(prompt=prompt, **options) for prompt in (texts, ids))
    assert by_text.usage == by_ids.usage
    for prompt, choice, other in zip(ids, by_text.choices, by_ids.choices, strict=True):
        assert choice.prompt_token_ids == other.prompt_token_ids == prompt
        sampled = choice.token_ids
        assert sampled == other.token_ids
        assert tokenizer.decode(sampled, skip_special_tokens=True) == choice.text
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == pytest.approx(recomputed(model, prompt, sampled), abs=NEAR)
        assert choice.logprobs.top_logprobs is not None
        assert len(choice.logprobs.top_logprobs) == len(sampled)
        assert all(1 <= len(each) <= 2 for each in choice.logprobs.top_logprobs)  # two may have one name


def test_a_streamed_completion_is_the_plain_one(client: OpenAI) -> None:
    options: dict[str, Any] = {
        "model": "tiny", "prompt": "box 4", "max_tokens": 6, "seed": 3, "logprobs": 0,
        "extra_body": {"return_token_ids": True},
    }  # fmt: skip
    (plain,) = client.completions.create(**options).choices
    first, *rest = (chunk.choices[0] for chunk in client.completions.create(**options, stream=True))
    assert first.prompt_token_ids == plain.prompt_token_ids
    assert "".join(each.text for each in rest) == plain.text
    assert [each for delta in rest for each in delta.token_ids] == plain.token_ids


def test_the_model_has_a_name(client: OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["tiny"]


@pytest.mark.parametrize(
    ("unknown", "says"),
    [
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stop": ["x"]}, "stop"),
        ({"extra_body": {"guided_choice": ["x"]}}, "guided_choice"),
        ({"n": 0}, "n is 0"),
        ({"n": 1000}, "n is 1000"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "room"),
        ({"messages": [{"content": "who says it?"}]}, "messages"),
    ],
    ids=str,
)
def test_what_the_engine_cannot_do_it_refuses(client: OpenAI, unknown: dict[str, Any], says: str) -> None:
    with pytest.raises(APIStatusError, match=says) as refused:
        asked(client, **copy.deepcopy(unknown))
    assert refused.value.status_code == 400


def test_an_unknown_path_is_not_found(client: OpenAI) -> None:
    with pytest.raises(APIStatusError) as refused:
        client.embeddings.create(model="tiny", input="x")
    assert refused.value.status_code == 404
