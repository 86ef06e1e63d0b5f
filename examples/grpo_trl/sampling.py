"""Sampling from a causal language model, several sequences at a time, with what a trainer wants to know of each token.

A ``Batch`` goes token by token, all its sequences together, so that new weights can come between two tokens. Each
token remembers its log-probability and the version of the weights that it was sampled with. A token is drawn from
its sequence's own random numbers: what else is in the batch changes an answer by no more than rounding.
"""

from __future__ import annotations

import inspect
import queue
import random
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

LogprobsMode = Literal["processed_logprobs", "raw_logprobs"]
"""vLLM's names: of the distribution that was sampled from, or of the one before temperature and truncation."""
FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Sampling:
    """How to sample."""

    max_tokens: int
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 = all."""
    ignore_eos: bool = False
    top_logprobs: int = 0
    """How many of the likeliest tokens to report beside each sampled one."""


@dataclass(frozen=True)
class Token:
    """One sampled token."""

    id: int
    logprob: float
    version: str
    """Of the weights."""
    top: tuple[tuple[int, float], ...] = ()
    """(id, log-probability) of the likeliest tokens, those of probability 0 left out."""


@dataclass
class Sequence:
    """One answer on its way."""

    prompt: list[int]
    sampling: Sampling
    seed: int
    tokens: list[Token] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    error: BaseException | None = None
    cancelled: bool = False
    """Set it from any thread, and no more tokens are sampled."""
    events: queue.SimpleQueue[Token | None] = field(default_factory=queue.SimpleQueue)
    """Each token as it comes; ``None`` after the last one."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @property
    def ids(self) -> list[int]:
        """The sampled ids so far."""
        return [token.id for token in self.tokens]

    def draw(self) -> float:
        """Return the next random number, at least 0 and below 1."""
        return self._random.random()

    def end(self, reason: FinishReason | None, error: BaseException | None = None) -> None:
        """Note that no more tokens will come."""
        self.finish_reason, self.error = reason, error
        self.events.put(None)


