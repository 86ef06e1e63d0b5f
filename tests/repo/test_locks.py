"""What the scripts install is locked: every release with hashes, within the ranges that the project names."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
LOCKS = SCRIPTS / "locks"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
NAMES = sorted(path.stem for path in LOCKS.glob("*.txt"))

sys.path.insert(0, str(SCRIPTS / "tools"))
locks: Any = importlib.import_module("lock")
ENVIRONMENTS, blocks, with_hashes = locks.ENVIRONMENTS, locks.blocks, locks.with_hashes


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(name: str, python: str) -> dict[str, str]:
    """Package → its version for one Python on Linux."""
    here = linux(python)
    found = {}
    for package, version, text in blocks((LOCKS / f"{name}.txt").read_text(encoding="utf-8")):
        first = Requirement(text.partition(" \\\n")[0])
        if first.marker is None or first.marker.evaluate(here):
            assert normal(package) not in found, f"{name} has two releases of {package} for Python {python}"
            found[normal(package)] = version
    return found


def linux(python: str) -> dict[str, str]:
    """What markers ask of a machine."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
    }


def wanted(extras: tuple[str, ...]) -> list[Requirement]:
    """The requirements of the project with extras, its own extras resolved."""
    found = [Requirement(each) for each in PROJECT["dependencies"]]
    for extra in extras:
        for each in map(Requirement, PROJECT["optional-dependencies"][extra]):
            if each.name == PROJECT["name"]:
                found += wanted(tuple(sorted(each.extras)))
            else:
                found.append(each)
    return found


def test_there_is_a_lock_for_every_environment_and_no_other() -> None:
    assert NAMES == sorted(ENVIRONMENTS)


@pytest.mark.parametrize("name", NAMES)
def test_every_release_has_a_hash(name: str) -> None:
    found = list(blocks((LOCKS / f"{name}.txt").read_text(encoding="utf-8")))
    assert found
    assert [package for package, _, text in found if "--hash=sha256:" not in text] == []


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", [name for name in NAMES if ENVIRONMENTS[name].project])
def test_a_lock_is_within_the_ranges_of_the_project(name: str, python: str) -> None:
    found = locked(name, python)
    outside = {
        f"{each}: {found.get(normal(each.name))}"
        for each in wanted(ENVIRONMENTS[name].extras)
        if (each.marker is None or each.marker.evaluate(linux(python)))
        and (normal(each.name) not in found or found[normal(each.name)] not in each.specifier)
    }
    assert outside == set()


def test_what_the_quickstart_installs_is_what_the_tests_have() -> None:
    for python in PYTHONS:
        assert locked("quickstart", python).items() <= locked("test", python).items()


@pytest.mark.parametrize(
    "script",
    sorted(path.name for path in SCRIPTS.glob("[!_]*") if path.is_file() and path.name != "matrix-newest"),
)
def test_scripts_install_from_locks_alone(script: str) -> None:
    text = (SCRIPTS / script).read_text(encoding="utf-8")
    assert not re.search(r"-m pip install|uv pip install", text)
    for arguments in re.findall(r"uv_pip install (.*)", text):
        assert "--require-hashes -r scripts/locks/" in arguments
    assert "date +" not in text  # an environment is as old as its lock, and no older
    for lock in re.findall(r"^ *(?:need|with_lock prepare) (\S+)", text, re.MULTILINE):
        assert "$" in lock or lock in ENVIRONMENTS


def test_a_hash_of_another_build_goes_before_the_others() -> None:
    block = "torch==2.13.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via trl\n"
    more = with_hashes(block, ["sha256:cc"])
    assert more == block.replace(" \\\n", " \\\n    --hash=sha256:cc \\\n", 1)
    assert with_hashes(block, []) == block
