from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentlightning.adapter.continuity import Continuity, PastCall, Prefix, common_prefix, continuity, relate

SYSTEM, ASKED = tuple(range(10)), tuple(range(10, 20))
THOUGHT, ANSWER = tuple(range(100, 110)), tuple(range(200, 210))
NEXT = tuple(range(300, 310))
PROMPT, RESPONSE = SYSTEM + ASKED, THOUGHT + ANSWER

ids = st.lists(st.integers(0, 2), max_size=8).map(tuple)


@given(ids, ids)
def test_the_common_prefix_is_where_two_sequences_part(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    length = common_prefix(left, right)

    assert left[:length] == right[:length]
    assert length in {len(left), len(right)} or left[length] != right[length]


@given(ids, ids, ids)
def test_an_extension_is_told_from_a_break(
    prompt: tuple[int, ...], response: tuple[int, ...], more: tuple[int, ...]
) -> None:
    assert continuity(prompt, response, prompt + response + more).kind is Prefix.EXTENDS or not response
    relation = continuity(prompt, response, more)
    assert (relation.kind is Prefix.EXTENDS) == (
        more[: len(prompt + response)] == prompt + response and not (more == prompt and response)
    )


def test_a_prompt_that_sends_everything_back_extends() -> None:
    assert continuity(PROMPT, RESPONSE, PROMPT + RESPONSE + NEXT) == Continuity(Prefix.EXTENDS, 40, 40)


def test_stripped_reasoning_is_a_response_that_was_cut() -> None:
    assert continuity(PROMPT, RESPONSE, PROMPT + ANSWER + NEXT) == Continuity(Prefix.RESPONSE_CUT, 20, 40)


def test_a_tool_call_written_anew_is_a_rewritten_response() -> None:
    anew = (*THOUGHT[:4], 900, 901, 902, *NEXT)

    assert continuity(PROMPT, RESPONSE, PROMPT + anew) == Continuity(Prefix.RESPONSE_REWRITTEN, 24, 40)


def test_another_template_is_a_changed_prompt() -> None:
    changed = (*SYSTEM[:5], 900, *SYSTEM[5:8], *ASKED[:3], *NEXT)

    assert continuity(PROMPT, RESPONSE, changed) == Continuity(Prefix.PROMPT_CHANGED, 5, 40)


def test_a_sliding_window_is_a_cut_history() -> None:
    assert continuity(PROMPT, RESPONSE, SYSTEM + RESPONSE + NEXT) == Continuity(Prefix.HISTORY_CUT, 10, 40)


def test_a_beginning_is_a_shortened_history() -> None:
    assert continuity(PROMPT, RESPONSE, PROMPT + THOUGHT).kind is Prefix.HISTORY_SHORTENED
    assert continuity(PROMPT, RESPONSE, SYSTEM).kind is Prefix.HISTORY_SHORTENED


def test_the_same_prompt_is_a_retry_and_a_strange_one_a_start() -> None:
    assert continuity(PROMPT, RESPONSE, PROMPT).kind is Prefix.RETRY
    assert continuity(PROMPT, RESPONSE, NEXT).kind is Prefix.START


def test_a_prompt_continues_the_longest_call_that_it_extends_in_time_and_agents() -> None:
    past = [
        PastCall("main", "planner", PROMPT, RESPONSE),
        PastCall("other", "critic", (7, 7, 7), (8,)),
        PastCall("retry", "planner", PROMPT, (42,)),
    ]

    assert relate(PROMPT + RESPONSE + NEXT, "planner", past).of == "main"
    assert relate((7, 7, 7, 8, 9), "planner", past).of == "other"
    assert relate(PROMPT + ANSWER, "planner", past) == Continuity(Prefix.RESPONSE_CUT, 20, 40, "main")
    assert relate(PROMPT + ANSWER, "critic", past).kind is Prefix.START
    assert relate(PROMPT, "planner", past) == Continuity(Prefix.RETRY, 20, 21, "retry")
    assert relate(PROMPT, "planner", []) == Continuity(Prefix.START)
