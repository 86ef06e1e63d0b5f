"""What a secret looks like: rules with a name, a pattern and, where the form has one, a check.

Patterns follow what the issuers publish or what their keys have in common; where a form has check digits they
are verified, so that order numbers and timestamps pass. Every pattern is bounded on the left, so that matching
takes time linear in the text.

A stranger's package adds rules by the entry-point group ``agentlightning.redaction``: each entry point is a
``RedactionRule``, several of them, or a function that returns either.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Final

ENTRY_POINT_GROUP: Final = "agentlightning.redaction"

Check = Callable[[str], bool]
"""Whether a text that has the form of a secret is one."""


@dataclass(frozen=True, slots=True)
class RedactionRule:
    """One kind of secret."""

    name: str
    """Stands in the marker ``[redacted:<name>]``."""
    pattern: re.Pattern[str]
    """A match is masked; if the pattern has a group called ``secret``, only that group."""
    check: Check | None = None
    """Called with the text that would be masked; ``False`` lets it pass. If it raises, the whole value goes."""
    hints: tuple[str, ...] = ()
    """Texts in lower case, one of which is in every match: looking for them is much cheaper than matching.
    Empty = none are known."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"the name of a rule is letters, digits, - and _, got {self.name!r}")


# ---------------------------------------------------------------------- checks


def _digits(text: str) -> list[int]:
    return [int(character) for character in text if "0" <= character <= "9"]


def is_card_number(text: str) -> bool:
    """Whether the check digit is right (Luhn: ISO/IEC 7812-1, annex B) and the number may be a payment card's.

    Those begin with 3 to 6, or with 22 to 27 (Mastercard's second range).
    """
    digits = _digits(text)
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    if not (3 <= digits[0] <= 6 or (digits[0] == 2 and 2 <= digits[1] <= 7)):
        return False
    backwards = digits[::-1]
    doubled = [2 * digit - 9 if digit > 4 else 2 * digit for digit in backwards[1::2]]
    return (sum(backwards[::2]) + sum(doubled)) % 10 == 0


def is_cpf(text: str) -> bool:
    """Whether both check digits of a Brazilian CPF are right (modulo 11)."""
    digits = _digits(text)
    if len(digits) != 11 or len(set(digits)) == 1:
        return False
    return all(
        sum(digit * (length + 1 - place) for place, digit in enumerate(digits[:length])) * 10 % 11 % 10
        == digits[length]
        for length in (9, 10)
    )


def is_cnpj(text: str) -> bool:
    """Whether both check digits of a Brazilian CNPJ are right, with digits or letters (IN RFB 2.229/2024)."""
    values = [
        ord(character) - 48 for character in text.upper() if character.isascii() and character.isalnum()
    ]
    if len(values) != 14 or len(set(values)) == 1:
        return False
    for length in (12, 13):
        weights = [2 + (length - 1 - place) % 8 for place in range(length)]
        rest = sum(value * weight for value, weight in zip(values, weights, strict=False)) % 11
        if values[length] != (0 if rest < 2 else 11 - rest):
            return False
    return True


def _is_phone_number(text: str) -> bool:
    return 8 <= len(_digits(text)) <= 15  # E.164: at most 15 digits with the country code


def _has_digit(text: str) -> bool:
    return any("0" <= character <= "9" for character in text) or len(text) >= 40


def _is_token(text: str) -> bool:
    """Whether what follows ``Bearer`` or ``Basic`` is a token and no word."""
    # "Bearer Authentication" is a word in a sentence; "Bearer eyJhbGciOi" is none.
    mixed = len(text) >= 12 and any(character.isupper() for character in text[1:]) and not text.isupper()
    return mixed or any(character in "0123456789_~+/=" for character in text)


# ---------------------------------------------------------------------- rules

_LEFT, _RIGHT = r"(?<![A-Za-z0-9])", r"(?![A-Za-z0-9])"


_DIGITS = tuple("0123456789")


def _rule(name: str, hints: tuple[str, ...], pattern: str, check: Check | None = None) -> RedactionRule:
    return RedactionRule(name, re.compile(pattern), check, hints)


