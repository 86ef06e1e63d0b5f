"""Triplets at 0.3's trajectory level: one per path, with a mask; 0.3.0's own model takes them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from sample_rows import FORKED, LINEAR, rows_of, spans_of, two_groups
from test_verifiers import trees

from agentlightning.exporters.triplets import to_trajectory_triplets
from agentlightning.rows import build_rows

PEER = Path(__file__).parents[2] / ".venv-peer-0.3.0" / "bin" / "python"
"""``scripts/bench`` installs Agent Lightning 0.3.0 there, to measure against."""


@settings(deadline=None, max_examples=30)
@given(trees())
def test_a_triplet_is_a_path(turns: object) -> None:
    rows = rows_of(turns)  # type: ignore[arg-type]

    for row, triplet in zip(rows, to_trajectory_triplets(rows), strict=True):
        ids = triplet.response["token_ids"]
        assert triplet.prompt["token_ids"] + ids == list(row.token_ids)
        assert len(ids) == len(triplet.response["logprobs"]) == len(triplet.metadata["response_mask"])
        assert sum(triplet.metadata["response_mask"]) == row.trained_tokens
        assert triplet.reward == row.reward
        assert triplet.metadata["span_ids"] == [each.span_id for each in row.segments if each.trained]


def test_an_unscored_path_has_no_reward() -> None:
    (triplet,) = to_trajectory_triplets(rows_of(LINEAR, reward=None))

    assert triplet.reward is None


def test_the_messages_are_there_as_text() -> None:
    (triplet,) = to_trajectory_triplets(rows_of(LINEAR))

    assert [message["role"] for message in triplet.prompt["raw_content"]] == ["user"]
    assert triplet.response["raw_content"] == [{"role": "assistant", "content": "answer 2"}]
    assert len(to_trajectory_triplets(rows_of(FORKED))) == 2


@pytest.mark.skipif(not PEER.exists(), reason="scripts/bench installs Agent Lightning 0.3.0")
def test_the_model_of_0_3_0_takes_them() -> None:
    ours = [triplet.model_dump() for triplet in to_trajectory_triplets(two_groups())]
    code = (
        "import json, sys\n"
        "from agentlightning.types import Triplet\n"
        "read = [Triplet.model_validate(each) for each in json.load(sys.stdin)]\n"
        "print(json.dumps([each.model_dump() for each in read]))\n"
    )
    done = subprocess.run(
        [PEER, "-I", "-c", code], input=json.dumps(ours), capture_output=True, text=True, check=True, cwd="/"
    )

    assert json.loads(done.stdout.splitlines()[-1]) == ours


def test_images_of_the_prompt_are_named() -> None:
    spans = spans_of([((1, 2), (5, 6))], "ro-1", 1.0)
    image = {"type": "uri", "modality": "image", "uri": "http://x/cat.png"}
    asked = [{"role": "user", "parts": [{"type": "text", "content": "what?"}, image]}]
    spans[0].attributes["gen_ai.input.messages"] = json.dumps(asked)
    (triplet,) = to_trajectory_triplets(build_rows(spans))
    assert triplet.prompt["image_urls"] == ["http://x/cat.png"]
