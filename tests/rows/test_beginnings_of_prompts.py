"""Which answers a prompt continues, against the definition in the plainest words."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentlightning.codec.token_ids import TokenIds
from agentlightning.rows.graph import _longest_beginnings  # the search itself, apart from calls
from agentlightning.rows.media import Media

ids = st.lists(st.integers(0, 2), min_size=1, max_size=5)
media = st.lists(st.sampled_from([Media("image_url", "a"), Media("image_url", "b")]), max_size=2).map(tuple)
answers = st.lists(st.tuples(ids, ids, media), max_size=8)


@given(answers)
def test_the_longest_beginning_is_found_whatever_stands_side_by_side(
    found: list[tuple[list[int], list[int], tuple[Media, ...]]],
) -> None:
    expected = []
    for prompt, _, shown in found:
        fitting = {
            at: len(before) + len(said)
            for at, (before, said, seen) in enumerate(found)
            if prompt[: len(before) + len(said)] == before + said and shown[: len(seen)] == seen
        }
        longest = max(fitting.values(), default=0)
        expected.append({at for at, length in fitting.items() if length == longest})
    given_back = _longest_beginnings(
        [TokenIds(prompt) for prompt, *_ in found],
        [TokenIds(said) for _, said, _ in found],
        [each[2] for each in found],
    )
    assert [set(each) for each in given_back] == expected
    assert [len(each) for each in given_back] == [len(set(each)) for each in given_back]
