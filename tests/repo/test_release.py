"""What a release is refused for, and that each extra brings something; scripts/release does the rest."""

from __future__ import annotations

import importlib
import json
import re
import sys
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import agentlightning

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "tools"))
release: Any = importlib.import_module("release")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
MODULES = {
    "opentelemetry-proto": "trace_pb2",
    "pytest-xdist": "xdist",
    "import-linter": "importlinter",
    "myst-parser": "myst_parser",
}
"""Distribution → what it is imported as, where that is not its name."""

GOOD = "# Changelog\n\n## Unreleased\n\n## 1.2.0 - 2026-11-28\n\n### Fixed\n\n- A span.\n\n## 1.1.0 - 2026-10-01\n\n- x\n"


def test_the_version_stands_in_one_place() -> None:
    assert release.version_of() == agentlightning.__version__
    assert PROJECT["dynamic"] == ["version"]
    assert "version" not in PROJECT


def test_a_changelog_that_is_ready_passes() -> None:
    release.check_changelog(GOOD, "1.2.0")


@pytest.mark.parametrize(
    ("text", "version", "reason"),
    [
        (GOOD, "1.3.0", "has no section '## 1.3.0 - .*the newest one is '1.2.0 - 2026-11-28'"),
        (GOOD, "1.1.0", "has no section '## 1.1.0"),
        ("## Unreleased\n\n- A span.\n", "1.2.0", "there is only what is unreleased"),
        (GOOD.replace(" - 2026-11-28", ""), "1.2.0", "should be '## 1.2.0 - YEAR-MONTH-DAY'"),
        (GOOD.replace("- A span.", ""), "1.2.0", "says nothing about 1.2.0"),
        (GOOD.replace("Unreleased\n", "Unreleased\n\n- Late.\n"), "1.2.0", "lines under Unreleased"),
    ],
)
def test_a_changelog_that_is_not_ready_is_refused(text: str, version: str, reason: str) -> None:
    with pytest.raises(release.Wrong, match=reason):
        release.check_changelog(text, version)


