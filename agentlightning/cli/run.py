"""``agl run -- PROGRAM``: one attempt of a rollout around an unchanged program.

The program learns the store, the rollout and the attempt from its environment. A Python program starts to
record by itself, through the ``sitecustomize`` in ``startup/``; so do the Python programs that it starts. Any
other program runs as it would, and records nothing. Its exit code is that of ``agl run``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from .._printable import printable, without_password
from ..dialects import endpoint_urls
from ..env_var import LightningEnvVar, resolve_setting
from ..errors import ConfigurationError, UsageError
from ..semconv import AGL_UNCAPTURED, SpanFlagAttributes
from ..store.base import LightningStore, receipt_of
from ..store.registry import open_store
from ..tracer.endings import SIGNALLED, end_attempt, ending_of_program
from ..types import Receipt, Span
from . import lookup, options, output, receipts

NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes as shells give them (POSIX, Shell Command Language 2.8.2)."""

FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
KEYBOARD_SIGNALS = (signal.SIGINT, signal.SIGQUIT)

MAX_SPANS_SEARCHED = 10_000
"""An attempt with more spans is not searched for model calls, so that the end of a long run stays fast."""

_SECRETS = frozenset(
    {"key", "apikey", "token", "secret", "password", "passwd", "pwd", "passphrase", "authorization"}
)
"""How names of options and variables end whose value is not printed."""

STARTUP = str(Path(__file__).parent / "startup")


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(
        subparsers,
        "run",
        run,
        details="A Python program records its OpenTelemetry spans and its calls to OpenAI-compatible models "
        "without being changed. Returns the exit code of the program.",
    )
    parser.add_argument("--input", metavar="JSON", help="what the rollout is about; @FILE reads a file")
    parser.add_argument("--name", help="name of the rollout in listings (default: the program)")
    parser.add_argument("--mode", choices=options.MODES, help="what the rollout is for")
    parser.add_argument(
        "--rollout",
        type=options.not_empty,
        metavar="ID",
        help="join this rollout: with a new attempt, or with --attempt",
    )
    parser.add_argument(
        "--attempt",
        type=options.not_empty,
        metavar="ID",
        help="join this attempt; the program that started it ends it",
    )
    parser.add_argument(
        "--capture-tokens",
        choices=("observe", "request"),
        help="whether to ask model endpoints for token ids: those on loopback, of the rollout's resources, and named "
        "by --endpoint (default: $AGL_CAPTURE_TOKENS, else observe)",
    )
    options.add_endpoints(
        parser, "a model endpoint that may be asked, such as http://gpu1:8000/v1; repeat for several"
    )
    parser.add_argument("--quiet", "-q", action="store_true", help="do not print the receipt")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="-- PROGRAM ...", help="what to run")


def run(args: argparse.Namespace) -> int:
    """Start or join an attempt, run the program, end the attempt, and tell what was recorded."""
    # argparse keeps the ``--`` that separates the program from our own options.
    program = args.program[1:] if args.program[:1] == ["--"] else args.program
    if not program:
        raise UsageError("which program? For example: agl run -- python agent.py")
    if shutil.which(program[0]) is None:
        sentence, code = _why_not(program[0])
        output.say(f"agl run: {sentence}")
        return code
    endpoints = _named_endpoints(args.endpoint)
    # The store is closed while the program runs: an open connection would keep SQLite's log from being cut back.
    url, rollout_id, attempt_id = asyncio.run(_begin(args, program))
    code = execute(program, environment(url, rollout_id, attempt_id, args.capture_tokens, endpoints))
    # Whoever joins an attempt does not end it: that is for whoever has started it.
    ended = asyncio.run(_finish_attempt(url, rollout_id, attempt_id, None if args.attempt else code))
    if not args.quiet:
        _tell(rollout_id, *ended, options.again(args), (_shown(program), _options(args)), code)
    return code


def _options(args: argparse.Namespace) -> str:
    """Return the options by which the program is run again, except what decides who is asked for token ids."""
    given = {
        "--store": args.store and without_password(args.store),
        "--input": args.input,
        "--name": args.name,
        "--mode": args.mode,
        "--rollout": args.rollout,
    }
    words = [
        f" {option} {'...' if _holds_secret([value]) else shlex.quote(value)}"
        for option, value in given.items()
        if value is not None
    ]
    return "".join([*words, *(f" --endpoint {shlex.quote(url)}" for url in args.endpoint)])


def _named_endpoints(given: Sequence[str]) -> list[str]:
    """Return the endpoints that the options and the settings name.

    Raises:
        UsageError: What a setting names is no URL.
    """
    try:
        of_settings = endpoint_urls.named(resolve_setting(LightningEnvVar.AGL_ENDPOINTS, None, "") or "")
    except ConfigurationError as error:  # else the program would run and not be recorded
        raise UsageError(f"AGL_ENDPOINTS: {error}") from None
    return list(dict.fromkeys([*of_settings, *given]))


