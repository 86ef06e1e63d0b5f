"""The programs that are recorded, written as the documentation of each library does.

They run in environments that have the library and OpenTelemetry and nothing of ours: only what a program uses is
imported. Each talks to the model server at ``CORPUS_MODEL`` and ends; what it gives back is of no interest.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

SYSTEM = {"role": "system", "content": "Be short."}
GREETING = [SYSTEM, {"role": "user", "content": "Say hello."}]
QUESTION = [SYSTEM, {"role": "user", "content": "What is 5 plus 2?"}]
SCHEMA = {
    "type": "object",
    "properties": {"left": {"type": "integer"}, "right": {"type": "integer"}},
    "required": ["left", "right"],
}
TOOLS = [
    {
        "type": "function",
        "function": {"name": "add", "description": "Add two integers.", "parameters": SCHEMA},
    }
]
SAMPLING = {"temperature": 1.0, "top_p": 1.0}
CLOSING = {"connection": "close"}


def base_url() -> str:
    """Return where the model is."""
    return os.environ["CORPUS_MODEL"]


def add(left: int, right: int) -> int:
    """Add two integers."""
    return left + right


# ---------------------------------------------------------------------- openai


def client() -> Any:
    import openai

    return openai.OpenAI(base_url=base_url(), api_key="unused", max_retries=0, default_headers=CLOSING)


def openai_chat(**options: Any) -> None:
    client().chat.completions.create(model="policy", messages=GREETING, **SAMPLING, **options)


def openai_async() -> None:
    import openai

    async def run() -> None:
        chat: Any = openai.AsyncOpenAI(base_url=base_url(), api_key="unused", default_headers=CLOSING)
        async with chat as model:
            await model.chat.completions.create(model="policy", messages=GREETING, **SAMPLING)

    asyncio.run(run())


def openai_stream() -> None:
    usage = {"stream_options": {"include_usage": True}}
    for _ in client().chat.completions.create(
        model="policy", messages=GREETING, stream=True, **SAMPLING, **usage
    ):
        continue


def openai_stream_helper() -> None:
    chat = client()
    library = (
        chat.chat.completions if hasattr(chat.chat.completions, "stream") else chat.beta.chat.completions
    )
    with library.stream(model="policy", messages=GREETING, **SAMPLING) as stream:
        stream.until_done()


def openai_two_choices() -> None:
    openai_chat(n=2)


def openai_parse() -> None:
    from pydantic import BaseModel

    class Sum(BaseModel):
        value: int

    client().chat.completions.parse(model="policy", messages=QUESTION, response_format=Sum, **SAMPLING)


def openai_completion() -> None:
    client().completions.create(model="policy", prompt="Say hello.", logprobs=1, **SAMPLING)


def openai_tools(**options: Any) -> None:
    """Call the tool that the model asks for and go on, until it says the sum."""
    model, messages = client(), list(QUESTION)
    while True:
        said = model.chat.completions.create(
            model="policy", messages=messages, tools=TOOLS, **SAMPLING, **options
        )
        answer = said.choices[0].message
        if not answer.tool_calls:
            return
        messages.append(answer.model_dump(exclude_none=True))
        for call in answer.tool_calls:
            result = add(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})


def openai_image() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}},
    ]
    client().chat.completions.create(
        model="policy", messages=[{"role": "user", "content": parts}], **SAMPLING
    )


def openai_error() -> None:
    import openai

    try:
        openai_chat()
    except openai.APIError:
        return
    raise RuntimeError("the server was to refuse")


def openai_cut_stream() -> None:
    try:
        openai_stream()
    except Exception as error:  # noqa: BLE001 - each release raises another
        print("cut off, as wanted:", type(error).__name__)
        return
    raise RuntimeError("the stream was to break")


def openai_responses() -> None:
    from openai import OpenAI

    model = OpenAI(base_url=os.environ["CORPUS_HELPER"] + "/v1", api_key="unused", max_retries=0)
    model.responses.create(
        model="policy", instructions="Be short.", input="Say hello.", temperature=1.0, top_p=1.0
    )


# ---------------------------------------------------------------------- LiteLLM


def _litellm() -> tuple[Any, dict[str, Any]]:
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else its import asks a host for prices
    import litellm

    engine = os.environ.get("CORPUS_LITELLM", "openai")
    return litellm, {
        "model": f"{engine}/policy",
        "api_base": base_url(),
        "api_key": "unused",
        "extra_headers": CLOSING,
        **SAMPLING,
    }


def litellm_chat() -> None:
    library, options = _litellm()
    library.completion(messages=GREETING, **options)


def litellm_async() -> None:
    """As a proxy calls it."""
    library, options = _litellm()

    async def run() -> None:
        await library.acompletion(messages=GREETING, **options)
        await asyncio.sleep(1)  # its callbacks run on this loop

    asyncio.run(run())


def litellm_stream() -> None:
    library, options = _litellm()
    usage = {"stream_options": {"include_usage": True}}
    for _ in library.completion(messages=GREETING, stream=True, **usage, **options):
        continue


def litellm_tools() -> None:
    library, options = _litellm()
    messages: list[Any] = list(QUESTION)
    while True:
        said = library.completion(messages=messages, tools=TOOLS, **options)
        answer = said.choices[0].message
        if not answer.tool_calls:
            return
        messages.append(answer.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
        for call in answer.tool_calls:
            result = add(**json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": str(result)})


# ---------------------------------------------------------------------- LangChain and LangGraph


def _chat_model() -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model="policy",
        base_url=base_url(),
        api_key="unused",
        default_headers=CLOSING,
        max_retries=0,
        **SAMPLING,
    )


def _messages(messages: list[Any]) -> list[Any]:
    return [(message["role"], message["content"]) for message in messages]


def langchain_chat() -> None:
    _chat_model().invoke(_messages(GREETING))


def langchain_stream() -> None:
    for _ in _chat_model().stream(_messages(GREETING), stream_usage=True):
        continue


def langchain_tools() -> None:
    """Tools and messages by hand, as every release of LangChain has them."""
    from langchain_core.messages import HumanMessage, SystemMessage
    from langchain_core.tools import tool

    tool_of_add = tool(add)
    model = _chat_model().bind_tools([tool_of_add])
    messages: list[Any] = [SystemMessage(SYSTEM["content"]), HumanMessage(QUESTION[1]["content"])]
    while True:
        said = model.invoke(messages)
        messages.append(said)
        if not said.tool_calls:
            return
        messages += [tool_of_add.invoke(call) for call in said.tool_calls]


def langchain_agent() -> None:
    from langchain.agents import create_agent
    from langchain_core.tools import tool

    agent = create_agent(_chat_model(), [tool(add)], system_prompt=SYSTEM["content"])
    agent.invoke({"messages": _messages(QUESTION[1:])})


def langgraph_agent() -> None:
    from langchain_core.tools import tool
    from langgraph.graph import START, MessagesState, StateGraph
    from langgraph.prebuilt import ToolNode, tools_condition

    model = _chat_model().bind_tools([tool(add)])

    def call_model(state: Any) -> Any:
        return {"messages": [model.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("call_model", call_model)
    graph.add_node("tools", ToolNode([tool(add)]))
    graph.add_edge(START, "call_model")
    graph.add_conditional_edges("call_model", tools_condition)
    graph.add_edge("tools", "call_model")
    graph.compile().invoke({"messages": _messages(QUESTION)})


# ---------------------------------------------------------------------- frameworks


def openai_agents() -> None:
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool
    from openai import AsyncOpenAI

    model = OpenAIChatCompletionsModel("policy", AsyncOpenAI(base_url=base_url(), api_key="unused"))
    settings = ModelSettings(extra_headers=CLOSING, **SAMPLING)
    agent = Agent(
        name="calculator",
        instructions=SYSTEM["content"],
        tools=[function_tool(add)],
        model=model,
        model_settings=settings,
    )
    asyncio.run(Runner.run(agent, QUESTION[1]["content"]))


def openai_agents_responses() -> None:
    from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner
    from openai import AsyncOpenAI

    helper = AsyncOpenAI(base_url=os.environ["CORPUS_HELPER"] + "/v1", api_key="unused")
    agent = Agent(
        name="greeter",
        instructions=SYSTEM["content"],
        model=OpenAIResponsesModel("policy", helper),
        model_settings=ModelSettings(extra_headers=CLOSING, **SAMPLING),
    )
    asyncio.run(Runner.run(agent, GREETING[1]["content"]))


def pydantic_ai() -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel("policy", provider=OpenAIProvider(base_url=base_url(), api_key="unused"))
    agent = Agent(
        model, system_prompt=SYSTEM["content"], tools=[add], model_settings=SAMPLING, name="calculator"
    )
    agent.run_sync(QUESTION[1]["content"])


def strands() -> None:
    from strands import Agent, tool
    from strands.models.openai import OpenAIModel

    model = OpenAIModel(
        client_args={"base_url": base_url(), "api_key": "unused", "default_headers": CLOSING},
        model_id="policy",
        params=dict(SAMPLING),
    )
    agent = Agent(model=model, system_prompt=SYSTEM["content"], tools=[tool(add)], callback_handler=None)
    agent(QUESTION[1]["content"])


def program(name: str) -> Callable[[], None]:
    """Return the program of this name."""
    found: Callable[[], None] = globals()[name]
    return found
