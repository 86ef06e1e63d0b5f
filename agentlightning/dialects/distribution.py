"""Of which distribution the log-probabilities of a call are, and which of its tokens were not sampled at all.

A trainer recomputes ``log_softmax(logits / temperature)`` over the whole vocabulary. The recorded log-probabilities
are *proven* where they are those very numbers: nothing cut, moved or masked the logits, everything that could have is
known, and the temperature is in the values. One setting that is not known here is enough to leave them unproven, since
every server has settings of its own: an unknown name is never harmless, and what a request leaves out is whatever the
server was started with (vLLM and SGLang read the model's ``generation_config.json``), until somebody says what that is
(``ModelCall.sampling_defaults``).

A token that a grammar or a budget forced was not sampled. Where the log-probabilities are those after the mask
(``processed``) a forced token has the log-probability 0, and a sampling mask names it outright; elsewhere it cannot be
told from a sampled one.

Names of settings: OpenAI API reference; vLLM ``SamplingParams`` and its OpenAI protocol; SGLang ``sampling_params``;
llama.cpp ``tools/server/README``; Text Generation Inference; TensorRT-LLM ``SamplingParams``.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .model_call import LEFT_BY_AGENT, VALID, Choice, ModelCall

NEUTRAL: Mapping[str, float] = MappingProxyType(
    {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
    }
)
"""What these settings are where a server is known to have no default of its own."""

HARMLESS = frozenset(
    {
        # what is asked, and how the prompt is made of it: the ids of the prompt are recorded
        "model", "messages", "prompt", "suffix", "tools", "functions", "documents", "chat_template",
        "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "add_special_tokens",
        "mm_processor_kwargs", "media_io_kwargs", "truncate_prompt_tokens", "truncate", "reasoning_effort",
        "reasoning_format", "enable_thinking",
        # how many answers, and where they end
        "n", "max_tokens", "max_completion_tokens", "max_new_tokens", "n_predict", "stop", "stop_token_ids",
        "stop_regex", "t_max_predict_ms", "seed", "sampling_seed", "random_seed",
        # how they are shown
        "stream", "stream_options", "stream_interval", "stream_reasoning", "separate_reasoning", "include_reasoning",
        "echo", "skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output", "no_stop_trim",
        "detokenize", "parallel_tool_calls", "parse_tool_calls", "logprobs", "top_logprobs", "prompt_logprobs",
        "n_probs", "top_n_tokens", "return_token_ids", "return_tokens", "return_tokens_as_token_ids",
        "return_prompt_token_ids", "return_input_ids_in_sglext", "return_output_ids_in_sglext",
        "return_weight_versions", "return_meta_info", "return_routed_experts", "return_hidden_states",
        "return_sampling_mask", "return_progress", "return_full_text", "decoder_input_details", "details",
        "timings_per_token", "routed_experts_prompt_start", "routed_experts_start_len",
        # who asks, and how the server goes about it
        "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
        "prompt_cache_retention", "priority", "request_id", "rid", "cache_salt", "cache_prompt", "id_slot",
        "kv_transfer_params", "data_parallel_rank", "bootstrap_host", "bootstrap_port", "bootstrap_room",
        # of a search in several beams, which is a setting of its own
        "length_penalty", "early_stopping",
    }
)  # fmt: skip
"""Fields of a request that leave the distribution of the next token as it is, given the ids of the prompt."""

CONTENT = frozenset(
    {
        "model", "messages", "prompt", "tools", "functions", "documents", "chat_template", "stream",
        "stream_options", "user", "metadata",
    }
)  # fmt: skip
"""Fields of a request that are no settings: they are recorded elsewhere, or are the user's own words."""

