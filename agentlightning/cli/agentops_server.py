"""``agentops-server``, ``agl agentops``, ``python -m agentlightning.cli.agentops_server``: the local AgentOps server.

In the foreground it ends with exit code 0 on Ctrl-C and on SIGTERM; there is one process and no child. With
``--daemon`` the server runs in a process of its own, and the command ends as soon as that answers.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
from collections.abc import Iterable

from .._printable import PrintableFormatter
from ..errors import AgentOpsServerError
from ..integrations.agentops.server.address import listen
from ..integrations.agentops.server.app import create_app
from ..integrations.agentops.server.manager import AgentOpsServerManager
from ..integrations.agentops.server.wsgi import WsgiServer
from . import options, output
from .entry import BAD_INPUT, DONE, Parser
from .foreground import ENDING, blocked, port

DEFAULT_PORT = 8002
"""As in Agent Lightning 0.2."""


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    summary = options.COMMANDS["agentops"]
    parser = subparsers.add_parser("agentops", help=summary, description=summary)
    declare(parser)


def declare(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1); any other needs --allow-remote",
    )
    parser.add_argument(
        "--port",
        type=port,
        default=DEFAULT_PORT,
        help=f"port to listen on (default: {DEFAULT_PORT}); 0 takes one that is free",
    )
    parser.add_argument(
        "--print-port",
        action="store_true",
        help="print the port, and nothing else, on stdout when it answers",
    )
    parser.add_argument(
        "--daemon", action="store_true", help="start it in the background, and return when it answers"
    )
    parser.add_argument(
        "--allow-remote",
        action="store_true",
        help="allow an address that is not loopback: who reaches it reads all prompts, without a key",
    )
    parser.add_argument(
        "--log-level",
        type=str.upper,
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="of what is logged to stderr; INFO has a line for each request (default: $AGL_LOG_LEVEL, else WARNING)",
    )
    parser.set_defaults(run=run, prog=parser.prog)


def run(args: argparse.Namespace) -> int:
    """Serve; return the exit code."""
    return start_in_background(args) if args.daemon else serve(args)


def serve(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    with listen(args.host, args.port, allow_remote=args.allow_remote) as listener, blocked(ENDING):
        # The socket listens before there is a server, so the port is known, and a port that is taken is
        # told before anything starts.
        server = WsgiServer(listener, create_app(local_only=not args.allow_remote))
        serving = threading.Thread(target=server.serve_forever, name="serve", daemon=True)
        serving.start()  # blocks the signals as this thread does, so that they are left to sigwait
        try:
            # Not ``args.port``: 0 has asked for a free one.
            tell(args, args.host, listener.getsockname()[1], "stop it with Ctrl-C")
            signal.sigwait(ENDING)
        finally:
            server.shutdown()
            serving.join()
    return DONE


def start_in_background(args: argparse.Namespace) -> int:
    """Start a server that outlives this command."""
    # ``daemon=False``: the manager would else end the server together with this command.
    manager = AgentOpsServerManager(
        daemon=False,
        port=args.port or None,
        host=args.host,
        allow_remote=args.allow_remote,
        log_level=args.log_level or "WARNING",
    )
    manager.start()
    assert manager.server_process is not None
    assert manager.server_port is not None
    pid = manager.server_process.pid
    tell(args, args.host, manager.server_port, f"process {pid}; stop it with: kill {pid}")
    return DONE


def tell(args: argparse.Namespace, host: str, number: int, rest: str) -> None:
    """Say where the server is: the port on stdout for programs, the sentence and the settings for people."""
    url = f"http://{f'[{host}]' if ':' in host else host}:{number}"
    sentence = f"the AgentOps server answers at {url}; {rest}"
    # A program reads the one line of stdout; the sentence for people goes to stderr, and the settings are its
    # own affair.
    if args.print_port:
        output.say(sentence)
        print(number, flush=True)
        return
    print(sentence)
    print("lead agentops there with:")
    print(f"  export AGENTOPS_API_ENDPOINT={url} AGENTOPS_APP_URL={url}")
    print(f"  export AGENTOPS_EXPORTER_ENDPOINT={url}/v1/traces", flush=True)


def main(argv: Iterable[str] | None = None) -> int:
    """Run ``agentops-server`` with these arguments (default: those of the process) and return its exit code.

    Raises:
        SystemExit: For ``--help`` and bad usage, as argparse does.
    """
    parser = Parser(prog="agentops-server", description=options.COMMANDS["agentops"])
    declare(parser)
    args = parser.parse_args(None if argv is None else list(argv))
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=args.log_level or "WARNING", handlers=[handler])
    try:
        return run(args)
    except AgentOpsServerError as error:
        output.say(f"agentops-server: {error}")
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
