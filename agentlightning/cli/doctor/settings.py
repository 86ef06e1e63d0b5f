"""Environment variables and project settings that lose spans, do not parse, or are misspelt."""

from __future__ import annotations

import difflib
import logging
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ...dialects import endpoint_urls
from ...env_var import LightningEnvVar, ignored_settings, resolve_bool_env_var, resolve_int_env_var
from .finding import Finding, Level, Subject

HARMLESS_SAMPLERS = frozenset({"", "always_on", "parentbased_always_on"})
LIMITS = (
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
)
"""Limits of a provider that the program installs itself (OpenTelemetry specification, SDK environment variables)."""


def otel_settings(_: Subject) -> Iterator[Finding]:
    """What OpenTelemetry reads and what makes it drop spans or parts of them."""
    found = list(_lossy(os.environ))
    yield from found
    if not found:
        yield Finding("ok", "otel_settings", "no OTEL_ variable loses spans")


def _lossy(environment: Mapping[str, str]) -> Iterator[Finding]:
    def finding(level: Level, name: str, sentence: str) -> Finding:
        return Finding(level, "otel_settings", f"{name}={environment[name]} {sentence}", f"unset {name}")

    own = "in a program that installs its own tracer provider"
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield finding("fail", "OTEL_SDK_DISABLED", "switches every span off")
    # Our provider samples nothing away; one that the program brings obeys this.
    if environment.get("OTEL_TRACES_SAMPLER", "").strip().lower() not in HARMLESS_SAMPLERS:
        yield finding("warn", "OTEL_TRACES_SAMPLER", f"leaves spans out {own}; ours records all")
    if environment.get("OTEL_PYTHON_CONTEXT", "contextvars_context") != "contextvars_context":
        yield finding("fail", "OTEL_PYTHON_CONTEXT", "replaces what carries the attempt from call to call")
    if environment.get("OTEL_PYTHON_TRACER_PROVIDER", "sdk_tracer_provider") != "sdk_tracer_provider":
        yield finding("warn", "OTEL_PYTHON_TRACER_PROVIDER", "installs a provider that may not be the SDK's")
    for name in LIMITS:
        if environment.get(name):
            yield finding("warn", name, f"cuts spans {own}; token ids and messages arrive whole")


# ---------------------------------------------------------------------- ours

_KNOWN = frozenset(each.value for each in LightningEnvVar)


def agl_settings(_: Subject) -> Iterator[Finding]:
    """``AGL_`` variables, and the table in ``pyproject.toml``."""
    found = [*_unknown(os.environ), *_unreadable(os.environ), *_project(Path("pyproject.toml"))]
    yield from found
    if not found:
        present = sorted(name for name in os.environ if name in _KNOWN)
        yield Finding(
            "ok",
            "agl_settings",
            f"understood: {', '.join(present)}" if present else "no AGL_ variable is set",
        )


def _unknown(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name in sorted(environment):
        if name.startswith("AGL_") and name not in _KNOWN:
            meant = difflib.get_close_matches(name, _KNOWN, 1)
            cure = f"did you mean {meant[0]}?" if meant else f"unset {name}"
            yield Finding("warn", "agl_settings", f"{name} is no setting; it is ignored", cure)


def _unreadable(environment: Mapping[str, str]) -> Iterator[Finding]:
    for setting, (level, parse, cure) in _PARSERS.items():
        name = setting.value
        if name not in environment:
            continue
        try:
            parse(environment[name])
        except (ValueError, KeyError):
            sentence = f"{name}={environment[name]!r} cannot be understood"
            yield Finding(level, "agl_settings", sentence, f"set {name} to {cure}")
    # With one of the two, spans have half of an attempt's name, which nobody can file.
    ids = [each for each in ("AGL_ROLLOUT_ID", "AGL_ATTEMPT_ID") if environment.get(each)]
    if len(ids) == 1:
        sentence = f"{ids[0]} is set without its companion, so spans have no attempt"
        yield Finding("fail", "agl_settings", sentence, f"unset {ids[0]}; agl run sets both")


def _project(path: Path) -> Iterator[Finding]:
    if not path.is_file():
        return
    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        sentence = f"{path.absolute()} cannot be read, so none of its settings counts: {error}"
        yield Finding("warn", "agl_settings", sentence, "correct the file")
        return
    for sentence, cure in ignored_settings(path.absolute(), project):
        yield Finding("warn", "agl_settings", sentence, cure)


def _choice(*allowed: str) -> Callable[[str], object]:
    def parse(value: str) -> object:
        return {each: each for each in allowed}[value]

    return parse


def _truth(setting: LightningEnvVar) -> tuple[Level, Callable[[str], object], str]:
    return "warn", lambda _: resolve_bool_env_var(setting), "1 or 0"


_PARSERS: dict[LightningEnvVar, tuple[Level, Callable[[str], object], str]] = {
    LightningEnvVar.AGL_CAPTURE_TOKENS: ("fail", _choice("observe", "request"), "observe or request"),
    LightningEnvVar.AGL_ENDPOINTS: ("fail", endpoint_urls.named, "URLs such as http://localhost:8000/v1"),
    LightningEnvVar.AGL_SPAN_NAMES: ("fail", _choice("0.3"), "0.3"),
    LightningEnvVar.AGL_CONVENTIONS: ("fail", _choice("gen_ai", "openinference"), "gen_ai or openinference"),
    LightningEnvVar.AGL_LOG_LEVEL: (
        "warn",
        lambda value: logging.getLevelNamesMapping()[value.upper()],
        "DEBUG, INFO, WARNING or ERROR",
    ),
    LightningEnvVar.AGL_SERVER_PORT: (
        "warn",
        lambda _: resolve_int_env_var(LightningEnvVar.AGL_SERVER_PORT),
        "a port, such as 4747",
    ),
    LightningEnvVar.AGL_EMITTER_DEBUG: _truth(LightningEnvVar.AGL_EMITTER_DEBUG),
    LightningEnvVar.AGL_MANAGED_STORE: _truth(LightningEnvVar.AGL_MANAGED_STORE),
    LightningEnvVar.AGL_CURRENT_ROLE: (
        "warn",
        _choice("algorithm", "runner", "both"),
        "algorithm, runner or both",
    ),
}
"""Setting → how bad a wrong value is, what reads it, what it takes. With a wrong one of the
first four no ``OtelTracer`` starts."""
