"""What is kept stays within its limits, by kind, and what was given up is counted."""

from __future__ import annotations

import json
import logging
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.integrations.agentops.server.recorder import Limit, Recorder, from_text, to_text
from agentlightning.testing import ManualClock


def test_the_oldest_goes_first_and_is_counted_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder({"spans": Limit(3, 10_000), "logs": Limit(100, 10_000)})
    recorder.add("logs", {"text": "stays"})
    with caplog.at_level(logging.WARNING):
        for number in range(10):
            recorder.add_texts("spans", [str(number)])
    assert recorder.read("spans") == [b"7", b"8", b"9"]
    assert recorder.counts()["spans"] == {"received": 10, "kept": 3, "dropped": 7, "bytes": 3}
    assert recorder.counts()["logs"]["kept"] == 1
    assert len(caplog.records) == 1


@given(st.lists(st.text(max_size=30), max_size=40))
def test_bytes_never_pass_their_limit(texts: list[str]) -> None:
    recorder = Recorder({"logs": Limit(1000, 100)})
    for text in texts:
        recorder.add_texts("logs", [json.dumps(text, ensure_ascii=False)])
        count = recorder.counts()["logs"]
        assert count["bytes"] == sum(map(len, recorder.read("logs"))) <= 100
        assert count["received"] == count["kept"] + count["dropped"]


def test_what_is_larger_than_the_limit_is_given_up_and_pushes_nothing_out() -> None:
    recorder = Recorder({"logs": Limit(10, 20)})
    recorder.add_texts("logs", ["12", "1" * 21])
    assert recorder.read("logs") == [b"12"]
    assert recorder.counts()["logs"] == {"received": 2, "kept": 1, "dropped": 1, "bytes": 2}
    recorder.merge("logs", "s", {"received": 0})
    assert len(recorder.read("logs")) == 2
    recorder.merge("logs", "s", {"a": "1" * 21})
    assert recorder.read("logs") == [b"12"]


def test_merging_keeps_fields_and_the_time_of_the_first() -> None:
    clock = ManualClock(100.0)
    recorder = Recorder(clock=clock)
    recorder.merge("sessions", "s", {"tags": ["a"], "end_state": None})
    clock.shift(5)
    recorder.merge("sessions", "s", {"end_state": "Success"})
    assert [json.loads(text) for text in recorder.read("sessions")] == [
        {"received": 100.0, "tags": ["a"], "end_state": "Success"}
    ]
    assert recorder.counts()["sessions"]["received"] == 1


def test_numbers_go_on_after_clearing() -> None:
    recorder = Recorder()
    recorder.add("logs", {})
    last = recorder.last_number
    recorder.clear()
    recorder.add("logs", {"text": "new"})
    assert len(recorder.read("logs", after=last)) == 1


def test_threads_lose_nothing() -> None:
    recorder = Recorder({"logs": Limit(10**6, 10**9)})

    def work() -> None:
        for _ in range(500):
            recorder.add("logs", {})

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.counts()["logs"]["kept"] == recorder.last_number == 4000


@given(
    st.recursive(st.none() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_whatever_a_stranger_sends_is_kept_as_json_that_everybody_reads(value: object) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    text = to_text(from_text(json.dumps(value)))
    json.loads(text, parse_constant=refuse)


def test_numbers_without_end_and_depth_without_end() -> None:
    assert from_text("[1e999, -1e999, NaN]") == ["1e999", "-1e999", "NaN"]
    with pytest.raises(ValueError, match="nested too deeply"):
        from_text("[" * 100_000)