class Weights:
    """A model and the version of its weights; they change only between two tokens."""

    def __init__(self, model: Any, version: str) -> None:
        self._model = model.eval()
        # Called "cache" since transformers 5.24; the name before that one goes with 5.40.
        known = inspect.signature(model.forward).parameters
        self._cache = "cache" if "cache" in known else "past_key_values"
        self._version = version
        self._lock = threading.Lock()
        self._running = threading.Event()
        self._running.set()

    @property
    def version(self) -> str:
        """Of the weights as they are now."""
        return self._version

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the weights."""
        with self._lock:
            return {name: tensor.clone() for name, tensor in self._model.state_dict().items()}

    def forward(self, cache: Any, **inputs: Any) -> tuple[Any, Any, str]:
        """Run the model; return logits of the last position (float32), the cache, and the version."""
        inputs[self._cache] = cache
        while True:
            self._running.wait()
            with self._lock:
                if not self._running.is_set():
                    continue  # paused between the wait and the lock
                found = self._model(**inputs, use_cache=True, logits_to_keep=1)
                return found.logits[:, -1].float(), getattr(found, self._cache), self._version

    def pause(self) -> None:
        """Return when no token is being sampled; none will be before ``resume``."""
        self._running.clear()
        with self._lock:
            pass

    def resume(self) -> None:
        """Go on."""
        self._running.set()

    def update(self, weights: Mapping[str, Any] | Iterable[tuple[str, Any]], version: str) -> None:
        """Replace all weights.

        Raises:
            ValueError: The names or shapes are not those of the model; nothing is changed.
        """
        new, old = dict(weights), self._model.state_dict()
        if new.keys() != old.keys():
            raise ValueError(
                f"not this model's weights: {sorted(new.keys() ^ old.keys())} are missing or unknown"
            )
        wrong = sorted(name for name, tensor in new.items() if tensor.shape != old[name].shape)
        if wrong:
            raise ValueError(f"not this model's weights: {wrong} have other shapes")
        with self._lock, torch.no_grad():
            for name, tensor in new.items():
                old[name].copy_(tensor)
            self._version = version


class Batch:
    """Samples several sequences, one token of each with every ``step``, until all of them have ended."""

    def __init__(self, weights: Weights, sequences: list[Sequence], eos: int, mode: LogprobsMode) -> None:
        self._weights = weights
        self._eos = eos
        self._mode = mode
        self._alive = list(sequences)
        longest = max(len(each.prompt) for each in sequences)
        # Padding stands on the left, is never looked at, and has no position; so any id will do.
        padding = [longest - len(each.prompt) for each in sequences]
        self._ids = torch.tensor(
            [[0] * gap + each.prompt for gap, each in zip(padding, sequences, strict=True)]
        )
        self._mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in padding])
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._cache: Any = None

    @property
    def done(self) -> bool:
        """Whether all sequences have ended."""
        return not self._alive

    def step(self) -> None:
        """Sample the next token of each sequence that has not ended."""
        with torch.inference_mode():
            logits, self._cache, version = self._weights.forward(
                self._cache, input_ids=self._ids, attention_mask=self._mask, position_ids=self._positions
            )
            tokens = self._sample(logits, version)
            for sequence, token in zip(self._alive, tokens, strict=True):
                self._give(sequence, token)
            self._go_on([token.id for token in tokens])

    def _sample(self, logits: Any, version: str) -> list[Token]:
        settings = [each.sampling for each in self._alive]
        processed = process(logits, settings).log_softmax(-1)
        reported = processed if self._mode == "processed_logprobs" else logits.log_softmax(-1)
        sums = processed.double().exp().cumsum(-1)
        draws = torch.tensor([[each.draw()] for each in self._alive], dtype=torch.float64)
        drawn = torch.searchsorted(sums, draws * sums[:, -1:], right=True)[:, 0].clamp(max=sums.shape[1] - 1)
        greedy = torch.tensor([each.temperature == 0 for each in settings])
        chosen = torch.where(greedy, logits.argmax(-1), drawn)
        logprobs = reported.gather(-1, chosen[:, None])[:, 0]
        return [
            Token(token, logprob, version, likeliest(reported[row], settings[row].top_logprobs))
            for row, (token, logprob) in enumerate(zip(chosen.tolist(), logprobs.tolist(), strict=True))
        ]

    def _give(self, sequence: Sequence, token: Token) -> None:
        if sequence.cancelled:
            sequence.end("abort")
            return
        sequence.tokens.append(token)
        sequence.events.put(token)
        if token.id == self._eos and not sequence.sampling.ignore_eos:
            sequence.end("stop")
        elif len(sequence.tokens) == sequence.sampling.max_tokens:
            sequence.end("length")

    def _go_on(self, ids: list[int]) -> None:
        """Make the inputs of the next step, of those sequences that need one."""
        rows = [row for row, each in enumerate(self._alive) if each.finish_reason is None]
        if len(rows) < len(self._alive):
            self._alive = [self._alive[row] for row in rows]
            if not rows:
                return
            self._cache.batch_select_indices(torch.tensor(rows))
        self._ids = torch.tensor([[ids[row]] for row in rows])
        self._mask = torch.cat([self._mask[rows], torch.ones(len(rows), 1, dtype=torch.long)], dim=1)
        self._positions = self._positions[rows][:, -1:] + 1


def process(logits: Any, settings: list[Sampling]) -> Any:
    """Return the logits after temperature, top-k and top-p, in this order; what is cut off is minus infinity."""
    temperatures = torch.tensor([[each.temperature or 1.0] for each in settings])
    found = logits / temperatures
    for row, each in enumerate(settings):
        if each.top_k:
            least = found[row].topk(min(each.top_k, found.shape[1])).values[-1]
            found[row, found[row] < least] = -torch.inf
        if each.top_p < 1:
            values, order = found[row].softmax(-1).sort(descending=True, stable=True)
            # The first tokens that reach top_p together stay; the first one of all always does.
            found[row, order[values.cumsum(-1) - values >= each.top_p]] = -torch.inf
    return found


def likeliest(logprobs: Any, count: int) -> tuple[tuple[int, float], ...]:
    """Return (id, log-probability) of the ``count`` likeliest tokens, those of probability 0 left out."""
    if not count:
        return ()
    top = logprobs.topk(count)
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return tuple((token, logprob) for token, logprob in pairs if logprob > -torch.inf)
