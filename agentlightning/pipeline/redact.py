"""Redaction: what looks like a secret is replaced by ``[redacted:<rule>]``.

A :class:`Redactor` masks texts, JSON values and whole spans. Its invariants:

* **Whole.** Attributes, events, links, resource, name and status of a span, keys and numbers as well as texts,
  JSON inside of texts, and texts that are split over the items of a list.
* **Token ids are masked too.** They decode to the text. So where something of a model call was masked, all its
  prompt ids, response ids and per-token values (log-probabilities, sampling masks, experts, versions) are removed,
  and the call is marked untrainable. The same happens to a call that has ids and no text, which cannot be checked.
  A span that was imported and is no call loses those in what else its document says of it.
* **Fails closed.** A value that cannot be masked is replaced; one value's failure costs no other.
* **Idempotent.** Masking what is masked changes nothing, and returns the very same span.

``RedactionPolicy`` says where it is applied; a tracer's ``Chain`` takes a ``Redactor`` with rules of one's own.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from ..dialects.model_call import Choice, ModelCall, invalid
from ..dialects.spans.genai import read_call
from ..semconv import ExchangeAttributes, LightningSpanAttributes, ModelCallAttributes, SpanFlagAttributes
from .rules import KEY_RULES, RedactionRule, default_rules

if TYPE_CHECKING:
    from pydantic import BaseModel

    from ..types import Event, Link, Span, SpanContext

__all__ = ["RedactionRule", "Redactor", "SecretFilter", "default_rules"]

T = TypeVar("T")

REDACTED: Final = "redacted"
"""Code of the reason why a masked call is not trained on."""

ERROR_MARKER: Final = "[redacted:error]"
KEY_MARKER: Final = "[redacted:key]"
TOKENS_MARKER: Final = "[redacted:tokens]"

_MARKER = re.compile(r"\[redacted:[A-Za-z0-9_-]+\]")
_MAX_PASSES = 10

SENSITIVE_KEYS: Final = frozenset(
    {
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "api-key",
        "apikey",
        "secret",
        "secret-key",
        "secret-access-key",
        "client-secret",
        "access-token",
        "refresh-token",
        "id-token",
        "session-token",
        "auth-token",
        "private-key",
        "password",
        "passwd",
        "pwd",
        "passphrase",
    }
)
"""Names, in lower case and with dashes, whose value is a secret whatever it looks like."""

_TOKEN_KEY = re.compile(
    r"(?:^|[._])(?:token_ids|input_ids|output_ids|prompt_ids|response_ids|logprobs?|token_strings|sampling_mask"
    r"|routed_experts|routing_matrices|hidden_states|policy_version|weight_versions)(?:\.|$)"
)
_TOKEN_TEXT = re.compile(r"token_id:[0-9]|(?:token_ids|logprobs?)[\"'\\]*\s*[:=]\s*[\[({-]")
"""Tokens in a text that is no JSON: ``token_id:N`` strings, or Python's ``repr`` of a response."""
_OWN = "agentlightning."
_REST = ExchangeAttributes.REST.value
_IMPORTED_TEXTS = (LightningSpanAttributes.MESSAGE_BODY.value, "gen_ai.tool.call.result")
"""Attributes that hold the text of an imported part that is no call of a model."""
_SETTINGS = ("gen_ai.request.", "agentlightning.sampling.")
"""Attributes that hold what was asked for (``logprobs: true``), and no tokens."""


