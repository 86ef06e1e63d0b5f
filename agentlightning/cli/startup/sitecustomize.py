"""What ``agl run`` adds to a Python program: runs the ``sitecustomize`` that it hides, then starts recording.

The program must not notice: this folder leaves ``sys.path`` again, ``sys.modules`` holds the other
``sitecustomize`` if there is one, and a failure is one line on stderr. It may run in an older Python, one
without agentlightning, or a child process of the program, which belongs to the same attempt.
"""

from __future__ import annotations

import os
import sys


def _run_the_hidden_one() -> None:
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib is not yet loaded
    # In place: the list may be held by others already.
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]  # noqa: PTH100 - as above
    spec = PathFinder.find_spec("sitecustomize", sys.path)
    if spec is None or spec.loader is None:
        return
    module = module_from_spec(spec)
    # As ``import`` does, before the module runs: it may import itself.
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _start() -> None:
    # PYTHONPATH may have outlived ``agl run``, for example in a tmux session that was started under it.
    if not os.environ.get("AGL_ROLLOUT_ID"):
        return
    try:
        from agentlightning.tracer.bootstrap import start_from_environment

        start_from_environment()
    except Exception as error:  # noqa: BLE001 - recording must not break the program
        sys.stderr.write(
            "agentlightning: not recorded: "
            + sys.executable
            + ": "
            + type(error).__name__
            + ": "
            + str(error)
            + "\n"
        )


try:
    _run_the_hidden_one()
finally:
    _start()
