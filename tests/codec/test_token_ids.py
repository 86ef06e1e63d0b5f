from __future__ import annotations

from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.codec.token_ids import LARGEST_TOKEN_ID, WIDTH, Packing, pack

ids = st.lists(st.integers(0, LARGEST_TOKEN_ID), max_size=20)


class Named(IntEnum):
    ONE = 1


@given(ids, ids)
def test_packed_ids_begin_alike_as_far_as_the_ids_do(left: list[int], right: list[int]) -> None:
    assert len(pack(left)) == WIDTH * len(left)
    assert pack(left + right).startswith(pack(left))
    assert pack(left + right) == pack(left) + pack(right) == pack(tuple(left + right))
    assert (pack(left) == pack(right)) == (left == right)
    assert pack(right).startswith(pack(left)) == (right[: len(left)] == left)


@pytest.mark.parametrize(
    "stranger",
    [
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
        Named.ONE,
        [1],
        (1, 2),
        ...,
        pytest.param(object(), id="object"),
    ],
    ids=repr,
)
def test_what_is_no_token_id_is_refused(stranger: object) -> None:
    for others in ([], [1], [1, 2, 3]):
        for values in ([*others, stranger], [stranger, *others]):
            with pytest.raises(ValueError):
                pack(values)
            assert not Packing().are_token_ids(values)


def test_strangers_that_fill_the_place_of_ids_together_are_refused() -> None:
    for values in ([1.0, True], [True] * 5, [None] * 10, [1.0, None, 7], [2.0, True, 7, 8]):
        with pytest.raises(ValueError):
            pack(values)


def test_a_list_is_packed_once_and_never_taken_for_another() -> None:
    packing = Packing()
    one = (1, 2, 3)
    assert packing.pack(one) is packing.pack(one)
    for number in range(50):  # lists that are gone at once, whose identities are given out anew
        assert packing.pack([number, number + 1]) == pack([number, number + 1])
