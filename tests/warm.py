"""Programs of tests in processes that need not import first: forks of a process that has imported, and done nothing else.

Most of what a short program costs are its imports. Here a process without threads imports them once for a worker of
pytest, and is forked for each program, which runs as ``__main__`` with its own arguments, environment, folder and
descriptors, and leaves through the ordinary end of the interpreter: exit handlers, threads that are waited for, exit
codes and signals are those of a process of its own, which it is.

Not as in an interpreter of its own: what is imported already, and was under the environment of the tests; options of the
interpreter, ``sitecustomize``, ``sys.flags`` and ``sys.orig_argv``; the parent, which is the process that was forked. A
test of imports, of start-up, or of what is read while either goes on, starts ``sys.executable``.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from agentlightning.testing import ChildProcess

RECORDING = (
    "agentlightning.instrumentation.connections",
    "agentlightning.instrumentation.wire",
    "agentlightning.recorder.kept_aside",
    "agentlightning.store.sqlite",
    "agentlightning.testing.faults",
    "agentlightning.testing.processes",
    "agentlightning.tracer.exporter",
    "agentlightning.tracer.otel",
    "agentlightning.tracer.recording",
    "agentlightning.tracer.routing",
    "concurrent.futures.thread",
    "opentelemetry.instrumentation.threading",
    "opentelemetry.propagate",
    "opentelemetry.sdk.trace.export",
    "tomllib",
)
"""What programs import that record something."""


CALLING = (
    *RECORDING,
    "_pytest.cacheprovider",
    "_pytest.doctest",
    "_pytest.junitxml",
    "_pytest.pytester",
    "_pytest.unittest",
    "agentlightning.rows.training",
    "agentlightning.store.memory",
    "agentlightning.testing.captured_spans",
    "agentlightning.testing.fake_openai",
    "agentlightning.testing.fixtures",
    "aiohttp",
    "openai.resources.chat.completions",
    "pytest",
    "urllib.request",
)
"""What programs import that call a model, or test an agent that does."""

LARGEST = 1 << 20
"""Bytes of a request."""
MOST_DESCRIPTORS = 16
ABOVE = 100
"""Received descriptors are kept from this number on, until they are put where the program expects them."""
CONNECTION = 99
"""Where a child of a test finds the pipe to the test."""
NOTHING = Path(os.devnull)
STARTUP = ("PYTHON", "LD_", "OTEL_")
"""Prefixes of variables that are read while Python starts, or while what is warm is imported."""
HARMLESS = frozenset({"PYTHONPATH", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"})
"""The search path is made anew; what programs write is buffered, as into a pipe."""


def read_at_startup(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a warm process has read already, and so cannot be given to a program."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(STARTUP) and name not in HARMLESS
    }


class WarmProcess:
    """A running program."""

    def __init__(self, status: socket.socket) -> None:
        self._status = status
        self._code: int | None = None
        self.pid = self._hear()

    def exit_code(self) -> int | None:
        """Return the exit code, -15 of a process that SIGTERM ended, ``None`` while it runs."""
        if self._code is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self._code

    def wait(self, deadline: float) -> None:
        """Wait for the end.

        Raises:
            TimeoutError: It did not come in time.
        """
        if self._code is None:
            if not select.select([self._status], [], [], deadline)[0]:
                raise TimeoutError(f"process {self.pid} has not ended after {deadline:g} s")
            self._end()

    def dispose(self) -> None:
        """Let go of a process that has ended."""
        self._status.close()

    def _end(self) -> None:
        self._code = self._hear()
        # Until we have heard of its end it is not taken out of the system's table: its id means nobody else.
        self._status.send(b"seen")
        self._hear()
        self._status.close()

    def _hear(self) -> int:
        told = self._status.recv(20)
        if not told:
            raise ChildProcessError("the process whose forks run programs has ended")
        return int(told)


class Warm:
    """Starts programs in forks of one process, which imports ``modules`` first."""

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str]) -> None:
        self._environment = dict(environment)
        self._socket, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            self._server = subprocess.Popen(
                [sys.executable, "-P", __file__, str(there.fileno()), *modules],
                env={name: value for name, value in environment.items() if name not in HARMLESS},
                pass_fds=[there.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )

    def close(self) -> None:
        """End the process; its programs have ended."""
        # Forks of this process have the socket, too: closed here alone, it would stay open for as long as one of them.
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._server.wait()

    def start(
        self,
        arguments: Sequence[str],
        descriptors: Mapping[int, int],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> WarmProcess:
        """Start a program.

        Args:
            arguments: Those of ``python``: ``-c CODE``, ``-m MODULE`` or a file, each with what follows it, and
                before them, where it is wanted, ``-W error`` and ``-P``.
            descriptors: What the program has open: its number there → ours.
            env: The environment in place of that of this process.
            cwd: The folder.

        Raises:
            ValueError: A variable would have been read by a new interpreter, and was read otherwise by this one.
        """
        environment = dict(os.environ if env is None else env)
        wanted, have = read_at_startup(environment), read_at_startup(self._environment)
        if wanted != have:
            differ = sorted(dict(wanted.items() ^ have.items()))
            raise ValueError(
                f"an interpreter of its own is needed: {', '.join(differ)} is read while it starts"
            )
        here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with there:
            request = [list(arguments), environment, os.fspath(cwd or Path.cwd()), list(descriptors)]
            sent = [there.fileno(), *descriptors.values()]
            assert len(sent) <= MOST_DESCRIPTORS
            socket.send_fds(self._socket, [json.dumps(request).encode()], sent)
        return WarmProcess(here)

    def run(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float = 280,
        stdout: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end; what it writes, unless ``stdout`` is a descriptor for it, is text in UTF-8."""
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            with NOTHING.open("rb") as nothing:
                descriptors = {
                    0: nothing.fileno(),
                    1: out.fileno() if stdout is None else stdout,
                    2: err.fileno(),
                }
                process = self.start(arguments, descriptors, env=env, cwd=cwd)
            try:
                process.wait(timeout)
            finally:
                if process.exit_code() is None:
                    os.kill(process.pid, signal.SIGKILL)
                process.dispose()
            code = process.exit_code()
            assert code is not None
            said = [(file.seek(0), file.read().decode())[1] for file in (out, err)]
        return subprocess.CompletedProcess(list(arguments), code, *said)

    def start_child(
        self, source: str, *, args: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
    ) -> ChildProcess:
        """Run Python source as :func:`agentlightning.testing.start_child` does with ``method="subprocess"``."""
        here, there = Pipe()
        try:
            with NOTHING.open("rb") as nothing, there:
                process = self.start(
                    ["-c", f"from agentlightning.testing import processes; processes._main({CONNECTION})"],
                    {0: nothing.fileno(), 1: 1, 2: 2, CONNECTION: there.fileno()},
                    env={**os.environ, **(env or {})},
                )
            here.send((textwrap.dedent(source), dict(args or {})))
        except BaseException:
            here.close()
            raise
        return ChildProcess(process, here)


