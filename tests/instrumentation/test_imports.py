"""Callbacks run after imports that others make, and leave no trace."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from agentlightning.instrumentation.guard import Guard, reraise
from agentlightning.instrumentation.imports import when_imported

SEEN_BY_THE_MODULE = "loader = __loader__\nspec_loader = __spec__.loader\nvalue = 1\n"


@pytest.fixture
def package(tmp_path: Path) -> Iterator[str]:
    name = "agl_imported_later"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(SEEN_BY_THE_MODULE)
    (folder / "inner.py").write_text(SEEN_BY_THE_MODULE)
    sys.path.insert(0, str(tmp_path))
    importlib.invalidate_caches()
    yield name
    sys.path.remove(str(tmp_path))
    for loaded in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[loaded]


def test_a_module_is_seen_after_its_own_code_with_its_own_loader(package: str) -> None:
    finders = list(sys.meta_path)
    seen: list[tuple[str, int]] = []

    def callback(module: ModuleType) -> None:
        seen.append((module.__name__, module.value))

    watch = when_imported({package: callback, f"{package}.inner": callback}, Guard(reraise))
    assert importlib.util.find_spec(package) is not None
    assert not seen
    inner = importlib.import_module(f"{package}.inner")
    assert seen == [(package, 1), (f"{package}.inner", 1)]
    assert type(inner.loader).__name__ == "SourceFileLoader"
    assert inner.loader is inner.spec_loader is inner.__loader__
    assert sys.meta_path == finders
    watch.undo()


def test_two_watchers_of_one_module_both_see_it(package: str) -> None:
    seen: list[str] = []
    first = when_imported({package: lambda _: seen.append("first")}, Guard(reraise))
    second = when_imported({package: lambda _: seen.append("second")}, Guard(reraise))
    module = importlib.import_module(package)
    assert sorted(seen) == ["first", "second"]
    assert type(module.loader).__name__ == "SourceFileLoader"
    first.undo()
    second.undo()


def test_nothing_is_seen_after_undo(package: str) -> None:
    finders = list(sys.meta_path)
    seen: list[ModuleType] = []
    watch = when_imported({package: seen.append}, Guard(reraise))
    watch.undo()
    importlib.import_module(package)
    assert not seen
    assert sys.meta_path == finders


def test_a_module_that_is_there_is_seen_at_once() -> None:
    seen: list[ModuleType] = []
    when_imported({"json": seen.append}, Guard(reraise)).undo()
    assert seen == [sys.modules["json"]]


def test_a_callback_that_raises_does_not_break_the_import(package: str) -> None:
    errors: list[str] = []

    def callback(module: ModuleType) -> None:
        raise RuntimeError(module.__name__)

    watch = when_imported({package: callback}, Guard(lambda doing, error: errors.append(f"{doing}: {error}")))
    assert importlib.import_module(package).value == 1
    assert errors == [f"patching {package}: {package}"]
    watch.undo()


def test_a_module_that_does_not_exist_is_not_found_as_ever() -> None:
    watch = when_imported({"agl_no_such_module": lambda _: None}, Guard(reraise))
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("agl_no_such_module")
    watch.undo()
