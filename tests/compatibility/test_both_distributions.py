"""Microsoft's distribution ``agentlightning``, installed before or after ours, is noticed at the next import."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import agentlightning

OURS = Path(agentlightning.__file__).parent
THEIRS = {
    "0.3.0": {
        "__init__.py": "from .adapter import *\n",
        "adapter/__init__.py": "from .base import Adapter\n",
        "adapter/base.py": "from agentlightning.types import Span\nclass Adapter: ...\n",
        "types/__init__.py": "class Span: ...\n",
    },
    "1.0.2": {"__init__.py": '__version__ = "1.0.2"\n'},
}
"""What of their files the imports below load."""
TRY = """
import importlib, sys
for folder, name in zip(sys.argv[1::2], sys.argv[2::2]):
    sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except ImportError as error:
        print(error)
    sys.path.remove(folder)
    for module in [each for each in sys.modules if each.partition(".")[0] == "agentlightning"]:
        del sys.modules[module]
    importlib.invalidate_caches()
"""


def _installed(folder: Path, release: str, *, theirs_last: bool) -> str:
    shutil.copytree(OURS, folder / "agentlightning", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / f"agentlightning-{release}.dist-info").mkdir()
    for name, text in THEIRS[release].items() if theirs_last else ():
        (folder / "agentlightning" / name).write_text(text, encoding="utf-8")
    return str(folder)


def test_either_order_is_refused_with_what_to_do(tmp_path: Path) -> None:
    ours_last = _installed(tmp_path / "ours last", "0.3.0", theirs_last=False)
    of_0_3 = _installed(tmp_path / "0.3 last", "0.3.0", theirs_last=True)
    of_1_0 = _installed(tmp_path / "1.0 last", "1.0.2", theirs_last=True)
    tries = [ours_last, "agentlightning", of_0_3, "agentlightning", of_1_0, "agentlightning.tracer"]
    done = subprocess.run([sys.executable, "-c", TRY, *tries], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [f", in {place}) share one import name; run: pip uninstall -y " in line
            for place, line in zip((ours_last, of_0_3, of_1_0), lines, strict=True)] == [True] * 3  # fmt: skip
