"""The environment variables that agentlightning reads, and how their values are understood.

Settings are looked up in the order keyword, environment, ``[tool.agentlightning]`` in ``pyproject.toml``,
default; this module is the second step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard, overload

from .errors import ConfigurationError

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
_LONGEST_MS = 1e12  # 30 years; longer waits overflow the timers of the operating system


class LightningEnvVar(Enum):
    """Names of environment variables."""

    AGL_EMITTER_DEBUG = "AGL_EMITTER_DEBUG"
    """Boolean; log the name and the attributes' names of every emitted span at DEBUG level."""

    # These four keep their names, so that ``LightningEnvVar`` of 0.3 can be imported and compared as it was.
    AGL_MANAGED_STORE = "AGL_MANAGED_STORE"
    """A name of 0.3, for its execution strategies; nothing here reads it."""

    AGL_CURRENT_ROLE = "AGL_CURRENT_ROLE"
    """A name of 0.3, for ``algorithm``, ``runner`` or ``both``; nothing here reads it."""

    AGL_SERVER_HOST = "AGL_SERVER_HOST"
    """A name of 0.3, for the address of its store server; nothing here reads it."""

    AGL_SERVER_PORT = "AGL_SERVER_PORT"
    """A name of 0.3, for the port of its store server; nothing here reads it."""

    AGL_STORE = "AGL_STORE"
    """Store URL; default ``sqlite:///agentlightning.db`` in the current folder."""

    AGL_SPOOL_DIR = "AGL_SPOOL_DIR"
    """Folder for spans that could not be written; default ``<store file>.spool/`` beside a SQLite file,
    else ``$XDG_STATE_HOME/agentlightning/spool``."""

    AGL_CAPTURE_TOKENS = "AGL_CAPTURE_TOKENS"
    """``observe`` (default): requests and responses stay untouched. ``request``: ask endpoints on loopback, those of
    the rollout's resources, and those that are named for token ids."""

    AGL_ENDPOINTS = "AGL_ENDPOINTS"
    """URLs of model endpoints that are known beside the rollout's resources and ``endpoints=``, such as
    ``http://gpu1:8000/v1``; several are separated by commas or spaces."""

    AGL_SAMPLING_DEFAULTS = "AGL_SAMPLING_DEFAULTS"
    """Sampling settings that model servers apply where a request names none, as a JSON object, for endpoints of which
    neither a resource nor ``endpoints=`` says it; ``{}``: none of their own (vLLM: ``--generation-config vllm``).
    Default: unknown."""

    AGL_LOGPROB_KIND = "AGL_LOGPROB_KIND"
    """``processed`` or ``raw``: whether log-probabilities are those after temperature, truncation and penalties, for
    endpoints of which nothing else says it. Default: unknown."""

    AGL_SPAN_NAMES = "AGL_SPAN_NAMES"
    """``0.3``: model calls are named as in Agent Lightning 0.3 (``openai.chat.completion``) and have its attributes
    beside ours (``gen_ai.prompt.<i>.*``, ``response_token_ids``, …). Default: ours alone."""

    AGL_CONVENTIONS = "AGL_CONVENTIONS"
    """The conventions in which other exporters of the same provider see model calls: ``gen_ai`` (default),
    OpenTelemetry's, or ``openinference`` beside them."""

    AGL_REDACTION = "AGL_REDACTION"
    """``egress`` (default): the store keeps everything, copies for others are masked. ``ingest``: what is stored is
    masked, too. ``off``: neither."""

    AGL_BATCH_SIZE = "AGL_BATCH_SIZE"
    """Finished spans in a batch: as soon as so many wait, they are sent to the store; default 512."""

    AGL_FLUSH_INTERVAL = "AGL_FLUSH_INTERVAL"
    """Milliseconds that a finished span, or the start of an open one, waits for more of its batch; default 200."""

    AGL_MAX_QUEUE_SIZE = "AGL_MAX_QUEUE_SIZE"
    """Finished spans that may wait for the store; beyond that the newest are dropped and counted; default 50000."""

    AGL_MAX_QUEUE_BYTES = "AGL_MAX_QUEUE_BYTES"
    """Bytes of memory for finished spans that wait for the store and for answers that are arriving; at half of it the
    oldest are moved to disk; default a sixteenth of the memory of the control group or machine, 64 MB to 1 GB."""

    AGL_MAX_WAIT_TIME = "AGL_MAX_WAIT_TIME"
    """Milliseconds that leaving a ``trace_context`` may wait for its spans to be stored; default 5000."""

    AGL_CA_BUNDLE = "AGL_CA_BUNDLE"
    """PEM file, or folder, with the certificate authorities to trust; default: ``REQUESTS_CA_BUNDLE``, else those of
    the system."""

    AGL_LOG_LEVEL = "AGL_LOG_LEVEL"
    """Level of the ``agentlightning`` logger for the command line; default ``WARNING``."""

    AGL_ROLLOUT_ID = "AGL_ROLLOUT_ID"
    """Rollout that a child process of ``agl run`` belongs to."""

    AGL_ATTEMPT_ID = "AGL_ATTEMPT_ID"
    """Attempt that a child process of ``agl run`` belongs to."""


