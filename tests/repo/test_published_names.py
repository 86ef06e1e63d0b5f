"""What each entry must not load, and that every published name is there."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import agentlightning

HEAVY = {
    "agentops",
    "fastapi",
    "flask",
    "httpx",
    "matplotlib",
    "msgspec",
    "numpy",
    "openai",
    "opentelemetry",
    "psycopg",
    "pyarrow",
    "pydantic",
    "pytest",
    "requests",
    "rich",
    "setproctitle",
    "torch",
    "uvicorn",
}

PACKAGES = sorted(
    ["agentlightning"]
    + [
        info.name
        for info in pkgutil.walk_packages(agentlightning.__path__, "agentlightning.")
        if info.ispkg and ".startup" not in info.name
    ]
)


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in ``sys.modules`` after a statement in a fresh interpreter."""
    code = f"import sys, json\n{statement}\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("statement", "may_load"),
    [
        ("import agentlightning", set()),
        ("import agentlightning.semconv", set()),
        ("import agentlightning.errors", set()),
        ("import agentlightning.env_var", set()),
        ("import agentlightning.store", set()),
        ("import agentlightning.tracer", set()),
        ("import agentlightning.emitter", set()),
        ("import agentlightning.adapter", set()),
        ("import agentlightning.rows", set()),
        ("import agentlightning.testing", set()),
        ("import agentlightning.types", set()),
        ("import agentlightning.cli", set()),
        ("from agentlightning.cli.entry import build_parser; build_parser().format_help()", set()),
        ("from agentlightning import open_store", set()),
        ("from agentlightning import SqliteLightningStore", {"msgspec", "pydantic"}),
        ("from agentlightning import OtelTracer", {"opentelemetry"}),
        ("from agentlightning import TracerTraceToTriplet", {"msgspec", "opentelemetry", "pydantic"}),
        ("from agentlightning import emit_reward", {"opentelemetry", "pydantic"}),
        ("import agentlightning.cli.stats", {"pydantic"}),
        ("import agentlightning.cli.rollouts", {"pydantic"}),
        ("import agentlightning.cli.show", {"msgspec", "pydantic"}),
        ("import agentlightning.cli.run", {"pydantic"}),
    ],
)
def test_an_entry_loads_nothing_heavy_that_it_does_not_need(statement: str, may_load: set[str]) -> None:
    assert loaded_by(statement) & HEAVY <= may_load


def test_importing_the_tracer_loads_nothing_that_only_a_recording_needs() -> None:
    """What watches a program is loaded by ``init_worker``, and what is watched by the program itself, if at all."""
    watched = ("concurrent.futures.process", "http.client", "multiprocessing", "urllib.request")
    for_a_recording = (
        "opentelemetry.instrumentation",
        "pydantic_core",
        "agentlightning._absent",
        "agentlightning.dialects.model_call",
        "agentlightning.dialects.openai",
        "agentlightning.dialects.spans",
        "agentlightning.instrumentation.wire",
        "agentlightning.recorder.writer",
        "agentlightning.tracer.handed_work",
        "agentlightning.tracer.processor",
    )
    code = "import sys, agentlightning.tracer.otel\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {*watched, *for_a_recording} & set(done.stdout.split())


def test_models_are_imported_before_the_writer_has_a_thread() -> None:
    """A fork during an import on another thread would leave the child with that import's lock."""
    code = """
import sys
from agentlightning.recorder.converter import Converter
from agentlightning.recorder.writer import Writer
assert "pydantic" not in sys.modules
Writer(Converter())
print(*sorted(name for name in sys.modules if name.startswith("agentlightning.types.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {f"agentlightning.types.{name}" for name in ("tracer", "receipt")} <= set(done.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_of_all_resolves(package: str) -> None:
    module = importlib.import_module(package)
    missing = {}
    for name in getattr(module, "__all__", []):
        try:
            getattr(module, name)
        except (AttributeError, ImportError) as error:
            missing[name] = str(error)
    assert missing == {}


@pytest.fixture(scope="module")
def shadowed() -> dict[str, list[str]]:
    """Return package → its names that are modules, in a process that has imported every module of every package."""
    code = f"""
import importlib, json, pkgutil, types
packages = [importlib.import_module(name) for name in {PACKAGES!r}]
for package in packages:
    for module in pkgutil.iter_modules(package.__path__):
        try:
            importlib.import_module(f"{{package.__name__}}.{{module.name}}")
        except ImportError:  # an extra that is not installed
            pass
print(json.dumps({{
    package.__name__: [
        name for name in getattr(package, "__all__", []) if type(getattr(package, name)) is types.ModuleType
    ]
    for package in packages
}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_means_the_same_whatever_was_imported_before(
    package: str, shadowed: dict[str, list[str]]
) -> None:
    """A submodule of the same name would take the place of a lazy name as soon as it is imported, and keep it."""
    assert shadowed[package] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_all_names_each_name_once_and_dir_has_it(package: str) -> None:
    module = importlib.import_module(package)
    published = list(getattr(module, "__all__", []))
    assert set(published) <= set(dir(module))
    assert len(published) == len(set(published))


def test_a_name_that_is_not_published_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_this_name'"):
        _ = agentlightning.nothing_of_this_name


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert agentlightning.__version__ == version("agentlightning-otel")


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_names_that_resolve_on_first_use(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    if not any(isinstance(node, ast.Attribute) and node.attr == "attach" for node in ast.walk(tree)):
        return
    seen = {
        alias.asname
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert seen == set(module.__all__)
