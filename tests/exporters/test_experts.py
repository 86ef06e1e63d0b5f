"""The experts of a row's tokens: joined of its calls, whatever form the engine gives them in, and never guessed."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from sample_rows import FORKED, LINEAR, Turn, rollout_of, rows_of, spans_of
from test_verifiers import trees

from agentlightning.errors import NotExportable
from agentlightning.exporters.checks import shares
from agentlightning.exporters.experts import routed_experts
from agentlightning.exporters.skyrl import to_generator_output
from agentlightning.rows import RowPolicy, build_rows

LAYERS, TOP_K = 2, 3
Form = Callable[[list[list[list[int]]]], Any]


def experts_of(number: int, token: int) -> list[list[int]]:
    """Return experts that tell a call and a position from all others."""
    return [[100 * number + token, layer, place] for layer in range(LAYERS) for place in [token % 5]]


def computed(number: int, turn: Turn) -> list[list[list[int]]]:
    """Return the experts of a call: of its prompt and answer, without the last token."""
    return [experts_of(number, token) for token in range(len(turn[0]) + len(turn[1]) - 1)]


def packed(lists: list[list[list[int]]], code: str) -> bytes:
    """Return the numbers one after another."""
    return array(code, [expert for token in lists for layer in token for expert in layer]).tobytes()


def numpy_file(lists: list[list[list[int]]], kind: str = "<i2", code: str = "h") -> str:
    """Return what ``numpy.save`` writes, in base64."""
    shape = (len(lists), LAYERS, TOP_K)
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + packed(lists, code)
    return base64.b64encode(data).decode()


def an_object(lists: list[list[list[int]]]) -> dict[str, Any]:
    """Return the form of Dynamo and prime-rl."""
    data = base64.b64encode(packed(lists, "i")).decode()
    return {"data": data, "shape": [len(lists), LAYERS, TOP_K], "start": 0}


FORMS: dict[str, Form] = {
    "lists": lambda lists: lists,
    "numpy": numpy_file,
    "numpy, 32 bits": lambda lists: numpy_file(lists, "<i4", "i"),
    "object": an_object,
    "halves": lambda lists: {
        "prompt_routed_experts": numpy_file(lists[:2]),
        "routed_experts": numpy_file(lists[2:]),
    },
    "sglang": lambda lists: base64.b64encode(packed(lists, "i")).decode(),
}


def with_experts(turns: Any, form: Form = FORMS["lists"], **keywords: Any) -> Any:
    """Return rows of calls that say their experts."""
    return rows_of(
        turns, more=lambda number, turn: {"routed_experts": form(computed(number, turn))}, **keywords
    )


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_each_token_has_the_experts_of_the_call_that_computed_it_first(form: Form) -> None:
    (row,) = with_experts(LINEAR, form)
    found = routed_experts(row, TOP_K)

    # The last tokens of the first two answers are computed by the calls that go on with them.
    calls = [0] * 4 + [1] * 2 + [2] * 5
    assert found.nested() == [experts_of(call, token) for token, call in enumerate(calls)]
    assert (found.tokens, found.layers, found.top_k) == (len(row) - 1, LAYERS, TOP_K)


@settings(deadline=None, max_examples=30)
@given(trees())
def test_only_the_last_token_of_a_row_is_unknown_and_shared_answers_agree(turns: Any) -> None:
    for row in with_experts(turns):
        nested = routed_experts(row).nested()
        assert len(nested) == len(row) - 1
        for segment in row.segments:
            number = int(segment.span_id, 16)
            own = range(segment.start, segment.end - 1)
            assert [nested[token] for token in own] == [experts_of(number, token) for token in own]


def test_a_row_that_was_cut_has_the_experts_of_all_its_tokens() -> None:
    spans = spans_of(
        LINEAR, "ro-1", 1.0, more=lambda number, turn: {"routed_experts": computed(number, turn)}
    )
    (row,) = build_rows(spans, RowPolicy(max_tokens=10), rollout=rollout_of("ro-1", "g"))

    assert len(row) == routed_experts(row).tokens == 10


def test_what_the_first_tokens_of_a_prompt_went_through_may_be_known_from_an_earlier_call() -> None:
    starts = {0: 0, 1: 4, 2: 6}
    rows = rows_of(
        LINEAR,
        more=lambda number, turn: {
            "routed_experts": {
                **an_object(computed(number, turn)[starts[number] :]),
                "start": starts[number],
            }
        },
    )
    assert routed_experts(rows[0]).nested() == routed_experts(with_experts(LINEAR)[0]).nested()

    (alone,) = rows_of(
        LINEAR[:1],
        more=lambda number, turn: {"routed_experts": computed(number, turn)[1:]},
        asked={"routed_experts_prompt_start": 1},
    )
    assert alone.unproven == ()  # the setting changes no distribution
    with pytest.raises(NotExportable, match="no routed experts of its token 0, of 5"):
        routed_experts(alone)


def test_what_a_call_does_not_say_is_known_from_the_one_that_goes_on_with_it() -> None:
    def of(number: int, turn: Turn) -> dict[str, Any]:
        return {"routed_experts": None if number == 1 else computed(number, turn)}

    (row,) = rows_of(LINEAR, more=of)
    assert routed_experts(row).nested()[4:7] == [experts_of(2, token) for token in (4, 5, 6)]


def test_the_experts_of_another_model_are_not_those_of_the_policy() -> None:
    spans = spans_of(
        LINEAR, "ro-1", 1.0, more=lambda number, turn: {"routed_experts": computed(number, turn)}
    )
    for name in ("request", "response"):
        spans[1].attributes[f"gen_ai.{name}.model"] = "simulated user"
    (row,) = build_rows(spans, RowPolicy(model="policy"), rollout=rollout_of("ro-1", "g"))

    assert [segment.trained for segment in row.segments] == [True, False, True]
    assert routed_experts(row).nested()[4:7] == [experts_of(2, token) for token in (4, 5, 6)]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (None, "has no routed experts; ask for them"),
        ("AAEC", r"have no shape \(SGLang's\): pass experts_per_token"),
        ("no base64!", "are no base64"),
        (7, "are a int, which no known engine sends"),
        ([[[1, 2, 3]]], "are of 1 tokens, where prompt and answer have 5"),
        ([[[1], [2]], [[1]], [[1], [2]], [[1], [2]]], "another number of layers or experts"),
        ([[[-1]]] * 4, "are no numbers of experts"),
        ([[[40000]]] * 4, "are no numbers of experts"),
        ([], "no lists of tokens, layers and experts"),
        (
            {"data": "AAEC", "shape": [4, 1, 1]},
            "have a type or a shape|which is not their shape",
        ),
        ({"data": "AAECAw==", "shape": []}, "have a type or a shape"),
        (base64.b64encode(b"\x93NUMPY\x01\x00\x04\x00{{{{").decode(), "are no NumPy file"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_it_is(found: Any, words: str) -> None:
    (row,) = rows_of(LINEAR[:1], more=lambda *_: {"routed_experts": found})
    with pytest.raises(NotExportable, match=words):
        routed_experts(row)


def test_numbers_without_a_shape_that_do_not_fit_are_refused() -> None:
    (row,) = rows_of(LINEAR[:1], more=lambda *_: {"routed_experts": base64.b64encode(bytes(4 * 7)).decode()})
    with pytest.raises(NotExportable, match="are 28 bytes, not those of 5 tokens"):
        routed_experts(row, 1)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        routed_experts(row, 0)


def test_skyrl_gets_experts_for_each_token_and_says_nothing_of_them_unasked() -> None:
    rows = [*with_experts(LINEAR), *with_experts(FORKED, rollout_id="ro-2")]
    indices = to_generator_output(rows, with_routed_experts=True)["rollout_expert_indices"]

    assert [len(each) for each in indices] == [len(row) for row in rows]
    assert indices[0][:-1] == routed_experts(rows[0]).nested()
    assert indices[0][-1] == [[0] * TOP_K] * LAYERS
    assert "rollout_expert_indices" not in to_generator_output(rows)
    with pytest.raises(NotExportable, match="has no routed experts"):
        to_generator_output([*rows, *rows_of(LINEAR, "ro-3")], with_routed_experts=True)
    other = rows_of(LINEAR, "ro-3", more=lambda _, turn: {"routed_experts": [[[1]]] * len(sum(turn, ()))})
    with pytest.raises(NotExportable, match="models of different shapes"):
        to_generator_output([*rows, *other], with_routed_experts=True)


def test_the_rows_of_a_rollout_share_its_weight() -> None:
    rows = [*rows_of(LINEAR, "a"), *rows_of(FORKED, "b")]

    assert shares(rows, "rows") == [1.0, 1.0, 1.0]
    assert shares(rows, "rollouts") == [1.0, 0.5, 0.5]
    with pytest.raises(ValueError, match="'rows' or 'rollouts', not 'tokens'"):
        shares(rows, "tokens")  # type: ignore[arg-type]