def _why_not(program: str) -> tuple[str, int]:
    """Return why a program cannot be run and what to do, and the exit code that a shell has for it."""
    path = Path(program)
    if not program or not path.exists():
        where = "" if os.sep in program else " on PATH"
        return f"there is no program {program!r}{where}; for example: agl run -- python agent.py", NOT_FOUND
    if path.is_dir():
        return f"{program} is a folder; name a program in it", NOT_EXECUTABLE
    if path.suffix == ".py":
        return f"{program} is not executable; run it with Python: agl run -- python {program}", NOT_EXECUTABLE
    return f"{program} is not executable; run: chmod +x {program}", NOT_EXECUTABLE


async def _begin(args: argparse.Namespace, program: Sequence[str]) -> tuple[str, str, str]:
    if args.attempt and not args.rollout:
        raise UsageError("--attempt goes with --rollout")
    url = lookup.store_url(args.store)
    async with open_store(url) as store:
        # The absolute URL, since the program may change its folder.
        shared = store.url or url
        if args.rollout:
            rollout = await lookup.find_rollout(store, args.rollout)
            if args.attempt:
                attempt = await lookup.find_attempt(store, rollout, args.attempt)
            else:
                attempt = (await store.start_attempt(rollout.rollout_id)).attempt
            return shared, rollout.rollout_id, attempt.attempt_id
        name = args.name or _name_of(program)
        task = {"name": name} if args.input is None else _json(args.input)
        started = await store.start_rollout(
            task,
            mode=args.mode,
            metadata={
                "name": name,
                "source": "agl run",
                "program": _typed(program),
                **({"endpoints": args.endpoint} if args.endpoint else {}),
            },
        )
        return shared, started.rollout_id, started.attempt.attempt_id


def _name_of(program: Sequence[str]) -> str:
    """Return the program and its script; other arguments may hold secrets."""
    words: list[str] = [Path(program[0]).name]
    words += [Path(word).name for word in program[1:2] if Path(word).is_file()]
    return " ".join(words)


def _typed(program: Sequence[str]) -> str:
    """Return the program and its script as they were typed, with dots for other arguments, which may hold secrets."""
    words = [program[0], *(word for word in program[1:2] if Path(word).is_file())]
    return shlex.join(words) + (" ..." if len(words) < len(program) else "")


def _shown(program: Sequence[str]) -> str:
    """Return the command as it was typed, with dots for its arguments where one of them looks like a secret."""
    return _typed(program) if _holds_secret(program) else shlex.join(program)


def _holds_secret(words: Sequence[str]) -> bool:
    """Whether a word looks like a key or password, by its form or by the name of its option or variable."""
    from ..pipeline.redact import Redactor  # its import compiles the rules
    from ..pipeline.rules import KEY_RULES

    masked = Redactor(KEY_RULES).value
    named = [word for word, after in zip(words, [*words[1:], ""], strict=True) if "=" in word or after]
    return any(map(_names_secret, named)) or any(masked(word) != word for word in words)


def _names_secret(word: str) -> bool:
    """Whether this is ``--api-key``, ``--api-key=…`` or ``API_KEY=…``, or another name of what is secret."""
    name, has_value, _ = word.partition("=")
    last = name.lower().replace("_", "-").rpartition("-")[2]
    return (has_value != "" or name.startswith("-")) and last in _SECRETS


def _json(text: str) -> Any:
    """Return what ``--input`` says: JSON, or ``@`` and the name of a file with it."""
    try:
        return json.loads(Path(text[1:]).read_text(encoding="utf-8") if text.startswith("@") else text)
    except (ValueError, RecursionError) as error:  # also a file that is no UTF-8
        raise UsageError(f"--input is not JSON ({error}); text goes in quotes: --input '\"text\"'") from None


def environment(
    url: str,
    rollout_id: str,
    attempt_id: str,
    capture_tokens: str | None = None,
    endpoints: Sequence[str] = (),
) -> dict[str, str]:
    """Return the environment in which a program records into this attempt."""
    found = dict(os.environ)
    found[LightningEnvVar.AGL_STORE.value] = url
    found[LightningEnvVar.AGL_ROLLOUT_ID.value] = rollout_id
    found[LightningEnvVar.AGL_ATTEMPT_ID.value] = attempt_id
    if capture_tokens:
        found[LightningEnvVar.AGL_CAPTURE_TOKENS.value] = capture_tokens
    if endpoints:
        found[LightningEnvVar.AGL_ENDPOINTS.value] = " ".join(endpoints)
    # Ours comes first, so that its ``sitecustomize`` is the one that is imported; it runs the one that it
    # hides.
    found["PYTHONPATH"] = os.pathsep.join([STARTUP, *filter(None, [found.get("PYTHONPATH")])])
    return found


