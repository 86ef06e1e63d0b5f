"""A prompt that lost its first token is told from other faults, whatever else is among the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="scripts/trainers installs it")

from agentlightning.dialects.model_call import VALID, Choice, ModelCall  # noqa: E402
from agentlightning.dialects.spans.genai import call_attributes  # noqa: E402
from agentlightning.rows import TrainingRow, build_rows  # noqa: E402 - after the skip
from agentlightning.types import Span  # noqa: E402
from agentlightning.verify import verify_onpolicy  # noqa: E402

FIRST = 1
ANSWER = (7, 8, 9, 10, 11, 12)


class Model:
    """Scores of the next token that depend on all tokens before it, and on nothing else."""

    class config:
        bos_token_id = FIRST

    def __call__(self, ids: Any) -> Any:
        scores, state = [], 0
        for token in ids[0].tolist():
            state = (state * 1000003 + token * 7919 + 12345) % 2**31
            scores.append(torch.randn(50, generator=torch.Generator().manual_seed(state)) * 2)
        return torch.stack(scores)[None]


def sampled(prompt: Sequence[int]) -> list[float]:
    """The log-probabilities of the answer behind a prompt."""
    ids = [*prompt, *ANSWER]
    table = Model()(torch.tensor([ids])).log_softmax(-1)[0]
    return [float(table[place - 1, ids[place]]) for place in range(len(prompt), len(ids))]


def row(number: int, prompt: Sequence[int], logprobs: Sequence[float]) -> TrainingRow:
    choice = Choice(
        content="a", token_ids=ANSWER, logprobs=tuple(logprobs), finish_reason="stop", token_capture=VALID
    )
    call = ModelCall(
        prompt_token_ids=tuple(prompt),
        choices=(choice,),
        token_capture=VALID,
        sampling_effective={"temperature": 1.0},
        sampling_defaults={},
        logprob_kind="processed",
    )
    span = Span.from_attributes(
        attributes=call_attributes(call), name="chat", rollout_id=f"r{number}", attempt_id="a"
    )
    return build_rows([span])[0]


def test_a_row_whose_prompt_is_the_first_token_alone_hides_no_other_rows_fault() -> None:
    lost = [row(number, (5, 6, 20 + number), sampled((FIRST, 5, 6, 20 + number))) for number in range(4)]
    odd = row(9, (FIRST,), [-1.1, -2.2, -3.3, -4.4, -0.5, -1.6])
    assert verify_onpolicy(lost, Model()).counts == {"wrong_template": 4}
    found = verify_onpolicy([odd, *lost], Model()).counts
    assert found["wrong_template"] == 4
    assert sum(found.values()) == 5
