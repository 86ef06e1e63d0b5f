"""The OpenAI API before a Tinker sampling client: an agent talks to it as to any server, and gets ids with its text.

Tinker takes and gives tokens; chat templates and tool calls are up to its user. Log-probabilities are those before
temperature (``raw``): SkyRL's sampler takes them from the logits as they are.
"""

from __future__ import annotations

from concurrent.futures import Future
from types import TracebackType
from typing import Any

import tinker

from ..grpo_trl.sampling import Sequence, Token
from ..grpo_trl.serving import ChatServer
from ..grpo_trl.wire import RefusedError


class TinkerEngine(ChatServer):
    """Serves what a sampling client samples; give it one with ``use`` before the first request."""

    def __init__(self, tokenizer: Any, context: int, **settings: Any) -> None:
        super().__init__(tokenizer, context, **settings)
        self._client: tuple[Any, str] | None = None
        self._asked: set[Future[Any]] = set()

    @property
    def version(self) -> str:
        """Of the weights that answers which begin now are sampled with."""
        return self._now()[1]

    def use(self, client: Any, version: str | int) -> None:
        """Sample with this client from now on; answers that are under way stay with the one before.

        Args:
            client: A ``tinker.SamplingClient``: weights that do not change.
            version: What its tokens say that they are of.
        """
        self._client = (client, str(version))

    def sample(self, sequences: list[Sequence]) -> None:
        """Ask for all of them; the server makes batches itself."""
        client, version = self._now()
        for sequence in sequences:
            if sequence.sampling.top_logprobs:
                sequence.end(None, RefusedError("this engine knows no top_logprobs"))
                continue
            asked = client.sample(
                prompt=tinker.ModelInput.from_ints(sequence.prompt),
                num_samples=1,
                sampling_params=self._settings(sequence),
            )
            self._asked.add(asked)
            asked.add_done_callback(lambda done, to=sequence: self._give(to, done, version))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, where)
        for asked in list(self._asked):
            asked.cancel()  # which ends the request that waits for it

    def _give(self, sequence: Sequence, done: Future[Any], version: str) -> None:
        self._asked.discard(done)
        try:
            give(sequence, done, version)
        except Exception as failed:  # noqa: BLE001 - it is told to the request that waits
            sequence.end(None, failed)

    def _now(self) -> tuple[Any, str]:
        if self._client is None:
            raise RefusedError("there is no sampling client yet")
        return self._client

    def _settings(self, sequence: Sequence) -> Any:
        sampling = sequence.sampling
        return tinker.SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            seed=sequence.seed % 2**31,
            stop=None if sampling.ignore_eos else [self._tokenizer.eos_token_id],
        )


def give(sequence: Sequence, done: Future[Any], version: str) -> None:
    """Hand an answer of Tinker to the request that waits for it.

    Raises:
        Exception: There is none, or it is not what was asked for; the sequence has not ended.
    """
    if done.cancelled():
        sequence.end("abort")
        return
    (answer,) = done.result().sequences
    if answer.logprobs is None or len(answer.logprobs) != len(answer.tokens):
        raise RuntimeError("the server gave tokens without their log-probabilities")
    for token, logprob in zip(answer.tokens, answer.logprobs, strict=True):
        sequence.tokens.append(Token(token, logprob, version))
        sequence.events.put(sequence.tokens[-1])
    sequence.end(answer.stop_reason)
