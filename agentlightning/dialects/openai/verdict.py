"""Whether the token ids of a call are the very ids that were sampled: what the server says, checked against itself."""

from __future__ import annotations

from collections.abc import Sequence

from ..model_call import LEFT_BY_AGENT, TOKENS_SAY_ALL, VALID, Choice, Issue, Usage, invalid, none
from .received import ReceivedAnswer


def verdict_of(
    answer: ReceivedAnswer,
    choices: Sequence[Choice],
    prompt_ids: tuple[int, ...] | None,
    prompt_failure: str | None,
    cut: str | None,
    wanted: int | None,
    issues: list[Issue],
) -> str:
    """Return the verdict on the ids of an answer that holds something, and note what else tells of them.

    Args:
        answer: What has been received.
        choices: Its choices, each with a verdict of its own.
        prompt_ids: Ids of the prompt.
        prompt_failure: The code why those must not be trusted.
        cut: The code of an answer that was cut off.
        wanted: How many choices the request asked for, where that is known.
        issues: Findings are appended here.
    """
    if not choices:
        return none("no_choices") if cut is None else invalid(cut)
    # The first reason is the one that is told: what is wrong with one choice comes before what is wrong with all.
    failed = next((each.token_capture for each in choices if each.token_capture.startswith("invalid")), None)
    if failed is not None:
        return failed
    if prompt_failure is not None:
        return invalid(prompt_failure)
    with_ids = [each for each in choices if each.token_ids is not None]
    if not with_ids and prompt_ids is None:
        return none("no_token_ids")
    if cut is not None:
        if invalid(cut) == LEFT_BY_AGENT and all(map(_say_all, choices)):
            issues.append(Issue("info", TOKENS_SAY_ALL))
        return invalid(cut)
    if not with_ids:
        return none("no_response_token_ids")
    if len(with_ids) != len(choices):
        return invalid("choice_without_ids")
    if prompt_ids is None:
        return none("no_prompt_token_ids")
    # Before the counts, which agree also where two answers lie under one index.
    if answer.index_twice or any(parts.goes_on for parts in answer.parts.values()):
        return invalid("choice_index")
    if wanted is not None and wanted != len(choices):
        return invalid("choice_count")
    return _check_usage(answer, len(prompt_ids), choices, issues)


def _check_usage(answer: ReceivedAnswer, prompt: int, choices: Sequence[Choice], issues: list[Issue]) -> str:
    """Return the verdict on numbers of ids; without usage, on what else tells whether ids are missing."""
    usage = answer.usage or Usage()
    if usage.input_tokens is None or usage.output_tokens is None:
        issues.append(Issue("info", "usage_absent"))
    if usage.input_tokens is not None and usage.input_tokens != prompt:
        return invalid("prompt_length")
    if usage.output_tokens is not None:
        sampled = sum(len(each.token_ids or ()) for each in choices)
        return VALID if usage.output_tokens == sampled else invalid("response_length")
    # A stream without a count may have lost a chunk, and its ids would still look whole.
    if answer.is_stream and not _is_counted(answer):
        lost = any(parts.has_text_alone and parts.named_versions for parts in answer.parts.values())
        return invalid("chunk_without_ids" if lost else "usage_absent")
    if any(not answer.shows_prompt and _says_more(each) for each in choices):
        return invalid("text_mismatch")
    return VALID


def _is_counted(answer: ReceivedAnswer) -> bool:
    """Whether the numbers of a stream's ids are known without usage: they came in one list, or spans tile them."""
    tiled = len(answer.parts) == 1 and bool(answer.versions)
    return all("sglext" in parts.ids or parts.versions or tiled for parts in answer.parts.values())


def _say_all(choice: Choice) -> bool:
    """Whether the tokens of an answer, as the engine spelled them, say exactly the text that came of it."""
    if choice.reasoning is not None or choice.refusal is not None or choice.tool_calls:
        return False
    return choice.token_strings is not None and "".join(choice.token_strings) == choice.content


def _says_more(choice: Choice) -> bool:
    """Whether an answer says what none of its tokens says.

    Parsers and decoders take characters out of the text and change white space and what is not ASCII, but they add no
    letter or digit.
    """
    said = "".join(filter(None, (choice.content, choice.refusal)))
    if not choice.token_ids:
        return bool(said)
    if not choice.token_strings or any(each.startswith("token_id:") for each in choice.token_strings):
        return False
    # `in` on an iterator takes letters off it up to the one that it finds: whether the said letters come in this order.
    sampled = iter("".join(choice.token_strings))
    return not all(letter in sampled for letter in said if letter.isascii() and letter.isalnum())
