"""The task: boxes that name the next box, a treasure in the last one, and the reward for what was said of it.

The user names the first box. A box holds the number of another box, or a treasure. Who opens the boxes in their
order and then says the treasure gets 1. The policy that does it says of whatever it heard last the right thing:
a number is a box to open, anything else is the answer.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

BOXES = 8
"""Boxes are numbered from 1."""
TREASURES = ("amber", "coral", "gold", "ivory", "pearl", "ruby")


@dataclass(frozen=True)
class Task:
    """One hunt: the boxes to open, in order, and what is in the last of them."""

    path: tuple[int, ...]
    treasure: str

    @property
    def question(self) -> str:
        """What the user says."""
        return f"box {self.path[0]}"

    @property
    def boxes(self) -> Mapping[int, str]:
        """What is in each box; in one that is not on the path there is ``nothing``."""
        return dict(
            zip(self.path, [*(f"box {number}" for number in self.path[1:]), self.treasure], strict=True)
        )


@dataclass
class Played:
    """What an agent did."""

    opened: list[int] = field(default_factory=list)
    """The boxes, in order; a call that names no box counts as box 0."""
    answer: str = ""


def all_tasks() -> list[Task]:
    """Return every task of one and of two boxes, in a fixed order."""
    numbers = range(1, BOXES + 1)
    paths: list[tuple[int, ...]] = [(first,) for first in numbers]
    paths += [(first, second) for first in numbers for second in numbers if first != second]
    return [Task(path, treasure) for path in paths for treasure in TREASURES]


def split(seed: int, held_out: int = 64) -> tuple[list[Task], list[Task]]:
    """Return the tasks to train on and ``held_out`` others to test on; an equal seed gives an equal split."""
    tasks = all_tasks()
    random.Random(seed).shuffle(tasks)
    return tasks[held_out:], tasks[:held_out]


def some_of_each(tasks: Sequence[Task], count: int, chance: random.Random) -> list[Task]:
    """Return ``count`` tasks, as many of one box as of two (one more of two where ``count`` is odd)."""
    short = [task for task in tasks if len(task.path) == 1]
    long = [task for task in tasks if len(task.path) == 2]
    return [*chance.choices(short, k=count // 2), *chance.choices(long, k=count - count // 2)]


def score(played: Played, task: Task) -> float:
    """Return the reward, from 0 to 1.

    Half is for the boxes: the share of the path that was opened in order, less what was opened beside it, not below
    0. A tenth is for an answer that names any treasure, four tenths for naming the right one.
    """
    right = 0
    for opened, wanted in zip(played.opened, task.path, strict=False):
        if opened != wanted:
            break
        right += 1
    wrong = len(played.opened) - right
    share = max(0.0, (right - 0.5 * wrong) / len(task.path))
    return 0.5 * share + 0.1 * (played.answer in TREASURES) + 0.4 * (played.answer == task.treasure)
