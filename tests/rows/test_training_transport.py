"""B15: spans that travelled, and rows in files, hold the very ids and log-probabilities that were captured."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conversations import ATTEMPT, NAMED, ROLLOUT, Story, rows_of, stories
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
from hypothesis import HealthCheck, given, settings
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

from agentlightning.cli.columns import TRAINING_COLUMNS, training_rows
from agentlightning.cli.parquet import ParquetWriter
from agentlightning.codec.otlp import decode_request
from agentlightning.codec.rows import decode_span, encode_span
from agentlightning.rows import RowSet, build_rows
from agentlightning.types import Span


def readable(span: Span) -> ReadableSpan:
    """The span as OpenTelemetry's SDK hands it to an exporter."""
    trace_id = int(span.trace_id, 16)
    parent = None
    if span.parent_id is not None:
        parent = SpanContext(trace_id, int(span.parent_id, 16), False, TraceFlags(1))
    return ReadableSpan(
        name=span.name,
        context=SpanContext(trace_id, int(span.span_id, 16), False, TraceFlags(1)),
        parent=parent,
        resource=Resource(
            {"agentlightning.rollout_id": ROLLOUT, "agentlightning.attempt_id": ATTEMPT, "service.name": "a"}
        ),
        attributes={**span.attributes, "agentlightning.span_sequence_id": span.sequence_id},
        start_time=round((span.start_time or 0.0) * 1e9 + 1e10),
        end_time=round((span.end_time or 0.0) * 1e9 + 1e10),
    )


def by_protobuf(spans: list[Span]) -> list[Span]:
    request = encode_spans([readable(span) for span in spans])
    return decode_request(request.SerializeToString()).spans


def by_otlp_json(spans: list[Span]) -> list[Span]:
    request = encode_spans([readable(span) for span in spans])
    body = json.dumps(_hexadecimal(MessageToDict(request, use_integers_for_enums=True)))
    return decode_request(body.encode(), "application/json").spans


def _hexadecimal(value: Any) -> Any:
    if isinstance(value, list):
        return [_hexadecimal(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: b64decode(item).hex() if key in {"traceId", "spanId", "parentSpanId"} else _hexadecimal(item)
        for key, item in value.items()
    }


def by_json(spans: list[Span]) -> list[Span]:
    return [Span.model_validate_json(span.model_dump_json()) for span in spans]


def by_columns(spans: list[Span]) -> list[Span]:
    return [decode_span(s.rollout_id, s.attempt_id, s.sequence_id, encode_span(s)) for s in spans]


def by_opentelemetry(spans: list[Span]) -> list[Any]:
    return [
        Span.from_opentelemetry(readable(span), span.rollout_id, span.attempt_id, span.sequence_id)
        for span in spans
    ]


def said(rows: RowSet) -> list[Any]:
    return [
        (
            row.rollout_id,
            row.attempt_id,
            row.token_ids,
            row.loss_mask,
            row.logprobs,
            row.versions,
            [(each.span_id, each.choice.index, each.versions) for each in row.segments],
            row.messages,
        )
        for row in rows
    ]


@pytest.mark.parametrize("travel", [by_protobuf, by_otlp_json, by_json, by_columns, by_opentelemetry])
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(story=stories)
def test_b15_spans_that_travelled_give_the_very_rows(
    travel: Callable[[list[Span]], list[Span]], story: Story
) -> None:
    expected = rows_of(story)

    there = build_rows(travel(story.spans), NAMED)

    assert said(there) == said(expected)
    assert there.counts == expected.counts


@settings(max_examples=10)
@given(story=stories)
def test_b15_rows_in_files_hold_every_digit(story: Story, tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = rows_of(story)
    written = list(training_rows(rows))
    path: Path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    with ParquetWriter(path, TRAINING_COLUMNS) as writer:
        for each in written:
            writer.write(each)

    in_parquet = pq.read_table(path).to_pylist()
    in_json = [json.loads(json.dumps(each)) for each in written]

    for found in (in_parquet, in_json):
        assert [tuple(each["token_ids"]) for each in found] == [row.token_ids for row in rows]
        assert [tuple(each["loss_mask"]) for each in found] == [row.loss_mask for row in rows]
        assert [tuple(each["logprobs"]) for each in found] == [row.logprobs for row in rows]
