"""The documentation as published: generated parts are current, links lead somewhere, marked code runs."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from blocks import blocks
from warm import Warm

from agentlightning import LightningEnvVar, SqliteLightningStore, errors
from agentlightning.testing import FakeOpenAI

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md")) + [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
]
LINK = re.compile(r"\]\((?!https?://)(?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#+ (?P<text>.+)$", re.MULTILINE)
RUNNABLE = [page for page in PAGES if any(block.what == "run" for block in blocks(page))]


PROGRAM = re.compile(r"(?P<program>agl|pytest|python) (?P<arguments>[^|&;<>$`]+)")
READ_FIRST = (ROOT / "README.md", DOCS / "tutorial" / "first-rollout.md")
"""Their programs have an interpreter of their own, which imports everything anew."""


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Anchors as GitHub makes them: lower case, punctuation gone, blanks to dashes."""
    headings = [match["text"] for match in HEADING.finditer(page.read_text(encoding="utf-8"))]
    return {re.sub(r"[^\w\- ]", "", text.lower()).strip().replace(" ", "-") for text in headings}


def test_generated_parts_are_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "tools" / "docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        name, _, anchor = match["target"].partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), match["target"]
        if anchor:
            assert anchor in anchors(target), match["target"]


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    linked = {(DOCS / match["target"].partition("#")[0]).resolve() for match in LINK.finditer(index)}
    pages = {page for page in DOCS.rglob("*.md") if page.name not in {"README.md", "index.md"}}
    assert pages == {target for target in linked if target.suffix == ".md"}


def test_every_setting_and_every_error_code_is_in_the_reference() -> None:
    settings = (DOCS / "reference" / "settings.md").read_text(encoding="utf-8")
    codes = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    for variable in LightningEnvVar:
        assert f"`{variable.value}`" in settings
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, errors.LightningError):
            assert f"`{value.code}`" in codes


def test_a_test_that_traces_an_agent_and_asserts_on_its_rows_has_fifteen_lines() -> None:
    (sample,) = (block.text for block in blocks(ROOT / "README.md") if block.name == "test_capital.py")
    assert "captured_spans.triplets()" in sample
    assert len(sample.splitlines()) <= 15
    assert max(map(len, sample.splitlines())) <= 110


def programs(text: str) -> list[list[str]]:
    """Return the arguments of ``python`` for each line of a block of shell; nothing where one line needs a shell."""
    begins = {"agl": ["-m", "agentlightning.cli"], "pytest": ["-m", "pytest"], "python": []}
    found = []
    for line in text.splitlines():
        if not (match := PROGRAM.fullmatch(line)):
            return []
        found.append(begins[match["program"]] + shlex.split(match["arguments"], comments=True))
    return found


def query_empty_store(statement: str, path: Path) -> None:
    asyncio.run(SqliteLightningStore(path).close())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement).fetchall()


@pytest.mark.parametrize("page", RUNNABLE, ids=page_id)
def test_marked_code_runs(calling: Warm, page: Path, tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    for block in blocks(page):
        if block.what == "file":
            (tmp_path / block.name).write_text(block.text, encoding="utf-8")
        if block.what != "run":
            continue
        if block.lang == "sql":
            query_empty_store(block.text, tmp_path / "docs.db")
            continue
        env = {**os.environ, "PATH": path}
        arguments = ["-W", "error", "-c", block.text]
        told = programs(block.text) if block.lang == "sh" else [arguments]
        if told and page not in READ_FIRST:
            for number, each in enumerate(told):
                done = calling.run(each, cwd=tmp_path, env=env)
                if number + 1 < len(told):
                    assert done.returncode == 0, f"{each}\n{done.stdout}{done.stderr}"
        else:
            shell = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(
                [sys.executable, *arguments] if block.lang == "python" else shell,
                cwd=tmp_path,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}{done.stderr}"


def test_the_page_on_frameworks_gives_rows_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its agent stands for one of LangGraph, whose client sends the same request."""
    block = re.search(
        r"```python\n(# Needs: `agent`.*?)```",
        (DOCS / "how-to" / "agent-frameworks.md").read_text(),
        re.DOTALL,
    )
    assert block
    monkeypatch.chdir(tmp_path)
    with FakeOpenAI() as model, model.client() as client:

        class Agent:
            def invoke(self, state: dict[str, Any]) -> None:
                client.chat.completions.create(model="policy", **state)

        names: dict[str, Any] = {"agent": Agent()}
        exec(block[1], names)
    assert names["rollout"].rows()[0].trained_tokens > 0


def test_files_that_the_architecture_names_exist() -> None:
    text = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    places = (ROOT / "agentlightning", ROOT)
    assert [name for name in named if not any((place / name).exists() for place in places)] == []
