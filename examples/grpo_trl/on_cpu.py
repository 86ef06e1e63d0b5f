"""What TRL's ``AsyncGRPOTrainer`` needs to run without a GPU or vLLM: two substitutions, and a way for weights.

Seen with TRL 1.16. The trainer asks CUDA for the name of its device, to report how much of its peak is used: here,
the peak is unknown. And its attention over packed rows calls one function of a FlashAttention 3 kernel: here, that
function is written in plain torch. Everything else is TRL's own code, the attention that calls it included.
``GRPOTrainer`` needs none of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from trl.experimental.async_grpo import async_grpo_trainer, packing

from .engine import Engine


@contextmanager
def without_a_gpu() -> Iterator[None]:
    """Let ``AsyncGRPOTrainer`` be made and run inside, on the CPU."""
    peak, kernel = async_grpo_trainer.get_peak_flops_per_device, packing._flash_attn  # noqa: SLF001 - no other way in
    async_grpo_trainer.get_peak_flops_per_device = lambda *_: None
    packing._flash_attn = lambda: SimpleNamespace(flash_attn_varlen_func=attention)  # noqa: SLF001
    try:
        yield
    finally:
        async_grpo_trainer.get_peak_flops_per_device, packing._flash_attn = peak, kernel  # noqa: SLF001


def attention(
    query: Any,
    key: Any,
    value: Any,
    query_ends: Any,
    key_ends: Any,
    longest_query: int,
    longest_key: int,
    *,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
) -> Any:
    """Do what ``flash_attn_varlen_func`` does for causal attention over several sequences laid end to end.

    Args:
        query: ``[tokens, heads, width]`` of all sequences.
        key: ``[tokens, key heads, width]``; a sequence may have more keys than queries, which are then its last.
        value: Like ``key``.
        query_ends: Where the sequences begin in ``query``, and where the last one ends.
        key_ends: The same for ``key`` and ``value``.
        longest_query: Not needed here.
        longest_key: Not needed here.
        softmax_scale: What scores are multiplied with; by default 1 / sqrt(width).
        causal: Must be true.
        window_size: Must be unlimited.

    Raises:
        NotImplementedError: Attention that is not causal, or sees a window only.
    """
    del longest_query, longest_key
    if not causal or window_size != (-1, -1):
        raise NotImplementedError("only causal attention over whole sequences")
    share = query.shape[1] // key.shape[1]  # query heads for each key head
    found = []
    for (first, end), (key_first, key_end) in zip(
        pairwise(query_ends.tolist()), pairwise(key_ends.tolist()), strict=True
    ):
        queries, keys = end - first, key_end - key_first
        seen = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        heads = (
            query[first:end].transpose(0, 1),
            key[key_first:key_end].repeat_interleave(share, 1).transpose(0, 1),
            value[key_first:key_end].repeat_interleave(share, 1).transpose(0, 1),
        )
        attended = torch.nn.functional.scaled_dot_product_attention(
            *heads, attn_mask=seen, scale=softmax_scale
        )
        found.append(attended.transpose(0, 1))
    return torch.cat(found)


class EngineTransfer:
    """Brings the weights of an ``AsyncGRPOTrainer`` to an engine: its ``weight_transfer``.

    The engine counts versions as the trainer does: the weights that training begins with are version 1.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._version = 0

    def init_weight_transfer(self) -> None:
        """Do nothing: there is no connection to make."""

    def pause(self) -> None:
        """Return when no token is being sampled."""
        self._engine.weights.pause()

    def send_weights(self, iterator: Iterable[tuple[str, Any]]) -> None:
        """Give the engine new weights, under the next version."""
        self._version += 1
        self._engine.update_weights(iterator, self._version)

    def resume(self) -> None:
        """Let the engine sample again."""
        self._engine.weights.resume()

    def destroy(self) -> None:
        """Do nothing: the engine goes on with the last weights."""
