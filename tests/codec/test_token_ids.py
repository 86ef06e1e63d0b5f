from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.codec.token_ids import (
    LARGEST_TOKEN_ID,
    WIDTH,
    SharedBeginnings,
    TokenIds,
    as_token_ids,
    in_order_of_beginnings,
)

ids = st.lists(st.integers(0, LARGEST_TOKEN_ID), max_size=20)
few = st.lists(st.integers(0, 2), max_size=6)
"""Of few numbers, so that lists often begin alike."""
at = st.none() | st.integers(-8, 8)


class Named(IntEnum):
    ONE = 1


def views(values: list[int], more: list[int]) -> list[TokenIds]:
    """Return the same ids with bytes of their own, and with those of longer ones, before and after these came."""
    shared, early = SharedBeginnings(), SharedBeginnings()
    early_view = early.share(TokenIds(values))
    early.share(TokenIds(values + more))
    shared.share(TokenIds(values + more))
    return [
        TokenIds(values),
        TokenIds(values + more)[: len(values)],
        shared.share(TokenIds(values)),
        early_view,
    ]


@given(few, few, few, st.slices(8), at, at)
def test_ids_are_used_as_a_tuple_of_them_is(
    values: list[int], more: list[int], other: list[int], part: slice, start: int | None, stop: int | None
) -> None:
    plain = tuple(values)
    for found in views(values, more):
        assert (len(found), list(found), tuple(found), found.tolist()) == (len(plain), values, plain, values)
        assert bool(found) == bool(plain)
        assert hash(found) == hash(plain)
        assert [found == plain, plain == found, found == values, values == found] == [True] * 4
        assert [found != plain, values != found] == [False] * 2
        assert (found == TokenIds(other)) == (found == other) == (values == other)
        assert [found < TokenIds(other), found <= tuple(other), found > other] == [
            plain < tuple(other),
            plain <= tuple(other),
            plain > tuple(other),
        ]
        assert found.begins_with(TokenIds(other)) == (plain[: len(other)] == tuple(other))
        for cut in (part, slice(start, stop), slice(None, stop), slice(start, None)):
            assert found[cut] == plain[cut]
            assert type(found[cut]) is TokenIds
        assert [found[place] for place in range(-len(plain), len(plain))] == [*plain, *plain]
        for place in (len(plain), -len(plain) - 1):
            with pytest.raises(IndexError):
                found[place]
        assert found + TokenIds(other) == plain + tuple(other)
        assert [(each in found, found.count(each)) for each in range(4)] == [
            (each in plain, plain.count(each)) for each in range(4)
        ]
        assert found.tobytes() == b"".join(each.to_bytes(WIDTH, "little") for each in plain)
        assert found.tobytes(2, 4) == TokenIds(plain[2:4]).tobytes()
        for again in (
            pickle.loads(pickle.dumps(found)),
            copy.deepcopy(found),
            TokenIds.from_bytes(found.tobytes()),
        ):
            assert again == found
            assert type(again) is TokenIds


@given(ids, ids)
def test_any_ids_are_kept_and_compared_by_all_of_their_bytes(left: list[int], right: list[int]) -> None:
    assert TokenIds(left).tolist() == left
    assert TokenIds(tuple(left)) == TokenIds(iter(left)) == TokenIds(TokenIds(left)) == left
    assert TokenIds(left + right).begins_with(TokenIds(left))
    assert (TokenIds(left) == TokenIds(right)) == (left == right)


@given(st.lists(few, max_size=8))
def test_what_is_shared_stays_what_it_was_whatever_comes_after_it(lists: list[list[int]]) -> None:
    shared = SharedBeginnings()
    found = [shared.share(TokenIds(each)) for each in lists]
    assert found == lists


def test_all_prompts_of_a_conversation_are_one_copy() -> None:
    shared = SharedBeginnings()
    lengths = [40, 10, 30, 30, 20]
    prompts = [shared.share(TokenIds(range(length))) for length in lengths]
    other = shared.share(TokenIds([7, 8, 9]))
    assert len({id(each._buffer) for each in prompts}) == 1
    assert [len(each) for each in prompts] == lengths
    assert other._buffer is not prompts[0]._buffer


