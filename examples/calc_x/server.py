"""The quickstart's policy with a parser for its tool calls, as serving engines have one for each family of models.

The policy samples three words, ``subtract 8 3``; whoever talks to the chat API sees a call of the MCP calculator's
tool, ``calculate(expression="8 - 3")``. Words that are no such call stay as they are, for the calculator to refuse.
The way back is exact: the prompt of the next turn holds the very tokens that were sampled in this one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from ..calc_agent.server import PolicyServer

TOOL = "calculate"
SIGNS = {"add": "+", "subtract": "-", "multiply": "*"}
NAMES = {sign: name for name, sign in SIGNS.items()}
EXPRESSION = re.compile(r"(\d+) *([-+*]) *(\d+)")


class CalculatorPolicyServer(PolicyServer):
    """Serves a policy whose tool calls are calls of ``calculate``."""

    def chat(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request of the chat API."""
        messages = [rewritten(message, to_words) for message in request["messages"]]
        completion = super().chat({**request, "messages": messages})
        choice = completion["choices"][0]
        choice["message"] = rewritten(choice["message"], to_calculator)
        return completion


def rewritten(
    message: Mapping[str, Any], function_of: Callable[[Mapping[str, str]], dict[str, str]]
) -> dict[str, Any]:
    """Return the message with each function that it calls replaced."""
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    return {**message, "tool_calls": [{**call, "function": function_of(call["function"])} for call in calls]}


def to_calculator(function: Mapping[str, str]) -> dict[str, str]:
    """Return a call as the policy makes it as one of ``calculate``."""
    name, arguments = function["name"], json.loads(function["arguments"])
    values = list(arguments.values())
    if name in SIGNS and len(values) == 2 and all(isinstance(each, int) for each in values):
        expression = f"{values[0]} {SIGNS[name]} {values[1]}"
    else:
        expression = " ".join([name, *map(str, values)])
    return {"name": TOOL, "arguments": json.dumps({"expression": expression})}


def to_words(function: Mapping[str, str]) -> dict[str, str]:
    """Return a call of ``calculate`` as the policy makes it; undoes ``to_calculator``."""
    name, arguments = read(str(json.loads(function["arguments"]).get("expression", "")))
    return {"name": name, "arguments": json.dumps(arguments)}


def read(expression: str) -> tuple[str, dict[str, Any]]:
    """Return the name of the operation in an expression of two numbers, and the numbers as ``a`` and ``b``.

    Of anything else, the first word and the next two.
    """
    found = EXPRESSION.fullmatch(expression.strip())
    if found:
        return NAMES[found[2]], {"a": int(found[1]), "b": int(found[3])}
    name, *rest = expression.split() or [""]
    return name, dict(zip("ab", rest, strict=False))
