"""The shape of the package: classes of a few attributes, a writer that fits on four pages, comments where they are needed."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "agentlightning"
MODULES = sorted(PACKAGE.rglob("*.py"))

MOST_ATTRIBUTES = 15
LARGE = {"store/memory.py": "MemoryData", "instrumentation/exchange.py": "Exchange"}
"""Classes with more, of which each says in its docstring why."""
LEAST_COMMENTS = 4
"""Lines with a comment per 100 lines of code, over the whole package."""

# A value is what its fields are: their number is that of a format or of the contract, and nothing is gained by nesting them.
VALUES = {"NamedTuple", "TypedDict", "Struct", "BaseModel", "Model", "OpenModel"}


def is_value(node: ast.ClassDef) -> bool:
    """Whether a class is a dataclass, a named tuple, a typed dictionary, or a model of pydantic or msgspec."""
    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
    return bool(bases & VALUES) or any("dataclass" in ast.unparse(mark) for mark in node.decorator_list)


def attributes_of(node: ast.ClassDef) -> set[str]:
    """Return what is assigned to ``self`` in the class's methods, and the annotated names of its body.

    What a base class assigns counts there. A ``ClassVar`` is no attribute of an object.
    """
    names = {
        line.target.id
        for line in node.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.target, ast.Name)
        and "ClassVar" not in ast.unparse(line.annotation)
    }
    names |= {
        found.attr
        for method in node.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
        for found in ast.walk(method)
        if isinstance(found, ast.Attribute)
        and isinstance(found.ctx, ast.Store)
        and isinstance(found.value, ast.Name)
        and found.value.id == "self"
    }
    return names


def classes(path: Path) -> Iterator[ast.ClassDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            yield node


def test_at_most_two_classes_have_more_than_fifteen_attributes_and_say_why() -> None:
    large = {
        path.relative_to(PACKAGE).as_posix(): node
        for path in MODULES
        for node in classes(path)
        if not is_value(node) and len(attributes_of(node)) > MOST_ATTRIBUTES
    }
    assert {path: node.name for path, node in large.items()}.items() <= LARGE.items()
    for node in large.values():
        assert "attributes" in (ast.get_docstring(node) or ""), f"{node.name} does not say why it is so large"


def test_attributes_are_counted_as_they_are_assigned() -> None:
    (node,) = ast.parse(
        "class A:\n"
        "    one: int\n"
        "    two: ClassVar[int] = 2\n"
        "    def __init__(self, other):\n"
        "        self.three, self.four = 3, 4\n"
        "        self.five: int = 5\n"
        "        other.six = self.seven.eight = 8\n"
        "    async def method(self):\n"
        "        self.three += 1\n"
        "        for self.nine in (): pass\n"
    ).body
    assert isinstance(node, ast.ClassDef)
    assert attributes_of(node) == {"one", "three", "four", "five", "nine"}
    assert not is_value(node)


def test_the_writer_is_less_than_two_hundred_lines() -> None:
    (writer,) = classes(PACKAGE / "recorder" / "writer.py")
    assert writer.end_lineno is not None
    assert writer.end_lineno - writer.lineno + 1 < 200


def count(source: str) -> tuple[int, int]:
    """Return the lines of code, docstrings left out, and the lines that have a comment.

    What only speaks to a tool (``noqa``, ``type:``) is no comment unless a reason stands behind it.
    """
    documented = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code, comments = set[int](), set[int]()
    nothing = {
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            if not re.match(r"#\s*(noqa|type:)[^-]*$", token.string):
                comments.add(token.start[0])
        elif token.type not in nothing:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - documented), len(comments)


def test_comments_are_not_fewer_than_they_were() -> None:
    counts = [count(path.read_text(encoding="utf-8")) for path in MODULES]
    code, comments = (sum(numbers) for numbers in zip(*counts, strict=True))
    per_hundred = 100 * comments / code
    assert per_hundred >= LEAST_COMMENTS, f"{per_hundred:.2f} lines with a comment per 100 lines of code"


def test_what_speaks_to_a_tool_alone_is_no_comment() -> None:
    source = '"""Text."""\nx = 1  # noqa: E501\n\n# a reason\ny = (\n    2,  # noqa: E501 - a reason\n)\n'
    assert count(source) == (4, 2)
