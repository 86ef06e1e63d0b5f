"""Text of others, made safe to print: the one place that decides what may reach a terminal or a log.

Names, reasons and messages come from agents, models and other programs. A terminal obeys control characters (ECMA-48:
C0, DEL, C1, which begin escape sequences), and shows text in another order under bidirectional controls (Unicode
Standard Annex 9), so that what is read is not what is there. Both are written as escapes that a person can see.
"""

from __future__ import annotations

import logging
import re
from typing import Final

_CONTROLS: Final = r"\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
_BIDI: Final = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_LINES: Final = "\u2028\u2029"
_INVISIBLE: Final = "\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # byte order mark, annotations, tags
_SURROGATES: Final = "\ud800-\udfff"  # half a character, which no output can encode

# To the last "@" of what may be an authority: a password that nobody has quoted may have "@", ":" and "/" in it. Where
# the authority is empty there is a path, as in sqlite:///a@b.db.
_USER_INFO: Final = re.compile(r"://(?!/)[^?#]*@")
_PASSWORD_FIELD: Final = re.compile(
    r"(?i)(?<=[?&])([^=&#]*(?:password|passwd|secret|token|key)[^=&#]*)=[^&#]*"
)

_UNSAFE: Final = re.compile(f"[{_CONTROLS}{_BIDI}{_LINES}{_INVISIBLE}{_SURROGATES}]")
_UNSAFE_IN_LINES: Final = re.compile(f"(?![\n\t])[{_CONTROLS}{_BIDI}{_LINES}{_INVISIBLE}{_SURROGATES}]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Return ``text`` with every character that a terminal would obey as an escape, such as ``\x1b``.

    Args:
        text: Anything.
        lines: Whether ends of lines and tabs stay: text of several lines that is our own.
    """
    if text.isascii() and text.isprintable():
        return text
    return (_UNSAFE_IN_LINES if lines else _UNSAFE).sub(_escape, text)


def without_password(url: str) -> str:
    """Return a URL with ``[redacted]`` for user and password, and for fields of its query that are called so."""
    return _PASSWORD_FIELD.sub(r"\1=[redacted]", _USER_INFO.sub("://[redacted]@", url))


class PrintableFormatter(logging.Formatter):
    """Formats a log record as one line, whatever is in it; only a traceback has lines of its own, which are indented.

    A line that begins at the margin is a record of the program that logs: no name or message can look like one.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the lines of its traceback."""
        record.message = record.getMessage()
        if self.usesTime():
            record.asctime = self.formatTime(record, self.datefmt)
        lines = [printable(self.formatMessage(record))]
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        for text in (record.exc_text, record.stack_info):
            lines += [f"    {printable(line)}" for line in (text or "").splitlines()]
        return "\n".join(lines)


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
