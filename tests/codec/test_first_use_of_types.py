"""Models are built at their first use, whoever comes first."""

from __future__ import annotations

from pydantic import VERSION

from agentlightning.testing import start_child

FIRST_USE = """
import sys, threading
import agentlightning.types as types

unbuilt = [name for name in dir(types) if getattr(getattr(types, name), "__pydantic_complete__", None) is False]
start = threading.Barrier(16)
found, failed = [], []

def use(number):
    start.wait()
    try:
        attempt = types.Attempt(rollout_id="r", attempt_id=str(number), sequence_id=1, start_time=0)
        rollout = types.AttemptedRollout(rollout_id="r", input={"n": number}, start_time=0, attempt=attempt)
        again = types.AttemptedRollout.model_validate_json(rollout.model_dump_json())
        span = types.Span.from_attributes(
            attributes={"n": number}, rollout_id="r", attempt_id=str(number), name="s"
        )
        found.append((again == rollout, types.Span.model_validate_json(span.model_dump_json()) == span))
    except BaseException as error:
        failed.append(repr(error))

sys.setswitchinterval(1e-5)
threads = [threading.Thread(target=use, args=(number,)) for number in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
report((unbuilt, found, failed))
"""


def test_sixteen_threads_may_use_a_model_first() -> None:
    with start_child(FIRST_USE) as child:
        unbuilt, found, failed = child.finish()[0]
    if tuple(map(int, VERSION.split(".")[:2])) >= (2, 11):
        assert {"Span", "Attempt", "AttemptedRollout"} <= set(unbuilt)
    assert failed == []
    assert found == [(True, True)] * 16
