"""The repository as a stranger finds it: its top level, its distribution, its entry points."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import agentlightning

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

TOP_LEVEL_FOLDERS = {"agentlightning", "docs", "examples", "scripts", "tests"}
TOP_LEVEL_FILES = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "pyproject.toml"}


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout.splitlines()


def test_the_top_level_holds_five_folders_and_five_files() -> None:
    names = {name.partition("/")[0] for name in tracked()}
    seen = {name for name in names if not name.startswith(".")}
    assert seen <= TOP_LEVEL_FOLDERS | TOP_LEVEL_FILES
    assert {name for name in seen if (ROOT / name).is_dir()} == TOP_LEVEL_FOLDERS


def test_no_path_of_a_machine_is_tracked() -> None:
    names = [name for name in tracked() if name.endswith((".py", ".md", ".sh", ".toml", ".sql"))]
    for name in names:
        path = ROOT / name
        if path.exists():
            for needle in ("/home" + "/", "/root" + "/", "/work" + "/"):
                assert needle not in path.read_text(encoding="utf-8"), f"{name} names {needle}"


@pytest.mark.parametrize(
    "script", sorted(path.name for path in (ROOT / "scripts").iterdir() if path.is_file())
)
def test_scripts_are_executable_strict_and_say_what_they_do(script: str) -> None:
    path = ROOT / "scripts" / script
    if script.startswith("_"):
        assert not os.access(path, os.X_OK)
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    assert os.access(path, os.X_OK)
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[1].startswith("# ")
    assert "set -euo pipefail" in lines


def test_every_dependency_of_the_core_is_one_of_the_few() -> None:
    names = {entry.split(">")[0].strip() for entry in PYPROJECT["project"]["dependencies"]}
    assert names == {
        "flask",
        "msgspec",
        "opentelemetry-api",
        "opentelemetry-instrumentation-threading",
        "opentelemetry-sdk",
        "pydantic",
        "requests",
        "rich",
        "setproctitle",
    }


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("console_scripts", "agl"),
        ("agentlightning.stores", "memory"),
        ("agentlightning.stores", "sqlite"),
        ("opentelemetry_traces_exporter", "lightning"),
    ],
)
def test_entry_points_load(group: str, name: str) -> None:
    (entry,) = entry_points(group=group, name=name)
    assert callable(entry.load())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, online: dict[str, str]) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-qq", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, env=online, check=True, capture_output=True, text=True, timeout=280)
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.namelist()
    return zipfile.ZipFile(path)


def test_the_wheel_holds_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    with wheel:
        names = wheel.namelist()
        assert {name.partition("/")[0] for name in names} == {
            "agentlightning",
            f"agentlightning_otel-{agentlightning.__version__}.dist-info",
        }
        for name in (
            "agentlightning/py.typed",
            "agentlightning/cli/startup/sitecustomize.py",
            "agentlightning/store/sqlite/__init__.py",
        ):
            assert name in names
        assert any(name.endswith(".sql") for name in names)
        assert not [name for name in names if "node_modules" in name or "/tests/" in name or ".db" in name]


def test_beside_the_other_distribution_the_import_is_refused(tmp_path: Path) -> None:
    (tmp_path / "agentlightning-0.3.0.dist-info").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import agentlightning"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "agentlightning-otel" in last
    assert "agentlightning-0.3.0.dist-info" in last
    assert "pip uninstall" in last


def test_the_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("scripts/quickstart", "scripts/test"):
        assert command in readme
        assert os.access(ROOT / command, os.X_OK)


def test_files_of_tests_have_names_of_their_own() -> None:
    """Tests are no packages: pytest and mypy know a file by its name alone. Of a conftest, pytest knows the folder."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