class Redactor:
    """Masks secrets by rules; itself a stage of the pipeline.

    Args:
        rules: What a secret looks like; default: ours and those of installed packages.

    Raises:
        TypeError: An installed package gives something else than rules.
    """

    def __init__(self, rules: Iterable[RedactionRule] | None = None) -> None:
        self.rules: Final[tuple[RedactionRule, ...]] = tuple(default_rules() if rules is None else rules)

    def __call__(self, span: Span) -> Span:
        """Same as :meth:`span`."""
        return self.span(span)

    def __repr__(self) -> str:
        return f"Redactor({', '.join(rule.name for rule in self.rules)})"

    # ------------------------------------------------------------------ texts

    def text(self, text: str) -> str:
        """Return ``text`` with every match masked; never raises."""
        return str(self._safely(self._masked, text, ERROR_MARKER))

    def _masked(self, text: str) -> str:
        return _until_stable(self._masked_once, text)

    def _masked_once(self, text: str) -> str:
        for rule in self._that_may_match(text):
            # The rule is bound as a default, as a closure would see the loop's last one.
            text = rule.pattern.sub(lambda match, rule=rule: _mask(rule, match), text)  # type: ignore[misc]
        return text

    def _that_may_match(self, text: str) -> list[RedactionRule]:
        lower = text.casefold()
        return [rule for rule in self.rules if not rule.hints or any(hint in lower for hint in rule.hints)]

    # ------------------------------------------------------------------ values

    def value(self, value: Any) -> Any:
        """Return a JSON value with every match masked, also in keys; unchanged parts may be shared. Never raises."""
        return self._safely(self._value, value, ERROR_MARKER)

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return _until_stable(self._string, value)
        if isinstance(value, Mapping):
            return self._mapping(value)
        if isinstance(value, (list, tuple)):
            return self._list(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return self._number(value)
        return value

    def _string(self, text: str) -> str:
        nested = _parsed(text)
        if nested is not None:
            masked = self._value(nested)
            if masked != nested:
                return _dumped(masked)
        return self._masked(text)  # also JSON that seems clean: a repeated key hides the first of its values

    def _number(self, number: float) -> Any:
        # Numbers that name a person or a card have 11 to 19 digits. NaN and infinities are outside of the range too.
        if not 1e10 <= abs(number) <= 1e30:
            return number
        text = str(int(number))
        return number if self._masked(text) == text else self._masked(text)

    def _mapping(self, value: Mapping[Any, Any]) -> dict[str, Any]:
        masked: dict[str, Any] = {}
        numbers: dict[str, int] = {}
        for key, item in value.items():
            name = _unused(self.text(str(key)), masked, numbers)
            masked[name] = KEY_MARKER if _is_sensitive(str(key), item) else self.value(item)
        return masked

    def _list(self, value: Sequence[Any]) -> list[Any]:
        # Looked at as a whole: prompts have thousands of ids, and none of them is as long as a number of a
        # card.
        if set(map(type, value)) == {int} and -1e10 < min(value) <= max(value) < 1e10:
            return list(value)  # token ids
        masked = [self.value(item) for item in value]
        return _until_stable(self._split_over, masked)

    def _split_over(self, items: list[Any]) -> list[Any]:
        """Mask the pieces of a text that only together match, such as the tokens of a key."""
        pieces = [_piece(item) for item in items]
        joined = "".join(text for _, text in pieces)
        if len(items) < 2 or not joined:
            return items
        for rule in self._that_may_match(joined):
            for match in rule.pattern.finditer(joined):
                # Only the items that hold the secret are replaced; those around it keep their text.
                start, end = match.span("secret" if "secret" in rule.pattern.groupindex else 0)
                if _mask_of(rule, joined[start:end]) is not None:
                    return [
                        _with_piece(item, key, f"[redacted:{rule.name}]") if hit else item
                        for item, (key, _), hit in zip(items, pieces, _hits(pieces, start, end), strict=True)
                    ]
        return items

    # ------------------------------------------------------------------ spans

    def span(self, span: Span) -> Span:
        """Return a masked copy of ``span``, or ``span`` itself where there is nothing to mask; never raises.

        Identity stays: ids and times of the span are not texts of anybody.
        """
        own = {
            "name": self.text(str(span.name)),
            "status": self._status(span),
            "attributes": self._attributes(span.attributes),
            "events": self._each(span.events, self._event),
            "links": self._each(span.links, self._link),
            **self._unknown(span),
        }
        around = {
            "context": self._context(span.context),
            "parent": self._context(span.parent),
            "resource": span.resource.model_copy(
                update={
                    "attributes": self._attributes(span.resource.attributes),
                    "schema_url": self.text(str(span.resource.schema_url)),
                }
            ),
        }
        changes = _changes(span, {**own, **around})
        # Read from the unmasked span. One that cannot be read counts as a call without text, which loses
        # its ids.
        call = self._safely(read_call, span, ModelCall())
        if call is not None and (any(name in own for name in changes) or not _can_be_read(call)):
            changes |= _changes(span, _untrainable({**own, **around}))
        elif call is None and _REST in span.attributes:
            is_masked = any(name in own for name in changes)
            if is_masked or not any(span.attributes.get(name) for name in _IMPORTED_TEXTS):
                without = _rest_without_tokens(own["attributes"], by_name=not is_masked)
                changes |= _changes(span, {"attributes": without})
        if not changes:
            return span
        attributes = {**changes.get("attributes", span.attributes), SpanFlagAttributes.REDACTED.value: True}
        return span.model_copy(update={**changes, "attributes": attributes})

    def _attributes(self, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
        masked: dict[str, Any] = self._safely(self._mapping, attributes or {}, {"redacted": ERROR_MARKER})
        return masked

    def _status(self, span: Span) -> Any:
        description = span.status.description
        if not description and not span.status.model_extra:
            return span.status
        masked = self.text(description) if description else description
        return span.status.model_copy(update={"description": masked, **self._unknown(span.status)})

    def _event(self, event: Event) -> Event:
        return event.model_copy(
            update={
                "name": self.text(event.name),
                "attributes": self._attributes(event.attributes),
                **self._unknown(event),
            }
        )

    def _link(self, link: Link) -> Link:
        attributes = None if link.attributes is None else self._attributes(link.attributes)
        update = {"context": self._context(link.context), "attributes": attributes, **self._unknown(link)}
        return link.model_copy(update=update)

    def _context(self, context: SpanContext | None) -> Any:
        if context is None or not (context.trace_state or context.model_extra):
            return context
        masked = self._attributes(context.trace_state)
        return context.model_copy(update={"trace_state": masked, **self._unknown(context)})

    def _unknown(self, model: BaseModel) -> dict[str, Any]:
        """Return the fields that a model does not know, with masked values under their own names."""
        return {
            name: KEY_MARKER if _is_sensitive(name, value) else self._safely(self.value, value, ERROR_MARKER)
            for name, value in (model.model_extra or {}).items()
        }

    def _each(self, items: Sequence[T], mask: Callable[[T], T]) -> list[T]:
        masked = [self._safely(mask, item, None) for item in items]
        return [item for item in masked if item is not None]

    def _safely(self, mask: Callable[[Any], Any], value: Any, instead: Any) -> Any:
        try:
            return mask(value)
        except Exception:  # noqa: BLE001 - what cannot be checked must not pass
            return instead


# ---------------------------------------------------------------------- masking


def _until_stable(mask: Callable[[T], T], value: T) -> T:
    """Apply ``mask`` until nothing changes: what one rule leaves may match another.

    Raises:
        ValueError: It does not settle; a rule matches its own marker.
    """
    for _ in range(_MAX_PASSES):
        masked = mask(value)
        if masked == value:
            return value
        value = masked
    raise ValueError("the rules do not settle")


def _mask(rule: RedactionRule, match: re.Match[str]) -> str:
    whole = match.group()
    if "secret" not in rule.pattern.groupindex:
        return _mask_of(rule, whole) or whole
    start, end = match.start("secret") - match.start(), match.end("secret") - match.start()
    masked = _mask_of(rule, whole[start:end])
    return whole if masked is None else whole[:start] + masked + whole[end:]


def _mask_of(rule: RedactionRule, secret: str) -> str | None:
    """Return what replaces ``secret``, or ``None`` where it is none."""
    if not secret or _MARKER.fullmatch(secret) or (rule.check is not None and not rule.check(secret)):
        return None
    return f"[redacted:{rule.name}]"


def _is_sensitive(key: str, value: Any) -> bool:
    if value is None or value == "" or isinstance(value, bool) or value == KEY_MARKER:
        return False
    name = key.rpartition(".")[2].strip().lower().replace("_", "-")
    return name in SENSITIVE_KEYS and not (isinstance(value, str) and _MARKER.fullmatch(value))


def _unused(key: str, taken: Mapping[str, Any], numbers: dict[str, int]) -> str:
    """Return ``key``, numbered if two keys became the same marker.

    ``numbers`` holds the last number that each key was given: with thousands of addresses as keys, which all become one
    marker, counting from the beginning for each of them would take a time that grows with the square of their number.
    """
    number, name = numbers.get(key, 1), key
    while name in taken:
        number += 1
        name = f"{key}#{number}"
    numbers[key] = number
    return name


def _parsed(text: str) -> Any:
    """Return the object or list that a text holds as JSON, or ``None``."""
    if text.lstrip()[:1] not in {"{", "["}:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _dumped(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate; as an escape it is plain ASCII
        return json.dumps(value)
    return text


_PIECE_KEYS = ("token", "text", "content")


def _piece(item: Any) -> tuple[str | None, str]:
    """Return the key under which an item of a list holds its part of a text, and the part."""
    if isinstance(item, str):
        return None, item
    if isinstance(item, Mapping):
        return next(((key, item[key]) for key in _PIECE_KEYS if isinstance(item.get(key), str)), (None, ""))
    return None, ""


def _with_piece(item: Any, key: str | None, text: str) -> Any:
    return text if key is None else {**item, key: text}


def _hits(pieces: Sequence[tuple[str | None, str]], start: int, end: int) -> Iterable[bool]:
    position = 0
    for _, text in pieces:
        yield position < end and position + len(text) > start
        position += len(text)


def _changes(span: Span, masked: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in masked.items() if _differs(getattr(span, name), value)}


def _differs(before: Any, after: Any) -> bool:
    # NaN differs from itself, and a copy of a list that holds one from the list
    return bool(before != after) and repr(before) != repr(after)


# ---------------------------------------------------------------------- token ids


def _can_be_read(call: ModelCall) -> bool:
    """Whether the ids of a call stand beside the text that they decode to."""
    asked = bool(call.request_messages) or isinstance(call.prompt, str)
    return (asked or not call.prompt_token_ids) and all(map(_says_what_it_sampled, call.choices))


def _says_what_it_sampled(choice: Choice) -> bool:
    said = (choice.content, choice.reasoning, choice.refusal)
    return not choice.token_ids or bool(choice.tool_calls) or any(text is not None for text in said)


def _untrainable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Take every token id and log-probability out of a call's span, and mark it."""
    without = without_tokens(fields["attributes"], top=True)
    # A capture's own field is absent where nothing is known, and never a text that has to be read.
    attributes = {
        key: value for key, value in without.items() if value != TOKENS_MARKER or not key.startswith(_OWN)
    }
    attributes |= {
        SpanFlagAttributes.UNTRAINABLE.value: REDACTED,
        ModelCallAttributes.TOKEN_CAPTURE.value: invalid(REDACTED),
    }
    events = [
        event.model_copy(update={"attributes": without_tokens(event.attributes)})
        for event in fields["events"]
    ]
    links = [
        link.model_copy(update={"attributes": without_tokens(link.attributes)}) for link in fields["links"]
    ]
    return {**fields, "attributes": attributes, "events": events, "links": links}


def _rest_without_tokens(attributes: Mapping[str, Any], *, by_name: bool = False) -> dict[str, Any]:
    rest = attributes.get(_REST)
    return dict(attributes) if rest is None else {**attributes, _REST: without_tokens(rest, by_name=by_name)}


def without_imported_tokens(span: Span) -> Span:
    """Return the span of an imported part without the token ids in its rest, as where an earlier part was masked."""
    attributes = _rest_without_tokens(span.attributes)
    return span if attributes == span.attributes else span.model_copy(update={"attributes": attributes})


def without_tokens(value: Any, *, top: bool = False, by_name: bool = False) -> Any:
    """Return a value without token ids and what is kept of each token.

    Args:
        value: A JSON value.
        top: Whether it is the attributes of a span, whose settings are not looked at.
        by_name: Whether only what has a name of tokens goes, and other lists of whole numbers stay.
    """
    if isinstance(value, Mapping):
        return {
            key: item
            if top and key.startswith(_SETTINGS)
            else _emptied(item)
            if _TOKEN_KEY.search(key)
            else without_tokens(item, by_name=by_name)
            for key, item in value.items()
        }
    if isinstance(value, list):
        # A prompt may be sent as ids: whatever is a list of whole numbers may be one.
        if value and set(map(type, value)) == {int}:
            return value if by_name else []
        return [without_tokens(item, by_name=by_name) for item in value]
    if isinstance(value, str):
        nested = _parsed(value)
        if nested is not None:
            without = without_tokens(nested, by_name=by_name)
            return value if without == nested else _dumped(without)
        if _TOKEN_TEXT.search(value):
            return TOKENS_MARKER
    return value


def _emptied(value: Any) -> Any:
    return [] if isinstance(value, list) else None if value is None else TOKENS_MARKER


# ---------------------------------------------------------------------- logs


class SecretFilter(logging.Filter):
    """Masks keys, tokens and passwords in log records; for a handler (``handler.addFilter(SecretFilter())``).

    A filter of a logger sees only what is logged to that very logger; one of a handler sees all that it writes.
    The text of an exception and its stack are masked as well. No record is dropped.
    """

    def __init__(self, redactor: Redactor | None = None) -> None:
        super().__init__()
        self._redactor = redactor or Redactor(KEY_RULES)

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask the record in place and let it pass."""
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - arguments that do not fit: the handler would print them raw
            message, record.exc_info, record.args = ERROR_MARKER, None, ()
        masked = self._redactor.text(message)
        if masked != message or message is ERROR_MARKER:
            record.msg, record.args = masked, ()
        if record.exc_info and record.exc_info[0] is not None:
            stack = logging.Formatter().formatException(record.exc_info)
            masked = self._redactor.text(stack)
            if masked != stack:
                record.exc_text = masked
        if record.exc_text:
            record.exc_text = self._redactor.text(record.exc_text)
        if record.stack_info:
            record.stack_info = self._redactor.text(record.stack_info)
        return True
