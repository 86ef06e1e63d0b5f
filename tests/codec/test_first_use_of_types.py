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

FORK = """
import faulthandler, os, sys, threading
from pydantic import create_model
from agentlightning import types
from agentlightning.types._model import Model

class Slow:
    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        begun.set()
        forking.wait()
        return handler.generate_schema(int)

Asked = create_model("Asked", __base__=Model, slow=(Slow, ...))
begun, forking = threading.Event(), threading.Event()
os.register_at_fork(before=forking.set)
sys.setswitchinterval(5)  # the other thread goes on building only when the fork waits for it
thread = threading.Thread(target=Asked.model_rebuild)
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    faulthandler.dump_traceback_later(20, exit=True)
    types.Seal(time=0.0, spans=1, sequence_id=1).model_dump()
    os._exit(0)
status = os.waitpid(child, 0)[1]
thread.join()
report((status, Asked(slow=1).slow))
"""


def test_a_child_that_is_forked_while_a_model_is_built_builds_models_itself() -> None:
    with start_child(FORK) as child:
        assert child.finish()[0] == (0, 1)


def test_sixteen_threads_may_use_a_model_first() -> None:
    with start_child(FIRST_USE) as child:
        unbuilt, found, failed = child.finish()[0]
    if tuple(map(int, VERSION.split(".")[:2])) >= (2, 11):
        assert {"Span", "Attempt", "AttemptedRollout"} <= set(unbuilt)
    assert failed == []
    assert found == [(True, True)] * 16
