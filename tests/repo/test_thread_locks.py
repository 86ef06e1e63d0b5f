"""Every lock of the package says what it guards, and has two tests in which threads change places after a microsecond."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import agentlightning

PACKAGE = Path(agentlightning.__file__).parent
TESTS = Path(__file__).resolve().parents[1]
MADE_BY = frozenset({"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "reentrant_lock"})
MAKER = "_locks.py"
"""Makes those of ``reentrant_lock``, each for somebody else."""


class LockOf(NamedTuple):
    """Where a lock is made."""

    name: str
    """``store.memory:MemoryData.lock``: the module in the package, and the attribute or the global variable."""
    file: Path
    line: int
    is_explained: bool
    """Whether a comment stands before or beside it, or a docstring behind it."""


@cache
def locks() -> list[LockOf]:
    """Return every place of the package where a lock is made and kept, in order."""
    return [lock for path in sorted(PACKAGE.rglob("*.py")) if path.name != MAKER for lock in _locks_of(path)]


def _locks_of(path: Path) -> Iterator[LockOf]:
    source = path.read_text(encoding="utf-8")
    if not any(name in source for name in MADE_BY):
        return
    lines = source.splitlines()
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for class_name, body in _bodies(ast.parse(source), ""):
        for statement, following in zip(body, [*body[1:], None], strict=True):
            if not isinstance(statement, (ast.Assign, ast.AnnAssign)):
                continue
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target, value in _pairs(targets[0], statement.value):
                if not _makes_a_lock(value):
                    continue
                name = ast.unparse(target).replace("self.", f"{class_name}.")
                documented = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                commented = "#" in lines[statement.lineno - 1] or _comes_after_comment(
                    lines, statement.lineno
                )
                yield LockOf(f"{module}:{name}", path, statement.lineno, documented or commented)


def _bodies(node: ast.AST, class_name: str) -> Iterator[tuple[str, list[ast.stmt]]]:
    """Yield every list of statements, with the name of the class that it is in."""
    for _, value in ast.iter_fields(node):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            yield class_name, value
    for child in ast.iter_child_nodes(node):
        yield from _bodies(child, child.name if isinstance(child, ast.ClassDef) else class_name)


def _pairs(target: ast.expr, value: ast.expr | None) -> list[tuple[ast.expr, ast.expr | None]]:
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return list(zip(target.elts, value.elts, strict=True))
    return [(target, value)]


def _makes_a_lock(value: ast.expr | None) -> bool:
    if not isinstance(value, ast.Call):
        return False
    if isinstance(value.func, ast.Attribute):
        return value.func.attr in MADE_BY and ast.unparse(value.func.value) == "threading"
    return isinstance(value.func, ast.Name) and value.func.id in MADE_BY


def _comes_after_comment(lines: list[str], number: int) -> bool:
    """Whether a comment stands before the block of assignments that a line belongs to."""
    for line in reversed(lines[: number - 1]):
        if line.lstrip().startswith("#"):
            return True
        if "Lock()" not in line:
            return False
    return False


@cache
def names_in_tests() -> Counter[str]:
    """Return how many tests name a lock, by ``@pytest.mark.lock(name)``."""
    found: Counter[str] = Counter()
    for path in TESTS.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "mark.lock(" not in source:
            continue
        for function in ast.walk(ast.parse(source)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for mark in function.decorator_list:
                    if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.lock":
                        found[ast.literal_eval(mark.args[0])] += 1
    return found


def test_every_lock_has_two_tests() -> None:
    found = names_in_tests()
    assert {lock.name for lock in locks() if found[lock.name] < 2} == set()


def test_every_lock_that_a_test_names_exists() -> None:
    assert set(names_in_tests()) - {lock.name for lock in locks()} == set()


def test_every_lock_says_what_it_guards() -> None:
    explained = {
        lock.name for lock in locks() if lock.is_explained
    }  # one that is made anew after a fork, at one place
    assert {lock.name for lock in locks()} - explained == set()
