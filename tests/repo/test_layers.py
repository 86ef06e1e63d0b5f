"""The contracts of ``.importlinter`` refuse what they are there for: each kind of wrong import is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "tools" / "layers.py"
CONTRACTS = (ROOT / ".importlinter").read_text(encoding="utf-8")


def layers(root: Path) -> tuple[int, str]:
    """The status, and all that was said as one line."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--root", str(root)],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def parts() -> set[str]:
    """All parts that have a layer."""
    config = ConfigParser()
    config.read_string(CONTRACTS)
    return set(re.findall(r"\w+", config["importlinter:contract:layers"]["layers"]))


def house(folder: Path, files: dict[str, str]) -> Path:
    """A package of one empty module per part, under the same contracts, and then these files."""
    # What the contracts except is not in this house.
    text = CONTRACTS.replace("unmatched_ignore_imports_alerting = none\n", "")
    text = text.replace("ignore_imports =\n", "unmatched_ignore_imports_alerting = none\nignore_imports =\n")
    (folder / ".importlinter").write_text(text, encoding="utf-8")
    empty = [f"{part}/__init__.py" for part in parts()]
    empty += ["__init__.py", "store/base.py", "store/registry.py", "store/memory.py"]
    for name, content in {**dict.fromkeys(empty, ""), **files}.items():
        path = folder / "agentlightning" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    return folder


def test_this_repository_keeps_its_layers() -> None:
    status, said = layers(ROOT)
    assert status == 0, said


WRONG = {
    "codec/up.py": (
        "from ..store.base import A",
        "agentlightning.codec.up -> agentlightning.store.base (l.1)",
    ),
    "store/hidden.py": (
        "def f():\n    import agentlightning.tracer",
        "agentlightning.store.hidden -> agentlightning.tracer (l.2)",
    ),
    "types/typed.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..emitter import A",
        "agentlightning.types.typed -> agentlightning.emitter (l.3)",
    ),
    "tracer/concrete.py": (
        "from ..store.memory import A",
        "agentlightning.tracer.concrete -> agentlightning.store.memory (l.1)",
    ),
    "emitter/concrete.py": (
        "from ..store import memory",
        "agentlightning.emitter.concrete -> agentlightning.store.memory (l.1)",
    ),
    "tracer/shell.py": ("from ..cli import A", "agentlightning.tracer.shell -> agentlightning.cli (l.1)"),
    "testing/shell.py": ("from ..cli import A", "agentlightning.testing.shell -> agentlightning.cli (l.1)"),
    "types/root.py": (
        "from agentlightning import Span",
        "agentlightning.types.root -> agentlightning (l.1): import the module that defines the name",
    ),
    "__init__.py": (
        "from .types import Span",
        "agentlightning -> agentlightning.types (l.1): a lazy table of names, and no more",
    ),
    "store/foreign.py": (
        "import fastapi",
        "agentlightning.store.foreign -> fastapi (l.1): store may import pydantic, pydantic_core",
    ),
    "errors/foreign.py": (
        "import pydantic",
        "agentlightning.errors.foreign -> pydantic (l.1): errors may import the standard library",
    ),
    "tracer/old.py": (
        "from .. import utils",
        "agentlightning.tracer.old -> agentlightning.utils (l.1): an old import path",
    ),
    "reward/__init__.py": (
        "from ..types import A",
        "agentlightning.reward -> agentlightning.types (l.1): a lazy table of names, and no more",
    ),
    "novelty.py": ("", "not listed as layers: - agentlightning.novelty"),
}
"""File → what it holds, and what is said of it."""


@pytest.fixture(scope="module")
def said_of_wrong(tmp_path_factory: pytest.TempPathFactory) -> str:
    files = {name: content for name, (content, _) in WRONG.items()}
    status, said = layers(house(tmp_path_factory.mktemp("wrong"), files))
    assert status == 1
    return said


@pytest.mark.parametrize("name", WRONG)
def test_an_import_against_the_contracts_is_named_with_its_line(name: str, said_of_wrong: str) -> None:
    assert WRONG[name][1] in said_of_wrong


def test_no_cycle_passes(tmp_path: Path) -> None:
    files = {
        "store/memory.py": "from . import base",
        "store/base.py": "def f():\n    from . import memory",
        "types/__init__.py": "from .core import A",
        "types/core.py": "from . import B",
        "tracer/a.py": "from .b import B",
        "tracer/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import A",
    }
    status, said = layers(house(tmp_path, files))
    assert status == 1
    assert "No cycles are allowed in agentlightning.store." in said
    assert "No cycles are allowed in agentlightning.tracer." in said
    assert "agentlightning.types.core -> agentlightning.types (l.1): import the module" in said


def test_imports_down_the_layers_pass(tmp_path: Path) -> None:
    files = {
        "__init__.py": "from . import _lazy",
        "_lazy/__init__.py": "import importlib",
        "tracer/a.py": "from ..store.base import X\nfrom ..store import registry\nimport opentelemetry.trace",
        "store/memory.py": "from ..types import Span\nfrom .base import X",
        "cli/a.py": "import rich\nfrom ..tracer import a\nfrom ..store.memory import X\nfrom ..testing import A",
    }
    status, said = layers(house(tmp_path, files))
    assert status == 0, said


def test_every_part_of_the_package_stands_in_the_drawing() -> None:
    drawing = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    for part in sorted(parts()):
        assert f"`{part}`" in drawing or f"`{part}/`" in drawing
