"""``agl fake-model``: serve :func:`agentlightning.testing.fake_model` on loopback, until Ctrl-C."""

from __future__ import annotations

import argparse
import errno
import os
import signal

from ..errors import ConfigurationError
from ..testing.answering import fake_model
from ..testing.fake_openai import FakeOpenAI
from .entry import DONE
from .foreground import ENDING, blocked, port
from .options import COMMANDS, Subparsers

DEFAULT_PORT = 8000
"""That of ``vllm serve``, so that an agent need not be changed for the one or the other."""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "fake-model",
        help=COMMANDS["fake-model"],
        description=(
            f"{COMMANDS['fake-model']} It speaks the OpenAI API (chat/completions and completions) under any model "
            "name, calls the first tool that it is offered, and repeats what the tool has said. Its answers have the "
            "token ids and log-probabilities that training rows are made of."
        ),
    )
    parser.add_argument(
        "--port",
        type=port,
        default=DEFAULT_PORT,
        help=f"port to listen on (default: {DEFAULT_PORT}, as vLLM); 0 takes one that is free",
    )
    parser.set_defaults(run=run, prog=parser.prog, log_level=None)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; return the exit code.

    Raises:
        ConfigurationError: The port is taken.
    """
    with blocked(ENDING):  # before there is a thread that would get them
        try:
            server = FakeOpenAI(fake_model, port=args.port).start()
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise ConfigurationError(
                f"port {args.port} is in use by another program; choose another with --port, or 0 for any that is free"
            ) from error
        try:
            where = server.base_url.replace("127.0.0.1", "localhost")
            print(f"a fake model answers at {where}; stop it with Ctrl-C, or: kill {os.getpid()}", flush=True)
            signal.sigwait(ENDING)
        finally:
            server.close()
    return DONE
