"""What a run depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What a run depends on. Runs that differ in nothing but ``at_once`` have the same curve."""

    seed: int = 0
    control: bool = False
    """Whether rewards are given to the wrong rollouts."""
    iterations: int = 40
    tasks: int = 6
    """Tasks in an iteration, a third of them for each tool."""
    samples: int = 8
    """Rollouts of each task: the group whose mean is its baseline."""
    test_every: int = 8
    """Iterations from one test to the next."""
    at_once: int = 24
    """Rollouts that are under way at the same time."""
