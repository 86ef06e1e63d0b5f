from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.codec.token_ids import TokenIds
from agentlightning.dialects.model_call import Choice, ModelCall
from agentlightning.rows.calls import Call
from agentlightning.rows.continuity import (
    Cause,
    Continuity,
    PastCall,
    Prefix,
    common_prefix,
    continuity,
    relate,
)
from agentlightning.types import Span

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


def test_a_broken_prompt_is_compared_with_the_calls_of_its_own_agent() -> None:
    past = [
        _past("main", "planner", PROMPT, RESPONSE),
        _past("other", "critic", (7, 7, 7), (8,)),
        _past("retry", "planner", PROMPT, (42,)),
    ]

    cut = relate(TokenIds(PROMPT + ANSWER), _call("new", "planner"), past)
    assert (cut.kind, cut.position, cut.expected, cut.of) == (Prefix.RESPONSE_CUT, 20, 40, "main")
    assert relate(TokenIds(PROMPT + ANSWER), _call("new", "critic"), past).kind is Prefix.START
    assert relate(TokenIds(PROMPT), _call("new", "planner"), past) == Continuity(
        Prefix.RETRY, 20, 21, "retry"
    )
    assert relate(TokenIds(PROMPT), _call("new", "planner"), []) == Continuity(Prefix.START)


SAID: list[dict[str, Any]] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "2 + 2?"},
]
ANSWERED = Choice(content="4", token_ids=RESPONSE)
REPLY: dict[str, Any] = {"role": "assistant", "content": "4"}
CRITIC: dict[str, Any] = {"role": "system", "content": "find mistakes"}
MORE: dict[str, Any] = {"role": "user", "content": "sure?"}


@pytest.mark.parametrize(
    ("prompt", "messages", "cause"),
    [
        pytest.param(
            (*PROMPT, *THOUGHT[:4], 900, *NEXT), [*SAID, REPLY, MORE], Cause.RETOKENISATION, id="text"
        ),
        pytest.param(PROMPT + ANSWER + NEXT, [*SAID, REPLY, MORE], Cause.TEMPLATE, id="reasoning stripped"),
        pytest.param(
            (*SYSTEM[:5], 900, *NEXT), [*SAID, REPLY, MORE], Cause.TEMPLATE, id="rendered otherwise"
        ),
        pytest.param(SYSTEM + RESPONSE + NEXT, [SAID[0], REPLY, MORE], Cause.TRUNCATION, id="window"),
        pytest.param((*SYSTEM, 901, *NEXT), [SAID[0], REPLY], Cause.TRUNCATION, id="compacted"),
        pytest.param((*SYSTEM, 901, *NEXT), [SAID[0], MORE], Cause.UNKNOWN, id="only the system's"),
        pytest.param((*SYSTEM, 901, *NEXT), [MORE], None, id="another conversation"),
        pytest.param((*SYSTEM, 901, *NEXT), [CRITIC, SAID[1]], None, id="another agent, asked the same"),
        pytest.param(
            (*SYSTEM, 901, *NEXT),
            [CRITIC, SAID[1], REPLY, MORE],
            Cause.EDITED_HISTORY,
            id="the system's edited",
        ),
        pytest.param(
            (*SYSTEM, 901, *NEXT),
            [CRITIC, SAID[1], {"role": "assistant", "content": "four"}, MORE],
            Cause.EDITED_HISTORY,
            id="the system's and the answer edited",
        ),
        pytest.param(
            (*SYSTEM, 901, *NEXT), [CRITIC, SAID[1], MORE], Cause.TRUNCATION, id="into the system's"
        ),
        pytest.param(
            (*SYSTEM, 902, *NEXT),
            [SAID[0], {"role": "user", "content": "3 + 3?"}, REPLY, MORE],
            Cause.EDITED_HISTORY,
            id="edited",
        ),
        pytest.param((*SYSTEM, 903, *NEXT), [], Cause.UNKNOWN, id="no messages"),
        pytest.param(PROMPT + THOUGHT, [], Cause.TRUNCATION, id="no messages, but shorter"),
    ],
)
def test_the_messages_tell_why_a_prompt_breaks(
    prompt: tuple[int, ...], messages: list[dict[str, Any]], cause: Cause | None
) -> None:
    earlier = _past("a", "planner", PROMPT, RESPONSE, SAID, ANSWERED)

    assert relate(TokenIds(prompt), _call("b", "planner", messages), [earlier]).cause is cause


def _past(
    span_id: str,
    agent: str,
    prompt: tuple[int, ...],
    response: tuple[int, ...],
    messages: Sequence[dict[str, Any]] = (),
    choice: Choice | None = None,
) -> PastCall:
    choice = choice or Choice(token_ids=response)
    return PastCall(_call(span_id, agent, messages), choice, TokenIds(prompt), TokenIds(response))


def _call(span_id: str, agent: str, messages: Sequence[dict[str, Any]] = ()) -> Call:
    span = Span.from_attributes(attributes={}, span_id=span_id, name="chat")
    return Call(span, ModelCall(request_messages=tuple(messages)), agent)
