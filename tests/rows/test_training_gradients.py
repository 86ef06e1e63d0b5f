"""B11 without a tensor library: a merged row trains what one row per call trains, to the last digits.

The model is a recurrent one, so that a token's probability depends on all that stands before it, with its gradient
written out by hand and held against differences.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from conversations import Story, rows_of, stories
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from agentlightning.rows.analysis import analyse
from agentlightning.rows.calls import Rules
from agentlightning.rows.matching import RewardMatchPolicy
from agentlightning.rows.transition import transitions

Array = np.ndarray[Any, np.dtype[np.float64]]
Sample = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids and loss mask."""
WIDTH = 5


class Model(NamedTuple):
    """h[t] = tanh(mix h[t-1] + embedding[token t]); probability of the next token: softmax(h[t] head)."""

    embedding: Array
    mix: Array
    head: Array


def model_of(vocabulary: int, seed: int) -> Model:
    chance = np.random.default_rng(seed)
    shapes = ((vocabulary, WIDTH), (WIDTH, WIDTH), (WIDTH, vocabulary))
    return Model(*(chance.normal(0.0, 0.7, shape) for shape in shapes))


def log_probabilities(model: Model, ids: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The hidden states, the probabilities of every next token, and the log-probability of each that came."""
    hidden = np.zeros((len(ids) + 1, WIDTH))
    for at, token in enumerate(ids):
        hidden[at + 1] = np.tanh(hidden[at] @ model.mix.T + model.embedding[token])
    scores = hidden[1:-1] @ model.head
    scores -= scores.max(axis=1, keepdims=True)
    logs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return hidden, np.exp(logs), logs[np.arange(len(ids) - 1), ids[1:]]


def loss_and_gradient(model: Model, samples: Iterable[Sample]) -> tuple[float, Model]:
    """Minus the sum of the log-probabilities of the trained tokens, and its gradient."""
    loss, total = 0.0, Model(*(np.zeros_like(part) for part in model))
    for ids, mask in samples:
        hidden, probabilities, logs = log_probabilities(model, ids)
        weights = np.array(mask[1:], dtype=np.float64)
        loss -= float((weights * logs).sum())
        errors = probabilities.copy()
        errors[np.arange(len(ids) - 1), ids[1:]] -= 1.0
        errors *= weights[:, None]
        total.head[...] += hidden[1:-1].T @ errors
        back = np.zeros(WIDTH)
        for at in reversed(range(len(ids) - 1)):
            inner = (back + errors[at] @ model.head.T) * (1 - hidden[at + 1] ** 2)
            total.embedding[ids[at]] += inner
            total.mix[...] += np.outer(inner, hidden[at])
            back = inner @ model.mix
    return loss, total


def merged_and_apart(story: Story) -> tuple[list[Sample], list[Sample], int]:
    """The same tokens as rows of whole paths, and as one row per call; ids are numbered from 0."""
    used = sorted({each for answer in story.answers for each in (*answer.prompt, *answer.output)})
    number = {token: place for place, token in enumerate(used)}
    rows = rows_of(story)
    trained = {(s.span_id, s.choice.index) for row in rows for s in row.segments if s.trained}
    apart = []
    (analysis,) = analyse(story.spans, Rules(), RewardMatchPolicy.FIRST_OCCURRENCE)
    for row in transitions(analysis):
        if (row.call.span.span_id, row.choice.index) in trained:
            prompt, said = row.triplet.prompt["token_ids"], row.triplet.response["token_ids"]
            ids = tuple(number[each] for each in (*prompt, *said))
            apart.append((ids, (0,) * len(prompt) + (1,) * len(said)))
    merged = [(tuple(number[each] for each in row.token_ids), row.loss_mask) for row in rows]
    return merged, apart, len(used)


@settings(max_examples=40)
@given(stories, st.integers(0, 2**16))
def test_b11_a_merged_row_has_the_log_probabilities_and_gradients_of_one_row_per_call(
    story: Story, seed: int
) -> None:
    merged, apart, vocabulary = merged_and_apart(story)
    assume(merged)
    model = model_of(vocabulary, seed)

    logs = [np.sort(np.concatenate([_trained(model, each) for each in side])) for side in (merged, apart)]
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-6)
    (loss, gradient), (loss_apart, gradient_apart) = (
        loss_and_gradient(model, side) for side in (merged, apart)
    )
    np.testing.assert_allclose(loss, loss_apart, rtol=1e-6)
    for part, part_apart in zip(gradient, gradient_apart, strict=True):
        size = np.linalg.norm(part_apart)
        assert np.linalg.norm(part - part_apart) <= 1e-6 * size
    assert sum(len(ids) for ids, _ in merged) <= sum(len(ids) for ids, _ in apart)


def _trained(model: Model, sample: Sample) -> Array:
    ids, mask = sample
    found: Array = log_probabilities(model, ids)[2][np.array(mask[1:], dtype=bool)]
    return found


def test_b11_the_gradient_is_one() -> None:
    model, samples = model_of(4, 1), [((0, 1, 2, 3, 1), (0, 1, 0, 1, 1)), ((2, 2, 0), (0, 0, 1))]
    _, gradient = loss_and_gradient(model, samples)

    for part, found in zip(model, gradient, strict=True):
        for place in np.ndindex(*part.shape):
            before = part[place]
            part[place] = before + 1e-6
            above, _ = loss_and_gradient(model, samples)
            part[place] = before - 1e-6
            below, _ = loss_and_gradient(model, samples)
            part[place] = before
            assert abs((above - below) / 2e-6 - found[place]) < 1e-6


@settings(max_examples=40)
@given(stories, st.integers(0, 2**16))
def test_b11_a_token_more_in_the_mask_is_another_gradient(story: Story, seed: int) -> None:
    merged, _, vocabulary = merged_and_apart(story)
    context = [
        (row, at) for row, (_, mask) in enumerate(merged) for at, each in enumerate(mask) if at and not each
    ]
    assume(context)
    row, at = context[seed % len(context)]
    ids, mask = merged[row]
    wrong = [*merged[:row], (ids, (*mask[:at], 1, *mask[at + 1 :])), *merged[row + 1 :]]
    model = model_of(vocabulary, seed)

    (_, gradient), (_, other) = loss_and_gradient(model, merged), loss_and_gradient(model, wrong)

    assert np.linalg.norm(gradient.head - other.head) > 1e-4 * np.linalg.norm(gradient.head)
