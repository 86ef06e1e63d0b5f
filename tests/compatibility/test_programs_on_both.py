"""Five programs that were written from 0.3's documentation alone do here what they did on 0.3.0, unchanged.

What they print on 0.3.0 is stored in ``results_of_0_3.json``; ``scripts/matrix-peer --store`` writes it, and
``scripts/matrix-peer`` holds it against 0.3.0 itself. Two settings make the names and the log-probabilities those of 0.3.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
PROGRAMS = sorted(path.stem for path in (FOLDER / "programs").glob("with_*.py"))
RESULTS = FOLDER / "results_of_0_3.json"
PEER = os.environ.get("AGL_PEER_PYTHON")
"""The interpreter of an environment with 0.3.0. Read here: while a test runs, no setting of the caller's is there."""
IS_STORED_ANEW = "AGL_PEER_STORE" in os.environ
SETTINGS = {
    "AGL_SPAN_NAMES": "0.3",  # model calls are called openai.chat.completion
    "AGL_SAMPLING_DEFAULTS": "{}",  # the model adds nothing to what a request says of sampling
}
DIFFERENCES: dict[str, dict[str, Any]] = json.loads(
    (FOLDER / "differing_facts.json").read_text(encoding="utf-8")
)
"""Program → fact → what ours says, where it is another thing on purpose: docs/how-to/move-from-0.3.md says why."""


ALL = """
import runpy, sys
sys.path.insert(0, sys.argv[1])
for program in sys.argv[2:]:
    runpy.run_path(f"{sys.argv[1]}/{program}.py", run_name="__main__")
"""


def our_facts() -> dict[str, Any]:
    """Return what each program prints here: one process runs them all, one after the other."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AGL_")}
    done = subprocess.run(
        [sys.executable, "-c", ALL, str(FOLDER / "programs"), *PROGRAMS],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, **SETTINGS},
    )
    return dict(zip(PROGRAMS, map(json.loads, done.stdout.splitlines()), strict=True))


def facts_of_0_3(program: str) -> Any:
    """Return what one program prints on 0.3.0, which asks the network for a price list unless it is told not to."""
    assert PEER is not None
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [PEER, str(FOLDER / "programs" / f"{program}.py")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def stored(program: str) -> Any:
    return json.loads(RESULTS.read_text(encoding="utf-8"))[program]


def test_programs_of_0_3_say_the_same_here() -> None:
    found = our_facts()
    for program in PROGRAMS:
        assert found[program] == stored(program) | DIFFERENCES.get(program, {})


@pytest.mark.skipif(PEER is None, reason="scripts/matrix-peer runs it")
def test_0_3_itself_says_what_is_stored() -> None:
    """In one test, so that a store of new results is whole."""
    found = {program: facts_of_0_3(program) for program in PROGRAMS}
    if IS_STORED_ANEW:
        RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    assert found == {program: stored(program) for program in PROGRAMS}
    for program, facts in DIFFERENCES.items():
        assert [name for name, ours in facts.items() if found[program][name] == ours] == []