_TRUNCATION: Mapping[str, Collection[float]] = MappingProxyType(
    {
        "top_p": (1.0,),
        "top_k": (0.0, -1.0),
        "min_p": (0.0,),
        "typical_p": (1.0,),
        "typical": (1.0,),
        "top_a": (0.0,),
        "tfs_z": (1.0,),
        "top_n_sigma": (-1.0, 0.0),
        "epsilon_cutoff": (0.0,),
        "eta_cutoff": (0.0,),
        "xtc_probability": (0.0,),
    }
)
_PENALTIES: Mapping[str, Collection[float]] = MappingProxyType(
    {
        "presence_penalty": (0.0,),
        "frequency_penalty": (0.0,),
        "repetition_penalty": (1.0,),
        "repeat_penalty": (1.0,),
        "dry_multiplier": (0.0,),
        "no_repeat_ngram_size": (0.0,),
        "min_tokens": (0.0,),
        "min_new_tokens": (0.0,),
        "min_length": (0.0,),
    }
)
_OTHER: Mapping[str, Collection[float]] = MappingProxyType({"mirostat": (0.0,), "dynatemp_range": (0.0,)})
"""Setting → the values at which it changes nothing. vLLM and SGLang take 0 and -1 for "no top_k"."""
_DEPENDS: Mapping[str, str] = MappingProxyType(
    {
        "xtc_threshold": "xtc_probability",
        "dry_base": "dry_multiplier",
        "dry_allowed_length": "dry_multiplier",
        "dry_penalty_last_n": "dry_multiplier",
        "dry_sequence_breakers": "dry_multiplier",
        "mirostat_tau": "mirostat",
        "mirostat_eta": "mirostat",
        "dynatemp_exponent": "dynatemp_range",
        "repeat_last_n": "repeat_penalty",
        "min_keep": "top_p",
    }
)
"""Settings that do nothing where the other one is named and switched off."""
_TABLES = (
    (_TRUNCATION, "truncated_sampling"),
    (_PENALTIES, "penalised_sampling"),
    (_OTHER, "setting_unknown"),
)
_NUMBERS_ALONE = frozenset({"temperature", *_TRUNCATION, *_PENALTIES, *_OTHER})
_BIASES = frozenset({"logit_bias", "bad_words", "bad_words_ids", "allowed_token_ids", "watermark"})
_GRAMMARS = frozenset(
    {
        "guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_decoding", "structured_outputs",
        "structural_tag", "json_schema", "regex", "ebnf", "grammar",
    }
)  # fmt: skip
_BUDGETS = frozenset(
    {
        "thinking_token_budget", "thinking_budget", "thinking_budget_tokens", "reasoning_budget",
        "reasoning_max_tokens", "max_thinking_tokens", "max_think_tokens",
    }
)  # fmt: skip
_BEAMS = frozenset({"use_beam_search", "beam_width", "best_of", "num_beams"})
_ASKS_FOR_FORM = _GRAMMARS | {"response_format", "tool_choice", "function_call"}
_FORCING = _ASKS_FOR_FORM | _BUDGETS | {"allowed_token_ids", "custom_params"}
_SPECIAL = frozenset(
    {"temperature", "response_format", "tool_choice", "function_call", "do_sample", "ignore_eos"}
)

SETTINGS = frozenset(
    {
        *NEUTRAL, *HARMLESS - CONTENT, *_TRUNCATION, *_PENALTIES, *_OTHER, *_DEPENDS, *_BIASES, *_GRAMMARS, *_BUDGETS,
        *_BEAMS, *_SPECIAL,
    }
)  # fmt: skip
"""Names of settings that are known here; every other field of a request is an unknown one."""

FORCED = 1e-7
"""In nats: a log-probability this close to 0 is that of a token that nothing else could follow, up to float32."""


class Why(NamedTuple):
    """A reason: a key of ``model_call.CODES``, and what it is about."""

    code: str
    detail: str = ""


