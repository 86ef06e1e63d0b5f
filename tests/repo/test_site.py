"""The documentation as a site: every page is in its contents, every link and docstring can be read."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(900)  # half a minute on a machine that does nothing else
def test_the_site_is_read_without_a_warning(tmp_path: Path) -> None:
    """The builder ``dummy`` reads and resolves everything and writes nothing, which takes half of the time."""
    pytest.importorskip("sphinx", reason="the environment of scripts/test has it: the extra `check`")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "--fail-on-warning",
            "--keep-going",
            "-b",
            "dummy",
            "docs",
            tmp_path,
        ],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # As many pages as are in the repository, and those of the API.
    read = re.findall(r"(\d+) added", done.stdout)
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path.name != "README.md"]
    assert int(read[0]) > len(pages)


def test_every_package_of_the_api_is_there() -> None:
    """The same, as far as it takes no time."""
    conf = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
    named = re.search(r"^PACKAGES = \((.*?)^\)", conf, re.DOTALL | re.MULTILINE)
    assert named
    for name in re.findall(r'"([\w.]+)"', named[1]):
        place = ROOT / "agentlightning" / name.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").is_file(), name


def test_commands_in_sentences_and_tables_can_be_copied() -> None:
    """Sphinx makes ``--endpoint`` a dash and a word, and quotes round ones, unless it is told not to."""
    assert runpy.run_path(str(ROOT / "docs" / "conf.py"))["smartquotes"] is False


def test_a_colon_in_the_text_under_a_field_makes_no_type_of_the_words_before_it() -> None:
    """Napoleon reads ``type: text`` there; our fields say their type themselves."""
    napoleon = pytest.importorskip("sphinx.ext.napoleon", reason="the extra `check` has it")
    conf = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    lines = ["How many rows it gives: one per trained choice.", "", "More."]
    conf["keep_colons"](None, "attribute", "rows", None, None, lines)
    for reader in (napoleon.NumpyDocstring, napoleon.GoogleDocstring):  # as Sphinx calls them
        lines = reader(lines, what="attribute", name="rows").lines()
    shown = "\n".join(lines)
    assert "How many rows it gives: one per trained choice.\n\nMore." in shown
    assert ":type:" not in shown
