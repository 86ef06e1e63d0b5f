"""A model whose every next token is decided by the last one: its answers are known before it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from ..model import CONTEXT, make_model

SURE = 30.0
"""Logit of what may follow; e to the minus 30 is left for everything else."""


def scripted(tokenizer: Any, *scripts: str) -> Any:
    """Return a model that answers each prompt with one of ``scripts``; at a fork all ways are equally likely.

    No token but the last of a prompt may stand twice in what it says, or it would go round in circles.
    """
    model = make_model(tokenizer, seed=0)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(len(tokenizer), 64, generator=generator).sign()
    heads = torch.zeros_like(embeddings)
    pairs: set[tuple[int, int]] = set().union(*(_pairs(tokenizer, script) for script in scripts))
    for last, following in sorted(pairs):
        heads[following] += SURE / 64 * embeddings[last]
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weights.zero_()  # the layers add nothing, so the last token is all that counts
        model.get_input_embeddings().weight.copy_(embeddings)
        model.get_output_embeddings().weight.copy_(heads)
    return model


def _pairs(tokenizer: Any, script: str) -> set[tuple[int, int]]:
    start = tokenizer.encode("\n", add_special_tokens=False)  # what the template ends a prompt with
    ids = [*start, *tokenizer.encode(script, add_special_tokens=False), tokenizer.eos_token_id]
    return set(pairwise(ids))


def recomputed(
    model: Any, prompt: Sequence[int], ids: Sequence[int], temperature: float = 1.0
) -> list[float]:
    """Return the log-probability of each of ``ids`` after ``prompt``, from one pass over the whole row."""
    row = torch.tensor([[*prompt, *ids]])
    assert row.shape[1] <= CONTEXT
    with torch.inference_mode():
        logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1].float()
    found = (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]
    values: list[float] = found.tolist()
    return values
