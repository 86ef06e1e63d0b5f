from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "_layers.py"


def layers(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--root", str(root)], capture_output=True, text=True, check=False
    )


def house(folder: Path, files: dict[str, str]) -> Path:
    """A package of one empty module per part, and then these files."""
    parts = ["types", "codec", "store", "tracer", "server", "cli"]
    for name in parts:
        (folder / "agentlightning" / name).mkdir(parents=True)
        (folder / "agentlightning" / name / "__init__.py").touch()
    for module in ("base", "registry", "memory"):
        (folder / "agentlightning" / "store" / f"{module}.py").touch()
    (folder / "agentlightning" / "__init__.py").touch()
    for name, text in files.items():
        (folder / "agentlightning" / name).write_text(text, encoding="utf-8")
    return folder


def test_this_repository_keeps_its_layers() -> None:
    result = layers(ROOT)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"codec/a.py": "from ..store.base import LightningStore"}, "1 pure must not know layer 2 keep"),
        (
            {"store/base.py": "def f():\n    import agentlightning.tracer"},
            "2 keep must not know layer 3 capture",
        ),
        ({"tracer/a.py": "from ..store.memory import X"}, "store.base and store.registry only"),
        ({"tracer/a.py": "from ..store import memory"}, "store.base and store.registry only"),
        ({"tracer/a.py": "from ..cli import main"}, "nobody imports a shell"),
        ({"server/a.py": "from .. import tracer"}, "4 serve must not know layer 3 capture"),
        ({"types/a.py": "from agentlightning import Span"}, "import the module that defines the name"),
        ({"__init__.py": "from .types import Span"}, "the root loads nothing but its lazy table"),
        ({"store/base.py": "import fastapi"}, "agentlightning.store may import pydantic"),
        ({"errors.py": "import pydantic"}, "agentlightning.errors may import the standard library"),
        (
            {"utils.py": "", "tracer/a.py": "from .. import utils"},
            "an old import path; import from the new one",
        ),
        ({"utils.py": "from .types import a"}, "a lazy table of names, and no more"),
        ({"novelty.py": "from .types import a"}, "'novelty' has no layer"),
        (
            {"store/memory.py": "from . import base", "store/base.py": "def f():\n    from . import memory"},
            "a cycle of imports: agentlightning.store.base, agentlightning.store.memory",
        ),
        (
            {"types/__init__.py": "from .core import A", "types/core.py": "from . import B"},
            "a cycle of imports: agentlightning.types, agentlightning.types.core",
        ),
    ],
)
def test_an_import_against_the_table_is_refused(tmp_path: Path, files: dict[str, str], reason: str) -> None:
    result = layers(house(tmp_path, files))
    assert result.returncode == 1
    assert reason in result.stderr


def test_imports_down_the_table_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from . import _lazy",
        "_lazy.py": "import importlib",
        "tracer/a.py": "from ..store.base import X\nfrom ..store import registry\nimport opentelemetry.trace",
        "store/memory.py": "from ..types import Span\nfrom .base import X",
        "cli/a.py": "import rich\nfrom ..tracer import a\nfrom ..store.memory import X",
    }
    result = layers(house(tmp_path, files))
    assert result.returncode == 0, result.stderr


def test_an_upward_import_for_types_is_listed_and_allowed(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..tracer import Tracer\n"
    result = layers(house(tmp_path, {"types/a.py": text}))
    assert result.returncode == 0
    assert "for types only, upward" in result.stdout


def test_every_part_of_the_package_stands_in_the_table_and_in_the_drawing() -> None:
    drawing = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    table = SCRIPT.read_text(encoding="utf-8")
    package = ROOT / "agentlightning"
    parts = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    for part in sorted(parts - {"__init__"}):
        assert f'"{part}"' in table
        assert f"`{part}`" in drawing or f"`{part}/`" in drawing