def unproven(call: ModelCall, choice: Choice | None = None) -> Why | None:
    """Return why log-probabilities are not known to be those that a trainer recomputes; ``None`` = they are.

    Args:
        call: The call.
        choice: Of this choice alone; default: of all of them. Choices differ only in whether they have any.

    The trainer is thought to divide its logits by :func:`temperature_of` and to normalise over the whole vocabulary.
    ``processed`` values are those at any temperature above 0; ``raw`` and ``unknown`` ones only at temperature 1.
    Never raises.
    """
    if call.token_capture not in (VALID, LEFT_BY_AGENT):
        return Why(call.capture_code or "malformed")
    if any(each.logprobs is None for each in (call.choices if choice is None else (choice,))):
        return Why("no_logprobs")
    moved = distorted(call.sampling_effective) or _strict_tools(call)
    if moved is not None:
        return moved
    if call.sampling_defaults is None:
        unnamed = [name for name in NEUTRAL if call.sampling_effective.get(name) is None]
        return Why("sampling_unknown", ", ".join(unnamed))
    temperature = temperature_of(call)
    if temperature is None:  # a statement was stored, and what was in force was not
        return Why("sampling_unknown", "temperature")
    if call.logprob_kind != "processed" and temperature != 1.0:
        return Why("temperature", f"temperature {temperature:g}, log-probabilities {call.logprob_kind}")
    return None


def temperature_of(call: ModelCall) -> float | None:
    """Return the temperature that the tokens were sampled at; 0 = greedily, ``None`` = nobody knows."""
    return _number(call.sampling_effective.get("temperature"))


def truncation_of(call: ModelCall) -> Mapping[str, float] | None:
    """Return the settings that cut the distribution, such as ``{"top_p": 0.9}``; empty = it was whole.

    ``None`` = nobody knows: the request does not name all of them, and nobody said what the server does then.
    """
    sampling = call.sampling_effective
    named = {name: sampling[name] for name in _TRUNCATION if sampling.get(name) is not None}
    numbers = {name: _number(value) for name, value in named.items()}
    known = {name: number for name, number in numbers.items() if number is not None}
    if call.sampling_defaults is None or len(known) < len(numbers):
        return None
    return {name: number for name, number in known.items() if number not in _TRUNCATION[name]}


def distorted(sampling: Mapping[str, Any]) -> Why | None:
    """Return the first setting that makes the distribution another one than that of the logits at a temperature."""
    given = {name: value for name, value in sampling.items() if value is not None}
    if "temperature" in given:
        temperature = _number(given["temperature"])
        if temperature is None or temperature < 0:
            return Why("sampling_unreadable", "temperature")
        if temperature == 0:
            return Why("temperature_zero")
    if given.get("do_sample") is False:
        return Why("temperature_zero", "do_sample")
    for table, code in _TABLES:
        for name in () if table.keys().isdisjoint(given) else table:
            if name not in given:
                continue
            number = _number(given[name])
            if number is None:
                return Why("sampling_unreadable", name)
            if number not in table[name]:
                return Why(code, f"{name}={number:g}")
    if _NUMBERS_ALONE.issuperset(given):  # as most requests ask for no more
        return None
    biased = next((name for name in sorted(_BIASES & given.keys()) if given[name]), None)
    if biased is not None:
        return Why("penalised_sampling", biased)
    grammar = _grammar(given)
    if grammar is not None:
        return Why("constrained_sampling", grammar)
    if given.get("ignore_eos"):
        return Why("constrained_sampling", "ignore_eos")
    budget = next(
        (name for name in sorted(_BUDGETS & given.keys()) if _budget(given[name]) is not None), None
    )
    if budget is not None:
        return Why("constrained_sampling", budget)
    if _is_beam(given):
        return Why("beam_search")
    unknown = sorted(given.keys() - SETTINGS - CONTENT)
    unknown += [name for name, on in _DEPENDS.items() if name in given and not _is_off(on, given)]
    return Why("setting_unknown", ", ".join(unknown)) if unknown else None


def forced_tokens(call: ModelCall, choice: Choice) -> tuple[int, ...] | Why:
    """Return the places of an answer's tokens that a grammar or a budget forced, ascending; or why nobody can tell.

    Never raises.
    """
    by = _forced_by(call, choice)
    if by is None:
        return ()
    singles = _single(choice)
    if singles is not None:
        return singles
    if call.logprob_kind == "processed" and choice.logprobs is not None:
        return tuple(at for at, value in enumerate(choice.logprobs) if value >= -FORCED)
    return Why("forced_unknown", by)


