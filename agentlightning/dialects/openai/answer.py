"""One JSON object of a response, a whole answer or a chunk, added to what has come before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..distribution import CONTENT, NEUTRAL
from ..model_call import Usage
from .choice import add_choice, version_named_in
from .errors import error_of
from .json_parts import append_to, count_of, dict_of, index_of, list_of, newer, text_of
from .received import ReceivedAnswer

# A stream has most of what follows in none of its chunks: one look at all of their names is cheaper than one at each.
_BESIDE_CHOICES = frozenset(
    {
        "prompt_logprobs", "prompt_routed_experts", "generation_settings", "__verbose", "metadata", "meta_info",
    }
)  # fmt: skip


def add_object(answer: ReceivedAnswer, found: Mapping[str, Any]) -> None:
    """Add one JSON object: a whole answer or a chunk."""
    answer.id = text_of(found.get("id")) or answer.id
    answer.model = text_of(found.get("model")) or answer.model
    answer.usage = usage_of(found.get("usage")) or answer.usage
    answer.error = error_of(found) or answer.error
    append_to(answer.prompt_ids, found.get("prompt_token_ids"))
    named = None if _BESIDE_CHOICES.isdisjoint(found) else _read_beside_choices(answer, found)
    seen: set[int] = set()
    for position, choice in enumerate(list_of(found.get("choices"))):
        if isinstance(choice, dict):
            index = index_of(choice.get("index"), position)
            if index in seen:
                answer.index_twice = True
                index = index if answer.is_stream else max(answer.parts) + 1  # two answers are never one
            seen.add(index)
            add_choice(answer.at(index), choice, named)
    _read_sglext(answer, found.get("sglext"))


def _read_beside_choices(answer: ReceivedAnswer, found: Mapping[str, Any]) -> str | None:
    """Read what few servers say of a whole answer; return the version of the weights that it names."""
    answer.prompt_logprobs = newer(answer.prompt_logprobs, found.get("prompt_logprobs"))
    answer.prompt_routed_experts = newer(answer.prompt_routed_experts, found.get("prompt_routed_experts"))
    answer.settings = settings_of(found) or answer.settings
    metadata = dict_of(found.get("metadata"))
    named = version_named_in(metadata) or version_named_in(dict_of(found.get("meta_info")))
    if named is not None and named not in answer.named_versions[-1:]:
        answer.named_versions.append(named)
    if isinstance(metadata.get("weight_versions"), list):
        answer.versions = metadata["weight_versions"]
    return named


def _read_sglext(answer: ReceivedAnswer, found: Any) -> None:
    """SGLang's extension: whole lists, so a later one replaces an earlier one."""
    if not isinstance(found, dict):
        return
    if found.get("input_ids") is not None:
        answer.prompt_ids[:] = [found["input_ids"]]
    for index, ids in enumerate(list_of(found.get("output_ids"))):
        if isinstance(ids, list):
            answer.at(index).ids["sglext"] = [ids]
    experts = found.get("routed_experts")
    for index, each in enumerate(experts if isinstance(experts, list) else [experts]):
        if each is not None:
            answer.at(index).routed_experts = each


def usage_of(found: Any) -> Usage | None:
    """Return the counts of tokens; ``None`` where nothing is said."""
    if not isinstance(found, dict):
        return None
    return Usage(
        input_tokens=count_of(found.get("prompt_tokens")),
        output_tokens=count_of(found.get("completion_tokens")),
        cached_input_tokens=count_of(dict_of(found.get("prompt_tokens_details")).get("cached_tokens")),
        reasoning_tokens=count_of(dict_of(found.get("completion_tokens_details")).get("reasoning_tokens")),
    )


_NO_SETTINGS = frozenset(
    {
        "samplers", "n_keep", "n_discard", "grammar_lazy", "grammar_triggers", "preserved_tokens", "chat_format",
        "reasoning_in_content", "thinking_forced_open", "generation_prompt", "backend_sampling",
    }
)  # fmt: skip
"""What llama.cpp says beside the settings themselves."""


def settings_of(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings in force, which llama.cpp says in full (``generation_settings``)."""
    said = found.get("generation_settings", dict_of(found.get("__verbose")).get("generation_settings"))
    if not isinstance(said, dict) or not NEUTRAL.keys() - {"repetition_penalty"} <= said.keys():
        return None
    return {
        name: value
        for name, value in said.items()
        if name not in _NO_SETTINGS | CONTENT
        and not name.startswith("speculative.")
        and value not in (None, "", [])
        and value is not False
    }
