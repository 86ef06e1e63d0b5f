"""A name, module or command of 0.3 that is not here says so in one sentence, and Python's own questions are answered."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from agentlightning import _absent
from agentlightning.cli import main

NAMES = json.loads((Path(__file__).parent / "names_of_0_3.json").read_text(encoding="utf-8"))
SENTENCE = re.compile(
    r"[\w. -]+ \(in Agent Lightning 0\.3 [^().]+\) (is not here yet, and will come; today |will not come; )[^\n]+"
)
HERE = [name for name in NAMES if _absent.module(name) is None]
ABSENT = {
    module: absent
    for module, names in NAMES.items()
    if (absent := [name for name in names if _absent.attribute(module, name)])
}


def run(statement: str) -> None:
    exec(compile(statement, "<a program>", "exec"), {})


def error_of(statement: str, kind: type[Exception]) -> str:
    with pytest.raises(kind) as caught:
        run(statement)
    assert type(caught.value) is kind
    return str(caught.value)


@pytest.mark.parametrize("module", ABSENT)
def test_an_import_of_a_name_that_is_not_here_says_what_does_the_same(module: str) -> None:
    is_here = module in HERE
    for name in ABSENT[module]:
        kind = ImportError if is_here else ModuleNotFoundError
        assert SENTENCE.fullmatch(error_of(f"from {module} import {name}", kind))
        if is_here:
            sentence = error_of(f"import {module} as module; module.{name}", AttributeError)
            assert SENTENCE.fullmatch(sentence)
            assert sentence.startswith(f"{module}.{name} ")


@pytest.mark.parametrize("module", sorted(set(NAMES) - set(HERE)))
def test_an_import_of_a_module_that_is_not_here_says_it_too(module: str) -> None:
    assert SENTENCE.fullmatch(error_of(f"import {module}", ModuleNotFoundError))
    assert SENTENCE.fullmatch(error_of(f"import agentlightning; {module}", AttributeError))
    parent, _, name = module.rpartition(".")
    if parent in HERE:
        assert SENTENCE.fullmatch(error_of(f"from {parent} import {name}", ImportError))
        assert importlib.util.find_spec(module) is None


def test_what_asks_python_for_names_is_told_that_they_are_not_there() -> None:
    for module in HERE:
        found, names = importlib.import_module(module), ABSENT.get(module, [])
        assert [
            name for name in names if hasattr(found, name) or getattr(found, name, None) is not None
        ] == []
        assert not set(names) & set(dir(found))
        run(f"from {module} import *")


@pytest.mark.parametrize(
    ("statement", "kind", "text"),
    [
        ("import agentlightning; agentlightning.nothing", AttributeError, "has no attribute 'nothing'"),
        ("from agentlightning import nothing", ImportError, "cannot import name 'nothing'"),
        ("import agentlightning.nothing", ModuleNotFoundError, "No module named 'agentlightning.nothing'"),
        ("from agentlightning.adapter.triplet import nothing", ImportError, "cannot import name 'nothing'"),
        (
            "import agentlightning.store; agentlightning.store.Trainer",
            AttributeError,
            "has no attribute 'Trainer'",
        ),
    ],
)
def test_a_name_that_0_3_does_not_have_is_told_as_ever(
    statement: str, kind: type[Exception], text: str
) -> None:
    assert text in error_of(statement, kind)


def test_the_table_has_nothing_that_is_here() -> None:
    found = []
    for module in _absent.MODULES:
        try:
            found += [module] if importlib.util.find_spec(module) else []
        except ModuleNotFoundError:  # its package is not there either
            assert _absent.module(module.rpartition(".")[0])
    assert found == []
    for module, names in _absent.PLACES.items():
        assert set(names.split()) == {name for name in NAMES[module] if name in _absent.NAMES}
    assert set(_absent.NAMES) <= {name for names in NAMES.values() for name in names}


def test_a_second_import_of_the_package_adds_no_second_finder(monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = sys.modules["agentlightning._lazy"]
    monkeypatch.delitem(sys.modules, "agentlightning._lazy")
    try:
        importlib.import_module("agentlightning._lazy")
        assert len([each for each in sys.meta_path if getattr(each, "__name__", "") == "AbsentModules"]) == 1
    finally:
        sys.modules["agentlightning._lazy"] = lazy


@pytest.mark.parametrize(
    "words",
    [
        "vllm serve model --port 8000",
        "prometheus",
        "store",
        "store --host 0.0.0.0 --port 4747",
        "store --backend mongo",
    ],
)
def test_a_command_of_0_3_says_it_and_exits_as_bad_usage(
    words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    assert SENTENCE.fullmatch(capsys.readouterr().err.removeprefix("agl: ").strip())
