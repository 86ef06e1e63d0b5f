"""What is found of ``agentops`` without importing it, and what the table says of it."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from agentlightning.integrations.agentops.probe import Found, probe, version_numbers
from agentlightning.integrations.agentops.table import TABLE, row_of, support

LAYOUTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("A3", ("instrumentation/providers/openai/__init__.py", "sdk/core.py"), "captured"),
    ("A2", ("instrumentation/openai/wrappers/__init__.py", "sdk/core.py"), "captured"),
    (
        "A1",
        ("sdk/core.py", "llms/providers/openai.py", "session.py"),
        "captured",
    ),  # 0.4.2 has leftovers of 0.3
    ("L4", ("llms/providers/openai.py", "session.py"), "captured"),
    ("L3", ("llms/openai.py", "session.py"), "captured"),
    ("L2", ("llm_tracker.py", "session.py"), "captured"),
    ("L1", ("llm_tracker.py", "session.py", "worker.py"), "captured"),
    ("unknown", (), "refused"),
)


@pytest.mark.parametrize(("name", "files", "verdict"), LAYOUTS)
def test_a_release_is_known_by_what_lies_in_its_folder(
    name: str, files: tuple[str, ...], verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("__init__.py", *files):
        path = tmp_path / "agentops" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('probing must not import')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in [each for each in sys.modules if each.partition(".")[0] == "agentops"]:
        monkeypatch.delitem(sys.modules, module)
    found = probe()
    assert found.range == name
    assert found.folder == tmp_path / "agentops"
    assert support(found).verdict == verdict


def test_a_folder_that_happens_to_have_the_name_is_no_agentops(tmp_path: Path) -> None:
    (tmp_path / "agentops").mkdir()
    code = (
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; sys.path.insert(0, sys.argv[1]);"
        "from importlib.util import find_spec; assert find_spec('agentops') is not None;"
        "sys.path.append(sys.argv[2]);"
        "from agentlightning.integrations.agentops.probe import probe; print(probe().range)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(root)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "none", done.stderr


@pytest.mark.parametrize(
    ("version", "numbers"),
    [("0.4.21", (0, 4, 21)), ("1.45.0rc1", (1, 45, 0)), ("0.66b1", (0, 66)), ("", ()), (None, ()), ("x", ())],
)
def test_numbers_of_versions(version: str, numbers: tuple[int, ...]) -> None:
    assert version_numbers(version) == numbers


def test_every_row_says_one_sentence_and_every_refusal_a_cure() -> None:
    for row in TABLE:
        assert row.support.sentence
        assert "\n" not in row.support.sentence
        if row.support.verdict == "refused":
            assert "install agentops" in row.support.sentence
    strange = Found("unknown", "9.9.9")
    assert row_of(strange) is None
    assert "9.9.9" in support(strange).sentence
    assert "install agentops 0.4" in support(strange).sentence


def test_the_one_release_that_cannot_be_imported_is_refused_before_it_is_tried() -> None:
    told = support(Found("A1", "0.4.7"))
    if find_spec("agents") is not None:
        assert told.verdict == "captured"
        return
    assert told.verdict == "refused"
    assert "openai-agents" in told.sentence
