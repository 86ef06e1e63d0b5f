"""Errors cross processes whole, and a setting of ours is not AgentOps' business."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from agentlightning import errors
from agentlightning.errors import AgentOpsError, ExportRefused, LightningError, MissingExtra, NotFound


def _tree(above: type[LightningError] = LightningError) -> Iterator[type[LightningError]]:
    yield above
    for below in above.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from _tree(below)


EVERY = sorted(set(_tree()), key=lambda kind: kind.__name__)


def _example(kind: type[LightningError]) -> LightningError:
    if issubclass(kind, NotFound):
        return kind("ro-1", "run: agl rollouts")
    if issubclass(kind, MissingExtra):
        return kind("torch", "trl")
    if issubclass(kind, ExportRefused):
        return kind("http://localhost:4318", 404, "not found")
    if issubclass(kind, (errors.NotADocument, errors.DocumentDiffers)):
        return kind("steps[3]", "what is wrong there")
    if issubclass(kind, errors.ImportBrokeOff):
        return kind(2, "no room left")
    return kind("what to do about it")


@pytest.mark.parametrize("kind", EVERY, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("copied", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])
def test_an_error_keeps_its_words_and_values_in_another_process(
    kind: type[LightningError], copied: Any
) -> None:
    error = _example(kind)
    there = copied(error)
    assert type(there) is kind
    assert str(there) == str(error)
    assert vars(there) == vars(error)


def test_codes_are_of_one_class_each() -> None:
    assert len({kind.code for kind in EVERY}) == len(EVERY)


def test_a_setting_or_argument_of_ours_is_no_error_of_agentops() -> None:
    for kind in (errors.ConfigurationError, errors.InsecureEndpoint, errors.UsageError):
        assert not issubclass(kind, AgentOpsError)
    assert issubclass(errors.AgentOpsConfigurationError, AgentOpsError)
    assert issubclass(errors.AgentOpsConfigurationError, errors.ConfigurationError)
