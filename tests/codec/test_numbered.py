"""Numbered attributes are gathered into one value, and come back exactly."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.codec.numbered import Gathered, gather, spread
from agentlightning.codec.rows import decode_span, encode_span
from agentlightning.testing import same_value
from agentlightning.types import Span

LONG = "x" * 1_500


def as_list(attributes: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the attributes with their order."""
    return list(attributes.items())


def test_messages_in_rising_order_stand_together_under_the_beginning_of_their_names() -> None:
    messages = {
        f"gen_ai.prompt.{number}.{name}": LONG for number in range(12) for name in ("role", "content")
    }
    attributes = {"before": 1, **messages, "gen_ai.completion.0.content": "short", "after": LONG}
    gathered = gather(attributes)
    assert as_list(gathered) == [
        ("before", 1),
        ("gen_ai.prompt.", Gathered(messages)),
        ("gen_ai.completion.0.content", "short"),
        ("after", LONG),
    ]
    assert as_list(spread(gathered)) == as_list(attributes)


def test_what_is_no_list_or_would_take_the_name_of_another_stays_as_it_is() -> None:
    three = {f"a.{number}": LONG for number in range(3)}
    for attributes in (
        {"a.": 1, **three},  # the name is taken
        {**three, "a.": 1},
        {"a.3.text": LONG, "a.2.text": LONG, "a.1.text": LONG},  # falling
        {
            "a.0.ids": [1] * 5_000,
            "a.1.ids": [1] * 5_000,
        },  # lists of numbers are read by SQL under their names
        {"a\ud800.0": LONG, "a\ud800.1": LONG, "a\ud800.2": LONG},
        {"a.1" + "0" * 5_000: LONG * 3, "a.2" + "0" * 5_000: LONG},
        {"4o.x": LONG, "gpt.4o.x": LONG, "1.2": LONG, "٣.x.٣": LONG},
    ):
        assert as_list(gather(attributes)) == as_list(attributes)
    again = {**three, "b": 1, **{f"a.{number}": LONG for number in range(3, 6)}}
    assert as_list(gather(again)) == [("a.", Gathered(three)), *as_list(again)[3:]]


NAMES = st.builds(
    lambda *parts: ".".join(parts),
    *[st.sampled_from(["a", "b", "", "0", "1", "2", "10", "00", "\ud800", "$a", "é"])] * 3,
)
VALUES = st.one_of(
    st.sampled_from([LONG, LONG * 4, "\ud800" * 5_000, 'é\n"\\' * 700, "", {"$array": 1}, {"a": [LONG] * 3}]),
    st.sampled_from([1, None, True, 0.5, float("nan"), float("inf"), [1] * 20, [0.5] * 20, [LONG] * 16, []]),
)


@settings(max_examples=300, deadline=None)
@given(
    attributes=st.dictionaries(NAMES, VALUES, max_size=12),
    messages=st.lists(VALUES, max_size=90),
    prefix=st.sampled_from(["a.", "$a.0.", "gen_ai.prompt."]),
)
def test_any_attributes_come_back_exactly_and_in_their_order(
    attributes: dict[str, Any], messages: list[Any], prefix: str
) -> None:
    attributes |= {f"{prefix}{number}": value for number, value in enumerate(messages)}
    assert as_list(spread(gather(attributes))) == as_list(attributes)

    span = Span.from_attributes(
        attributes=attributes, rollout_id="ro", attempt_id="at", trace_id="1" * 32, span_id="2" * 16
    )
    read = decode_span("ro", "at", span.sequence_id, encode_span(span)).attributes
    assert same_value(read, span.attributes)
    assert list(read) == list(span.attributes)