@pytest.mark.parametrize("text", ["", '__version__ = "0.2"', '__version__ = version("agentlightning-otel")'])
def test_a_version_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "agentlightning").mkdir()
    (tmp_path / "agentlightning" / "__init__.py").write_text(text, encoding="utf-8")
    with pytest.raises(release.Wrong, match="__version__"):
        release.version_of(tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A repository of which there is no more than the version and the changelog."""
    (tmp_path / "agentlightning").mkdir()
    (tmp_path / "agentlightning" / "__init__.py").write_text(
        '"""Doc."""\n__version__ = "1.2.0"\n', encoding="utf-8"
    )
    (tmp_path / "CHANGELOG.md").write_text(
        GOOD.replace("Unreleased\n", "Unreleased\n\n### Added\n\n- A store.\n"), encoding="utf-8"
    )
    return tmp_path


def test_closing_raises_the_version_and_names_what_is_unreleased(place: Path) -> None:
    release.close("1.3.0", place)
    changelog = (place / "CHANGELOG.md").read_text(encoding="utf-8")
    assert release.version_of(place) == "1.3.0"
    release.check_changelog(changelog, "1.3.0")
    day = datetime.now(UTC).date()
    assert f"## Unreleased\n\n## 1.3.0 - {day}\n\n### Added\n\n- A store.\n\n## 1.2.0 - " in changelog


@pytest.mark.parametrize(
    ("version", "reason"), [("1.3", "is no version"), ("1.2.0", "is not newer"), ("1.2.0rc1", "is not newer")]
)
def test_what_cannot_be_closed_changes_nothing(place: Path, version: str, reason: str) -> None:
    before = {path: path.read_text(encoding="utf-8") for path in place.rglob("*.*") if path.is_file()}
    with pytest.raises(release.Wrong, match=reason):
        release.close(version, place)
    assert {path: path.read_text(encoding="utf-8") for path in before} == before


def test_nothing_unreleased_is_no_release(place: Path) -> None:
    (place / "CHANGELOG.md").write_text(GOOD, encoding="utf-8")
    with pytest.raises(release.Wrong, match=r"says nothing about 1\.3\.0"):
        release.close("1.3.0", place)
    assert release.version_of(place) == "1.2.0"


@pytest.mark.parametrize(
    "name",
    ["tests/test_a.py", "agentlightning/__pycache__/a.pyc", "agentlightning/runs.db-wal", "scripts/docs/a"],
)
def test_a_file_that_belongs_to_nobody_is_not_distributed(name: str) -> None:
    release.check_names(["a-1.0/agentlightning/a.py", "a-1.0/docs/a.md"], release.SDIST)
    with pytest.raises(release.Wrong, match="1 files should not be distributed"):
        release.check_names([f"a-1.0/{name}"], release.SDIST)


def test_every_extra_is_tried_and_measured() -> None:
    assert set(release.INSTALLS) == {"", *EXTRAS}
    _, *measured = map(json.loads, release.SIZES.read_text(encoding="utf-8").splitlines())
    assert [each["extra"] for each in measured] == list(release.INSTALLS)


@pytest.mark.parametrize("extra", sorted(EXTRAS))
def test_what_an_extra_is_tried_with_needs_something_that_it_installs(extra: str) -> None:
    """An extra whose packages nothing imports is an empty promise."""
    installed = {Requirement(each).name for each in EXTRAS[extra]}
    named = set(re.findall(r"\w+", release.INSTALLS[extra].program))
    assert named & {MODULES.get(each, each) for each in installed}


LOADED_BY_OTHERS = {
    **dict.fromkeys(
        ("cachetools", "fastapi", "uvicorn", "TransferQueue"), "verl imports it, and does not declare it"
    ),
    **dict.fromkeys(("pytest-randomly", "pytest-timeout", "pytest-xdist"), "pytest loads it"),
    **dict.fromkeys(("ruff", "mypy"), "scripts/check runs it"),
    "types-requests": "mypy reads it",
    "opentelemetry-distro": "opentelemetry-instrument loads it",
}
"""Distribution → why nothing here imports it."""
OTHER_MODULES = {
    **MODULES,
    "opentelemetry-proto": "opentelemetry.proto",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry.exporter.otlp.proto.http",
}


def test_every_package_of_an_extra_is_imported_somewhere() -> None:
    places = ("agentlightning", "examples", "scripts", "tests", "docs")
    files = [path for place in places for path in (ROOT / place).rglob("*.py") if path != Path(__file__)]
    everything = "\n".join(path.read_text(encoding="utf-8") for path in files)
    wanted = {Requirement(each).name for needs in EXTRAS.values() for each in needs} - {"agentlightning-otel"}

    def is_imported(name: str) -> bool:
        module = re.escape(OTHER_MODULES.get(name, name.replace("-", "_")))
        by_statement = rf"^ *(?:import|from) {module}\b"
        by_name = rf"(?:import_module|importorskip|find_spec|__import__)\(\s*\"{module}\b"
        in_settings = rf"^\w+ = .*\"{module}\""  # docs/conf.py names Sphinx's theme and extensions
        return bool(re.search(f"{by_statement}|{by_name}|{in_settings}", everything, re.MULTILINE))

    assert {name for name in wanted if not is_imported(name)} == LOADED_BY_OTHERS.keys()


@pytest.mark.parametrize(
    ("page", "name"), [(release.FIRST_ROLLOUT, "first.py"), (release.README, "test_capital.py")]
)
def test_what_is_installed_is_tried_with_programs_that_pages_publish(page: Path, name: str) -> None:
    compile(release.published(page, name), name, "exec")


def test_a_program_that_no_page_publishes_is_named() -> None:
    with pytest.raises(release.Wrong, match=r"README\.md has no block 'file=test_other\.py'"):
        release.published(release.README, "test_other.py")
