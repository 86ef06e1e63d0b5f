"""The server's process: how it is started, and how it ends with the process that started it.

It is spawned: a fresh interpreter, as ``multiprocessing`` with ``spawn``, but started without it. That module refuses
to start a child from a daemonic process, and its child imports the program's ``__main__`` again with all it loads.
Here the child gets the ``sys.path`` of its parent and runs without ``site``, so neither a ``sitecustomize`` nor a
``.pth`` file of the surroundings starts recording or instrumenting inside the server.

The listening socket is made by the parent and inherited, so no other program can take the port in between, and
connections wait in it from the beginning. A socket pair joins both: the child writes one line when it can answer, and
its end is how either learns that the other is gone. A copy of the parent's end may live on in a forked process, so the
child also watches the parent itself.
"""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ....errors import AgentOpsServerError

TITLE = "AgentLightning-AgentOpsServer"
READY = b"ready\n"
START_SECONDS = 60.0
"""When to give up on a child that lives and says nothing; one that dies is noticed at once."""
TERMINATE_SECONDS = 2.0
STDERR_SHOWN = 4000

_PACKAGE_ROOT = str(Path(__file__).absolute().parents[4])
"""The folder that ``agentlightning`` lies in."""
_BOOT = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from agentlightning.integrations.agentops.server.child import main; main(sys.argv[1])"
)
_PYTHON_VARIABLES_KEPT = frozenset({"PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"})


class ServerProcess:
    """A running server, with the names that ``multiprocessing.Process`` has for the same things."""

    name = TITLE

    def __init__(
        self, popen: subprocess.Popen[bytes], stderr: IO[bytes], channel: socket.socket, *, daemon: bool
    ) -> None:
        self._popen = popen
        self._stderr = stderr
        self._channel = channel
        # Guards the end of the process: stopping it, and closing and reading its stderr. Re-entrant: a signal handler
        # may stop it while this thread waits for its end.
        self._lock = threading.RLock()
        # Guards ``_is_ready``: one thread waits for the process's first message, the others for that thread. It is
        # always taken before ``_lock``, since a start that fails stops the process.
        self._ready_lock = threading.Lock()
        self._is_ready = False
        self.daemon = daemon
        """Whether it ends with this process."""

    @property
    def pid(self) -> int:
        """Process id."""
        return self._popen.pid

    @property
    def exitcode(self) -> int | None:
        """``None`` while it runs; negative: the signal that ended it."""
        return self._popen.poll()

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._popen.poll() is None

    def terminate(self) -> None:
        """Send SIGTERM; harmless when it has ended."""
        self._popen.terminate()

    def kill(self) -> None:
        """Send SIGKILL; harmless when it has ended."""
        self._popen.kill()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, at most ``timeout`` seconds."""
        try:
            self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return

    def stop(self) -> None:
        """End it, by SIGTERM, and after two seconds by SIGKILL; give back what it held here."""
        with self._lock:
            self.terminate()
            self.join(TERMINATE_SECONDS)
            if self.is_alive():
                self.kill()
                self.join()
            self._channel.close()
            self._stderr.close()

    def wait_until_ready(self, seconds: float = START_SECONDS) -> None:
        """Return when it can answer; whoever connects before is answered then.

        Raises:
            AgentOpsServerError: It died or said nothing, and is ended now; the message has its stderr.
        """
        with self._ready_lock:
            if self._is_ready:
                return
            complaint = self._wait_for_word(seconds)
            if complaint:
                complaint = f"{complaint}; its stderr:\n{self.complaint() or '(empty)'}"
                self.stop()
                raise AgentOpsServerError(complaint)
            self._is_ready = True
            if not self.daemon:
                self._channel.close()

    def _wait_for_word(self, seconds: float) -> str:
        """Wait for the child's one line; return what is wrong, or nothing."""
        if self._channel.fileno() < 0:  # another thread has stopped it, or has waited in vain
            return "the AgentOps server was stopped while it started"
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return f"the AgentOps server said nothing for {seconds:g} s"
        try:
            if self._channel.recv(len(READY)) == READY:
                return ""
        except OSError:  # reset: it died before it had read anything
            pass
        self.join(TERMINATE_SECONDS)
        return f"the AgentOps server ended while it started, with exit code {self.exitcode}"

    def complaint(self) -> str:
        """Return the end of what it wrote to stderr."""
        with self._lock:
            if self._stderr.closed:
                return ""
            size = os.fstat(self._stderr.fileno()).st_size
            # pread: the child's own position in the file, which both share, stays where it is.
            text = os.pread(self._stderr.fileno(), STDERR_SHOWN, max(0, size - STDERR_SHOWN))
        return text.decode(errors="replace").strip()

    def forget(self) -> None:
        """Give back what a copy of this object holds in a forked process; the server is not touched."""
        self._channel.close()
        self._stderr.close()
        self._popen.returncode = 0  # not our child, so nothing to wait for


def spawn(listener: socket.socket, options: Mapping[str, Any], *, daemon: bool = True) -> ServerProcess:
    """Start a server on a socket that listens, and return at once; see :meth:`ServerProcess.wait_until_ready`.

    Args:
        listener: Inherited by the child; the caller closes its own copy.
        options: For ``child.main``; JSON values.
        daemon: Whether it ends with this process, however this process ends.

    Raises:
        AgentOpsServerError: There is no interpreter to run it in.
    """
    executable = _executable()
    stderr = tempfile.TemporaryFile(prefix="agentops-server-")  # noqa: SIM115 - lives as long as the process
    ours, theirs = socket.socketpair()
    try:
        ours.setblocking(True)
        told = {**options, "listener": listener.fileno(), "channel": theirs.fileno(), "daemon": daemon}
        popen = subprocess.Popen(  # noqa: S603 - our own module in this interpreter
            _command(executable, {**told, "parent": os.getpid()}),
            pass_fds=[listener.fileno(), theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=_environment(),
            # Ctrl-C is for the program; it stops its server. A server that outlives it leaves the session too.
            process_group=0 if daemon else None,
            start_new_session=not daemon,
        )
    except BaseException:
        ours.close()
        stderr.close()
        raise
    finally:
        theirs.close()
    return ServerProcess(popen, stderr, ours, daemon=daemon)


def _executable() -> str:
    """Return the interpreter that ``multiprocessing`` would spawn: an embedding program may have named one."""
    spawning = sys.modules.get("multiprocessing.spawn")
    named = os.fsdecode(spawning.get_executable() or "") if spawning else sys.executable
    if not named:
        raise AgentOpsServerError(
            "this Python does not know its own executable; name one with multiprocessing.set_executable"
        )
    return named


def _command(executable: str, told: Mapping[str, Any]) -> list[str]:
    # -S: no site, so no sitecustomize and no .pth file; -P, -s: nothing is added to the path that we hand over.
    path = [os.fspath(entry) for entry in sys.path]
    if _PACKAGE_ROOT not in path:  # found by an import hook, such as that of an editable install
        path.append(_PACKAGE_ROOT)
    return [executable, "-S", "-P", "-s", "-c", _BOOT, json.dumps(told), *path]


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON") or name in _PYTHON_VARIABLES_KEPT
    }
