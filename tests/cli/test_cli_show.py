"""``agl show``: what a person reads of an attempt, at any width and any size."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from cli_sample import Sample, agl, build, call, span
from picture_sample import PLACEHOLDER, fill

from agentlightning.cli import folding
from agentlightning.cli.call_numbers import numbered_calls
from agentlightning.cli.following import Tail
from agentlightning.cli.trace_view import Trace, View
from agentlightning.semconv import AGL_EXCEPTION, AGL_OPERATION
from agentlightning.store.registry import open_store
from agentlightning.tracer.otel import OtelTracer
from agentlightning.types import AttemptedRollout, Span

WIDTHS = (60, 80, 160)
PICTURES = Path(__file__).parent / "pictures"
DRAWN = Path(__file__).resolve().parents[2] / "docs" / "images"


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return fill(tmp_path_factory.mktemp("show"))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return build(tmp_path_factory.mktemp("cli"))


def _stored(url: str, make: Callable[[AttemptedRollout], list[Span]]) -> str:
    async def store() -> str:
        async with open_store(url) as opened:
            at = await opened.start_rollout("task")
            await opened.add_many_spans(make(at))
            return at.rollout_id

    return asyncio.run(store())


@pytest.mark.parametrize("width", WIDTHS)
def test_the_pictures_are_what_is_shown(agent: tuple[str, str], width: int) -> None:
    url, rollout_id = agent
    shown = agl("show", "--store", url, columns=width).out.replace(rollout_id, PLACEHOLDER)
    assert shown == (PICTURES / f"show-{width}.txt").read_text("utf-8")
    assert max(map(len, shown.splitlines())) <= width
    # The picture of the documentation is the same text; its look is drawn by scripts/tools/pictures.py.
    svg = (DRAWN / f"show-{width}.svg").read_text("utf-8")
    body = svg[svg.index('class="agl-') :].replace("\n", "")
    drawn: dict[str, list[tuple[float, str]]] = {}
    for x, y, text in re.findall(r'<text [^>]*?x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', body):
        drawn.setdefault(y, []).append((float(x), unescape(text)))
    lines = ["".join(text for _, text in sorted(drawn[y])) for y in sorted(drawn, key=float)]
    # Without spaces, which SVG has as places.
    assert ["".join(line.split()) for line in lines if line.strip()] == [
        "".join(line.split()) for line in shown.splitlines() if line.strip()
    ]


def test_sixty_columns_say_everything_that_160_say(agent: tuple[str, str]) -> None:
    url, _ = agent
    narrow = " ".join(re.sub("[│├└─]", " ", agl("show", "--store", url, columns=60).out).split())
    for finding in (
        *("FileNotFoundError: runner/main.py", "PermissionError: pushing by force needs a person"),
        *("ids refused", "unit_tests 1 for #7", "reward 0.75 style -0.25", "354 → 72", "+42.4 s", "5.6 s"),
        *("rank_hits", "searcher", "patcher", "group 4812", "1,457 → 441 tokens", "response_length"),
    ):
        assert finding in narrow, finding


def test_an_output_without_our_characters_keeps_its_columns(
    agent: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = agl("show", "--store", agent[0], columns=120).out
    import codecs

    from agentlightning.cli import output

    output.prepare_streams()
    codecs.lookup_error("agl")
    ascii_ = shown.encode("ascii", "agl").decode()
    assert "\\u" not in ascii_
    assert [len(line) for line in ascii_.splitlines()] == [len(line) for line in shown.splitlines()]


NAMES: list[tuple[str, dict[str, Any], str]] = [
    (AGL_OPERATION, {"agentlightning.operation.name": "plan"}, "○ plan"),
    (AGL_OPERATION, {"agentlightning.operation.name": "look", "kind": "tool"}, "◆ look"),
    ("execute_tool", {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "grep"}, "◆ grep"),
    ("Tool", {"openinference.span.kind": "TOOL", "tool.name": "weather"}, "◆ weather"),
    ("x.tool", {"traceloop.span.kind": "tool", "traceloop.entity.name": "sum"}, "◆ sum"),
    ("look.tool", {"agentops.span.kind": "tool", "operation.name": "look"}, "◆ look"),
    ("invoke_agent", {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "scout"}, "■ scout"),
    ("planner.agent", {"agentops.span.kind": "agent", "operation.name": "planner"}, "■ planner"),
    ("chain", {"openinference.span.kind": "CHAIN"}, "○ chain"),
    (AGL_EXCEPTION, {"exception.type": "KeyError", "exception.message": "no key"}, "▲ KeyError  no key"),
    ("agentlightning.message", {"agentlightning.message.body": "half way"}, "▪ message  half way"),
    (
        "agentlightning.annotation",
        {"agentlightning.reward.0.name": "tests", "agentlightning.reward.0.value": 0.5},
        "★ tests  0.5",
    ),
    (
        AGL_OPERATION,
        {
            "agentlightning.operation.name": "agentlightning.reward",
            "agentlightning.reward.0.name": "primary",
            "agentlightning.reward.0.value": float("nan"),
        },
        "★ reward  unscored",
    ),
    (
        "agentlightning.uncaptured",
        {"agentlightning.uncaptured_server": "h:1"},
        "▲ calls to h:1 were not captured",
    ),
    ("GET /", {"http.request.method": "GET"}, "· GET /"),
]


def test_a_span_has_the_name_that_its_program_gave_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/names.db"
    _stored(
        url,
        lambda at: [
            span(at, name, place, at=float(place), attributes=attributes)
            for place, (name, attributes, _) in enumerate(NAMES, 1)
        ],
    )
    shown = agl("show", "--store", url).out.splitlines()[4:]
    for line, (_, _, expected) in zip(shown, NAMES, strict=False):
        assert line.startswith(expected), line


def test_calls_have_one_number_in_show_rows_and_explain(agent: tuple[str, str]) -> None:
    url, _ = agent
    document = json.loads(agl("show", "--json", "--store", url).out)
    assert list(document["calls"]) == [str(number) for number in range(1, 9)]
    names = document["calls"]
    for command in (("rows", "--why"), ("explain",)):
        shown = agl(*command, "--store", url).out
        for number, span_id in names.items():
            assert re.search(rf"#{number}\b.*\b{span_id}\b", shown), (command, number)


def test_messages_are_shown_whatever_became_of_the_token_ids(agent: tuple[str, str]) -> None:
    url, _ = agent
    shown = agl("show", "--messages", "--store", url, columns=80)
    assert shown.code == 0
    text = " ".join(shown.out.split())
    assert text.count("leave the public API as it is") == 1, "each message once"
    assert "#4 chat policy at +13.9 s took 3.2 s 154 → 21 tokens ids refused … 3 messages as in #3" in text
    assert "tool cache.py:41, cache.py:88, runner.py:12" in text
    one = agl("show", "--call", "4", "--store", url, columns=80).out
    assert "system     You search" in one
    assert "invalid(response_length): the number of sampled ids differs" in " ".join(one.split())
    missing = agl("show", "--call", "9", "--store", url)
    assert (missing.code, missing.out) == (2, "")
    assert "there is no call 9 in this attempt; it has 8 calls" in missing.err


def test_a_long_message_is_cut_and_one_call_shows_all_of_it(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/long.db"
    text = "\n".join(f"line {number}" for number in range(100))
    _stored(url, lambda at: [span(at, "chat tiny", 1, attributes=call([1], [2], text))])
    shown = agl("show", "--messages", "--store", url).out
    assert "line 11" in shown
    assert "line 12" not in shown
    assert "characters more: --call 1 shows all" in shown
    assert "line 99" in agl("show", "--call", "1", "--store", url).out


def test_an_answer_that_nobody_ended_is_said_to_be_broken_off_and_not_aborted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/left.db"
    left = call([1], [2], "two plus")
    del left["agentlightning.choice.0.finish_reason"]
    left["agentlightning.choice.0.broken_off"] = True
    _stored(url, lambda at: [span(at, "chat tiny", 1, attributes=left)])
    for option in (["--messages"], ["--call", "1"]):
        text = " ".join(agl("show", *option, "--store", url, columns=120).out.split())
        assert "broken off, and the server does not say why" in text
        assert "abort" not in text


def test_an_attempt_that_was_cancelled_is_not_called_failed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/cancelled.db"
    with OtelTracer().lifespan(url) as tracer, suppress(KeyboardInterrupt), tracer.rollout("task"):
        raise KeyboardInterrupt
    assert "cancelled · attempt 1 · ro-" in agl("show", "--store", url).out
    for command in ("rows", "explain"):
        assert "attempt 1 (cancelled)" in agl(command, "--store", url).out


# ---------------------------------------------------------------------- many spans


def _loop(turns: int) -> list[Span]:
    """A trace of an agent's loop, in which the number of tools differs from turn to turn, and some fail."""
    place = AttemptedRollout.model_validate(
        {
            "rollout_id": "ro-1",
            "input": None,
            "start_time": 0.0,
            "attempt": {"rollout_id": "ro-1", "attempt_id": "at-1", "sequence_id": 1, "start_time": 0.0},
        }
    )
    spans = [span(place, "loop", 1, took=1_000.0)]
    for turn in range(turns):
        begin = float(turn)
        spans.append(span(place, "think", len(spans) + 1, parent=1, at=begin))
        spans.append(span(place, "act", len(spans) + 1, parent=1, at=begin + 0.2))
        act = len(spans)
        for _ in range(1 + turn % 3):
            error = "boom" if turn % 100 == 7 else None
            spans.append(span(place, "read", len(spans) + 1, parent=act, at=begin + 0.3, error=error))
    return spans


