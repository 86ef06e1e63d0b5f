"""Harbor's own models take what we write, and what we take is what they take; ``scripts/matrix-harbor`` runs this."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import corpus_files
import pytest
from documents import SCHEMA
from generated import atif
from hypothesis import HealthCheck, given, settings

from agentlightning.exchange import to_atif
from agentlightning.exchange.atif_schema import fault_of

PYTHON = os.environ.get("AGL_HARBOR_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="scripts/matrix-harbor installs it")

VALIDATE = """
import json, sys
from harbor.models.trajectories import Trajectory

for line in open(sys.argv[1], encoding="utf-8"):
    try:
        Trajectory.model_validate(json.loads(line))
        print("taken")
    except Exception as error:
        print("refused: " + " ".join(str(error).split())[:200])
"""
DESCRIBE = "import json; from harbor.models.trajectories import Trajectory; print(json.dumps(Trajectory.model_json_schema()))"


def harbor(program: str, *arguments: str) -> str:
    assert PYTHON is not None
    done = subprocess.run([PYTHON, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def verdicts(folder: Path, documents: list[Any]) -> list[str]:
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in documents))
    return harbor(VALIDATE, str(path)).splitlines()


def without_texts(value: Any, *, is_names: bool = False) -> Any:
    if isinstance(value, dict):
        left_out = () if is_names else ("title", "description", "default")
        return {
            key: without_texts(each, is_names=key in ("properties", "$defs"))
            for key, each in value.items()
            if key not in left_out
        }
    return [without_texts(each) for each in value] if isinstance(value, list) else value


def test_the_schema_that_the_tests_have_is_that_of_harbor() -> None:
    assert without_texts(json.loads(harbor(DESCRIBE))) == json.loads(SCHEMA.read_text())


def test_harbor_takes_every_document_that_is_written_of_a_recorded_trace(tmp_path: Path) -> None:
    spans = [corpus_files.load(name).spans for name in corpus_files.names()]
    documents = [document for each in spans if (document := to_atif(each)) is not None]
    assert len(documents) > 100
    assert set(verdicts(tmp_path, documents)) == {"taken"}


def test_harbor_takes_what_the_round_trips_are_made_of(tmp_path: Path) -> None:
    documents: list[dict[str, Any]] = []

    @settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(document=atif())
    def collect(document: dict[str, Any]) -> None:
        documents.append(copy.deepcopy(document))

    collect()
    assert set(verdicts(tmp_path, documents)) == {"taken"}
    # One change each, at many places: what Harbor refuses is refused here. Of older versions we take more.
    newest = [{**document, "schema_version": "ATIF-v1.8"} for document in documents[:40]]
    broken = [
        each for document in newest if not document.get("subagent_trajectories") for each in _broken(document)
    ]
    for document, verdict in zip(broken, verdicts(tmp_path, broken), strict=True):
        if verdict != "taken":
            assert fault_of(document) is not None, (verdict, document)


def _broken(document: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    values: tuple[Any, ...] = (None, "x", 3, [], {}, {"new": 1})
    for path in _places(document):
        for value in values:
            changed = copy.deepcopy(document)
            inside: Any = changed
            for key in path[:-1]:
                inside = inside[key]
            inside[path[-1]] = value
            found.append(changed)
    return found


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in items for place in ((*path, key), *_places(each, (*path, key)))][:25]