def was_searched(call: ModelCall) -> bool:
    """Whether the answer was chosen from several candidates, so that it is no sample."""
    sampling = call.sampling_effective
    if _BEAMS.isdisjoint(sampling):
        return False
    return _is_beam({name: value for name, value in sampling.items() if value is not None})


def _forced_by(call: ModelCall, choice: Choice) -> str | None:
    """Return the setting that may have forced tokens of an answer, or ``None``."""
    sampling = call.sampling_effective
    if _FORCING.isdisjoint(sampling) and not choice.tool_calls:
        return None
    grammar = _grammar(sampling)
    if grammar is not None:
        return grammar
    allowed = sampling.get("allowed_token_ids")
    if isinstance(allowed, list) and len(allowed) == 1:
        return "allowed_token_ids"
    if choice.tool_calls and _strict_tools(call) is not None:
        return "strict tools"
    length = len(choice.token_ids or ())
    custom = sampling.get("custom_params")
    inside = custom if isinstance(custom, Mapping) else {}
    for name in sorted(_BUDGETS & (sampling.keys() | inside.keys())):
        for value in (sampling.get(name), inside.get(name)):
            budget = _budget(value)
            # What a budget forces comes behind that many tokens.
            if budget is not None and length > budget:
                return name
    return None


def _single(choice: Choice) -> tuple[int, ...] | None:
    """Return the places at which the answer's sampling mask leaves one token; ``None`` = it has no such mask."""
    mask, length = choice.sampling_mask, len(choice.token_ids or ())
    if not isinstance(mask, list) or len(mask) != length or not all(isinstance(each, list) for each in mask):
        return None
    return tuple(at for at, allowed in enumerate(mask) if len(allowed) == 1)


def _grammar(sampling: Mapping[str, Any]) -> str | None:
    """Return the setting that asks for a format or a tool, which engines force with a grammar."""
    if _ASKS_FOR_FORM.isdisjoint(sampling):
        return None
    named = next((name for name in sorted(_GRAMMARS & sampling.keys()) if sampling[name]), None)
    if named is not None:
        return named
    response_format = sampling.get("response_format")
    if response_format is not None:
        kind = response_format.get("type") if isinstance(response_format, Mapping) else response_format
        if kind not in (None, "text"):
            return "response_format"
    for name in ("tool_choice", "function_call"):
        choice = sampling.get(name)
        if choice is not None and choice not in ("auto", "none"):
            return name
    return None


def _strict_tools(call: ModelCall) -> Why | None:
    """Return a reason where a tool asks for a grammar of its own; whether the engine follows is not known."""
    if call.sampling_effective.get("tool_choice") == "none":
        return None
    for tool in call.tools:
        function, custom = tool.get("function"), tool.get("custom")
        own = function if isinstance(function, Mapping) else {}
        shape = custom.get("format") if isinstance(custom, Mapping) else None
        is_grammar = isinstance(shape, Mapping) and shape.get("type") == "grammar"
        if tool.get("strict") or own.get("strict") or is_grammar:
            return Why("constrained_sampling", "strict tools")
    return None


def _budget(value: Any) -> float | None:
    number = _number(value)
    return None if number is None or number < 0 else number  # llama.cpp: -1 = no budget


def _is_beam(given: Mapping[str, Any]) -> bool:
    if _BEAMS.isdisjoint(given):
        return False
    if given.get("use_beam_search"):
        return True
    wanted = _number(given.get("n", 1)) or 1.0
    if any((_number(given.get(name, 1)) or math.inf) > 1 for name in ("beam_width", "num_beams")):
        return True
    best_of = given.get("best_of")
    return best_of is not None and (_number(best_of) or math.inf) > wanted


def _is_off(name: str, given: Mapping[str, Any]) -> bool:
    number = _number(given.get(name))
    table = next(each for each, _ in _TABLES if name in each)
    return number is not None and number in table[name]


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
