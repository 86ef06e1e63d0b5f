"""Check that imports go down the list of layers, never up, and that nothing imports in a circle.

``LAYERS`` is the one table; ``docs/explanation/architecture.md`` draws it. Every import statement counts,
also inside functions: a cycle is not fixed by hiding it there. Imports under ``if TYPE_CHECKING`` are not
executed; they may go up and are listed, so that nobody overlooks them. Standard library only, so that it runs
anywhere.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "agentlightning"

WORDS, PURE, KEEP, CAPTURE, SERVE, WORK, SHELLS = range(7)

LAYERS: dict[str, int] = {
    "types": WORDS,
    "semconv": WORDS,
    "errors": WORDS,
    "env_var": WORDS,
    "_lazy": WORDS,
    "_coinstall": WORDS,
    "_turn": WORDS,
    "_threads": WORDS,
    "_private_files": WORDS,
    "_handover": WORDS,
    "_printable": WORDS,
    "codec": PURE,
    "pipeline": PURE,
    "adapter": PURE,
    "logging": PURE,
    "remote": PURE,
    "store": KEEP,
    "instrumentation": CAPTURE,
    "tracer": CAPTURE,
    "integrations": CAPTURE,
    "emitter": CAPTURE,
    "server": SERVE,
    "gateway": SERVE,
    "exporters": WORK,
    "verify": WORK,
    "litagent": WORK,
    "runner": WORK,
    "execution": WORK,
    "algorithm": WORK,
    "trainer": WORK,
    "cli": SHELLS,
    "testing": SHELLS,
    "pytest_plugin": SHELLS,
}
"""First component below the package → layer."""

NAMES = ("0 words", "1 pure", "2 keep", "3 capture", "4 serve", "5 work", "6 shells")

ROOT_MAY_IMPORT = {"_lazy", "_coinstall"}
"""What ``agentlightning/__init__.py`` loads; every other name is resolved on first use."""

CAPTURE_MAY_KEEP = {"store", "store.base", "store.registry"}
"""The part of layer 2 that layer 3 may know: the contract and the way from a URL to a store."""

SHELL_MAY_IMPORT: dict[str, frozenset[str]] = {
    "pytest_plugin": frozenset({"testing"}),
    "cli": frozenset({"testing"}),  # agl doctor asks the model server for tests
}
"""Shells that another shell is made of."""

SERVE_MUST_NOT = CAPTURE
"""Layer 4 takes spans through the store; how they were captured is not its business."""

LEAVES = frozenset({"reward", "utils", "tracer.agentops", "instrumentation.agentops"})
"""Modules that only keep import paths of 0.x alive: a lazy table of names each, which nobody inside imports."""

LEAVES_MAY_IMPORT = {"_lazy"}

OPENTELEMETRY = "opentelemetry"
PYDANTIC = frozenset({"pydantic", "pydantic_core"})

FOREIGN: dict[str, frozenset[str]] = {
    "": frozenset(),
    "semconv": frozenset(),
    "errors": frozenset(),
    "env_var": frozenset(),
    "_lazy": frozenset(),
    "_coinstall": frozenset(),
    "_turn": frozenset(),
    "_threads": frozenset(),
    "_handover": frozenset(),
    "_printable": frozenset(),
    "types": PYDANTIC,
    "codec": PYDANTIC | {OPENTELEMETRY, "msgspec"},
    "pipeline": PYDANTIC | {OPENTELEMETRY},
    "adapter": PYDANTIC | {OPENTELEMETRY},
    "logging": frozenset({OPENTELEMETRY}),
    "remote": frozenset({"certifi", "requests"}),
    "store": PYDANTIC,
    "instrumentation": frozenset(
        {OPENTELEMETRY, "aiohttp", "anyio", "httpcore", "httpx", "httpx2", "requests", "urllib3"}
    ),
    "tracer": PYDANTIC | {OPENTELEMETRY},
    "integrations": frozenset(
        {OPENTELEMETRY, "flask", "requests", "setproctitle", "werkzeug"}
    ),  # the local AgentOps server runs in a process of its own
    "emitter": PYDANTIC | {OPENTELEMETRY},
    "reward": frozenset(),
    "utils": frozenset(),
    "cli": frozenset({"rich", "pyarrow", "packaging"}),
    "testing": PYDANTIC | {OPENTELEMETRY, "hypothesis", "openai", "pytest", "pytest_asyncio"},
    "pytest_plugin": frozenset({"pytest"}),
}
"""Which packages that are not the standard library a part may import; parts without an entry are free."""


def dotted(module: str) -> str:
    """Return the name of one of our modules as Python writes it."""
    return f"{PACKAGE}.{module}".rstrip(".")


@dataclass(frozen=True)
class Import:
    """One import statement's one target."""

    module: str
    """Dotted name of the importing module, without the package; "" is the root."""
    target: str
    """Dotted name of the imported module: without the package if it is ours, else as written."""
    ours: bool
    line: int
    path: Path
    type_only: bool

    def __str__(self) -> str:
        target = dotted(self.target) if self.ours else self.target
        return f"{self.path}:{self.line}: {PACKAGE}.{self.module} imports {target}".replace(
            f"{PACKAGE}. ", f"{PACKAGE} "
        )


