"""Logging of this package, for people and for programs; a library that is only imported logs nothing by itself.

``setup(format="json")`` writes one JSON object a line. Inside a ``trace_context`` each line names the trace, the span,
the rollout and the attempt, so that logs can be put beside spans. Names of functions are those of Agent Lightning 0.3.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from opentelemetry import baggage, trace

from ._printable import PrintableFormatter
from .pipeline.redact import Redactor, SecretFilter
from .pipeline.rules import KEY_RULES
from .semconv import LightningResourceAttributes

Level = int | str
LogFormat = Literal["text", "json"]

DEFAULT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DATE_FORMAT = "%H:%M:%S"
PACKAGE = "agentlightning"

_OURS = "_agentlightning_handler"
_set_up: set[str] = set()
"""Names of the loggers to which the last ``setup`` added handlers; the next call removes those handlers."""
# Attributes that every record has; whatever else is there came as ``extra``.
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON.

    Keys: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``; ``exception`` with its traceback; ``trace_id``
    and ``span_id`` (hex), ``rollout_id`` and ``attempt_id`` of the context in which the record was made; and whatever
    the caller passed as ``extra``. What is no JSON value is written as its ``repr``. Keys and passwords are masked.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; never raises for what a record holds."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_context(),
        }
        # After the keys of ours, so that a caller may say more precisely to which rollout a line belongs.
        line.update((key, value) for key, value in vars(record).items() if key not in _RESERVED)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # Masked as one text in the end: a key may stand in the message, in ``extra`` and in the traceback.
        return str(_keys().value(json.dumps(line, default=repr, ensure_ascii=True)))


def setup(
    level: Level = "INFO",
    *,
    console: bool = True,
    color: bool | Mapping[str, Any] = True,
    propagate: bool = False,
    disable_existing_loggers: bool = False,
    capture_warnings: bool = False,
    submodule_levels: Mapping[str, Level] | None = None,
    extra_handlers: Sequence[logging.Handler] = (),
    formatter: logging.Formatter | None = None,
    apply_to: Sequence[str] = (),
    files: str | Mapping[str, str] | None = None,
    format: LogFormat = "text",  # noqa: A002 - what the setting is called
    handler: logging.Handler | None = None,
) -> None:
    """Let this package log, with keys, tokens and passwords masked; a repeat replaces what an earlier one set up.

    All but the last two arguments are 0.3's.

    Args:
        level: Level of the ``agentlightning`` logger, by name or number; it can be changed at any time by another call.
        console: Whether lines go to standard error.
        color: Taken, and not needed: lines have no colours.
        propagate: Whether handlers of the root logger get the lines too.
        disable_existing_loggers: Whether all other loggers that exist are silenced.
        capture_warnings: Whether Python's warnings are logged, by the logger ``py.warnings``.
        submodule_levels: Logger → level, such as ``{"agentlightning.store": "DEBUG"}``.
        extra_handlers: Handlers that get the lines, too; those with a formatter of their own keep it.
        formatter: How lines are written, in place of ``format``.
        apply_to: Other loggers that are to be written in the same way.
        files: A file that gets the lines of this package, or logger → file.
        format: ``text`` for people, ``json`` for programs.
        handler: Where lines go, in place of standard error.

    Raises:
        ValueError: A level or the format is unknown.
        OSError: A file cannot be opened.
    """
    del color
    if format not in ("text", "json"):
        raise ValueError(f"the log format is 'text' or 'json', not {format!r}")
    names = (PACKAGE, *apply_to)
    levels = {**dict.fromkeys(names, level), **(submodule_levels or {})}
    # All levels are checked before anything changes: a wrong one leaves the logging as it was.
    numbers = {name: _number(each) for name, each in levels.items()}
    made = formatter or (
        JsonFormatter() if format == "json" else PrintableFormatter(DEFAULT_FORMAT, DATE_FORMAT)
    )
    of_all = [handler or logging.StreamHandler(sys.stderr)] if console or handler else []
    for each in of_all:
        each.setFormatter(made)
    targets = {name: [*of_all, *extra_handlers] for name in names}
    for name, path in ({PACKAGE: files} if isinstance(files, str) else files or {}).items():
        to_file = logging.FileHandler(path, encoding="utf-8")
        for target in names if name == PACKAGE else (name,):
            targets.setdefault(target, []).append(to_file)
    for name in {*targets, *_set_up}:
        _replace_handlers(logging.getLogger(name), targets.get(name, ()), made)
    _set_up.clear()
    _set_up.update(targets)
    for name in names:
        logging.getLogger(name).propagate = propagate
    if disable_existing_loggers:
        _disable_all_but(targets)
    for name, number in numbers.items():
        logging.getLogger(name).setLevel(number)
    if capture_warnings:
        logging.captureWarnings(True)


def _replace_handlers(
    logger: logging.Logger, handlers: Sequence[logging.Handler], formatter: logging.Formatter
) -> None:
    for earlier in [each for each in logger.handlers if hasattr(each, _OURS)]:
        logger.removeHandler(earlier)
        # Opened by ``setup``, so it is closed by it; a handler of the user's stays open.
        if isinstance(earlier, logging.FileHandler) and earlier not in handlers:
            earlier.close()
    for each in dict.fromkeys(handlers):
        if each.formatter is None:
            each.setFormatter(formatter)
        if not any(isinstance(known, SecretFilter) for known in each.filters):
            each.addFilter(SecretFilter(_keys()))
        # The mark by which the next ``setup`` finds what this one has added, whichever logger it is at.
        setattr(each, _OURS, True)
        logger.addHandler(each)


def _disable_all_but(kept: Mapping[str, object]) -> None:
    for name, logger in list(logging.root.manager.loggerDict.items()):
        ours = any(name == each or name.startswith(f"{each}.") for each in kept)
        if isinstance(logger, logging.Logger) and not ours:
            logger.disabled = True


def setup_module(
    level: Level = "INFO",
    *,
    name: str = PACKAGE,
    console: bool = True,
    color: bool | Mapping[str, Any] = True,
    propagate: bool = False,
    disable_existing_loggers: bool = False,
) -> logging.Logger:
    """Let one logger log as :func:`setup` does, and return it (0.3)."""
    setup(
        level if name == PACKAGE else logging.getLogger(PACKAGE).level,
        console=console,
        color=color,
        propagate=propagate,
        disable_existing_loggers=disable_existing_loggers,
        apply_to=() if name == PACKAGE else (name,),
        submodule_levels={name: level},
    )
    return logging.getLogger(name)


setup_logging = setup
setup_module_logging = setup_module


def configure_logger(level: int = logging.INFO, name: str = PACKAGE) -> logging.Logger:
    """Return a logger that logs from ``level`` on (0.2)."""
    return setup_module(level, name=name)


def _number(level: Level) -> int:
    if isinstance(level, int):
        return level
    number = logging.getLevelNamesMapping().get(str(level).upper())
    if number is None:
        raise ValueError(f"{level!r} is no log level; the usual ones are DEBUG, INFO, WARNING, ERROR")
    return number


@functools.cache
def _keys() -> Redactor:
    return Redactor(KEY_RULES)


def _context() -> dict[str, str]:
    found: dict[str, str] = {}
    span = trace.get_current_span().get_span_context()
    if span.is_valid:
        found["trace_id"], found["span_id"] = f"{span.trace_id:032x}", f"{span.span_id:016x}"
    for key, name in (
        ("rollout_id", LightningResourceAttributes.ROLLOUT_ID.value),
        ("attempt_id", LightningResourceAttributes.ATTEMPT_ID.value),
    ):
        value = baggage.get_baggage(name)
        if isinstance(value, str) and value:
            found[key] = value
    return found
