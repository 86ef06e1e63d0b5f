"""The same agent in each framework, written as its documentation does: it adds with a tool, and says the sum.

Every program takes the model server and a number, makes two model calls, and returns its answer. The server writes
down what is sampled: ids that name the rollout and the turn.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

from agentlightning.testing import FakeOpenAI
from agentlightning.testing.fake_openai import Answer, AnswerChoice, ReceivedRequest, Token, ToolCallAnswer

CLOSING = {"connection": "close"}
"""So that no idle connection outlives a test."""

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"left": {"type": "integer"}, "right": {"type": "integer"}},
    "required": ["left", "right"],
}
TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "add", "parameters": SCHEMA}}]


class Broken(Exception):
    """A tool fails with it."""


def question(number: int) -> str:
    """Return what the user asks."""
    return f"What is {number} plus 2?"


def answer(number: int) -> str:
    """Return what the agent says in the end."""
    return f"The sum is {number + 2}"


def prompt_ids(number: int, turn: int) -> tuple[int, ...]:
    """Return the ids of the prompt of a turn."""
    return (7, number, turn)


def converse(request: ReceivedRequest) -> Answer:
    """Call the tool first; then say the sum."""
    messages = request.json()["messages"]
    asked = next(message["content"] for message in messages if message["role"] == "user")
    found = re.search(r"\d+", asked if isinstance(asked, str) else asked[0]["text"])
    assert found is not None
    number, turn = int(found.group()), sum(message["role"] == "tool" for message in messages)
    said: Any = {
        "prompt_token_ids": prompt_ids(number, turn),
        "id": f"chatcmpl-{number}-{turn}",
        "model": "policy",
        "ids": "always",
        "logprobs": "always",
    }
    if turn == 1:
        assert messages[-1]["content"] == str(number + 2)
        return Answer.of(answer(number), **said)
    call = ToolCallAnswer("add", json.dumps({"left": number, "right": 2}), f"call_{number}")
    choice = AnswerChoice((Token("", 1000 + number),), (call,), finish_reason="tool_calls")
    return Answer((choice,), **said)


# ---------------------------------------------------------------------- openai


def _with_tool_result(number: int, said: Any) -> list[Any]:
    """Return the conversation after the tool was called as the model asked."""
    (call,) = said.tool_calls
    arguments = json.loads(call.function.arguments)
    return [
        {"role": "user", "content": question(number)},
        {"role": "assistant", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": str(arguments["left"] + arguments["right"])},
    ]


def plain_openai(server: FakeOpenAI, number: int) -> str:
    options: Any = {"model": "policy", "tools": TOOLS, "temperature": 1.0, "top_p": 1.0}
    messages: Any = [{"role": "user", "content": question(number)}]
    with server.client() as client:
        first = client.chat.completions.create(messages=messages, **options)
        messages = _with_tool_result(number, first.choices[0].message)
        stream = client.chat.completions.create(messages=messages, stream=True, **options)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


async def plain_openai_async(server: FakeOpenAI, number: int) -> str:
    options: Any = {"model": "policy", "tools": TOOLS, "temperature": 1.0, "top_p": 1.0}
    messages: Any = [{"role": "user", "content": question(number)}]
    async with server.async_client() as client:
        first = await client.chat.completions.create(messages=messages, **options)
        messages = _with_tool_result(number, first.choices[0].message)
        stream = await client.chat.completions.create(messages=messages, stream=True, **options)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


# ---------------------------------------------------------------------- LiteLLM


def _litellm_options(server: FakeOpenAI) -> dict[str, Any]:
    return {
        "model": "openai/policy",
        "api_base": server.base_url,
        "api_key": server.api_key,
        "tools": TOOLS,
        "temperature": 1.0,
        "top_p": 1.0,
        "extra_headers": CLOSING,
    }


def litellm(server: FakeOpenAI, number: int) -> str:
    library: Any = importlib.import_module("litellm")
    options = _litellm_options(server)
    first = library.completion(messages=[{"role": "user", "content": question(number)}], **options)
    messages = _with_tool_result(number, first.choices[0].message)
    stream = library.completion(messages=messages, stream=True, **options)
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


async def litellm_async(server: FakeOpenAI, number: int) -> str:
    library: Any = importlib.import_module("litellm")
    options = _litellm_options(server)
    first = await library.acompletion(messages=[{"role": "user", "content": question(number)}], **options)
    messages = _with_tool_result(number, first.choices[0].message)
    stream = await library.acompletion(messages=messages, stream=True, **options)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


# ---------------------------------------------------------------------- LangChain and LangGraph


def _chat_model(server: FakeOpenAI) -> Any:
    library: Any = importlib.import_module("langchain_openai")
    return library.ChatOpenAI(
        model="policy",
        base_url=server.base_url,
        api_key=server.api_key,
        temperature=1.0,
        top_p=1.0,
        default_headers=CLOSING,
    )


def _add_tool(error: Any = None) -> Any:
    tools: Any = importlib.import_module("langchain_core.tools")

    def add(left: int, right: int) -> int:
        """Add two integers."""
        if error is not None:
            raise error
        return left + right

    return tools.tool(add)


def langchain_agent(server: FakeOpenAI, error: Any = None) -> Any:
    agents: Any = importlib.import_module("langchain.agents")
    return agents.create_agent(_chat_model(server), [_add_tool(error)])


def langgraph_agent(server: FakeOpenAI, error: Any = None) -> Any:
    graphs: Any = importlib.import_module("langgraph.graph")
    prebuilt: Any = importlib.import_module("langgraph.prebuilt")
    runnables: Any = importlib.import_module("langchain_core.runnables")
    add = _add_tool(error)
    model = _chat_model(server).bind_tools([add])

    def call_model(state: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [model.invoke(state["messages"])]}

    async def call_model_async(state: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = graphs.StateGraph(graphs.MessagesState)
    graph.add_node("call_model", runnables.RunnableLambda(call_model, call_model_async))
    graph.add_node("tools", prebuilt.ToolNode([add]))
    graph.add_edge(graphs.START, "call_model")
    graph.add_conditional_edges("call_model", prebuilt.tools_condition)
    graph.add_edge("tools", "call_model")
    return graph.compile()


def asked(number: int) -> dict[str, Any]:
    """Return the state that an agent of LangChain or LangGraph starts with."""
    return {"messages": [{"role": "user", "content": question(number)}]}


def said_in(chunks: list[Any]) -> str:
    """Return what the model said in the chunks of ``stream_mode='messages'``."""
    return "".join(str(message.content) for message, _ in chunks if message.type == "AIMessageChunk")


# ---------------------------------------------------------------------- openai-agents


def openai_agent(server: FakeOpenAI, client: Any, error: Any = None, *, through_litellm: bool = False) -> Any:
    library: Any = importlib.import_module("agents")

    def add(left: int, right: int) -> int:
        """Add two integers."""
        if error is not None:
            raise error
        return left + right

    model = library.OpenAIChatCompletionsModel("policy", client)
    if through_litellm:
        extension: Any = importlib.import_module("agents.extensions.models.litellm_model")
        model = extension.LitellmModel("openai/policy", server.base_url, server.api_key)
    return library.Agent(
        name="calculator",
        instructions="Use the tool.",
        tools=[library.function_tool(add, failure_error_function=None)],
        model=model,
        model_settings=library.ModelSettings(temperature=1.0, top_p=1.0, extra_headers=CLOSING),
    )
