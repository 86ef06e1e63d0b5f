"""The commands of the page on TRL do what it says."""

from __future__ import annotations

import subprocess

import pytest
from pages import commands

pytest.importorskip("trl", reason="needs pip install 'agentlightning-otel[trl]'")


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("command", commands("train-with-trl.md"), ids=lambda each: each[-1])
def test_the_command_learns(command: list[str]) -> None:
    subprocess.run(command, check=True)  # it exits with 1 where the reward has not risen
