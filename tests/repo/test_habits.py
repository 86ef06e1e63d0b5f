"""What a hosted service and a commit run is what scripts run, on the locked environment; reports ask for what helps."""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

import pytest

yaml: Any = importlib.import_module("yaml")

ROOT = Path(__file__).resolve().parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
PAGES = sorted(GITHUB.rglob("*.md"))
LINK = re.compile(r"\]\((?!https?://)(?P<target>[^)\s#]+)")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_scripts_of_this_repository_and_nothing_else(path: Path) -> None:
    jobs = load(path)["jobs"].values()
    commands = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        script, *_ = command.split()
        assert os.access(ROOT / script, os.X_OK), command
        assert "\n" not in command.strip(), "a script of several lines belongs into scripts/"
    assert all("timeout-minutes" in job for job in jobs)


def test_the_hosted_run_is_the_one_of_every_machine() -> None:
    assert any(step.get("run") == ".ci/run" for step in load(WORKFLOWS[0])["jobs"]["everything"]["steps"])
    assert "scripts/test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_a_commit_is_checked_by_the_locked_tools() -> None:
    config = load(ROOT / ".pre-commit-config.yaml")
    assert [repository["repo"] for repository in config["repos"]] == [
        "local"
    ]  # no second version of anything
    for hook in config["repos"][0]["hooks"]:
        assert hook["entry"].split()[0] == "scripts/check"
        assert hook["language"] == "script"


def test_a_report_of_a_fault_asks_for_the_doctor_and_for_versions() -> None:
    body = load(GITHUB / "ISSUE_TEMPLATE" / "bug.yml")["body"]
    required = {part["id"] for part in body if part.get("validations", {}).get("required")}
    assert {"happened", "doctor", "versions"} <= required


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_of_these_pages_lead_somewhere(path: Path) -> None:
    for match in LINK.finditer(path.read_text(encoding="utf-8")):
        assert (path.parent / match["target"]).exists(), match["target"]
