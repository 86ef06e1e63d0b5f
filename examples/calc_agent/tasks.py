"""Questions about two small numbers, and how good an answer to one of them is.

A question is worded in one of two ways, and may name its numbers in the reverse of the order in which the tool
wants them, so neither the tool nor its arguments can be told without the words. A pair of numbers serves either
for training or for testing, never for both: what is right on the test questions was not learnt by heart.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TypedDict

from .agent import TOOLS, Solution

LARGEST = 20
"""No answer is larger, which keeps the vocabulary of the policy small."""

WORDINGS: Mapping[str, tuple[str, str]] = {
    "add": ("{a} plus {b}", "tom has {a} apples and finds {b} more"),
    "subtract": ("{a} minus {b}", "take {b} from {a}"),
    "multiply": ("{a} times {b}", "{a} boxes of {b} eggs"),
}


class Task(TypedDict):
    """One question and what solving it takes; plain JSON, so that it can be the input of a rollout."""

    question: str
    tool: str
    a: int
    b: int
    answer: str


def all_tasks() -> list[Task]:
    """Return every question about two numbers from 1 to 9 whose answer is between 0 and ``LARGEST``."""
    return [
        Task(question=wording.format(a=a, b=b), tool=tool, a=a, b=b, answer=str(TOOLS[tool](a, b)))
        for tool, wordings in WORDINGS.items()
        for a in range(1, 10)
        for b in range(1, 10)
        if 0 <= TOOLS[tool](a, b) <= LARGEST
        for wording in wordings
    ]


def split(seed: int) -> tuple[list[Task], list[Task]]:
    """Return (training tasks, test tasks): a fifth of all pairs of numbers, chosen by ``seed``, is for testing."""
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    held_out = set(random.Random(seed).sample(pairs, len(pairs) // 5))
    tasks = all_tasks()
    return (
        [task for task in tasks if (task["a"], task["b"]) not in held_out],
        [task for task in tasks if (task["a"], task["b"]) in held_out],
    )


def some_of_each(tasks: list[Task], number: int, chance: random.Random) -> list[Task]:
    """Return about ``number`` of ``tasks``, drawn by ``chance``, as many for each tool."""
    chosen: list[Task] = []
    for tool in TOOLS:
        chosen += chance.sample([task for task in tasks if task["tool"] == tool], number // len(TOOLS))
    return chosen


def score(solution: Solution, task: Task) -> float:
    """Return the reward of a solution, from 0 to 1: a quarter for each of four things.

    The right tool; its two arguments (an eighth each); an answer of one word; and that word being the right
    number. Who says any word at any time earns about 0.02.
    """
    words = solution.answer.split()
    return (
        0.25 * (solution.tool == task["tool"])
        + 0.125 * (solution.arguments.get("a") == task["a"])
        + 0.125 * (solution.arguments.get("b") == task["b"])
        + 0.25 * (len(words) == 1)
        + 0.25 * (words == [task["answer"]])
    )