KEY_RULES: Final[tuple[RedactionRule, ...]] = (
    _rule(
        "private_key",
        ("private key",),
        r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----(?:[^-]|-(?!----END))*(?:-----END [A-Z0-9 ]{0,40}-----)?",
    ),
    _rule("url_password", ("://",), r"(?<=://)[^\s/@:\"']*:(?P<secret>[^\s/@\"']+)@"),
    _rule("jwt", ("eyj",), rf"{_LEFT}eyJ[A-Za-z0-9_-]{{8,}}\.[A-Za-z0-9_-]{{8,}}(?:\.[A-Za-z0-9_-]*)?"),
    _rule("anthropic_key", ("sk-ant-",), rf"{_LEFT}sk-ant-[A-Za-z0-9_-]{{8,}}"),
    _rule("openai_key", ("sk-",), rf"{_LEFT}sk-[A-Za-z0-9_-]{{16,}}", _has_digit),
    _rule(
        "github_token",
        ("gh", "github_pat_"),
        rf"{_LEFT}(?:gh[pousr]_[A-Za-z0-9]{{20,}}|github_pat_[A-Za-z0-9_]{{20,}})",
    ),
    _rule(
        "aws_key_id",
        ("akia", "asia", "abia", "acca", "agpa", "aida", "aroa"),
        rf"{_LEFT}(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AROA)[A-Z0-9]{{16}}{_RIGHT}",
    ),
    _rule(
        "google_key",
        ("aiza", "ya29.", "gocspx-"),
        rf"{_LEFT}(?:AIza[A-Za-z0-9_-]{{30,}}|ya29\.[A-Za-z0-9._-]{{20,}}|GOCSPX-[A-Za-z0-9_-]{{20,}})",
    ),
    _rule("slack_token", ("xox", "xapp-"), rf"{_LEFT}(?:xox[a-z]-|xapp-)[A-Za-z0-9-]{{10,}}"),
    _rule(
        "slack_webhook",
        ("hooks.slack.com/",),
        r"(?<=hooks\.slack\.com/)(?:services|workflows)/[A-Za-z0-9/_-]{10,}",
    ),
    _rule(
        "stripe_key",
        ("sk_", "rk_", "pk_", "whsec_"),
        rf"{_LEFT}(?:sk|rk|pk|whsec)_(?:live_|test_)?[A-Za-z0-9]{{16,}}",
    ),
    _rule(
        "provider_key",
        ("hf_", "gsk_", "xai-", "glpat-", "pplx-", "npm_"),
        rf"{_LEFT}(?:hf_|gsk_|xai-|glpat-|pplx-|npm_)[A-Za-z0-9_-]{{16,}}",
        _has_digit,
    ),
    _rule(
        "bearer",
        ("bearer", "basic"),
        rf"(?i){_LEFT}(?:bearer|basic)[ \t]+(?P<secret>[A-Za-z0-9._~+/=-]{{8,}})",
        _is_token,
    ),
    _rule(
        "secret",
        ("key", "secret", "token", "passw", "pwd"),
        r"(?i)(?<![A-Za-z0-9])"
        r"(?:api[_-]?key|access[_-]?key|secret(?:[_-]?(?:access[_-]?)?key)?|client[_-]?secret"
        r"|(?:access|auth|refresh|session)[_-]?token|password|passwd|pwd)"
        r"[\\\"']{0,4}[ \t]{0,8}(?:=>|=|:)[ \t]{0,8}[\\\"']{0,4}(?P<secret>[^\s\"'\\,;&]{6,})",
    ),
)
"""Keys, tokens and passwords: what opens a door."""

PERSONAL_RULES: Final[tuple[RedactionRule, ...]] = (
    _rule("email", ("@",), r"(?<![\w.%+'-])[\w.%+'-]+@[\w-]+(?:\.[\w-]+)*\.[^\W\d_]{2,}"),
    _rule(
        "card",
        _DIGITS,
        rf"{_LEFT}(?:[0-9]{{13,19}}|[0-9]{{4}}(?:[ .-][0-9]{{4}}){{3}}(?:[ .-][0-9]{{1,3}})?"
        rf"|[0-9]{{4}}[ .-][0-9]{{6}}[ .-][0-9]{{4,5}}){_RIGHT}",
        is_card_number,
    ),
    _rule(
        "cpf",
        _DIGITS,
        rf"{_LEFT}(?:[0-9]{{11}}|[0-9]{{3}}\.[0-9]{{3}}\.[0-9]{{3}}-[0-9]{{2}}){_RIGHT}",
        is_cpf,
    ),
    _rule(
        "cnpj",
        _DIGITS,
        rf"{_LEFT}(?:[0-9A-Z]{{12}}[0-9]{{2}}"
        rf"|[0-9A-Za-z]{{2}}\.[0-9A-Za-z]{{3}}\.[0-9A-Za-z]{{3}}/[0-9A-Za-z]{{4}}-[0-9]{{2}}){_RIGHT}",
        is_cnpj,
    ),
    _rule(
        "phone",
        _DIGITS,
        r"(?<![A-Za-z0-9.+])(?:"
        r"\+[0-9](?:[ .()-]{0,2}[0-9]){7,14}"
        r"|(?:1[ .-])?(?:\([2-9][0-9]{2}\)[ .-]?|[2-9][0-9]{2}[ .-])[0-9]{3}[ .-][0-9]{4}"
        r"|\([0-9]{2}\)[ ]?9?[0-9]{4}[ -]?[0-9]{4}"
        r"|[0-9]{2}[ ]9[0-9]{4}-[0-9]{4}"
        rf"){_RIGHT}",
        _is_phone_number,
    ),
)
"""What names a person: e-mail, payment cards, CPF, CNPJ, telephone numbers that are written as such."""


def default_rules() -> tuple[RedactionRule, ...]:
    """Return our rules and those of installed packages.

    Raises:
        TypeError: An entry point is no rule; redaction must not run with a part of its rules.
    """
    return (*KEY_RULES, *PERSONAL_RULES, *_installed())


def _installed() -> Iterable[RedactionRule]:
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        loaded: Any = entry_point.load()
        found = loaded() if callable(loaded) else loaded
        for rule in [found] if isinstance(found, RedactionRule) else found:
            if not isinstance(rule, RedactionRule):
                raise TypeError(
                    f"entry point {entry_point.name!r} gives {type(rule).__name__}, no RedactionRule"
                )
            yield rule