def execute(program: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a program, pass signals on to it, and return its exit code (128 + n if signal n ended it)."""
    # Else what we have printed would come after what the program prints.
    sys.stdout.flush()
    child = subprocess.Popen(list(program), env=dict(env))  # noqa: S603 - this is what the user asked for
    with child, _forwarding(child):
        code = child.wait()
    # ``subprocess`` gives -n for signal n; shells give 128 + n.
    return code if code >= 0 else SIGNALLED - code


@contextmanager
def _forwarding(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Forward signals to the child while the body runs, but not Ctrl-C, which the terminal sends to both processes.

    Handlers can be set in the main thread only; in another one nothing is forwarded. Signals that were ignored before
    stay ignored, as ``nohup`` wants it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    shared_keyboard = _in_foreground()

    def forward(number: int, frame: FrameType | None) -> None:
        del frame
        # The terminal has sent Ctrl-C to the program as well. Sent again, it would be the second one, which
        # many programs take for "at once".
        if not (shared_keyboard and number in KEYBOARD_SIGNALS):
            child.send_signal(number)

    before = {number: signal.getsignal(number) for number in FORWARDED}
    # A process that was started by ``nohup`` ignores SIGHUP, and its children are to do so, too.
    ours = [number for number, handler in before.items() if handler is not signal.SIG_IGN]
    for number in ours:
        signal.signal(number, forward)
    try:
        yield
    finally:
        for number in ours:
            # ``None`` stands for a handler that was not set from Python; it cannot be given back.
            signal.signal(number, before[number] or signal.SIG_DFL)


def _in_foreground() -> bool:
    """Whether the terminal sends Ctrl-C to our process group, and so to the child, too."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


async def _finish_attempt(
    url: str, rollout_id: str, attempt_id: str, code: int | None
) -> tuple[Receipt | None, list[str], Sequence[Span]]:
    """End the attempt; return its receipt, sentences about model calls that were not captured, and its spans."""
    async with open_store(url) as store:
        if code is not None:
            other = await end_attempt(store, rollout_id, attempt_id, ending_of_program(code))
            if other is not None:  # the program ended the attempt itself
                output.say(f"agl run: the attempt keeps its status: {other}")
        receipt = await receipt_of(store, rollout_id, attempt_id)
        uncaptured = await _uncaptured(store, rollout_id, attempt_id)
        return receipt, uncaptured, await store.query_spans(rollout_id, attempt_id, limit=MAX_SPANS_SEARCHED)


async def _uncaptured(store: LightningStore, rollout_id: str, attempt_id: str) -> list[str]:
    uncaptured = await store.query_spans(rollout_id, attempt_id, name=AGL_UNCAPTURED)
    servers = [span.attributes.get(SpanFlagAttributes.UNCAPTURED_SERVER.value) for span in uncaptured]
    return [
        f"the program connected to the model server {server}, and no model call of it was captured: its client is "
        "not watched, or it called another API than chat/completions and completions, or no model"
        for server in dict.fromkeys(servers)
    ]


def _why_nothing(code: int) -> str:
    """Return what may be the cause where no process of a program has written anything."""
    causes = [
        "it is no Python program",
        "it runs a Python in which agentlightning is not installed, that ignores PYTHONPATH (-I, -E, -S) or that was "
        "given another PYTHONPATH or none (a container)",
        "it called no model and made no span",
    ]
    # The account of a process is written with its first spans: of one that was killed before, nobody knows whether it
    # had any.
    if code > SIGNALLED:
        causes.insert(0, f"signal {code - SIGNALLED} ended it before its first spans were written")
    else:
        causes.append("it ended by os._exit() before its first spans were written")
    return ", or ".join(causes)


def _tell(
    rollout_id: str,
    receipt: Receipt | None,
    uncaptured: Sequence[str],
    spans: Sequence[Span],
    option: str,
    again: tuple[str, str],
    code: int,
) -> None:
    """Print the summary; ``again`` is the program and the options with which to run it again, ``code`` how it ended."""
    from ..rows.cures import agl_run
    from ..rows.reasons import TraceReason
    from .tokens import TokenReport

    output.say(f"agl: {receipts.line(receipt)}")
    report = TokenReport(spans, agl_run(*again))
    said = list(uncaptured)
    # Where not all spans were looked at, nothing can be said about their model calls.
    if not said and spans and not report.calls and len(spans) < MAX_SPANS_SEARCHED:
        said.append(TraceReason.NO_MODEL_CALLS.sentence)
    for sentence in said:
        output.say(f"agl: {output.one_line(sentence, 300)}")
    for line in report.lines():
        output.say(f"agl: {line}")
    # A store of 0.3 counts nothing; then there may be spans to show.
    if receipt is None or receipt.started:
        output.say(f"agl: next: agl show {printable(rollout_id)}{option}")
    else:
        output.say(f"agl: the program recorded nothing: {_why_nothing(code)}")
