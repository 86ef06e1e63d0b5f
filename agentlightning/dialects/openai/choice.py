"""One choice of an answer or of a chunk: text, token ids, log-probabilities, and what engines say beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .answer_fields import TokenLogprob
from .finish_reasons import finish_word
from .json_parts import append_to, dict_of, length_of, list_of, newer
from .message import BESIDE_CONTENT, add_message, reasoning_of
from .received import ReceivedChoice

_BESIDE_IDS = frozenset(
    {
        "prompt_token_ids", "provider_specific_fields", "meta_info", "weight_version", "weight_versions",
        "prompt_logprobs", "routed_experts", "sampling_mask",
    }
)  # fmt: skip


def add_choice(parts: ReceivedChoice, choice: Mapping[str, Any], named_version: str | None) -> None:
    """Add a choice of a whole answer or of a chunk.

    Args:
        parts: What has been received of the choice with its index.
        choice: What came.
        named_version: The version of the weights that its answer or chunk names.
    """
    message = dict_of(choice.get("delta") or choice.get("message"))
    brings_text, ids = _brings_text(choice, message), _count_ids(choice)
    if brings_text or ids:
        parts.goes_on = parts.goes_on or parts.finish is not None
        parts.has_text_alone = parts.has_text_alone or not ids
    text = choice.get("text")
    if isinstance(text, str):
        parts.content.append(text)
        parts.has_content = True
    if message:
        add_message(parts, message)
    parts.finish = finish_word(choice) or parts.finish
    for source in ("token_ids", "response_token_ids"):
        parts.add_ids(source, choice.get(source))
    if not _BESIDE_IDS.isdisjoint(choice):
        named_version = _read_beside_ids(parts, choice, named_version)
    if ids:
        parts.named_versions.append((named_version, ids))
    add_logprobs(parts, choice.get("logprobs"))


def _read_beside_ids(
    parts: ReceivedChoice, choice: Mapping[str, Any], named_version: str | None
) -> str | None:
    """Read what few servers say of a choice; return the version of the weights that it or its answer names."""
    append_to(parts.prompt_ids, choice.get("prompt_token_ids"))
    provider = choice.get("provider_specific_fields")  # where LiteLLM puts what it does not know
    if isinstance(provider, dict):
        parts.add_ids("provider_specific_fields", provider.get("token_ids"))
    for own in (dict_of(provider), dict_of(choice.get("meta_info")), choice):
        named_version = version_named_in(own) or named_version
        if isinstance(own.get("weight_versions"), list):
            parts.versions = own["weight_versions"]
    parts.prompt_logprobs = newer(parts.prompt_logprobs, choice.get("prompt_logprobs"))
    meta = dict_of(choice.get("meta_info"))  # SGLang
    parts.routed_experts = newer(
        parts.routed_experts, choice.get("routed_experts", meta.get("routed_experts"))
    )
    mask = choice.get("sampling_mask", meta.get("sampling_mask"))
    if isinstance(mask, list) and isinstance(parts.sampling_mask, list):
        parts.sampling_mask = [*parts.sampling_mask, *mask]  # a stream brings those of each chunk
    else:
        parts.sampling_mask = newer(parts.sampling_mask, mask)
    return named_version


def _brings_text(choice: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """Whether a choice or chunk, and the message in it, say something that was sampled."""
    if choice.get("text") or message.get("content") or message.get("refusal"):
        return True
    if BESIDE_CONTENT.isdisjoint(message):
        return False
    if reasoning_of(message, None):
        return True
    said: list[Any] = []
    calls = [dict_of(tool) for tool in list_of(message.get("tool_calls"))]
    calls.append({"function": message.get("function_call")})
    for function in (dict_of(call.get("function") or call.get("custom")) for call in calls):
        said += [function.get("name"), function.get("arguments"), function.get("input")]
    return any(said)


def _count_ids(choice: Mapping[str, Any]) -> int:
    """Return for how many tokens a choice or chunk has ids, or entries that may name them."""
    most = max(length_of(choice.get("token_ids")), length_of(choice.get("response_token_ids")))
    if "provider_specific_fields" in choice:
        most = max(most, length_of(dict_of(choice["provider_specific_fields"]).get("token_ids")))
    if most:
        return most
    logprobs = dict_of(choice.get("logprobs"))
    return length_of(logprobs.get("content") or logprobs.get("tokens"))


def version_named_in(found: Mapping[str, Any]) -> str | None:
    """Return the one version of the weights that an answer, a chunk or a choice names."""
    for value in (found.get("weight_version"), found.get("weight_versions")):
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    return None


def add_logprobs(parts: ReceivedChoice, found: Any) -> None:
    """Add ``logprobs`` of a choice: ``content`` of a chat, or ``tokens`` and ``token_logprobs`` of a completion."""
    if not isinstance(found, dict):
        return
    content, flat = found.get("content"), found.get("token_logprobs")
    if isinstance(content, list):
        parts.has_logprobs = True
        if content and type(content[0]) is TokenLogprob:  # then all are
            parts.logprobs += [entry.logprob for entry in content]
            parts.strings += [entry.token for entry in content]
            return
        parts.are_checked = parts.are_checked and not content
        known = [entry if isinstance(entry, dict) else {} for entry in content]
        parts.logprobs += [entry.get("logprob") for entry in known]
        parts.strings += [name if isinstance(name := entry.get("token"), str) else "" for entry in known]
    elif isinstance(flat, list):
        parts.has_logprobs = True
        parts.are_checked = False
        parts.logprobs.extend(flat)
        tokens = list_of(found.get("tokens"))
        parts.strings.extend(token if isinstance(token, str) else "" for token in tokens)
