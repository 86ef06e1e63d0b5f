"""A serving engine for a tiny model, in this process.

One thread samples. Requests that arrive while it is busy wait, and then go together, as one batch. An answer depends
on the seed of the engine, the ``seed`` of the request, the prompt and the weights; what else is in the batch changes
its log-probabilities by no more than rounding, though rounding can tip a draw. New weights may come between two
tokens of an answer, as in engines that are trained while they serve: the tokens say which version they are of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import torch

from .sampling import Batch, LogprobsMode, Sequence, Weights
from .serving import ChatServer


class Engine(ChatServer):
    """Serves a model inside a ``with``.

    Torch is set to one thread, in the whole process.

    Args:
        model: A ``LlamaForCausalLM`` or the like. It belongs to the engine from now on: give a trainer another one.
        tokenizer: Its tokenizer, with a chat template.
        version: Of the weights that ``model`` has.
        logprobs_mode: Which log-probabilities are reported; vLLM's own default is ``raw_logprobs``.
        settings: Of the ``ChatServer``.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        version: str = "0",
        logprobs_mode: LogprobsMode = "processed_logprobs",
        **settings: Any,
    ) -> None:
        super().__init__(tokenizer, model.config.max_position_embeddings, **settings)
        torch.set_num_threads(1)
        self.weights = Weights(model, version)
        self._mode = logprobs_mode

    @property
    def version(self) -> str:
        """Of the weights as they are now."""
        return self.weights.version

    def update_weights(
        self, weights: Mapping[str, Any] | Iterable[tuple[str, Any]], version: str | int
    ) -> None:
        """Replace all weights, between two tokens; answers that are under way go on with the new ones.

        Args:
            weights: A ``state_dict`` or its items; the tensors are copied.
            version: What tokens that are sampled from now on say that they are of.

        Raises:
            ValueError: The names or shapes are not those of the model; nothing is changed.
        """
        self.weights.update(weights, str(version))

    def sample(self, sequences: list[Sequence]) -> None:
        """Sample answers, all of them together."""
        batch = Batch(self.weights, sequences, self._tokenizer.eos_token_id, self._mode)
        while not batch.done:
            batch.step()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.weights.resume()
        super().__exit__(kind, error, where)
