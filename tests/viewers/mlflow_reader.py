"""Prints what MLflow's own client finds: ``mlflow_reader.py URL``, run in MLflow's environment."""

from __future__ import annotations

import json
import sys
from typing import Any

import mlflow

mlflow.set_tracking_uri(sys.argv[1])


def span(each: Any) -> dict[str, Any]:
    """Return what a span shows."""
    return {
        "name": each.name,
        "id": each.span_id,
        "type": each.span_type,
        "inputs": each.inputs,
        "outputs": each.outputs,
        "attributes": each.attributes,
        "events": [{"name": event.name, "attributes": event.attributes} for event in each.events],
    }


def trace(each: Any) -> dict[str, Any]:
    """Return what a trace shows."""
    return {
        "id": each.info.trace_id,
        "request": each.info.request_preview,
        "usage": each.info.token_usage,
        "assessments": [
            {"name": one.name, "value": one.value, "span": one.span_id, "metadata": one.metadata}
            for one in each.info.assessments
        ],
        "spans": [span(one) for one in each.data.spans],
    }


print(json.dumps([trace(each) for each in mlflow.search_traces(locations=["0"], return_type="list")]))
