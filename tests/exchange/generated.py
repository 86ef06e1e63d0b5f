"""Documents of both formats that are valid and otherwise anything: what a round trip must give back."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
COUNTS = st.integers(-2, 2**70) | st.integers(0, 99)
JSON = st.recursive(
    st.none() | st.booleans() | COUNTS | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
EXTRA = st.none() | st.dictionaries(TEXT | st.just("agentlightning"), JSON, max_size=2)
TIMES = st.sampled_from(
    [
        *("2025-10-11T10:30:00Z", "2025-10-11T10:30:00+00:00", "2025-10-11T10:30:00", "2025-10-11"),
        *(
            "2025-10-11T10:30:00.123456Z",
            "2025-10-11T10:30:00.5+02:00",
            "0001-01-01T00:00:00Z",
            "20251011T103000Z",
        ),
    ]
)
IDS = st.sampled_from(["c1", "c2", ""]) | TEXT


def _maybe(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of these fields; a field that is optional may be null as well."""
    return st.fixed_dictionaries({}, optional={name: st.none() | value for name, value in fields.items()})


def _and(
    needed: dict[str, Any], more: st.SearchStrategy[dict[str, Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lambda one, other: {**other, **one}, st.fixed_dictionaries(needed), more)


def _source(
    kind: str, types: tuple[str, ...], more: st.SearchStrategy[dict[str, Any]]
) -> st.SearchStrategy[dict[str, Any]]:
    found = _and({"media_type": st.sampled_from(types), "path": st.just("a.png") | TEXT}, more)
    return st.fixed_dictionaries({"type": st.just(kind), "source": found})


PARTS = (
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXT})
    | _source("image", ("image/png", "image/jpeg"), st.just({}))
    | _source("audio", ("audio/wav", "audio/mpeg"), _maybe(duration_sec=st.floats(0, 1e9)))
)
CONTENT = TEXT | st.lists(PARTS, max_size=3)
TOOL_CALL = _and(
    {"tool_call_id": IDS, "function_name": TEXT, "arguments": st.dictionaries(TEXT, JSON, max_size=2)},
    _maybe(extra=EXTRA),
)
METRICS = _maybe(
    prompt_tokens=COUNTS,
    completion_tokens=COUNTS,
    cached_tokens=COUNTS,
    cost_usd=NUMBERS | st.integers(0, 9),
    prompt_token_ids=st.lists(st.integers(0, 2**40) | st.integers(0, 9), max_size=20),
    completion_token_ids=st.lists(st.integers(0, 2**65), max_size=4),
    logprobs=st.lists(NUMBERS | st.integers(-3, 0), max_size=4),
    extra=EXTRA,
)


@st.composite
def steps(draw: st.DrawFn, refs: list[str]) -> dict[str, Any]:
    """A step, but for its number."""
    source = draw(st.sampled_from(["user", "system", "agent", "agent"]))
    step: dict[str, Any] = {
        **draw(
            _maybe(
                timestamp=TIMES,
                extra=EXTRA,
                is_copied_context=st.booleans(),
                llm_call_count=st.integers(0, 3),
            )
        ),
        "source": source,
        "message": draw(CONTENT),
    }
    if source == "agent":
        step |= draw(
            _maybe(
                model_name=TEXT,
                reasoning_effort=TEXT | NUMBERS,
                reasoning_content=TEXT,
                tool_calls=st.lists(TOOL_CALL, max_size=3),
                metrics=METRICS,
            )
        )
        if step.get("llm_call_count") == 0:
            step |= {name: None for name in ("metrics", "reasoning_content") if name in step}
    asked = [call["tool_call_id"] for call in step.get("tool_calls") or ()]
    ids = st.sampled_from([None, *asked])
    named = (
        _maybe(trajectory_id=st.sampled_from(refs), session_id=TEXT, extra=EXTRA) if refs else st.nothing()
    )
    ref = named.filter(lambda each: each.get("trajectory_id") is not None) | _and(
        {"trajectory_path": TEXT}, _maybe(trajectory_id=TEXT)
    )
    result = _maybe(
        source_call_id=ids, content=CONTENT, subagent_trajectory_ref=st.lists(ref, max_size=2), extra=EXTRA
    )
    observation = st.fixed_dictionaries({"results": st.lists(result, max_size=3)})
    return {**step, **draw(_maybe(observation=observation))}


@st.composite
def atif(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    """A document of ATIF, with embedded ones."""
    inner = draw(st.lists(atif(depth=depth - 1), max_size=2)) if depth else []
    inner = [{**each, "trajectory_id": f"inner-{place}"} for place, each in enumerate(inner)]
    said = draw(st.lists(steps([each["trajectory_id"] for each in inner]), min_size=1, max_size=4))
    document = {
        **draw(
            _maybe(
                session_id=TEXT,
                trajectory_id=st.just("own") | TEXT.map("own-{}".format),
                notes=TEXT,
                final_metrics=_maybe(total_prompt_tokens=COUNTS, total_cost_usd=NUMBERS, extra=EXTRA),
                continued_trajectory_ref=TEXT,
                extra=EXTRA,
            )
        ),
        "schema_version": f"ATIF-v1.{draw(st.integers(0, 8))}",
        "agent": draw(
            _and(
                {"name": TEXT, "version": TEXT},
                _maybe(
                    model_name=TEXT,
                    tool_definitions=st.lists(st.dictionaries(TEXT, JSON, max_size=2), max_size=2),
                    extra=EXTRA,
                ),
            )
        ),
        "steps": [{"step_id": number, **step} for number, step in enumerate(said, 1)],
    }
    has_list = draw(st.booleans())
    if inner or has_list:
        document["subagent_trajectories"] = inner
    return document


_STS_CALL = _and(
    {
        "id": IDS,
        "function": _and(
            {"name": TEXT, "arguments": TEXT | st.just("{}")}, st.dictionaries(st.just("x"), JSON)
        ),
    },
    st.dictionaries(st.just("type"), JSON),
)
_STS_MESSAGE = _and(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXT},
    _maybe(
        reasoningContent=TEXT,
        toolCalls=st.lists(_STS_CALL, max_size=2),
        toolCallId=IDS,
        timestamp=st.integers(0, 2**41) | NUMBERS | st.integers(-(2**80), 2**80),
        model=TEXT,
        other=JSON,
    ),
)
SESSIONS = st.builds(
    lambda header, said: [header, *said],
    _and(
        {"type": st.just("session"), "harness": TEXT, "id": TEXT},
        _maybe(name=TEXT, cwd=JSON, agentlightning=JSON),
    ),
    st.lists(_and({"type": st.just("message"), "message": _STS_MESSAGE}, _maybe(uuid=TEXT)), max_size=5),
)
"""Sessions in STS-Format, as their lines."""
