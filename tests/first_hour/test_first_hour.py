"""What README tells a newcomer to do, done: in an empty folder, with an empty environment and an empty home.

The commands, the files and what the commands print are read out of the page. Only the port is another one, which is free.
``scripts/matrix-first-hour`` runs this: it needs uv, and packages that the tests' own environment does not have.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pyarrow.parquet
import pytest
from blocks import Block, blocks

from agentlightning.testing import ToolCallAnswer, tokens_of, tokens_of_calls, wait_until

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "README.md"
UV = os.environ.get("FIRST_HOUR_UV", "")
"""The program uv, which builds the wheel; without it nothing of this is run."""
PIP = os.environ.get("FIRST_HOUR_PIP", "uv")
"""``uv``: ``pip install`` is done by uv, in a tenth of the time. ``pip``: by pip itself."""
LOCK = ROOT / "scripts" / "locks" / "first-hour.txt"
CLONE = "/path/to/the/clone"
KEPT = re.compile(r"(UV|PIP|SSL)_|(HTTPS|NO)_PROXY$|LANG$|TMPDIR$", re.IGNORECASE)
"""Settings of the machine that lead to an index of packages; its proxy for http is not asked for a local server."""

pytestmark = pytest.mark.skipif(not UV, reason="scripts/matrix-first-hour runs it")


def steady(text: str) -> list[str]:
    """Return the lines of what was printed, with ids, process ids and times in one form, and blanks folded."""
    text = re.sub(r"\bro-[0-9a-f]{12}\b", "ro-…", text)
    text = re.sub(r"\bkill \d+", "kill …", text)
    text = re.sub(r"\+?\b\d+(\.\d+)? (µs|ms|s|min)\b|\+0\b", "…", text)
    return [re.sub(r" {2,}", "  ", line.rstrip()) for line in text.strip().splitlines()]


class Newcomer:
    """Somebody with a shell, an empty folder and an environment without a package."""

    def __init__(self, folder: Path, online: Mapping[str, str]) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        home, venv = folder / "home", folder / "venv"
        home.mkdir()
        kept = {name: value for name, value in online.items() if KEPT.match(name)}
        self.environ = {
            **kept,
            "HOME": str(home),
            "PATH": os.pathsep.join([str(venv / "bin"), "/usr/local/bin", "/usr/bin", "/bin"]),
            "VIRTUAL_ENV": str(venv),
        }
        if PIP == "pip":
            subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
            # pip takes no hashes here: the wheel has none that it could know.
            constraints = folder / "constraints.txt"
            constraints.write_text("\n".join(re.findall(r"^\S+==\S+", LOCK.read_text(), re.MULTILINE)))
            self.environ["PIP_CONSTRAINT"] = str(constraints)
            self.environ["PIP_CACHE_DIR"] = os.environ["FIRST_HOUR_CACHE"]
            # That there is a newer pip is said now and then, as pip sees fit.
            self.environ["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
            return
        subprocess.run([UV, "venv", "-q", "--python", sys.executable, str(venv)], check=True)
        pip = venv / "bin" / "pip"
        pip.write_text(f'#!/bin/sh\nexec "{UV}" pip "$@"\n', encoding="utf-8")
        pip.chmod(0o755)
        self.environ["UV_CONSTRAINT"] = str(LOCK)
        self.environ["UV_CACHE_DIR"] = os.environ["FIRST_HOUR_CACHE"]

    def types(self, command: str) -> str:
        """Run a command and return what it shows on the terminal."""
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        return done.stdout

    def starts(self, command: str, shown: Path) -> subprocess.Popen[str]:
        """Start a command that goes on beside the others, and return when it has shown something."""
        with shown.open("w", encoding="utf-8") as file:
            started = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                text=True,
            )
        wait_until(lambda: shown.stat().st_size > 0 or started.poll() is not None)
        return started


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def the_tour() -> Iterator[tuple[Block, str | None]]:
    """Yield the files and commands of the page, each with what it says that the command prints."""
    marked = [block for block in blocks(PAGE) if block.what != "run"]
    for block, following in zip(marked, [*marked[1:], None], strict=True):
        if block.what != "output":
            yield block, following.text if following and following.what == "output" else None


def test_the_page_leads_from_nothing_to_rows_in_fewer_than_five_commands_and_names_no_endpoint() -> None:
    commands = [line for block, _ in the_tour() if block.what == "tour" for line in block.text.splitlines()]
    to_rows = commands[: 1 + next(index for index, each in enumerate(commands) if "agl export" in each)]
    assert len(to_rows) < 5
    assert to_rows[0].startswith("pip install ")
    assert not [each for each in to_rows if "endpoint" in each.lower()]


def test_the_page_does_what_it_says_and_prints_what_it_shows(
    tmp_path: Path, online: Mapping[str, str]
) -> None:
    newcomer, port = Newcomer(tmp_path, online), free_port()
    subprocess.run(
        [
            *(UV, "build", "-q", "--wheel", "--build-constraints", ROOT / "scripts" / "locks" / "build.txt"),
            *("--out-dir", newcomer.folder / "dist", ROOT),
        ],
        check=True,
        env=online,
    )
    with ExitStack() as started:
        for block, expected in the_tour():
            # The page takes vLLM's port, on which something else may run here.
            text = block.text.replace("8000", port)
            if block.what == "file":
                (newcomer.folder / block.name).write_text(text, encoding="utf-8")
                continue
            if text.rstrip().endswith("&"):
                command = text.rstrip().removesuffix("&")
                server = started.enter_context(
                    newcomer.starts(f"{command} --port {port}", shown := tmp_path / "server.txt")
                )
                started.callback(server.terminate)
                printed = shown.read_text(encoding="utf-8")
            else:
                printed = newcomer.types(text)
            assert steady(printed) == steady((expected or "").replace("8000", port)), text
    (row,) = pyarrow.parquet.read_table(newcomer.folder / "rows.parquet").to_pylist()
    call = ToolCallAnswer("multiply", '{"a": 6, "b": 7}')
    sampled = [token.id for token in (*tokens_of_calls([call]), *tokens_of("The answer is 42."))]
    ids, mask = row["token_ids"], row["loss_mask"]
    assert [token for token, trained in zip(ids, mask, strict=True) if trained] == sampled
    assert json.loads(row["messages"])[0]["content"] == "What is 6 times 7?"


@pytest.mark.skipif(
    PIP != "pip", reason="pip builds the wheel in half a minute; scripts/matrix-first-hour runs it"
)
def test_what_the_page_says_about_a_clone_installs(tmp_path: Path, online: Mapping[str, str]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    clone = tmp_path / "clone"
    shutil.copytree(
        ROOT, clone, ignore=shutil.ignore_patterns(".venv*", ".git", "__pycache__", "build", "dist")
    )
    (from_clone,) = re.findall(rf"^pip install {CLONE}$", page, re.MULTILINE)
    ((build, install),) = re.findall(rf"^(pip wheel .* {CLONE})\n(pip install \S+\.whl)$", page, re.MULTILINE)
    newcomer = Newcomer(tmp_path, online)
    for command in (from_clone, "pip uninstall -q -y agentlightning-otel", build, install):
        newcomer.types(command.replace(CLONE, str(clone)))
    assert newcomer.types("agl --version").startswith("agl ")
