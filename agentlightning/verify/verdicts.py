"""What can be said of recorded log-probabilities beside recomputed ones: each verdict a code, a sentence and a cure.

Codes are stable. A verdict that names a cause is given only where the cause, put right, makes the values equal;
where several causes leave the same trace, the sentence names them all.
"""

from __future__ import annotations

from ..rows.reasons import Explained


class Verdict(Explained):
    """Of one row, and of all rows together; in the order in which they are looked for."""

    EXACT = (
        "exact",
        "every recorded log-probability is the one that the model gives",
        "none needed: the first step is on policy",
    )
    NO_LOGPROBS = (
        "no_logprobs",
        "trained tokens have no recorded log-probability, so there is nothing to compare",
        "ask the engine for logprobs (capture_tokens='request')",
    )
    RAW_LOGPROBS = (
        "raw_logprobs",
        "the values are those of temperature 1, and the tokens were sampled at another: the engine reports "
        "log-probabilities from before the temperature",
        "serve processed ones (vLLM: --logprobs-mode processed_logprobs), or sample at temperature 1",
    )
    SHIFTED = (
        "shifted",
        "each value is that of a neighbouring token: ids and log-probabilities are paired one place off",
        "look for what cut or moved one of the two lists: a first or last entry that was dropped, a shift by one "
        "that was made twice",
    )
    EXCHANGED_ROLLOUTS = (
        "exchanged_rollouts",
        "the values are those of another answer's tokens",
        "look for what joins answers to rows by their place in a list; join them by rollout_id and span_id",
    )
    WRONG_TEMPERATURE = (
        "wrong_temperature",
        "the values are those of another temperature than the one that is recorded",
        "let the request name its temperature; a server's default (generation_config.json) replaces one that is "
        "not named",
    )
    DROPPED_TOKEN = (
        "dropped_token",
        "with one token more in the row the values fit: a token that the engine saw is missing",
        "look for a client or proxy that drops chunks of a stream without text; record the HTTP response below it",
    )
    WRONG_TEMPLATE = (
        "wrong_template",
        "the context is not what the engine saw: tokens in front of an answer are missing, added or others",
        "use the prompt ids that the engine returns; do not render messages again",
    )
    STALE_WEIGHTS = (
        "stale_weights",
        "the values differ all over, and no other pattern fits: the weights are not those that sampled. Where no "
        "version is named, a context that differs from the first token on leaves the same trace",
        "compare with the weights of the version that sampled (RowPolicy(min_version=…) leaves older answers out); "
        "if they are, compare the prompt ids with those of the engine",
    )
    CLOSE = (
        "close",
        "the values differ all over, none of them by more than 0.05: the engine calculates at another precision, or "
        "its weights are a small step away; the two look alike",
        "raise the tolerance to what the engine's precision costs, measured on weights that are surely the same",
    )
    BREAKS_OFF = (
        "breaks_off",
        "the values fit up to a token inside of an answer and differ from there on: a token is missing or was "
        "replaced there, or new weights came while the answer was sampled; the two look alike",
        "look at the token in the report; let the engine return weight versions",
    )
    UNKNOWN = (
        "unknown",
        "values differ, and no known cause explains them",
        "look at the largest difference and the span that it is in",
    )
