"""A language model small enough to read: a vocabulary, a chat template, and a softmax over all words.

What it says next depends on the message that it heard last, and on how many tokens of its reply it has said. The
score (logit) of a word is the sum of

* ``bias``: how much this position of this kind of reply likes the word;
* ``word``: how much each word that was heard speaks for it, as "times" does for ``multiply``;
* ``copy``, if it is one of the first two numbers that were heard: how much that number is wanted in general, at
  this position, and in view of each word that was heard ("take 3 from 8" names them the other way round).

All weights start at 0: the untrained policy says any of its words with equal probability.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .agent import TOOLS
from .tasks import LARGEST, WORDINGS

Floats = npt.NDArray[np.float64]
Weights = dict[str, Floats]

UNKNOWN, END = "<unknown>", "<end>"
SPEAKERS = TOOL_LIST, USER, TOOL, CALL, SAY = "<tools>", "<user>", "<tool>", "<call>", "<say>"
"""What a message begins with. ``CALL`` and ``SAY`` begin the two kinds of reply: a tool call, and words."""

WORDS = sorted(
    {word for wordings in WORDINGS.values() for text in wordings for word in text.split() if "{" not in word}
)
NUMBERS = [str(number) for number in range(LARGEST + 1)]
VOCABULARY = [UNKNOWN, END, *SPEAKERS, "error", *TOOLS, *WORDS, *NUMBERS]
IDS = {word: token for token, word in enumerate(VOCABULARY)}

CALL_LENGTH = 3
"""A tool call is the name of a tool and two arguments."""
POSITIONS = 4
"""Positions of a reply that are told apart; the last one stands for all that follow."""
COPIED = 2
"""So many of the numbers that were heard can be copied."""


# ------------------------------------------------------------------ text and tokens


def encode(text: str) -> list[int]:
    """Return one id for each word of ``text``."""
    return [IDS.get(word, IDS[UNKNOWN]) for word in re.findall(r"<\w+>|\w+|[^\w\s]", text.lower())]


def decode(ids: Sequence[int]) -> str:
    """Return the words of ``ids`` up to the end mark."""
    words = [VOCABULARY[token] for token in ids]
    return " ".join(words[: words.index(END)] if END in words else words)


def render(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the prompt for a reply: the chat template of this model.

    A question is answered by a tool call, if there are tools, and a tool's result in words. The prompt of a later
    turn begins with the prompt and the reply of the turn before it.
    """
    parts = [(TOOL_LIST, " ".join(tool["function"]["name"] for tool in tools))] if tools else []
    parts += [part for message in messages for part in spoken(message)]
    is_asked = bool(messages) and messages[-1]["role"] == "user"
    ids = [token for speaker, text in parts for token in (IDS[speaker], *encode(text), IDS[END])]
    return [*ids, IDS[CALL if tools and is_asked else SAY]]


def spoken(message: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (speaker, text) of what a message of the chat API says."""
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    if functions:
        return [(CALL, write_call(each["name"], each["arguments"])) for each in functions]
    speaker = {"tool": TOOL, "assistant": SAY}.get(message["role"], USER)
    return [(speaker, message.get("content") or "")]


def write_call(name: str, arguments: str) -> str:
    """Return the words in which the policy makes a tool call that the chat API describes."""
    return " ".join([name, *(str(value) for value in json.loads(arguments).values())])


def read_call(ids: Sequence[int]) -> tuple[str, str]:
    """Return the name and the arguments, as JSON, of a tool call that was sampled; undoes ``write_call``."""
    name, *values = decode(ids).split() or [""]
    arguments = {
        key: int(value) if value.isdigit() else value for key, value in zip("ab", values, strict=False)
    }
    return name, json.dumps(arguments)


# ------------------------------------------------------------------ the model


@dataclass(frozen=True)
class View:
    """What the policy makes of a prompt."""

    kind: int
    """0 where a tool call is wanted, 1 where words are."""
    words: list[int]
    """The words of the last message, each once, without numbers."""
    numbers: list[int]
    """The first numbers of the last message."""


def view(prompt: Sequence[int]) -> View:
    """Look at a prompt."""
    heard: list[str] = []
    for token in reversed(prompt[:-2]):  # without the end of the last message and the beginning of the reply
        if VOCABULARY[token] in SPEAKERS:
            break
        heard.insert(0, VOCABULARY[token])
    return View(
        kind=int(prompt[-1] == IDS[SAY]),
        words=sorted({IDS[word] for word in heard if not word.isdigit()}),
        numbers=[IDS[word] for word in heard if word.isdigit()][:COPIED],
    )


class Policy:
    """The weights, and the probabilities that follow from them."""

    def __init__(self) -> None:
        self.weights = zeros()
        self.version = 0
        """Counts the changes of the weights."""

    def log_probabilities(self, seen: View, position: int) -> Floats:
        """Return the log-probability of each word of the vocabulary at a position of the reply."""
        at, weights = (seen.kind, min(position, POSITIONS - 1)), self.weights
        logits = weights["bias"][at] + weights["word"][at][seen.words].sum(axis=0)
        for place, number in enumerate(seen.numbers):
            logits[number] += (
                weights["copy"]
                + weights["copy_position"][at][place]
                + weights["copy_word"][at][seen.words, place].sum()
            )
        logits -= logits.max()
        return np.asarray(logits - np.log(np.exp(logits).sum()))

    def add_gradient(self, gradient: Weights, seen: View, position: int, slope: Floats) -> None:
        """Add to ``gradient`` what a slope with respect to the logits at a position means for the weights."""
        at = (seen.kind, min(position, POSITIONS - 1))
        gradient["bias"][at] += slope
        gradient["word"][at][seen.words] += slope
        for place, number in enumerate(seen.numbers):
            gradient["copy"] += slope[number]
            gradient["copy_position"][at][place] += slope[number]
            gradient["copy_word"][at][seen.words, place] += slope[number]

    def sample(
        self, prompt: Sequence[int], max_tokens: int, random: np.random.Generator
    ) -> tuple[list[int], list[float]]:
        """Sample a reply at temperature 1; return its ids, and the log-probability of each of them."""
        seen = view(prompt)
        longest = min(max_tokens, CALL_LENGTH) if prompt[-1] == IDS[CALL] else max_tokens
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < longest and IDS[END] not in ids:
            log_probabilities = self.log_probabilities(seen, len(ids))
            cumulated = np.cumsum(np.exp(log_probabilities))
            token = int(np.searchsorted(cumulated, random.random() * cumulated[-1], side="right"))
            ids.append(token)
            logprobs.append(float(log_probabilities[token]))
        return ids, logprobs


def zeros() -> Weights:
    """Return weights, or a gradient, that are 0 everywhere."""
    at, size = (2, POSITIONS), len(VOCABULARY)
    return {
        "bias": np.zeros((*at, size)),
        "word": np.zeros((*at, size, size)),
        "copy": np.zeros(()),
        "copy_position": np.zeros((*at, COPIED)),
        "copy_word": np.zeros((*at, size, COPIED)),
    }
