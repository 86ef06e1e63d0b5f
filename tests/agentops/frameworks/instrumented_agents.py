"""The adding agent in each further framework that AgentOps instruments, written as its documentation does.

Every program takes the model server, a number, and whether the answer is streamed; it makes two model calls, of which
the first calls the tool, and returns what the agent says.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import re
from typing import Any

import framework_agents as agents

from agentlightning.testing import FakeOpenAI
from agentlightning.testing.fake_openai import (
    Answer,
    AnswerChoice,
    ReceivedRequest,
    Token,
    ToolCallAnswer,
    tokens_of,
)

OPTIONS: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}


def converse(request: ReceivedRequest) -> Answer:
    """Call the tool first; then say the sum, with the tool that smolagents has for that if it is offered."""
    asked = request.json()
    said = [_text(message) for message in asked["messages"]]
    found = re.search(r"What is (\d+) plus 2", "\n".join(said))
    assert found is not None
    number, turn = int(found.group(1)), sum(message["role"] == "assistant" for message in asked["messages"])
    if turn == 0:
        call = ToolCallAnswer("add", json.dumps({"left": number, "right": 2}), f"call_{number}")
        choice = AnswerChoice((Token("", 1000 + number),), (call,), finish_reason="tool_calls")
    elif "final_answer" in {tool["function"]["name"] for tool in asked.get("tools", ())}:
        call = ToolCallAnswer("final_answer", json.dumps({"answer": agents.answer(number)}), f"end_{number}")
        choice = AnswerChoice(tokens_of(agents.answer(number)), (call,), finish_reason="tool_calls")
    else:
        choice = AnswerChoice(tokens_of(agents.answer(number)))
    assert turn == 0 or str(number + 2) in said[-1]
    return Answer(
        (choice,),
        prompt_token_ids=agents.prompt_ids(number, turn),
        id=f"chatcmpl-{number}-{turn}",
        model="policy",
        ids="always",
        logprobs="always",
    )


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def add(left: int, right: int) -> int:
    """Add two integers.

    Args:
        left: The one.
        right: The other.
    """
    return left + right


# ---------------------------------------------------------------------- smolagents


async def smolagents(server: FakeOpenAI, number: int, streamed: bool) -> str:
    library: Any = importlib.import_module("smolagents")
    model = library.OpenAIModel(
        "policy",
        api_base=server.base_url,
        api_key=server.api_key,
        client_kwargs={"default_headers": agents.CLOSING},
        tool_choice="auto",
        **OPTIONS,
    )
    agent = library.ToolCallingAgent(
        tools=[library.tool(add)], model=model, stream_outputs=streamed, verbosity_level=0
    )
    if not streamed:
        return str(agent.run(agents.question(number)))
    return str(list(agent.run(agents.question(number), stream=True))[-1].output)


# ---------------------------------------------------------------------- agno


def agno_agent(server: FakeOpenAI) -> Any:
    models: Any = importlib.import_module("agno.models.openai.like")
    model = models.OpenAILike(
        id="policy",
        base_url=server.base_url,
        api_key=server.api_key,
        default_headers=agents.CLOSING,
        **OPTIONS,
    )
    return importlib.import_module("agno.agent").Agent(
        name="calculator", model=model, tools=[add], telemetry=False
    )


async def agno(server: FakeOpenAI, number: int, streamed: bool) -> str:
    agent = agno_agent(server)
    if not streamed:
        return str(agent.run(agents.question(number)).content)
    events = list(agent.run(agents.question(number), stream=True))
    return "".join(str(event.content or "") for event in events if event.event == "RunContent")


async def agno_async(server: FakeOpenAI, number: int, streamed: bool) -> str:
    agent = agno_agent(server)
    if not streamed:
        return str((await agent.arun(agents.question(number))).content)
    events = [event async for event in agent.arun(agents.question(number), stream=True)]
    return "".join(str(event.content or "") for event in events if event.event == "RunContent")


# ---------------------------------------------------------------------- Haystack


def _haystack_agent(server: FakeOpenAI, pieces: list[str], streamed: bool, *, is_async: bool) -> Any:
    generators: Any = importlib.import_module("haystack.components.generators.chat")
    tools: Any = importlib.import_module("haystack.tools")
    secrets: Any = importlib.import_module("haystack.utils")

    def heard(chunk: Any) -> None:
        pieces.append(chunk.content)

    async def heard_async(chunk: Any) -> None:
        heard(chunk)

    callback = heard_async if is_async else heard
    model = generators.OpenAIChatGenerator(
        api_key=secrets.Secret.from_token(server.api_key),
        model="policy",
        api_base_url=server.base_url,
        generation_kwargs=OPTIONS,
        http_client_kwargs={"headers": agents.CLOSING},
    )
    tool = tools.Tool("add", "Add two integers.", agents.SCHEMA, function=add)
    return importlib.import_module("haystack.components.agents").Agent(
        chat_generator=model, tools=[tool], streaming_callback=callback if streamed else None
    )


def _haystack_asked(number: int) -> list[Any]:
    return [importlib.import_module("haystack.dataclasses").ChatMessage.from_user(agents.question(number))]


async def haystack(server: FakeOpenAI, number: int, streamed: bool) -> str:
    pieces: list[str] = []
    agent = _haystack_agent(server, pieces, streamed, is_async=False)
    said = str(agent.run(messages=_haystack_asked(number))["messages"][-1].text)
    return "".join(pieces) if streamed else said


async def haystack_async(server: FakeOpenAI, number: int, streamed: bool) -> str:
    pieces: list[str] = []
    agent = _haystack_agent(server, pieces, streamed, is_async=True)
    said = str((await agent.run_async(messages=_haystack_asked(number)))["messages"][-1].text)
    return "".join(pieces) if streamed else said


# ---------------------------------------------------------------------- CrewAI


def _crew(server: FakeOpenAI, number: int, streamed: bool) -> Any:
    library: Any = importlib.import_module("crewai")
    tools: Any = importlib.import_module("crewai.tools")
    model = library.LLM(
        model="openai/policy",
        base_url=server.base_url,
        api_key=server.api_key,
        stream=streamed,
        default_headers=agents.CLOSING,
        **OPTIONS,
    )
    calculator = library.Agent(
        role="calculator",
        goal="Add numbers",
        backstory="You add with the tool.",
        tools=[tools.tool("add")(add)],
        llm=model,
    )
    task = library.Task(
        description=agents.question(number), expected_output="The sum in a sentence.", agent=calculator
    )
    return library.Crew(agents=[calculator], tasks=[task])


async def crewai(server: FakeOpenAI, number: int, streamed: bool) -> str:
    # It refuses an event loop.
    return str((await asyncio.to_thread(_crew(server, number, streamed).kickoff)).raw)


async def crewai_async(server: FakeOpenAI, number: int, streamed: bool) -> str:
    return str((await _crew(server, number, streamed).akickoff()).raw)


# ---------------------------------------------------------------------- Google's ADK


async def google_adk(server: FakeOpenAI, number: int, streamed: bool) -> str:
    configs: Any = importlib.import_module("google.adk.agents.run_config")
    models: Any = importlib.import_module("google.adk.models.lite_llm")
    runners: Any = importlib.import_module("google.adk.runners")
    types: Any = importlib.import_module("google.genai.types")
    model = models.LiteLlm(
        model="openai/policy",
        api_base=server.base_url,
        api_key=server.api_key,
        extra_headers=agents.CLOSING,
        **OPTIONS,
    )
    agent = importlib.import_module("google.adk.agents").Agent(
        name="calculator", model=model, instruction="Use the tool.", tools=[add]
    )
    runner = runners.InMemoryRunner(agent, app_name="sums")
    session = await runner.session_service.create_session(app_name="sums", user_id="somebody")
    mode = configs.StreamingMode.SSE if streamed else configs.StreamingMode.NONE
    said: list[str] = []
    async for event in runner.run_async(
        user_id="somebody",
        session_id=session.id,
        new_message=types.Content(role="user", parts=[types.Part(text=agents.question(number))]),
        run_config=configs.RunConfig(streaming_mode=mode),
    ):
        if event.content and bool(event.partial) == streamed:
            said.extend(part.text for part in event.content.parts if part.text)
    return "".join(said)


# ---------------------------------------------------------------------- AG2 and AutoGen


def _ag2_agents(server: FakeOpenAI, streamed: bool) -> Any:
    library: Any = importlib.import_module("autogen")
    config = {
        "model": "policy",
        "base_url": server.base_url,
        "api_key": server.api_key,
        "stream": streamed,
        "default_headers": agents.CLOSING,
    }
    calculator = library.ConversableAgent(
        "calculator", llm_config={"config_list": [config], "cache_seed": None, **OPTIONS}
    )
    user = library.ConversableAgent("user", llm_config=False, human_input_mode="NEVER")
    library.register_function(
        add, caller=calculator, executor=user, name="add", description="Add two integers."
    )
    return calculator, user


async def ag2(server: FakeOpenAI, number: int, streamed: bool) -> str:
    calculator, user = _ag2_agents(server, streamed)
    result = user.initiate_chat(calculator, message=agents.question(number), max_turns=2, silent=True)
    return str(result.chat_history[-1]["content"])


async def ag2_async(server: FakeOpenAI, number: int, streamed: bool) -> str:
    calculator, user = _ag2_agents(server, streamed)
    result = await user.a_initiate_chat(calculator, message=agents.question(number), max_turns=2, silent=True)
    return str(result.chat_history[-1]["content"])


async def autogen_agentchat(server: FakeOpenAI, number: int, streamed: bool) -> str:
    models: Any = importlib.import_module("autogen_ext.models.openai")
    library: Any = importlib.import_module("autogen_agentchat.agents")
    client = models.OpenAIChatCompletionClient(
        model="policy",
        base_url=server.base_url,
        api_key=server.api_key,
        http_client=importlib.import_module("openai").DefaultAsyncHttpxClient(
            trust_env=False, headers=agents.CLOSING
        ),
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": False,
            "structured_output": False,
            "family": "unknown",
        },
        **OPTIONS,
    )
    agent = library.AssistantAgent(
        "calculator", client, tools=[add], reflect_on_tool_use=True, model_client_stream=streamed
    )
    async with _closing(client):
        if not streamed:
            return str((await agent.run(task=agents.question(number))).messages[-1].content)
        events = [event async for event in agent.run_stream(task=agents.question(number))]
    pieces = [event for event in events if type(event).__name__ == "ModelClientStreamingChunkEvent"]
    return "".join(piece.content for piece in pieces)


def _closing(client: Any) -> Any:
    return importlib.import_module("contextlib").aclosing(_Closed(client))


class _Closed:
    def __init__(self, client: Any) -> None:
        self.aclose = client.close
