"""``agl import``: documents of other tools become rollouts, and a bad file leaves the store as it was."""

from __future__ import annotations

import json
from pathlib import Path

from cli_sample import agl

from agentlightning.store.registry import open_store
from agentlightning.training import add_reward

DOCUMENT = {
    "schema_version": "ATIF-v1.4",
    "session_id": "025B810F-B3A2-4C67-93C0-FE7A142A947A",
    "agent": {"name": "harbor-agent", "version": "1.0.0", "model_name": "gemini-2.5-flash"},
    "steps": [
        {
            "step_id": 1,
            "timestamp": "2025-10-11T10:30:00Z",
            "source": "user",
            "message": "What is the price of GOOGL?",
        },
        {
            "step_id": 2,
            "timestamp": "2025-10-11T10:30:02Z",
            "source": "agent",
            "message": "I will search for it.",
            "reasoning_content": "A search tool has it.",
            "tool_calls": [
                {"tool_call_id": "c1", "function_name": "search", "arguments": {"ticker": "GOOGL"}}
            ],
            "observation": {"results": [{"source_call_id": "c1", "content": "185.35 dollars"}]},
            "metrics": {"prompt_tokens": 520, "completion_tokens": 80, "cached_tokens": 200, "cost_usd": 0.00045},
        },
        {
            "step_id": 3,
            "timestamp": "2025-10-11T10:30:05Z",
            "source": "agent",
            "message": "It is 185.35 dollars.",
            "metrics": {"prompt_tokens": 600, "completion_tokens": 44, "completion_token_ids": [1, 2], "logprobs": [-0.1, -2]},
        },
    ],
    "final_metrics": {"total_prompt_tokens": 1120, "total_completion_tokens": 124, "total_steps": 3},
}  # fmt: skip


def test_a_document_is_imported_read_and_written_again(tmp_path: Path) -> None:
    store, path = f"sqlite:///{tmp_path}/s.db", tmp_path / "trajectory.json"
    path.write_text(json.dumps(DOCUMENT, indent=2))
    done = agl("import", str(path), "--store", store)
    rollout = done.out.split()[0]
    assert (done.code, done.out) == (0, f"{rollout}  ATIF-v1.4, 5 spans  {path}\n")
    assert done.err == f"1 document imported; agl show ROLLOUT --store {store} shows one\n"
    done = agl("import", str(path), "--store", store)
    assert (done.code, done.out, done.err) == (0, "", "1 was there already\n")

    shown = agl("show", rollout, "--store", store).out
    assert "What is the price of GOOGL?\nsucceeded · attempt 1" in shown
    assert "■ harbor-agent" in shown
    assert "▪ user  What is the price of GOOGL?" in shown
    assert '◆ search(ticker="GOOGL") → 185.35 dollars' in shown
    assert "● chat gemini-2.5-flash #2  imported  It is 185.35 dollars." in shown
    assert "520 → 80" in shown
    assert "imported  it is from a document of another tool: nobody here saw its tokens sampled" in shown
    said = agl("show", rollout, "--messages", "--store", store).out
    assert "tool       185.35 dollars" in said
    assert "ends: unknown" not in said
    assert "left out: imported" in agl("explain", rollout, "--store", store).out
    done = agl("export", rollout, "--format", "atif", "--store", store)
    assert json.loads(done.out) == DOCUMENT


async def _rewarded(store_url: str, rollout: str) -> None:
    async with open_store(store_url) as store:
        await add_reward(store, rollout, 0.5, source="a person")


def test_a_reward_that_is_given_later_is_written_with_the_document(tmp_path: Path) -> None:
    import asyncio

    store, path = f"sqlite:///{tmp_path}/s.db", tmp_path / "trajectory.json"
    path.write_text(json.dumps(DOCUMENT))
    rollout = agl("import", str(path), "--store", store).out.split()[0]
    asyncio.run(_rewarded(store, rollout))
    again = json.loads(agl("export", "--format", "atif", "--store", store).out)
    assert again.pop("extra")["agentlightning"]["reward"] == 0.5
    assert again == DOCUMENT


def test_one_bad_file_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/s.db"
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(DOCUMENT))
    bad.write_text(json.dumps({**DOCUMENT, "steps": [{**DOCUMENT["steps"][0], "step_id": 7}]}))  # type: ignore[index]
    done = agl("import", str(good), str(bad), "--store", store)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"agl import: {bad}: steps[0].step_id: steps are numbered from 1, so it is 1, not 7\n"
    )
    assert not (tmp_path / "s.db").exists()
    other = tmp_path / "other.json"
    good.write_text(json.dumps({**DOCUMENT, "trajectory_id": "t"}))
    other.write_text(json.dumps({**DOCUMENT, "trajectory_id": "t", "notes": "changed"}))
    done = agl("import", str(good), str(other), "--store", store)
    assert done.code == 2
    assert "another document with the id 't' says something else" in done.err
    assert not (tmp_path / "s.db").exists()


def test_a_given_format_is_held_against_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(DOCUMENT))
    done = agl("import", str(path), "--format", "sts", "--store", f"sqlite:///{tmp_path}/s.db")
    assert (done.code, done.err) == (
        2,
        f'agl import: {path}: line 1: the first line of a session has "type": "session"\n',
    )