# ------------------------------------------------------------------ the process that is forked


class Request(NamedTuple):
    """A program to run; its descriptors come beside it."""

    arguments: list[str]
    environment: dict[str, str]
    folder: str
    numbers: list[int]
    """What the descriptors are called in the program."""


class Server:
    """Forks for each request, and tells how what it forked has ended."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._selector = selectors.DefaultSelector()
        self._selector.register(requests, selectors.EVENT_READ)

    def next_program(self) -> Request | None:
        """Serve; return a request in the process that is forked for it, ``None`` here when no more can come."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._requests:
                    key.data()
                    continue
                data, descriptors, _, _ = socket.recv_fds(self._requests, LARGEST, MOST_DESCRIPTORS)
                if not data:
                    return None
                if not self._fork(descriptors):
                    # Whoever closed them later would close what has their numbers by then.
                    self._selector.close()
                    self._requests.detach()
                    request = Request(*json.loads(data))
                    take_descriptors(descriptors[1:], request.numbers)
                    return request

    def _fork(self, descriptors: list[int]) -> int:
        pid = os.fork()
        if pid:
            status, *rest = descriptors
            for descriptor in rest:
                os.close(descriptor)
            process = os.pidfd_open(pid)
            self._tell(status, pid)
            self._selector.register(process, selectors.EVENT_READ, partial(self._ended, process, pid, status))
        return pid

    def _ended(self, process: int, pid: int, status: int) -> None:
        self._selector.unregister(process)
        os.close(process)
        end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert end is not None
        self._tell(status, end.si_status if end.si_code == os.CLD_EXITED else -end.si_status)
        self._selector.register(status, selectors.EVENT_READ, partial(self._seen, pid, status))

    def _seen(self, pid: int, status: int) -> None:
        self._selector.unregister(status)
        with contextlib.suppress(OSError):  # unread, it would make an error of the answer
            os.read(status, 20)
        os.waitpid(pid, 0)
        self._tell(status, 0)
        os.close(status)

    @staticmethod
    def _tell(status: int, value: int) -> None:
        with contextlib.suppress(OSError):  # whoever asked has gone
            os.write(status, str(value).encode())


