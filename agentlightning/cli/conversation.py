"""What was said in model calls, for people: each message once, or one call in full; loads ``rich``.

A request repeats the conversation before it, so a call shows what it adds to the call whose messages and answer it
begins with. Text that was recorded stands in a column of its own, so that no line of it can look like one of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

from rich.text import Text

from .._printable import printable
from ..dialects.model_call import CODES, IMPORTED, VALID, Choice, ModelCall
from . import output
from .call_numbers import NumberedCall, tokens_of
from .span_labels import Kind, label_of
from .trace_view import BAD, DOUBT, QUIET, SIGNS

SHORT = 12
"""Lines of one message that are shown where all calls are."""
_LONGEST_LINE = 2_000
GUTTER = 11
_ROLES: Mapping[str, str] = {
    "assistant": "blue",
    "user": "bold",
    "system": "dim",
    "developer": "dim",
    "tool": "green",
}


def all_calls(calls: Sequence[NumberedCall], begin: float) -> Iterator[Text]:
    """Yield the calls of an attempt with the messages that each adds."""
    known: list[tuple[int, list[bytes]]] = []
    for call in calls:
        yield from _heading(call, begin)
        record = call.record
        if record is None:
            yield Text("it records no messages", style=QUIET)
            yield Text()
            continue
        asked = _asked(record)
        prints = [_print_of(message) for message in asked]
        before, same = _continued(prints, known)
        if same:
            yield Text(f"{'':{GUTTER}}… {output.count(same, 'message')} as in #{before}", style=QUIET)
        for message in asked[same:]:
            yield from _message(message, SHORT, call.number)
        yield from _answers(record, SHORT, call.number)
        answer = [_print_of(_plain(choice.message())) for choice in record.choices[:1]]
        known.append((call.number, [*prints, *answer]))
        yield Text()


def one_call(call: NumberedCall, begin: float) -> Iterator[Text]:
    """Yield one call in full: messages, answers, tools, settings, and what is known of its tokens."""
    yield from _heading(call, begin)
    record = call.record
    if record is None:
        yield Text("it records no messages", style=QUIET)
        return
    for message in _asked(record):
        yield from _message(message, None, call.number)
    yield from _answers(record, None, call.number)
    yield Text()
    for name, value in _facts(call, record):
        yield from _paragraph(name, value, None, call.number, style=QUIET)


def _heading(call: NumberedCall, begin: float) -> Iterator[Text]:
    span = call.span
    sign, style = SIGNS[Kind.CALL]
    text = Text().append(f"{sign} ", style=style).append(f"#{call.number}", style=f"bold {style}")
    text.append(f" {printable(label_of(span, call.record).name)}", style="bold")
    facts = []
    if span.start_time:
        facts.append(f"at +{output.seconds(span.start_time - begin)}")
    if span.start_time and span.end_time:
        facts.append(f"took {output.seconds(span.end_time - span.start_time)}")
    used = None if call.record is None else tokens_of(call.record)
    if used is not None:
        facts.append(f"{used[0]:,} → {used[1]:,} tokens")
    text.append("".join(f"  {fact}" for fact in facts), style=QUIET)
    if call.record is not None and call.record.token_capture != VALID:
        text.append(f"  {_doubt(call.record)}", style=DOUBT)
    yield text


def _doubt(record: ModelCall) -> str:
    if record.capture_code == IMPORTED:
        return "imported"
    return "no ids" if record.token_capture.startswith("none(") else "ids refused"


def _asked(record: ModelCall) -> list[Mapping[str, Any]]:
    if record.operation == "text_completion":
        prompt = record.prompt
        return [] if prompt is None else [{"role": "prompt", "content": prompt}]
    return [_plain(message) for message in record.request_messages]


def _plain(message: Any) -> Mapping[str, Any]:
    return message if isinstance(message, Mapping) else {"role": "?", "content": message}


def _print_of(message: Mapping[str, Any]) -> bytes:
    """Return what two messages have in common that say the same; clients add and leave out empty fields."""
    said = {key: value for key, value in message.items() if value not in (None, [], "")}
    # A digest: those of every call are kept, and each call repeats the conversation before it.
    return blake2b(json.dumps(said, sort_keys=True, default=str).encode(), digest_size=16).digest()


def _continued(prints: list[bytes], known: Sequence[tuple[int, list[bytes]]]) -> tuple[int, int]:
    """Return the call that this one goes on from, and how many messages it repeats of it; the newest of equals."""
    best = (0, 0)
    for number, before in reversed(known):
        same = 0
        for ours, theirs in zip(prints, before, strict=False):
            if ours != theirs:
                break
            same += 1
        if same > best[1]:
            best = number, same
        if same == len(before) or same == len(prints):  # no call before it can have more
            break
    return best


def _message(message: Mapping[str, Any], most: int | None, number: int) -> Iterator[Text]:
    role = str(message.get("role") or "?")
    reasoning = message.get("reasoning_content")
    if isinstance(reasoning, str) and reasoning:
        yield from _paragraph("thinking", reasoning, most, number, style=QUIET)
    content = _text_of(message.get("content"))
    calls = [call for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    if content or not calls:
        yield from _paragraph(role, content, most, number, style="" if role != "system" else QUIET)
    for place, call in enumerate(calls):
        function = call.get("function")
        named = function if isinstance(function, Mapping) else {}
        said = f"→ {named.get('name') or '?'}({named.get('arguments') or ''})"
        yield from _paragraph("" if content or place else role, said, most, number, style=SIGNS[Kind.TOOL][1])


def _answers(record: ModelCall, most: int | None, number: int) -> Iterator[Text]:
    if not record.choices:
        why = record.error or CODES.get(record.capture_code or "", "there is no answer")
        yield from _paragraph("no answer", why, most, number, style=BAD)
    for choice in record.choices:
        if len(record.choices) > 1:
            yield Text(f"{'':{GUTTER}}answer {choice.index}", style=QUIET)
        yield from _message(choice.message(), most, number)
        # Documents of other tools do not say how an answer ended.
        if choice.finish_reason not in {"stop", "tool_calls"} and record.capture_code != IMPORTED:
            yield Text(f"{'':{GUTTER}}ends: {_end(choice)}", style=DOUBT)


def _end(choice: Choice) -> str:
    unsaid = "broken off, and the server does not say why" if choice.broken_off else "unknown"
    return choice.finish_reason or choice.finish_reason_raw or unsaid


def _text_of(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return "\n".join(_part(part) for part in content)
    return output.to_json(content)


def _part(part: Mapping[str, Any]) -> str:
    text = part.get("text")
    if isinstance(text, str):
        return text
    said = output.to_json(part)
    return (
        said if len(said) <= 200 else f"{said[:80]}… ({part.get('type', 'part')}, {len(said):,} characters)"
    )


def _paragraph(head: str, body: str, most: int | None, number: int, *, style: str = "") -> Iterator[Text]:
    """Yield a head and a body beside it, cut after ``most`` lines."""
    lines = printable(body.replace("\r\n", "\n"), lines=True).expandtabs(4).split("\n")
    shown = lines if most is None else [line[:_LONGEST_LINE] for line in lines[:most]]
    left = len(body) - sum(len(line) + 1 for line in shown) + 1
    for place, line in enumerate(shown):
        name = output.one_line(head, GUTTER - 1) if place == 0 else ""
        yield Text().append(f"{name:<{GUTTER}}", style=_ROLES.get(head, QUIET)).append(line, style=style)
    if most is not None and (len(lines) > most or any(len(line) > _LONGEST_LINE for line in lines[:most])):
        yield Text(f"{'':{GUTTER}}… {max(1, left):,} characters more: --call {number} shows all", style=QUIET)


def _facts(call: NumberedCall, record: ModelCall) -> Iterator[tuple[str, str]]:
    yield "span", call.span.span_id
    for name, value in (
        ("response", record.response_id),
        ("endpoint", record.endpoint),
        ("status", None if record.http_status is None else str(record.http_status)),
        ("error", record.error),
    ):
        if value:
            yield name, str(value)
    if record.tools:
        yield "tools", ", ".join(_tool_name(tool) for tool in record.tools)
    if record.sampling_requested:
        yield (
            "asked",
            ", ".join(f"{key}={output.to_json(value)}" for key, value in record.sampling_requested.items()),
        )
    code = record.capture_code
    yield (
        "tokens",
        "valid: the ids are those that were sampled"
        if code is None
        else (f"{record.token_capture}: {CODES.get(code, 'unknown to this version')}"),
    )
    for choice in record.choices:
        yield from _choice_facts(choice, several=len(record.choices) > 1)
    for issue in record.issues:
        yield issue.level, f"{issue.code}: {CODES.get(issue.code, '')} {issue.detail}".strip()


def _choice_facts(choice: Choice, *, several: bool) -> Iterator[tuple[str, str]]:
    which = f" {choice.index}" if several else ""
    if choice.finish_reason or choice.finish_reason_raw or choice.broken_off:
        yield f"ends{which}", _end(choice)
    if choice.token_ids is not None:
        yield f"ids{which}", _some(choice.token_ids)
    if choice.logprobs:
        mean = sum(choice.logprobs) / len(choice.logprobs)
        yield f"logprobs{which}", f"mean {mean:.3f}, least {min(choice.logprobs):.3f}"


def _some(ids: Sequence[int]) -> str:
    shown = " ".join(map(str, ids[:16]))
    return shown if len(ids) <= 16 else f"{shown} … ({len(ids):,} in all)"


def _tool_name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    named = function if isinstance(function, Mapping) else tool
    return output.one_line(named.get("name") or "?", 40)
