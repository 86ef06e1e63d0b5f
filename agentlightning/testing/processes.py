"""Python source run in a child process, by any start method, and killed when a test says so.

A snippet knows nothing of the test but what it is given: ``args`` (a dict), ``report(value)``, which sends
a value to the parent, and ``receive()``, which waits for one from it. What was reported before a ``SIGKILL``
arrives; what was not does not. A child is never left behind: leaving the ``with`` block kills it.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from ..store.base import new_writer_id
from .clock import wait_until

StartMethod = Literal["subprocess", "fork", "spawn", "forkserver"]
"""``subprocess`` is a fresh interpreter without memory of the parent; the others are multiprocessing's."""

_MAIN = "import sys; from agentlightning.testing import processes; processes._main(int(sys.argv[1]))"


class _Handle(Protocol):
    """What ``subprocess`` and ``multiprocessing`` processes have in common here."""

    pid: int

    def exit_code(self) -> int | None: ...
    def dispose(self) -> None: ...


class ChildProcess:
    """A running snippet; made by :func:`start_child`, to be used in a ``with`` block."""

    def __init__(self, handle: _Handle, connection: Connection) -> None:
        self._handle = handle
        self._connection = connection
        self._ended = False
        self.reports: list[Any] = []
        """What the child has reported and the parent has received so far, in order."""
        self.error: str | None = None
        """Traceback of the exception that ended the snippet."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._handle.pid

    def poll(self) -> list[Any]:
        """Receive what has arrived, without waiting, and return :attr:`reports`."""
        while not self._ended and self._connection.poll():
            self._receive()
        return self.reports

    def next_report(self, *, deadline: float = 60.0) -> Any:
        """Wait for one more report and return it.

        Raises:
            ChildProcessError: The child ended without another report.
            TimeoutError: None came in time.
        """
        # Not the last one that came: several may have arrived since, and each is handed out once.
        have = len(self.reports)
        give_up = time.monotonic() + deadline
        while len(self.reports) == have:
            if self._ended:
                raise ChildProcessError(f"the child ended without another report\n{self.error or ''}")
            if not self._connection.poll(max(0.0, give_up - time.monotonic())):
                raise TimeoutError(f"no report after {deadline:g} s")
            self._receive()
        return self.reports[have]

    def send(self, value: Any) -> None:
        """Answer the snippet's ``receive()``."""
        self._connection.send(value)

    def kill(self, when: Callable[[], bool] | None = None, *, deadline: float = 60.0) -> list[Any]:
        """Send ``SIGKILL``, at once or as soon as ``when()`` is true; return all that was reported.

        While it waits, reports are received, so that the child is not held up by a full pipe.
        """
        if when is not None:
            wait_until(lambda: self.poll() is not None and when(), deadline=deadline, what="reason to kill")
        self.signal(signal.SIGKILL)
        self.wait(deadline=deadline)
        return self.reports

    def signal(self, number: int) -> None:
        """Send a signal; harmless when the child has ended."""
        if self._handle.exit_code() is None:
            os.kill(self.pid, number)

    def wait(self, *, deadline: float = 60.0) -> int:
        """Wait for the end of the child, receive its last reports and return its exit code (-9 = killed).

        Raises:
            TimeoutError: It did not end in time.
        """

        def ended() -> bool:
            self.poll()
            return self._handle.exit_code() is not None

        # Reports are received meanwhile: a child that writes into a full pipe would never end.
        wait_until(ended, deadline=deadline, what=f"end of child {self.pid}")
        self.poll()
        code = self._handle.exit_code()
        assert code is not None
        return code

    def finish(self, *, deadline: float = 60.0) -> list[Any]:
        """Wait for the end and return all reports.

        Raises:
            ChildProcessError: The snippet raised (the message has its traceback), or was killed.
        """
        code = self.wait(deadline=deadline)
        if code or self.error:
            raise ChildProcessError(f"child exited with {code}\n{self.error or ''}")
        return self.reports

    def _receive(self) -> None:
        try:
            kind, value = self._connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):  # the end, possibly in the middle of a message
            self._ended = True
            return
        if kind == "error":
            self.error = value
        else:
            self.reports.append(value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            self.signal(signal.SIGKILL)
            self.wait()
        finally:
            self._connection.close()
            self._handle.dispose()


def start_child(
    source: str,
    *,
    args: Mapping[str, Any] | None = None,
    method: StartMethod = "subprocess",
    env: Mapping[str, str] | None = None,
) -> ChildProcess:
    """Run Python source in a child process.

    Args:
        source: Statements; common indentation is taken away; ``args``, ``report``, ``receive`` are defined.
        args: What the snippet finds as ``args``; must pickle.
        method: How the process is started.
        env: Variables set in the child beside those it inherits (``subprocess`` only).

    Raises:
        ValueError: ``env`` with another method than ``subprocess``.
    """
    if env and method != "subprocess":
        raise ValueError("env= goes with method='subprocess'; the others share the parent's environment")
    code = textwrap.dedent(source)
    here, there = multiprocessing.Pipe()
    try:
        # It finds its source in the pipe; the others are given it as an argument, which ``fork`` need not
        # pickle.
        if method == "subprocess":
            handle: _Handle = _Subprocess(there, env or {})
            here.send((code, dict(args or {})))
        else:
            handle = _Multiprocessing(method, there, code, dict(args or {}))
    except BaseException:
        here.close()
        raise
    finally:
        # The parent's copy of the child's end: while it is open, the end of the child cannot be seen as an
        # end of file.
        there.close()
    return ChildProcess(handle, here)


@functools.cache
def gone_writer_id(number: int = 0) -> str:
    """Return the id of a writer of this host whose process is gone: it lived, and was waited for.

    The same number gives the same id again: starting a process for each would take its time.
    """
    # A pipe and not standard output: whatever the site's start-up prints would stand in the id.
    read, write = os.pipe()
    source = (
        "import os, sys; from agentlightning.store.base import new_writer_id; "
        "os.write(int(sys.argv[1]), new_writer_id(int(sys.argv[2])).encode())"
    )
    try:
        subprocess.run([sys.executable, "-c", source, str(write), str(number)], pass_fds=[write], check=True)  # noqa: S603 - our own source
        gone = os.read(read, 1000).decode()
    finally:
        os.close(read)
        os.close(write)
    assert gone != new_writer_id(number)
    return gone


class _Subprocess:
    def __init__(self, connection: Connection, env: Mapping[str, str]) -> None:
        fd = connection.fileno()
        self._process = subprocess.Popen(  # noqa: S603 - a test's own source
            [sys.executable, "-c", _MAIN, str(fd)],
            pass_fds=[fd],
            env={**os.environ, **env},
            stdin=subprocess.DEVNULL,
        )
        self.pid = self._process.pid

    def exit_code(self) -> int | None:
        return self._process.poll()

    def dispose(self) -> None:
        self._process.wait()


class _Multiprocessing:
    def __init__(self, method: StartMethod, connection: Connection, code: str, args: dict[str, Any]) -> None:
        context = multiprocessing.get_context(method)
        process = context.Process(target=_run, args=(code, args, connection))  # type: ignore[attr-defined]
        with warnings.catch_warnings():
            # Python 3.12 warns of forking with threads; that it works is what such a test is about.
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        self._process = process
        self.pid: int = process.pid

    def exit_code(self) -> int | None:
        code: int | None = self._process.exitcode
        return code

    def dispose(self) -> None:
        self._process.join()
        self._process.close()


def _main(fd: int) -> None:
    connection = Connection(fd)
    code, args = connection.recv()
    _run(code, args, connection)


def _run(code: str, args: dict[str, Any], connection: Connection) -> None:
    def report(value: Any) -> None:
        connection.send(("report", value))

    names = {"__name__": "__child__", "args": args, "report": report, "receive": connection.recv}
    try:
        exec(compile(code, "<child>", "exec"), names)  # noqa: S102 - running the snippet is the purpose
    except Exception:  # noqa: BLE001 - told to the parent, whatever it is
        connection.send(("error", traceback.format_exc()))
        # multiprocessing would print the traceback that has been reported already.
        raise SystemExit(1) from None
    finally:
        connection.close()