def _view(spans: list[Span], **options: Any) -> list[str]:
    view = View(Trace(spans, [], numbered_calls(spans)), width=100, **options)
    return [line.plain for line in view.lines()]


def test_times_that_are_missing_or_go_backwards_leave_the_others_as_they_are(tmp_path: Path) -> None:
    def made(at: AttemptedRollout) -> list[Span]:
        nowhere = span(at, "nowhere", 3, parent=1)
        return [
            span(at, "whole", 1, took=2.0),
            span(at, "chat tiny", 2, parent=1, at=1.0, took=-0.5, attributes=call([1], [7, 8], "hi")),
            nowhere.model_copy(update={"start_time": None, "end_time": None}),
            nowhere.model_copy(update={"start_time": 0.0, "end_time": 0.0, "span_id": f"{4:016x}"}),
        ]

    url = f"sqlite:///{tmp_path / 'times.db'}"
    _stored(url, made)
    for at, end in ((float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan")), (-1e308, 1e308)):
        odd = _loop(1)[0].model_copy(update={"start_time": at, "end_time": end})
        assert len(_view([*_loop(1), odd.model_copy(update={"span_id": "f" * 16})])) == 6
    shown = agl("show", "--store", url, columns=120).out
    (whole,) = re.findall(".*whole.*", shown)
    assert whole.split()[:5] == ["·", "whole", "+0", "2.0", "s"]
    assert re.search("chat tiny.* [+]1.0 s +-500 ms", shown)
    assert re.search("tokens +at +took +0 +2.0 s", shown)
    assert "at +1.0 s  took -500 ms" in agl("show", "--messages", "--store", url).out

    async def rates() -> list[float | None]:
        async with open_store(url) as store:
            return [event.rate for event in await Tail(store).look() if event.tokens]

    assert asyncio.run(rates()) == [None]


def test_a_loop_is_one_turn_with_what_happened_in_all_of_them() -> None:
    assert [" ".join(re.sub("[━╍]", "", line).split()) for line in _view(_loop(1_000))][1:] == [
        "· loop +0 17 min",
        "└─ ⟳ 1,000 turns of these 2 steps +0 3 min",
        "├─ · think × 1,000 +0 2 min",
        "└─ · act × 1,000 +200 ms 2 min",
        "└─ · read × 1,999 ✗ 20 failed +300 ms 3 min",
    ]
    assert len(_view(_loop(1_000), everything=True)) == 1 + len(_loop(1_000))


@pytest.mark.parametrize("shape", ["wide", "deep", "bushy"])
def test_5000_spans_are_a_page_and_what_is_cut_is_counted(shape: str) -> None:
    first, *rest = _loop(1_500)[:5_000]
    for place, each in enumerate(rest, 1):
        above = {"wide": 0, "deep": place - 1, "bushy": (place - 1) // 7}[shape]
        each.name = f"step {place}"
        each.parent_id = f"{above + 1:016x}"
    for place, each in enumerate([first, *rest], 1):
        each.span_id = f"{place:016x}"
    shown = _view([first, *rest])
    assert len(shown) <= folding.PAGE + 12  # a few findings have lines of their own
    assert any("more span" in line for line in shown)
    failed = sum(each.status.status_code == "ERROR" for each in rest)
    counted = sum(int(found.replace(",", "")) for found in re.findall(r"([\d,]+) failed", " ".join(shown)))
    alone = sum("✗ boom" in line for line in shown)
    assert counted + alone == failed


def _steps(spans: list[Span]) -> int:
    """Return how many functions are called to draw spans: what the time depends on, whatever the machine."""
    count = 0

    def seen(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        _view(spans)
    finally:
        sys.setprofile(before)
    return count


def test_the_work_of_drawing_grows_with_the_number_of_spans_and_no_faster() -> None:
    small, large = _steps(_loop(250)), _steps(_loop(1_250))
    assert large < 6 * small
    assert large < 100 * len(_loop(1_250))