DEFAULT_STORE_URL = "sqlite:///agentlightning.db"

_TABLE = "agentlightning"
"""Of ``[tool]`` in ``pyproject.toml``."""
_OF_THE_ENVIRONMENT = frozenset(
    {
        LightningEnvVar.AGL_EMITTER_DEBUG,
        LightningEnvVar.AGL_MANAGED_STORE,
        LightningEnvVar.AGL_CURRENT_ROLE,
        LightningEnvVar.AGL_SERVER_HOST,
        LightningEnvVar.AGL_SERVER_PORT,
        LightningEnvVar.AGL_ROLLOUT_ID,
        LightningEnvVar.AGL_ATTEMPT_ID,
    }
)
"""What nobody looks for in that table: what 0.3 read from the environment alone, and what is of one process."""


def _key(env_var: LightningEnvVar) -> str:
    return env_var.value.removeprefix("AGL_").lower()


_KEYS = frozenset(_key(each) for each in LightningEnvVar if each not in _OF_THE_ENVIRONMENT)
"""What may stand in that table."""


@overload
def resolve_bool_env_var(env_var: LightningEnvVar, override: bool, fallback: bool | None = None) -> bool: ...
@overload
def resolve_bool_env_var(
    env_var: LightningEnvVar, override: bool | None = None, *, fallback: bool
) -> bool: ...
@overload
def resolve_bool_env_var(
    env_var: LightningEnvVar, override: bool | None = None, fallback: bool | None = None
) -> bool | None: ...
def resolve_bool_env_var(
    env_var: LightningEnvVar, override: bool | None = None, fallback: bool | None = None
) -> bool | None:
    """Return ``override``, else the variable as a truth value, else ``fallback``.

    Raises:
        ConfigurationError: The variable is set to something other than 1/0, true/false, yes/no, on/off.
    """
    if override is not None:
        return override
    raw = os.environ.get(env_var.value)
    if raw is None:
        return fallback
    word = raw.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ConfigurationError(
        f"{env_var.value}={raw!r} is not a truth value; use one of 1, 0, true, false, yes, no, on, off"
    )


@overload
def resolve_int_env_var(env_var: LightningEnvVar, override: int, fallback: int | None = None) -> int: ...
@overload
def resolve_int_env_var(env_var: LightningEnvVar, override: int | None = None, *, fallback: int) -> int: ...
@overload
def resolve_int_env_var(
    env_var: LightningEnvVar, override: int | None = None, fallback: int | None = None
) -> int | None: ...
def resolve_int_env_var(
    env_var: LightningEnvVar, override: int | None = None, fallback: int | None = None
) -> int | None:
    """Return ``override``, else the variable as a whole number, else ``fallback``.

    Raises:
        ConfigurationError: The variable is set to something that is not a whole number.
    """
    if override is not None:
        return override
    raw = os.environ.get(env_var.value)
    if raw is None:
        return fallback
    try:
        return int(raw)
    except ValueError:
        raise ConfigurationError(f"{env_var.value}={raw!r} is not a whole number") from None


@overload
def resolve_str_env_var(env_var: LightningEnvVar, override: str, fallback: str | None = None) -> str: ...
@overload
def resolve_str_env_var(env_var: LightningEnvVar, override: str | None = None, *, fallback: str) -> str: ...
@overload
def resolve_str_env_var(
    env_var: LightningEnvVar, override: str | None = None, fallback: str | None = None
) -> str | None: ...
def resolve_str_env_var(
    env_var: LightningEnvVar, override: str | None = None, fallback: str | None = None
) -> str | None:
    """Return ``override``, else the variable, else ``fallback``."""
    if override is not None:
        return override
    return os.environ.get(env_var.value, fallback)


def resolve_setting(
    env_var: LightningEnvVar, override: str | None = None, fallback: str | None = None
) -> str | None:
    """Return the keyword, else the environment, else ``[tool.agentlightning]``, else ``fallback``.

    The table is read from the ``pyproject.toml`` of the current folder; the key is the name of the variable
    without ``AGL_``, in lower case (``AGL_STORE`` → ``store``). What is no key there is logged as a warning, once.
    """
    found = resolve_str_env_var(env_var, override)
    # Also an empty text counts as set: ``AGL_STORE=`` switches off what the project file says.
    if found is not None:
        return found
    return _project_table().get(_key(env_var), fallback)


