"""An agent that mends a build, with two sub-agents, nested tools, failures and rewards: what the pictures show."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli_sample import account, span

from agentlightning.dialects.model_call import Choice, ModelCall, ToolCall, Usage, invalid
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows.rewards import reward_attributes, reward_target
from agentlightning.semconv import AGL_ANNOTATION, AGL_EXCEPTION, AGL_OPERATION
from agentlightning.store.registry import open_store
from agentlightning.types import AttemptedRollout, Span

TASK = "Build 4812 fails in test_cache"
PLACEHOLDER = "ro-7c19e04b52aa"


@dataclass
class Conversation:
    """The messages of one agent, and the token ids of all of them."""

    name: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)

    def add(self, role: str, content: str, **more: Any) -> None:
        self.messages.append({"role": role, "content": content, **more})
        self.ids += range(len(self.ids), len(self.ids) + len(content) // 4 + 3)

    def call(self, content: str, tool: str = "", arguments: str = "{}", *, tokens: int, **fields: Any) -> Any:
        """Return the attributes of the next call, and go on with its answer."""
        tools = (ToolCall(f"call_{len(self.messages)}", tool, arguments),) if tool else ()
        choice = Choice(
            content=content or None,
            tool_calls=tools,
            finish_reason="tool_calls" if tool else "stop",
            token_ids=tuple(range(9_000, 9_000 + tokens)),
            logprobs=tuple(-0.01 * (index % 7) for index in range(tokens)),
            token_capture=fields.get("token_capture", "valid"),
        )
        made = ModelCall(
            **{
                "endpoint": "http://localhost:8000/v1/chat/completions",
                "request_model": "policy",
                "response_id": f"chatcmpl-{self.name}-{len(self.messages)}",
                "request_messages": tuple(self.messages),
                "choices": (choice,),
                "prompt_token_ids": tuple(self.ids),
                "usage": Usage(len(self.ids), tokens),
                "sampling_requested": {"temperature": 1.0},
                "sampling_effective": {"temperature": 1.0},
                "sampling_defaults": {},
                "logprob_kind": "processed",
                "token_capture": "valid",
                "http_status": 200,
                **fields,
            }
        )
        self.messages.append(choice.message())
        self.ids += [*range(9_000, 9_000 + tokens)]
        return call_attributes(made)


def _tool(name: str, arguments: dict[str, Any], result: str = "") -> dict[str, Any]:
    given = {f"agentlightning.operation.input.{key}": value for key, value in arguments.items()}
    found = {"agentlightning.operation.name": name, "kind": "tool", **given}
    return {**found, "agentlightning.operation.output": result} if result else found


def spans_of(at: AttemptedRollout) -> list[Span]:
    """Return the spans of the attempt."""
    lead, search, patch = Conversation("lead"), Conversation("search"), Conversation("patch")
    lead.add("system", "You mend builds. Change as little as you can. " * 12)
    lead.add("user", f"{TASK}. Find the cause, fix it, and leave the public API as it is.")
    made: list[Span] = []

    def add(
        name: str, parent: int | None, begin: float, took: float, attributes: Any, error: str = ""
    ) -> int:
        made.append(
            span(
                at,
                name,
                len(made) + 1,
                parent=parent,
                at=begin,
                took=took,
                attributes=attributes,
                error=error or None,
            )
        )
        return len(made)

    root = add("fix-build", None, 0.0, 48.6, {"gen_ai.agent.name": "fix-build"})
    add("chat policy", root, 0.0, 3.1, lead.call("First I look at the tree.", "list_files", tokens=64))
    add(AGL_OPERATION, root, 3.2, 0.3, _tool("list_files", {"path": "src"}, "cache.py runner.py tests/"))
    lead.add("tool", "cache.py\nrunner.py\ntests/test_cache.py", tool_call_id="call_2")
    said = "I split this: searcher finds who reads the key, patcher changes it and runs the tests."
    add("chat policy", root, 3.6, 4.2, lead.call(said, tokens=91))
    searcher = add("invoke_agent searcher", root, 8.0, 13.4, {"gen_ai.agent.name": "searcher"})
    search.add("system", "You search. Answer with files and lines. " * 8)
    search.add("user", "Who reads the cache key?")
    wanted = '{"pattern": "build_key"}'
    add("chat policy", searcher, 8.0, 2.9, search.call("", "search_text", wanted, tokens=48))
    hits = "cache.py:41, cache.py:88, runner.py:12"
    found = add(AGL_OPERATION, searcher, 11.0, 2.8, _tool("search_text", {"pattern": "build_key"}, hits))
    add(AGL_OPERATION, found, 11.1, 0.9, {"agentlightning.operation.name": "rank_hits"})
    search.add("tool", hits, tool_call_id="call_2")
    said = "Search shows three readers of build_key; I open the caller in runner.py before I decide."
    refused = search.call(said, tokens=21, token_capture=invalid("response_length"))
    add("chat policy", searcher, 13.9, 3.2, refused)
    missing = "FileNotFoundError: runner/main.py"
    add(AGL_OPERATION, searcher, 17.2, 0.3, _tool("read_file", {"path": "runner/main.py"}), error=missing)
    add("chat policy", searcher, 17.6, 3.5, search.call("build_key() in cache.py runs twice.", tokens=39))
    patcher = add("invoke_agent patcher", root, 21.5, 20.2, {"gen_ai.agent.name": "patcher"})
    patch.add("system", "You patch. Keep signatures. " * 10)
    patch.add("user", "Patch the build so that test_cache passes. Keep the API.")
    said = "The failing test compares the cache key with a stale value. Smallest change: move one line."
    change = '{"path": "cache.py", "line": 41}'
    add("chat policy", patcher, 21.5, 6.2, patch.call(said, "edit_file", change, tokens=84))
    add(
        AGL_OPERATION,
        patcher,
        27.9,
        0.3,
        _tool("edit_file", {"path": "cache.py", "line": 41}, "1 line moved"),
    )
    tests = add(AGL_OPERATION, patcher, 28.3, 9.5, _tool("run_tests", {}, "212 passed in 9.41 s"))
    add(AGL_OPERATION, tests, 28.4, 9.3, {"agentlightning.operation.name": "pytest"})
    patch.add("tool", "212 passed in 9.41 s", tool_call_id="call_2")
    last = patch.call("All 212 tests pass. The entry is now keyed by path and build.", tokens=22)
    add("chat policy", patcher, 38.0, 3.7, last)
    target = reward_target(response_id=last["gen_ai.response.id"])
    add(AGL_ANNOTATION, patcher, 41.8, 0, {**reward_attributes({"unit_tests": 1.0}), **target})
    forbidden = "PermissionError: pushing by force needs a person"
    add(AGL_OPERATION, root, 42.0, 0.1, _tool("shell", {"command": "git push --force"}), error=forbidden)
    caught = {"exception.type": "PermissionError", "exception.message": "went on without pushing"}
    add(AGL_EXCEPTION, root, 42.2, 0, caught)
    lead.add("user", "searcher: build_key() runs twice. patcher: fixed, 212 tests pass. Sum up.")
    add(
        "chat policy",
        root,
        42.4,
        5.6,
        lead.call("Fixed in one line; the public API is unchanged.", tokens=72),
    )
    add(AGL_ANNOTATION, root, 48.5, 0, reward_attributes({"primary": 0.75, "style": -0.25}))
    return made


async def _fill(url: str) -> str:
    async with open_store(url) as store:
        at = await store.start_rollout(
            {"task": f"{TASK}. Find the cause."}, mode="train", metadata={"name": TASK, "group_id": "4812"}
        )
        spans = spans_of(at)
        await store.add_many_spans(spans, accounts=[account(at, len(spans), closed=True)])
        await store.update_attempt(at.rollout_id, at.attempt.attempt_id, status="succeeded")
        return at.rollout_id


def fill(folder: Path) -> tuple[str, str]:
    """Make a store in a folder; return its URL and the rollout's id."""
    url = f"sqlite:///{folder}/builds.db"
    return url, asyncio.run(_fill(url))
