"""A calculator behind the Model Context Protocol (MCP), over stdio: one tool, ``calculate``.

An expression is parsed as Python and only its arithmetic is computed; nothing of it is executed. Size and time are
bounded, since a model may ask for anything. What cannot be computed is a tool error, which the model gets to read.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

LONGEST = 200
"""Characters of an expression."""
LARGEST = 1e15
"""Magnitude of any number in it and of any result: up to here whole numbers are exact as floats, too."""
LARGEST_EXPONENT = 64
"""With ``LARGEST``, bounds the work of one power."""

BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}

server = MCPServer("calculator", log_level="WARNING")


@server.tool()
def calculate(expression: str) -> str:
    """Compute an arithmetic expression such as "2 * (3 + 4)"; knows + - * / // % ** and parentheses."""
    if len(expression) > LONGEST:
        raise ToolError(f"an expression may have {LONGEST} characters, not {len(expression)}")
    try:
        parsed = ast.parse(expression.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:  # ValueError: a NUL, or a number of too many digits
        raise ToolError(f"not an arithmetic expression: {expression}") from error
    try:
        result = value(parsed)
    except ArithmeticError as error:
        raise ToolError(f"cannot compute {expression}: {error}") from error
    return str(int(result) if result == int(result) else result)


def value(node: ast.expr) -> float:
    """Return the value of a parsed expression.

    Raises:
        ToolError: There is more in it than arithmetic, or a number is too large or not real.
        ArithmeticError: A division by zero, or an overflow.
    """
    if isinstance(node, ast.Constant) and type(node.value) in {int, float}:
        return bounded(node.value)
    if isinstance(node, ast.UnaryOp) and type(node.op) in UNARY:
        return bounded(UNARY[type(node.op)](value(node.operand)))
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        left, right = value(node.left), value(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > LARGEST_EXPONENT:
            raise ToolError(f"an exponent may be up to {LARGEST_EXPONENT}, not {right}")
        return bounded(BINARY[type(node.op)](left, right))
    raise ToolError(f"not arithmetic: {ast.unparse(node)}")


def bounded(number: Any) -> float:
    """Return the number.

    Raises:
        ToolError: It is larger than the calculator goes, or complex.
    """
    if isinstance(number, complex):
        raise ToolError("the result is not a real number")
    if abs(number) > LARGEST:
        raise ToolError(f"the calculator goes up to {LARGEST:.0e}")
    return number  # type: ignore[no-any-return]


if __name__ == "__main__":
    server.run("stdio")
