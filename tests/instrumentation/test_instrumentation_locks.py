"""Each lock of the wire capture keeps what it guards, where threads change places after each instruction."""

from __future__ import annotations

import os
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from races import THREADS, together

from agentlightning.instrumentation import patch as patch_module
from agentlightning.instrumentation import refusals as refusals_module
from agentlightning.instrumentation.patch import AttributePatch, Patch
from agentlightning.instrumentation.refusals import MAX_REMEMBERED, Refusals, RequestKind, request_kind

# ---------------------------------------------------------------------- patches


class Library:
    """What is patched."""

    def call(self) -> list[str]:
        return []


def counted(original: Any, patch: Patch) -> Any:
    def call(self: Library) -> list[str]:
        found: list[str] = original(self)
        return [*found, "seen"] if patch.active else found

    return call


@pytest.mark.lock("instrumentation.patch:_lock")
def test_a_patch_that_several_threads_undo_is_undone_once() -> None:
    for _ in range(10):
        undone: list[int] = []
        patch = Patch("a change", lambda undone=undone: undone.append(1))  # type: ignore[misc]
        together(lambda _, patch=patch: patch.undo(), slow=(patch_module,))  # type: ignore[misc]
        assert undone == [1]


@pytest.mark.lock("instrumentation.patch:_lock")
def test_after_patches_on_one_method_that_come_and_go_at_one_moment_the_method_is_the_very_same() -> None:
    original = vars(Library)["call"]

    def recorder(_number: int) -> None:
        for _ in range(5):
            patch = AttributePatch(Library, "call", counted)
            patch.undo()

    together(recorder, 4, slow=(patch_module,))
    assert vars(Library)["call"] is original


@pytest.mark.lock("instrumentation.patch:_lock")
def test_a_child_that_is_forked_while_a_thread_patches_can_take_its_patches_off() -> None:
    patch = AttributePatch(Library, "call", counted)
    begun, forked = threading.Event(), threading.Event()

    def slowly(original: Any, later: Patch) -> Any:
        begun.set()
        forked.wait()
        return counted(original, later)

    patching = threading.Thread(target=lambda: AttributePatch(Library, "call", slowly).undo())
    patching.start()
    begun.wait()
    child = os.fork()
    if child == 0:
        patch.undo()
        os._exit(0 if Library().call() == [] else 1)
    forked.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    patching.join()
    patch.undo()


# ---------------------------------------------------------------------- refusals


def kind_of(model: str) -> RequestKind:
    return request_kind("http://model/v1", "chat", {"model": model}, "return_token_ids")


@pytest.mark.lock("instrumentation.refusals:Refusals._lock")
def test_two_failures_at_one_moment_are_a_refusal_and_not_two_suspicions() -> None:
    refusals = Refusals(lambda: 0.0)
    for number in range(10):
        kind = kind_of(f"model-{number}")
        together(lambda _, kind=kind: refusals.refused(kind, 500), 2, slow=(refusals_module,))  # type: ignore[misc]
        assert refusals.applies_to(kind)


@pytest.mark.lock("instrumentation.refusals:Refusals._lock")
def test_as_many_refusals_are_remembered_as_there_is_room_for() -> None:
    refusals = Refusals(lambda: 0.0)
    kinds = [kind_of(f"model-{number}") for number in range(MAX_REMEMBERED + 5 * THREADS - 1)]
    before = len(kinds) - 5 * THREADS
    for kind in kinds[:before]:
        refusals.refused(kind, 400)

    def refuse(number: int) -> None:
        for kind in kinds[before + number :: THREADS]:
            refusals.refused(kind, 400)

    together(refuse, slow=(refusals_module,))
    assert sum(map(refusals.applies_to, kinds)) == MAX_REMEMBERED


def test_a_signal_handler_may_call_a_model_in_the_middle_of_another_call() -> None:
    kind = kind_of("model")
    handled = SimpleNamespace(refusals=None, times=0)

    def clock() -> float:
        handled.times += 1
        if handled.times == 2:  # the first thread is inside of ``applies_to``
            assert handled.refusals.applies_to(kind)
        return 0.0

    refusals = handled.refusals = Refusals(clock)
    refusals.refused(kind, 400)
    assert refusals.applies_to(kind)
    assert handled.times == 3