def modules_of(root: Path) -> dict[str, Path]:
    """Return dotted name (without the package) → file of every module below ``root/agentlightning``."""
    base = root / PACKAGE
    found = {}
    for path in sorted(base.rglob("*.py")):
        parts = list(path.relative_to(base).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        found[".".join(parts)] = path
    return found


def is_type_checking(test: ast.expr) -> bool:
    """Whether a condition is ``TYPE_CHECKING`` or ``typing.TYPE_CHECKING``."""
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def statements(
    node: ast.AST, *, type_only: bool = False
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Yield every import statement below ``node``, and whether it is for type checkers only."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node, type_only
        return
    if isinstance(node, ast.If) and is_type_checking(node.test):
        for guarded in node.body:
            yield from statements(guarded, type_only=True)
        for other in node.orelse:
            yield from statements(other, type_only=type_only)
        return
    for child in ast.iter_child_nodes(node):
        yield from statements(child, type_only=type_only)


def absolute(node: ast.ImportFrom, module: str, *, is_package: bool) -> str:
    """Return the dotted name that a ``from`` statement names, with the package."""
    if not node.level:
        return node.module or ""
    here = [PACKAGE, *module.split(".")] if module else [PACKAGE]
    above = here[: len(here) - node.level + (1 if is_package else 0)]
    return ".".join([*above, *(node.module or "").split(".")]).rstrip(".")


def imports_of(module: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """Yield a module's imports; in ``from package import x`` a submodule ``x`` is itself the target."""

    def one(name: str, line: int, *, type_only: bool) -> Import:
        ours = name == PACKAGE or name.startswith(f"{PACKAGE}.")
        target = name.removeprefix(PACKAGE).removeprefix(".") if ours else name
        return Import(module, target, ours, line, path, type_only)

    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    for node, type_only in statements(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield one(alias.name, node.lineno, type_only=type_only)
            continue
        source = absolute(node, module, is_package=path.name == "__init__.py")
        ours = source == PACKAGE or source.startswith(f"{PACKAGE}.")
        below = {f"{source}.{alias.name}".removeprefix(f"{PACKAGE}.") for alias in node.names}
        targets = {dotted(name) if ours and name in known else source for name in below}
        for target in sorted(targets):
            yield one(target, node.lineno, type_only=type_only)


def part(module: str) -> str:
    """Return the first component of a dotted name: the row of the table."""
    return module.partition(".")[0]


def is_leaf(module: str) -> bool:
    """Whether a module is one of :data:`LEAVES`, or lies below one."""
    return any(module == leaf or module.startswith(f"{leaf}.") for leaf in LEAVES)


def complaint(found: Import) -> str | None:
    """Return why an executed import is not allowed, or ``None``."""
    if not found.ours:
        return foreign_complaint(found)
    here, there = part(found.module), part(found.target)
    if is_leaf(found.target) and not is_leaf(found.module):
        return "an old import path; import from the new one"
    if is_leaf(found.module) and not is_leaf(found.target):
        return (
            None if there in LEAVES_MAY_IMPORT else "an old import path is a lazy table of names, and no more"
        )
    if here == there:
        return None
    if not there:
        return "the root resolves names lazily; import the module that defines the name"
    if there not in LAYERS:
        return f"{there!r} has no layer; add it to the table in scripts/_layers.py and to architecture.md"
    if not here:
        return None if there in ROOT_MAY_IMPORT else "the root loads nothing but its lazy table"
    if here not in LAYERS:
        return f"{here!r} has no layer; add it to the table in scripts/_layers.py and to architecture.md"
    ours, theirs = LAYERS[here], LAYERS[there]
    if theirs == SHELLS and there not in SHELL_MAY_IMPORT.get(here, ()):
        return "nobody imports a shell"
    if theirs > ours:
        return f"layer {NAMES[ours]} must not know layer {NAMES[theirs]}"
    if ours == CAPTURE and theirs == KEEP and found.target not in CAPTURE_MAY_KEEP:
        return "capture knows store.base and store.registry only"
    if ours == SERVE and theirs == SERVE_MUST_NOT:
        return f"layer {NAMES[SERVE]} must not know layer {NAMES[CAPTURE]}"
    return None


def foreign_complaint(found: Import) -> str | None:
    """Return why a part may not import this package, or ``None``."""
    package = found.target.partition(".")[0]
    here = part(found.module)
    if package in sys.stdlib_module_names or here not in FOREIGN or package in FOREIGN[here]:
        return None
    allowed = ", ".join(sorted(FOREIGN[here])) or "the standard library"
    return f"{dotted(here)} may import {allowed}"


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected groups of more than one module (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def check(root: Path) -> tuple[list[str], list[str], int]:
    """Return complaints, type-only imports that go up, and the number of imports that were looked at."""
    known = modules_of(root)
    problems: list[str] = []
    upward: list[str] = []
    edges: dict[str, set[str]] = {}
    count = 0
    for module, path in known.items():
        for found in imports_of(module, path, known):
            count += 1
            reason = complaint(found)
            if found.type_only:
                if (
                    reason and found.ours and found.module and not is_leaf(found.module)
                ):  # the root names everything
                    upward.append(str(found))
                continue
            if reason:
                problems.append(f"{found}: {reason}")
            if found.ours and found.target in known and found.target != found.module:
                edges.setdefault(found.module, set()).add(found.target)
    problems += ["a cycle of imports: " + ", ".join(map(dotted, group)) for group in cycles(edges)]
    return problems, upward, count


def main() -> int:
    """Print what is wrong; return 1 if anything is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).resolve().parent.parent, help="repository"
    )
    root = parser.parse_args().root
    problems, upward, count = check(root)
    for line in sorted(upward):
        print(f"for types only, upward: {line}")
    for line in sorted(problems):
        print(line, file=sys.stderr)
    print(f"layers: {count} imports, {len(problems)} against the table")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
