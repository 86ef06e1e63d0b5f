"""The garbage collector is on again after whatever was imported, in every process."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest

from agentlightning._garbage import collector_paused
from agentlightning.store import open_store
from agentlightning.tracer import OtelTracer


@pytest.fixture(autouse=True)
def enabled() -> Iterator[None]:
    gc.enable()
    yield
    gc.enable()


def test_it_is_off_in_the_block_and_on_after_it_however_it_ends() -> None:
    seen = []

    def interrupted() -> None:
        with collector_paused():
            seen.append(gc.isenabled())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (seen, gc.isenabled()) == ([False], True)


def test_where_the_program_has_switched_it_off_it_stays_off() -> None:
    gc.disable()
    with collector_paused():
        assert not gc.isenabled()
    assert not gc.isenabled()


def test_of_two_blocks_the_outer_one_switches_it_on() -> None:
    with collector_paused():
        with collector_paused():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_process_that_is_forked_in_a_block_collects() -> None:
    with collector_paused():
        pid = os.fork()
        if pid == 0:
            os._exit(0 if gc.isenabled() else 1)
        assert not gc.isenabled()
    assert gc.isenabled()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_process_that_is_forked_later_leaves_it_off() -> None:
    with collector_paused():
        pass
    gc.disable()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if not gc.isenabled() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("is_on", [True, False])
def test_a_recording_leaves_it_as_it_was(is_on: bool) -> None:
    if not is_on:
        gc.disable()
    with OtelTracer().lifespan(open_store("memory://")):
        assert gc.isenabled() is is_on