def resolve_count(env_var: LightningEnvVar, override: int | None, fallback: int) -> int:
    """Return a setting that counts something, looked up as :func:`resolve_setting` does.

    Raises:
        ConfigurationError: It is no whole number of at least 1.
    """
    value: object = resolve_setting(env_var) if override is None else override
    if isinstance(value, str):
        # Not ``int`` alone, which also takes "1_000" and signs; what is left as text is refused below, by
        # its own words.
        value = int(value) if value.strip().isdecimal() else value
    if value is None:
        return fallback
    # ``True`` is an ``int`` to Python, and would count as 1.
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value
    raise ConfigurationError(f"{_named(env_var, override)} is a whole number of at least 1, not {value!r}")


def resolve_milliseconds(env_var: LightningEnvVar, override: float | None, fallback: float) -> float:
    """Return a setting that is a time, looked up as :func:`resolve_setting` does.

    Raises:
        ConfigurationError: It is no number above 0.
    """
    value: object = resolve_setting(env_var) if override is None else override
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if value is None:
        return fallback
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < _LONGEST_MS:
        return value
    raise ConfigurationError(
        f"{_named(env_var, override)} is a number of milliseconds above 0, not {value!r}"
    )


def _named(env_var: LightningEnvVar, override: object) -> str:
    """Return how a setting is called where its value came from."""
    key = _key(env_var)
    if override is not None:
        return key
    return env_var.value if env_var.value in os.environ else f"{key} in [tool.agentlightning]"


def _project_table() -> dict[str, str]:
    path = Path("pyproject.toml")
    try:
        stat = path.stat()
    except OSError:
        return {}
    # Time and size are part of the key of the cache: a file that changes is read again, and each setting would
    # else read it.
    return _parsed(path.absolute(), stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=1)
def _parsed(path: Path, changed: int, size: int) -> dict[str, str]:
    """Return the table of a project file, which is read once as long as it stays as it is."""
    del changed, size
    import tomllib  # standard library, and only needed where a project file exists

    try:
        project = tomllib.loads(path.read_text(encoding="utf-8"))
    # An agent is not stopped for a file of the project that may not concern us; ``agl doctor`` tells that it
    # cannot be read.
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError):
        return {}
    for sentence, cure in ignored_settings(path, project):
        if sentence not in _warned:
            _warned.add(sentence)
            _warn(f"{sentence}: {cure}")
    table = _table(_table(project, "tool"), _TABLE)
    return {key: str(value) for key, value in table.items() if _is_value(value)}


_warned: set[str] = set()
"""What has been said of project files: of each once in a process, also where the current folder goes back and forth."""


def _warn(message: str) -> None:
    import logging  # only needed where something is wrong

    logging.getLogger(__name__).warning(message)


def ignored_settings(path: Path, project: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Yield what a project file says to nobody: a sentence, and what to do.

    Args:
        path: Where the file is, for the sentence.
        project: What it says, parsed.
    """
    tool = _table(project, "tool")
    for above, prefix in ((project, ""), (_table(project, "tools"), "tools.")):
        if _table(above, _TABLE):
            yield f"[{prefix}{_TABLE}] in {path} is not read", f"did you mean [tool.{_TABLE}]?"
    for name in tool:
        # Only a name that begins like ours is compared with it: most project files have none.
        if name.lower().startswith("agent") and name != _TABLE and _nearest(name, [_TABLE], 0.84):
            yield f"[tool.{name}] in {path} is not read", f"did you mean [tool.{_TABLE}]?"
    for key, value in _table(tool, _TABLE).items():
        variable = f"AGL_{key.upper()}"
        if any(variable == each.value for each in _OF_THE_ENVIRONMENT):
            sentence = f"{key!r} in [tool.{_TABLE}] of {path} is read from the environment alone"
            yield sentence, f"set {variable}"
        elif key not in _KEYS:
            meant = _nearest(key, _KEYS, 0.6)
            cure = f"did you mean {meant}?" if meant else "remove it"
            yield f"{key!r} in [tool.{_TABLE}] of {path} is no setting; it is ignored", cure
        elif not _is_value(value):
            sentence = f"{key!r} in [tool.{_TABLE}] of {path} is no text and no number; it is ignored"
            yield sentence, "write it as a text"


def _table(of: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return a table of a project file, an empty one where something else or nothing has its name."""
    found = of.get(name)
    return found if isinstance(found, dict) else {}


def _is_value(value: object) -> TypeGuard[str | int | float]:
    return isinstance(value, (str, int, float))


def _nearest(name: str, names: Iterable[str], likeness: float) -> str | None:
    """Return the name that was probably meant, however it was spelt; ``None`` where none is alike enough."""
    import difflib  # only needed where something is wrong

    plain = name.lower().replace("-", "_").removeprefix("agl_")
    return next(iter(difflib.get_close_matches(plain, list(names), 1, likeness)), None)
