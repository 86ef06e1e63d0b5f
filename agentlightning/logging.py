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
from typing import Any, Dict, Literal, Optional, Union

from opentelemetry import baggage, trace

from ._printable import printable
from .pipeline.redact import Redactor, SecretFilter
from .pipeline.rules import KEY_RULES
from .semconv import LightningResourceAttributes

Level = Union[int, str]
LogFormat = Literal["text", "json"]

DEFAULT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DATE_FORMAT = "%H:%M:%S"
PACKAGE = "agentlightning"

_OURS = "_agentlightning_handler"
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON.

    Keys: ``time`` (ISO 8601, UTC), ``level``, ``logger``, ``message``; ``exception`` with its traceback; ``trace_id``
    and ``span_id`` (hex), ``rollout_id`` and ``attempt_id`` of the context in which the record was made; and whatever
    the caller passed as ``extra``. What is no JSON value is written as its ``repr``. Keys and passwords are masked.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; never raises for what a record holds."""
        line: Dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_context(),
        }
        line.update((key, value) for key, value in vars(record).items() if key not in _RESERVED)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return str(_keys().value(json.dumps(line, default=repr, ensure_ascii=True)))


class TextFormatter(logging.Formatter):
    """Formats a record for people: what a terminal would obey, in a name or a message, is written as an escape."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of its traceback."""
        return printable(super().format(record), lines=True)


def setup(
    level: Level = "INFO",
    *,
    format: LogFormat = "text",  # noqa: A002 - what the setting is called
    submodule_levels: Optional[Mapping[str, Level]] = None,
    apply_to: Sequence[str] = (),
    handler: Optional[logging.Handler] = None,
    propagate: bool = False,
) -> None:
    """Let this package log, with keys, tokens and passwords masked; a repeat replaces what an earlier one set up.

    Args:
        level: Level of the ``agentlightning`` logger, by name or number; it can be changed at any time by another call.
        format: ``text`` for people, ``json`` for programs.
        submodule_levels: Logger → level, such as ``{"agentlightning.store": "DEBUG"}``.
        apply_to: Other loggers that are to be written in the same way.
        handler: Where lines go; default standard error.
        propagate: Whether handlers of the root logger get the lines too.

    Raises:
        ValueError: A level or the format is unknown.
    """
    if format not in ("text", "json"):
        raise ValueError(f"the log format is 'text' or 'json', not {format!r}")
    levels = {PACKAGE: level, **dict.fromkeys(apply_to, level), **(submodule_levels or {})}
    numbers = {name: _number(each) for name, each in levels.items()}
    made = handler or logging.StreamHandler(sys.stderr)
    made.setFormatter(JsonFormatter() if format == "json" else TextFormatter(DEFAULT_FORMAT, DATE_FORMAT))
    if not any(isinstance(each, SecretFilter) for each in made.filters):
        made.addFilter(SecretFilter(_keys()))
    setattr(made, _OURS, True)
    for name in (PACKAGE, *apply_to):
        logger = logging.getLogger(name)
        for earlier in [each for each in logger.handlers if hasattr(each, _OURS)]:
            logger.removeHandler(earlier)
        logger.addHandler(made)
        logger.propagate = propagate
    for name, number in numbers.items():
        logging.getLogger(name).setLevel(number)


def setup_module(level: Level = "INFO", *, name: str = PACKAGE, propagate: bool = False) -> logging.Logger:
    """Let one logger log as :func:`setup` does, and return it (0.3)."""
    if name == PACKAGE:
        setup(level, propagate=propagate)
    else:
        setup(
            logging.getLogger(PACKAGE).level,
            apply_to=(name,),
            submodule_levels={name: level},
            propagate=propagate,
        )
    return logging.getLogger(name)


def configure_logger(level: int = logging.INFO, name: str = PACKAGE) -> logging.Logger:
    """Return a logger that logs from ``level`` on (0.2)."""
    return setup_module(level, name=name)


def _number(level: Level) -> int:
    number = level if isinstance(level, int) else logging.getLevelName(str(level).upper())
    if not isinstance(number, int):
        raise ValueError(f"{level!r} is no log level; the usual ones are DEBUG, INFO, WARNING, ERROR")  # noqa: TRY004
    return number


@functools.cache
def _keys() -> Redactor:
    return Redactor(KEY_RULES)


def _context() -> Dict[str, str]:
    found: Dict[str, str] = {}
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