def take_descriptors(received: list[int], numbers: list[int]) -> None:
    """Give received descriptors their numbers, and close all others."""
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, ABOVE) for descriptor in received]
    for descriptor, number in zip(kept, numbers, strict=True):
        os.dup2(descriptor, number)
    beyond = os.sysconf("SC_OPEN_MAX")
    edges = sorted({*numbers, 2})
    for after, before in zip(edges, [*edges[1:], beyond], strict=True):
        os.closerange(after + 1, before)


def open_streams() -> None:
    """Make the standard streams anew: what they are of decides how they are buffered, and whether they can seek."""
    for number, mode, name in ((0, "r", "stdin"), (1, "w", "stdout"), (2, "w", "stderr")):
        old = getattr(sys, f"__{name}__")
        line_buffered = 1 if number == 2 or os.isatty(number) else -1
        new = open(number, mode, line_buffered, old.encoding, old.errors, closefd=False)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def become(request: Request, path: list[str]) -> tuple[str, list[str]]:
    """Take on the environment, folder and options of a program; return what it is run by, and its arguments."""
    os.environ.clear()
    os.environ.update(request.environment)
    os.chdir(request.folder)
    arguments = list(request.arguments)
    safe = False
    while arguments[0] in {"-W", "-P"}:
        if arguments.pop(0) == "-P":
            safe = True
        else:
            action = arguments.pop(0)
            assert action == "error"
            sys.warnoptions.append(action)
            warnings.simplefilter("error")
    how = arguments.pop(0) if arguments[0] in {"-c", "-m"} else ""
    first = {"-c": "", "-m": request.folder}.get(how, str(Path(arguments[0]).resolve().parent))
    extra = [each for each in request.environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [*([] if safe else [first]), *extra, *path]
    sys.path_importer_cache.clear()
    return how, arguments


def run_as_main(how: str, arguments: list[str]) -> None:
    """Run what ``python`` would run with these arguments, in a ``__main__`` that has nothing else in it."""
    main = ModuleType("__main__")
    main.__dict__.update(__builtins__=__builtins__, __annotations__={})
    sys.modules["__main__"] = main
    what = arguments[0]
    sys.argv[:] = [how or what, *arguments[1:]]
    if how == "-m":
        runpy._run_module_as_main(what)  # type: ignore[attr-defined]
        return
    name = "<string>" if how == "-c" else str(Path(what).absolute())
    if not how:
        main.__dict__.update(__file__=name, __cached__=None)
    source = what if how == "-c" else Path(what).read_text(encoding="utf-8")
    exec(compile(source, name, "exec", dont_inherit=True), main.__dict__)


def serve(descriptor: int, modules: list[str]) -> None:
    """Be the process that is forked; in what is forked, run the program."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which closes the socket
    path = list(sys.path)
    for module in modules:
        with contextlib.suppress(ImportError):  # a test that needs what is not installed here is skipped
            importlib.import_module(module)
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "a module that is imported has started a thread: forks of it would lack it"
    gc.collect()
    gc.freeze()  # what is shared is not written to by searches for garbage
    request = Server(socket.socket(fileno=descriptor)).next_program()
    if request is not None:
        signal.signal(signal.SIGINT, interrupt)
        open_streams()
        run_as_main(*become(request, path))


@contextlib.contextmanager
def warm(environment: Mapping[str, str], modules: Sequence[str]) -> Iterator[Warm]:
    """Have a process that imports ``modules`` with these variables, and whose forks run programs."""
    made = Warm(environment, modules)
    try:
        yield made
    finally:
        made.close()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2:])
