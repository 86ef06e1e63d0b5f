"""Child processes of tests: they report, answer, fail loudly and die when told to."""

from __future__ import annotations

import os
import signal
from typing import get_args

import pytest

from agentlightning.store.base import new_writer_id, writer_is_gone
from agentlightning.testing import StartMethod, gone_writer_id, start_child

METHODS = get_args(StartMethod)


@pytest.mark.parametrize("method", METHODS)
def test_a_child_reports_what_it_was_given_and_what_it_receives(method: StartMethod) -> None:
    source = """
        import os
        report((args["word"], os.getpid()))
        report(receive() * 2)
    """
    with start_child(source, args={"word": "x"}, method=method) as child:
        assert child.next_report() == ("x", child.pid)
        child.send(21)
        assert child.finish()[1:] == [42]
    assert child.pid != os.getpid()


@pytest.mark.parametrize("method", METHODS)
def test_an_exception_in_the_child_is_told_with_its_traceback(method: StartMethod) -> None:
    with start_child("def broken():\n    raise KeyError('where')\nbroken()", method=method) as child:
        with pytest.raises(ChildProcessError, match=r"(?s)in broken.*KeyError: 'where'"):
            child.finish()


@pytest.mark.parametrize("method", METHODS)
def test_what_was_reported_before_a_kill_arrives(method: StartMethod) -> None:
    source = """
        import itertools
        for number in itertools.count():
            report(number)
    """
    with start_child(source, method=method) as child:
        reports = child.kill(when=lambda: len(child.reports) >= 100)
        assert child.wait() == -signal.SIGKILL
    assert reports == list(range(len(reports)))
    assert len(reports) >= 100


def test_a_child_that_is_silent_is_not_waited_for_for_ever_nor_left_behind() -> None:
    with start_child("import signal; signal.pause()") as child:
        with pytest.raises(TimeoutError):
            child.next_report(deadline=0.05)
    assert child.wait() == -signal.SIGKILL


def test_a_child_that_ends_early_does_not_leave_the_parent_waiting() -> None:
    with start_child("report(1)") as child:
        assert child.next_report() == 1
        with pytest.raises(ChildProcessError, match="without another report"):
            child.next_report()


def test_environment_goes_with_a_subprocess_only() -> None:
    with start_child("import os; report(os.environ['AGL_STORE'])", env={"AGL_STORE": "memory://"}) as child:
        assert child.finish() == ["memory://"]
    with pytest.raises(ValueError, match="env="):
        start_child("", env={"A": "B"}, method="fork")


def test_the_writer_of_a_dead_process_is_gone_and_our_own_is_not() -> None:
    assert writer_is_gone(gone_writer_id())
    assert not writer_is_gone(new_writer_id(0))
