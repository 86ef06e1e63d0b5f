"""An engine of nine tokens that really samples, with the settings of vLLM in vLLM's order, and says what it did.

Its model is a table: the logits of the next token depend on the last one. Settings that it does not know, whatever they
are called, bend the distribution in one hidden way.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentlightning.dialects.distribution import HARMLESS
from agentlightning.dialects.raw_call import LogprobKind
from agentlightning.testing.fake_openai import Answer, AnswerChoice, Token

VOCABULARY = 9
END = 0
LONGEST = 6
Logits = list[float]

_table = random.Random(7)
TABLE: list[Logits] = [[_table.uniform(-2.0, 2.0) for _ in range(VOCABULARY)] for _ in range(VOCABULARY)]
KNOWN = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "logit_bias", "min_tokens", "bad_words", "guided_regex",
    }
)  # fmt: skip
OFF = -math.inf


def log_softmax(logits: Sequence[float]) -> Logits:
    highest = max(logits)
    total = highest + math.log(sum(math.exp(each - highest) for each in logits))
    return [each - total for each in logits]


@dataclass(frozen=True)
class Said:
    """What the engine answered, and what only the engine knows of it."""

    answer: Answer
    forced: tuple[int, ...]
    """Places at which the grammar left one token."""


@dataclass
class TinyEngine:
    """A server; ``defaults`` is what it applies where a request names nothing."""

    defaults: Mapping[str, Any]
    kind: LogprobKind
    """``processed``, or ``raw``; one that is ``unknown`` to others is raw."""
    seed: int = 0

    def say(self, request: Mapping[str, Any], prompt: Sequence[int]) -> Said:
        asked = {name: value for name, value in request.items() if value is not None}
        settings = {**self.defaults, **asked}
        chance = random.Random(self.seed)
        tokens: list[Token] = []
        forced: list[int] = []
        while len(tokens) < LONGEST and (not tokens or tokens[-1].id != END):
            logits = TABLE[([*prompt] + [token.id for token in tokens])[-1]]
            sampled = self._distribution(logits, settings, prompt, [token.id for token in tokens], forced)
            values = log_softmax(sampled)
            chosen = chance.choices(range(VOCABULARY), [math.exp(each) for each in values])[0]
            shown = values if self.kind == "processed" else log_softmax(logits)
            tokens.append(Token(f"t{chosen}", chosen, shown[chosen]))
        answer = Answer((AnswerChoice(tuple(tokens)),), tuple(prompt), ids="always", logprobs="always")
        return Said(answer, tuple(forced))

    def _distribution(
        self,
        logits: Logits,
        settings: Mapping[str, Any],
        prompt: Sequence[int],
        said: Sequence[int],
        forced: list[int],
    ) -> Logits:
        found = list(logits)
        if any(name not in KNOWN | HARMLESS for name in settings):
            found = [each + 0.7 * math.sin(3 * at + 1) for at, each in enumerate(found)]
        repetition = settings.get("repetition_penalty", 1.0)
        for token in {*prompt, *said}:
            found[token] = found[token] / repetition if found[token] > 0 else found[token] * repetition
        for token in said:
            found[token] -= settings.get("frequency_penalty", 0.0)
        for token in set(said):
            found[token] -= settings.get("presence_penalty", 0.0)
        for name, bias in settings.get("logit_bias", {}).items():
            found[int(name)] += bias
        for word in settings.get("bad_words", ()):
            found[int(word[1:])] = OFF
        if len(said) < settings.get("min_tokens", 0):
            found[END] = OFF
        if settings.get("guided_regex"):  # one grammar: an odd token, then token 4, and so on
            allowed = {1, 3, 5, 7} if len(said) % 2 == 0 else {4}
            found = [each if at in allowed else OFF for at, each in enumerate(found)]
            if len(allowed) == 1:
                forced.append(len(said))
        return _cut(found, settings)


def _cut(logits: Logits, settings: Mapping[str, Any]) -> Logits:
    temperature = settings.get("temperature", 1.0)
    if temperature == 0:
        best = max(logits)
        return [each if each == best else OFF for each in logits]
    found = [each / temperature for each in logits]
    order = sorted(range(VOCABULARY), key=lambda at: -found[at])
    keep = set(order)
    if settings.get("top_k", 0) > 0:
        keep &= set(order[: settings["top_k"]])
    found = [each if at in keep else OFF for at, each in enumerate(found)]
    mass, kept = 0.0, set()
    values = log_softmax(found)
    for at in order:
        if mass < settings.get("top_p", 1.0) and found[at] > OFF:
            kept.add(at)
            mass += math.exp(values[at])
    least = max(values) + (math.log(settings["min_p"]) if settings.get("min_p") else OFF)
    whole = settings.get("top_p", 1.0) >= 1.0
    return [each if (whole or at in kept) and values[at] >= least else OFF for at, each in enumerate(found)]
