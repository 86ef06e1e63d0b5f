"""Log-probabilities of given tokens from a causal language model; the only part that runs one.

Rows are padded on the right, and attention comes from their lengths, so that any id may be the padding one. Logits
are taken to float32 before the softmax, whatever the model calculates in.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..errors import MissingExtra, NotVerifiable

try:
    import torch
except ImportError as error:
    raise MissingExtra("torch", "trl") from error

SOFTMAX_POSITIONS = 64
"""Positions whose softmax is taken at a time: a vocabulary of 150,000 makes 38 MB of them."""


SHORT_ROW = 512
"""Rows of fewer tokens than this share the room of longer ones."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Tokens of a sequence whose log-probabilities are wanted."""

    ids: tuple[int, ...]
    positions: tuple[int, ...]
    """Of the tokens, ascending, from 1: the first token of all has no context."""
    temperatures: tuple[tuple[float, ...], ...]
    """For each answer that is wanted, the temperature at each position."""

    def at(self, temperature: float) -> ScoreRequest:
        """Return the same at one temperature."""
        return replace(self, temperatures=((temperature,) * len(self.positions),))


class Scorer:
    """Asks a model; use it inside of :meth:`quiet`.

    Args:
        model: A causal language model in the manner of Hugging Face, or a callable that takes token ids
            ``[1, length]`` (int64) and returns logits or log-probabilities ``[1, length, vocabulary]``.
        batch_size: Sequences in a forward pass, more of them where they are short; a callable gets one at a time.
        device: Where to calculate, the model is moved there; ``None`` = where it is.
    """

    def __init__(self, model: Any, batch_size: int = 8, device: Any = None) -> None:
        self._model = model
        self._is_module = isinstance(model, torch.nn.Module)
        if device is not None and self._is_module:
            model.to(device)
        weights = next(iter(model.parameters()), None) if self._is_module else None
        self._device = device if device is not None or weights is None else weights.device
        self.dtype = "unknown" if weights is None else str(weights.dtype).removeprefix("torch.")
        """What the model calculates in."""
        # What a model takes differs by class and release; a keyword that it does not know would raise.
        known = inspect.signature(model.forward if self._is_module else model).parameters
        open_ended = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
        self._takes_mask = "attention_mask" in known or (self._is_module and open_ended)
        self._takes_cache = "use_cache" in known
        # Called "cache" since transformers 5.24; the name before that one goes with 5.40.
        self._cache = "cache" if "cache" in known else "past_key_values"
        self._takes_keep = "logits_to_keep" in known
        self._batch_size = batch_size if self._takes_mask else 1

    @property
    def vocabulary(self) -> int | None:
        """How many ids the model knows; ``None`` where it does not say."""
        embeddings = getattr(self._model, "get_input_embeddings", lambda: None)()
        weight = getattr(embeddings, "weight", None)
        return None if weight is None else int(weight.shape[0])

    @property
    def first_token(self) -> int | None:
        """The id that the model's configuration puts in front of texts, if any."""
        found = getattr(getattr(self._model, "config", None), "bos_token_id", None)
        return found if isinstance(found, int) else None

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Switch dropout and gradients off; what was training goes on training afterwards."""
        training = [each for each in self._model.modules() if each.training] if self._is_module else []
        if self._is_module:
            self._model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            # Each by itself: ``model.train()`` would switch on parts that were off.
            for module in training:
                module.training = True

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[tuple[float, ...]]]:
        """Return for each request, for each of its temperatures, the log-probability at each position.

        Raises:
            NotVerifiable: The model does not know a token, or returns something else than logits of each position.
        """
        found: list[list[tuple[float, ...]]] = [[] for _ in requests]
        # Rows of one length together have little padding. The longest first: memory runs out at once, or not at all.
        by_length = sorted(range(len(requests)), key=lambda at: -len(requests[at].ids))
        while by_length:
            size = self._rows_of(len(requests[by_length[0]].ids))
            batch, by_length = by_length[:size], by_length[size:]
            for at, logits in zip(batch, self.logits([requests[at] for at in batch]), strict=True):
                targets = torch.tensor([requests[at].ids[place] for place in requests[at].positions])
                found[at] = [_log_probabilities(logits, targets, each) for each in requests[at].temperatures]
        return found

    def _rows_of(self, length: int) -> int:
        """Return how many rows go together; short ones may be more, in the room of ``batch_size`` of 512 tokens."""
        together = self._batch_size * SHORT_ROW // length if self._takes_mask else 1
        return max(self._batch_size, together)

    def likeliest(self, ids: tuple[int, ...], count: int) -> list[int]:
        """Return the tokens that are likeliest to follow ``ids``, the likeliest first."""
        # The token 0 only makes room: the logits of its place are those of what follows ``ids``.
        request = ScoreRequest((*ids, 0), (len(ids),), ())
        (logits,) = self.logits([request])
        found: list[int] = logits[0].topk(min(count, logits.shape[1])).indices.tolist()
        return found

    def tails(
        self,
        prefix: tuple[int, ...],
        tails: Sequence[tuple[int, ...]],
        positions: Sequence[int],
        temperatures: Sequence[float],
    ) -> list[tuple[float, ...]]:
        """Return the log-probabilities at ``positions`` of the prefix with each tail, all of one length.

        The prefix is calculated once where the model keeps a cache that can be repeated.
        """
        start, length = len(prefix), len(prefix) + len(tails[0])
        cache, last = self._cached(prefix)
        size = self._rows_of(length if cache is None else len(tails[0]))
        found: list[tuple[float, ...]] = []
        for first in range(0, len(tails), size):
            batch = tails[first : first + size]
            if cache is None:
                requests = [ScoreRequest((*prefix, *tail), tuple(range(start, length)), ()) for tail in batch]
                logits = self.logits(requests)
            else:
                logits = self._continued(cache, last, batch, length)
            for one, tail in zip(logits, batch, strict=True):
                targets = torch.tensor([tail[position - start] for position in positions])
                at = [position - start for position in positions]
                found.append(_log_probabilities(one[at], targets, temperatures))
        return found

    def _cached(self, prefix: tuple[int, ...]) -> tuple[Any, Any]:
        """Return the model's cache behind a prefix and the logits of the next token; ``None`` where it has none."""
        if not (self._takes_mask and self._takes_cache):
            return None, None
        ids = torch.tensor([prefix], device=self._device)
        found = self._model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
        cache = getattr(found, self._cache, None)
        # Caches of older transformers, or of models that keep a state, cannot be repeated for several tails.
        if not hasattr(cache, "batch_repeat_interleave"):
            return None, None
        return cache, found.logits[:, -1:]

    def _continued(self, cache: Any, last: Any, tails: Sequence[tuple[int, ...]], length: int) -> Any:
        """Return logits ``[tails, tail, vocabulary]`` that the tokens of tails were drawn from."""
        # The model appends to the cache that it is given, and the prefix is used again.
        own = copy.deepcopy(cache)
        own.batch_repeat_interleave(len(tails))
        ids = torch.tensor(tails, device=self._device)
        mask = torch.ones((len(tails), length), dtype=torch.long, device=self._device)
        found = self._model(input_ids=ids, attention_mask=mask, use_cache=True, **{self._cache: own})
        return torch.cat([last.expand(len(tails), -1, -1), found.logits[:, :-1]], dim=1)

    def logits(self, requests: Sequence[ScoreRequest]) -> list[Any]:
        """Return for each request the float32 logits ``[positions, vocabulary]`` that its tokens were drawn from."""
        longest = max(len(request.ids) for request in requests)
        ids = torch.zeros((len(requests), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            ids[row, : len(request.ids)] = torch.tensor(request.ids)
            mask[row, : len(request.ids)] = 1
        # Logits at i are of the token at i + 1; of the other positions none is made.
        wanted = sorted({place - 1 for request in requests for place in request.positions})
        logits = self._forward(ids, mask, wanted)
        slot = {place: at for at, place in enumerate(wanted)}
        return [
            logits[row, [slot[place - 1] for place in request.positions]]
            for row, request in enumerate(requests)
        ]

    def _forward(self, ids: Any, mask: Any, wanted: Sequence[int]) -> Any:
        """Return logits ``[rows, wanted, vocabulary]``."""
        places = torch.tensor(wanted, dtype=torch.long, device=self._device)
        more: dict[str, Any] = {"use_cache": False} if self._takes_cache else {}
        if self._takes_keep:
            more["logits_to_keep"] = places
        ids, mask = ids.to(self._device), mask.to(self._device)
        if self._takes_mask:
            found = self._model(input_ids=ids, attention_mask=mask, **more)
        else:
            found = self._model(ids, **more)
        logits = getattr(found, "logits", found)
        length = len(wanted) if self._takes_keep else ids.shape[1]
        if not hasattr(logits, "shape") or tuple(logits.shape[:2]) != (len(ids), length):
            raise NotVerifiable(
                f"the model returned no logits [{len(ids)}, {length}, vocabulary] but {_shape(logits)}"
            )
        return logits if self._takes_keep else logits[:, places]


def _log_probabilities(logits: Any, targets: Any, temperatures: Sequence[float]) -> tuple[float, ...]:
    if len(targets) and int(targets.max()) >= logits.shape[-1]:
        raise NotVerifiable(
            f"the model has logits for {logits.shape[-1]:,} tokens, and a row has token {int(targets.max()):,}: "
            "this is another model than the one that sampled"
        )
    found: list[float] = []
    # In parts: the softmax of all positions at once would take as much memory as the logits.
    for start in range(0, len(targets), SOFTMAX_POSITIONS):
        part = logits[start : start + SOFTMAX_POSITIONS].float()
        scale = torch.tensor(
            temperatures[start : start + SOFTMAX_POSITIONS], dtype=torch.float32, device=part.device
        )
        wanted = targets[start : start + SOFTMAX_POSITIONS, None].to(part.device)
        found += (part / scale[:, None]).log_softmax(-1).gather(-1, wanted)[:, 0].tolist()
    return tuple(found)


def _shape(value: Any) -> str:
    return str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__
