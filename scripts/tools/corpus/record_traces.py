"""Record the traces of ``tests/data/traces`` anew; see ``scripts/corpus``.

The servers run here, each program in the environment of its library. What a server was asked and what it said is
the truth: a trace is written only if the normaliser reads exactly that from it, less what the recipe says that the
dialect does not record.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
sys.path.insert(0, str(ROOT / "tests" / "dialects"))

from corpus_files import (  # noqa: E402
    FOLDER,
    PAGE,
    dump,
    message_view,
    page_with_table,
    view,
    without_nothing,
)
from environments import ENVIRONMENTS, python_of  # noqa: E402
from servers import Helper, Said, Wire  # noqa: E402
from tidy import tidy  # noqa: E402
from traces import RECIPES, Recipe  # noqa: E402

from agentlightning.adapter import TracerTraceToTriplet  # noqa: E402
from agentlightning.dialects.model_call import VALID, none  # noqa: E402
from agentlightning.dialects.spans.genai import read_call  # noqa: E402
from agentlightning.types import Span  # noqa: E402

PROGRAM_SECONDS = 300  # most of it is the import of a framework


def record(recipe: Recipe, environments: Path) -> tuple[dict[str, Any], list[Said]]:
    """Run the program; return its spans and versions, and what was said on the wire."""
    python = python_of(recipe.environment, environments)
    wire = Wire(recipe.script)
    with wire.server, Helper() as helper, tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "spans.json"
        environ = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "CORPUS_MODEL": wire.server.base_url,
            "CORPUS_HELPER": helper.url,
            "OPENAI_API_KEY": "unused",
            "PYTHONPATH": "",
            **recipe.environ,
        }
        ran = subprocess.run(
            [python, HERE / "record.py", recipe.recorder, recipe.program, target],
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=PROGRAM_SECONDS,
            check=False,
        )
        if ran.returncode or not target.exists():
            raise RuntimeError(f"{recipe.name}: {ran.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(target.read_text(encoding="utf-8"))
        return found, [*wire.said, *helper.said]


def _applies(path: str, number: int) -> bool:
    place, colon, _ = path.rpartition(":")
    return not colon or int(place) == number


def _path(path: str) -> str:
    return path.rpartition(":")[2]


def expected_call(recipe: Recipe, number: int, said: Said) -> Said:
    """Return the view that must be read of the span that is the ``number``-th model call."""
    call = dict(said)
    if "messages" in call:
        call["messages"] = [message_view(message) for message in call["messages"]]
    call["answers"] = [without_nothing(answer) for answer in call.get("answers", [])]
    call["token_capture"] = VALID
    lacks = [path for path in recipe.lacks if _applies(path, number)]
    if not recipe.tokens or "tokens" in map(_path, lacks):
        call["token_capture"] = none("foreign_span")
        lacks += ["prompt_token_ids", "answers.token_ids", "answers.logprobs"]
    for path in lacks:
        put(call, _path(path).split("."), None)
    for path, value in recipe.changes.items():
        if _applies(path, number):
            put(call, _path(path).split("."), value)
    return without_nothing(call)


def put(found: Any, path: list[str], value: Any) -> None:
    """Put ``value`` at a path in a view, in all members of lists; ``None`` takes away."""
    if isinstance(found, list):
        for each in found:
            put(each, path, value)
    elif len(path) > 1:
        put(found.get(path[0], []), path[1:], value)
    elif value is None:
        found.pop(path[0], None)
    elif isinstance(found, dict):
        found[path[0]] = value


def expectation(recipe: Recipe, spans: list[Span], said: list[Said]) -> dict[str, Any]:
    """Return the part of the head that says what must come of the trace."""
    calls = [span for span in spans if read_call(span) is not None]
    which = list(range(len(said))) if recipe.calls is None else list(recipe.calls)
    if len(calls) != len(which):
        raise ValueError(f"{len(which)} spans should be model calls; these are: {[s.name for s in calls]}")
    rows = list(range(len(said))) if recipe.rows is None and recipe.tokens else list(recipe.rows or ())
    # The scripted server is not asked what it would do with settings that a request does not name.
    reasons = recipe.reasons or (("logprobs_unproven",) if rows else ("no_token_ids",))
    return {
        "calls": [
            {"span": span.span_id, **expected_call(recipe, place, said[number])}
            for place, (span, number) in enumerate(zip(calls, which, strict=True))
        ],
        "rows": [
            [said[number]["prompt_token_ids"], answer["token_ids"]]
            for number in rows
            for answer in said[number].get("answers", ())
        ],
        "reasons": sorted({"no_reward", *reasons}),
    }


def problems(spans: list[Span], expect: dict[str, Any]) -> list[str]:
    """Return where the normaliser and the adapter give something else."""
    found = []
    by_id = {span.span_id: span for span in spans}
    for call in expect["calls"]:
        read = read_call(by_id[call["span"]])
        got = {} if read is None else view(read)
        wanted = {name: value for name, value in call.items() if name != "span"}
        found += [
            f"{by_id[call['span']].name}: {key}\n"
            f"      is     {json.dumps(got.get(key))}\n      wanted {json.dumps(wanted.get(key))}"
            for key in sorted({*got, *wanted})
            if got.get(key) != wanted.get(key)
        ]
    rows = [
        [row.prompt["token_ids"], row.response["token_ids"]] for row in TracerTraceToTriplet().adapt(spans)
    ]
    if rows != expect["rows"]:
        found.append(f"rows: {rows}, wanted {expect['rows']}")
    reasons = sorted(TracerTraceToTriplet().explain(spans).codes)
    if reasons != expect["reasons"]:
        found.append(f"reasons: {reasons}, wanted {expect['reasons']}")
    return found


def make(recipe: Recipe, environments: Path, raw: Path | None) -> list[str]:
    """Record a trace and write it; return what is wrong with it."""
    kept = None if raw is None else raw / f"{recipe.name}.json"
    if kept is not None and kept.exists():
        found, said = json.loads(kept.read_text(encoding="utf-8"))
    else:
        found, said = record(recipe, environments)
        if kept is not None:
            kept.write_text(json.dumps([found, said]), encoding="utf-8")
    tidied = tidy(found["spans"])
    spans = [Span.model_validate(span) for span in tidied]
    try:
        expect = expectation(recipe, spans, said)
    except ValueError as error:
        return [str(error)]
    wrong = problems(spans, expect)
    if wrong:
        return wrong
    head = {
        "dialect": recipe.dialect,
        "made": f"scripts/corpus {recipe.name}",
        "program": recipe.program,
        "libraries": {name: found["versions"][name] for name in recipe.libraries},
        "expect": expect,
    }
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{recipe.name}.json").write_text(dump(head, tidied), encoding="utf-8")
    return []


def main() -> int:
    """Record what is asked for; return 1 where something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="traces whose names begin with this; default all")
    parser.add_argument("--environments", type=Path, default=ROOT, help="folder of the environments")
    parser.add_argument("--raw", type=Path, help="keep recordings here, and use those that are here")
    parser.add_argument("--list", action="store_true", help="print names and environments")
    parser.add_argument("--page", action="store_true", help="only write docs/reference/dialects.md")
    asked = parser.parse_args()
    chosen = [each for each in RECIPES if not asked.names or each.name.startswith(tuple(asked.names))]
    if asked.list:
        for recipe in chosen:
            print(recipe.name, *ENVIRONMENTS[recipe.environment])
        return 0

    if asked.page:
        PAGE.write_text(page_with_table(), encoding="utf-8")
        return 0

    def attempt(recipe: Recipe) -> list[str]:
        try:
            return make(recipe, asked.environments, asked.raw)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return [str(error)]

    failed = 0
    for name in {recipe.environment for recipe in chosen}:
        python_of(name, asked.environments)
    with ThreadPoolExecutor(2) as pool:
        for recipe, wrong in zip(chosen, pool.map(attempt, chosen), strict=True):
            failed += bool(wrong)
            print(recipe.name, "NOT WRITTEN" if wrong else "written", flush=True)
            for each in wrong:
                print(f"    {each}", flush=True)
    PAGE.write_text(page_with_table(), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