def test_two_threads_that_share_the_same_ids_never_give_them_other_bytes() -> None:
    """Each has bytes of its own to make longer: those of ids that it was handed may be in use elsewhere."""
    common = TokenIds([1, 2])
    first, second = SharedBeginnings(), SharedBeginnings()
    one, other = first.share(common), second.share(common)
    first.share(TokenIds([1, 2, 3]))
    second.share(TokenIds([1, 2, 4]))
    assert len({id(each._buffer) for each in (common, one, other)}) == 3
    assert common == one == other == (1, 2)


@given(st.lists(few.map(TokenIds), max_size=8), st.booleans())
def test_what_begins_with_a_prompt_stands_directly_behind_it(prompts: list[TokenIds], share: bool) -> None:
    if share:
        shared = SharedBeginnings()
        prompts = [shared.share(each) for each in prompts]
    order = in_order_of_beginnings(prompts)
    assert sorted(order) == list(range(len(prompts)))
    for place, number in enumerate(order):
        behind = [prompts[each].begins_with(prompts[number]) for each in order[place + 1 :]]
        assert behind == sorted(behind, reverse=True)
        assert not any(
            prompts[number].begins_with(prompts[each]) and prompts[number] != prompts[each]
            for each in order[place + 1 :]
        )
    same = [number for number in order if prompts[number] == prompts[order[0]]]
    assert same == sorted(same)


def test_what_takes_lists_alone_refuses_them_and_sees_no_empty_list() -> None:
    found = TokenIds(range(100))
    assert not {list, tuple} & {*type(found).__mro__}
    assert isinstance(found, Sequence)
    with pytest.raises(TypeError):
        json.dumps({"ids": found})
    assert repr(TokenIds([1, 2])) == "TokenIds([1, 2])"
    assert repr(found) == "TokenIds([0, 1, 2, 3, 4, 5, ...], length 100)"


def test_numpy_takes_the_bytes_as_they_are() -> None:
    numpy = pytest.importorskip("numpy")
    found = TokenIds(range(100))[:5]
    array = numpy.asarray(found)
    assert (array.dtype.name, array.tolist(), array.flags.writeable) == ("int32", [0, 1, 2, 3, 4], False)
    assert numpy.asarray(found, dtype="int64").dtype.name == "int64"


STRANGERS: list[Any] = [
    -1,
    LARGEST_TOKEN_ID + 1,
    2**32,
    2**40,
    -(2**40),
    True,
    False,
    1.0,
    None,
    "1",
    b"1",
    [1],
    (1, 2),
    ...,
    pytest.param(object(), id="object"),
]


def test_a_number_with_a_name_is_its_number_as_in_a_store() -> None:
    found = TokenIds([Named.ONE, 2])
    assert found == [1, 2]
    assert [*map(type, found)] == [int, int]


@pytest.mark.parametrize("stranger", STRANGERS, ids=repr)
def test_what_is_no_token_id_is_refused(stranger: Any) -> None:
    for others in ([], [1], [1, 2, 3]):
        for values in ([*others, stranger], [stranger, *others]):
            with pytest.raises(ValueError):
                TokenIds(values)
            assert as_token_ids(values) is None
            assert as_token_ids(values, SharedBeginnings()) is None


def test_strangers_that_fill_the_place_of_ids_together_are_refused() -> None:
    strange: list[list[Any]] = [[1.0, True], [True] * 5, [None] * 10, [1.0, None, 7], [2.0, True, 7, 8]]
    for values in strange:
        with pytest.raises(ValueError):
            TokenIds(values)


def test_bytes_that_are_no_ids_are_refused() -> None:
    for data in (b"123", (-1).to_bytes(4, "little", signed=True), bytes(4) + b"\0\0\0\x80"):
        with pytest.raises(ValueError):
            TokenIds.from_bytes(data)
