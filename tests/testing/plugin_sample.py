"""How the tests of the pytest plugin run pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent

ASYNCIO = "asyncio_default_fixture_loop_scope = function\nasyncio_mode = "


def run_pytest(
    folder: Path,
    tests: str,
    *arguments: str,
    ini: str = "",
    env: Mapping[str, str] = {},
    before: Sequence[str] = ("-m", "pytest"),
) -> subprocess.CompletedProcess[str]:
    """Run pytest, in which every warning is an error, over one file of tests."""
    (folder / "pytest.ini").write_text(f"[pytest]\nfilterwarnings = error\n{ini}\n", encoding="utf-8")
    (folder / "test_sample.py").write_text(dedent(tests), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *before, "-q", "-p", "no:cacheprovider", *arguments, "test_sample.py"],
        cwd=folder,
        env={**inherited, **env},
        capture_output=True,
        text=True,
        check=False,
    )


def assert_passed(done: subprocess.CompletedProcess[str], count: int) -> None:
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout, done.stdout
