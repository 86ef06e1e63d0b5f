"""An agent that calls a model with openai's client, recorded by AgentOpsTracer, made into training rows."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import model_server
import openai

from agentlightning import (
    LLM,
    AgentOpsTracer,
    InMemoryLightningStore,
    TracerTraceToTriplet,
    emit_reward,
    find_final_reward,
    operation,
)


def agent(llm: LLM, question: str) -> float:
    @operation  # made here, where a tracer is active: at import time 0.3 raises
    def count(text: str) -> int:
        return len(text)

    client = openai.OpenAI(base_url=llm.endpoint, api_key="none", max_retries=0)
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(2):
        answer = client.chat.completions.create(
            model=llm.model,
            messages=messages,
            temperature=1.0,
            top_p=1.0,
            logprobs=True,
            extra_body={"return_token_ids": True},
        )
        said = answer.choices[0].message.content or ""
        messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Are you sure?"}]
        count(said)
    client.close()
    return 1.0


async def main() -> dict[str, Any]:
    store, tracer = InMemoryLightningStore(), AgentOpsTracer()
    tracer.init()
    tracer.init_worker(0, store)
    llm = LLM(endpoint=model_server.start(), model="policy")
    await store.add_resources({"main": llm})
    facts: dict[str, Any] = {}
    for question in ("What is 3 + 4?", "And 4 + 3?"):
        rollout = await store.start_rollout(input=question)
        ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
        async with tracer.trace_context(store=store, **ids):
            emit_reward(agent(llm, question))
        await store.update_attempt(**ids, status="succeeded")
        spans = list(await store.query_spans(**ids))
        facts[question] = {
            "calls": [span.name for span in spans if "prompt_token_ids" in span.attributes],
            "operations": [span.name for span in spans if span.name == "agentlightning.operation"],
            "reward": find_final_reward(spans),
            "rows": [
                {
                    "prompt": list(each.prompt["token_ids"]),
                    "response": list(each.response["token_ids"]),
                    "logprobs": [entry["logprob"] for entry in each.response.get("logprobs") or []],
                    "reward": each.reward,
                }
                for each in TracerTraceToTriplet().adapt(spans)
            ],
        }
    tracer.teardown_worker(0)
    tracer.teardown()
    return facts


print(json.dumps(asyncio.run(main())), flush=True)
