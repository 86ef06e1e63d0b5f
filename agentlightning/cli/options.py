"""Arguments that several commands share, declared once. Standard library only, until one is used."""

from __future__ import annotations

import argparse
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._printable import without_password
from ..env_var import DEFAULT_STORE_URL
from ..errors import ConfigurationError

COMMANDS = {
    "run": "Run a program as one attempt of a rollout, and record it.",
    "rollouts": "List rollouts: status, reward, group, spans, receipt, and input.",
    "show": "Show what happened in an attempt, as a tree, or what was said in its model calls.",
    "tail": "Follow what happens in a store: a line for each model call, with its tokens per second.",
    "diff": "Show two rollouts side by side, and where they differ first.",
    "triplets": "Show the model calls of an attempt as triplets.",
    "rows": "Show the training rows of an attempt, and what became of each model call.",
    "verify": "Tell whether recorded log-probabilities are those of a model, and if not, why.",
    "explain": "Say why an attempt gives the rows that it gives, or none.",
    "export": "Write training rows, spans or trajectories (atif, sts) to files, or send spans to a viewer (--to).",
    "import": "Store trajectories and sessions of other tools: ATIF (Harbor), Hugging Face's STS-Format.",
    "stats": "Count what a store holds, and show rewards over time and why calls were refused.",
    "store": "Check or migrate a store.",
    "backup": "Copy a SQLite store as it is at one moment, also while it is in use.",
    "restore": "Replace a SQLite store, which no process has open, by a copy of a backup.",
    "doctor": "Tell whether this machine will record correctly.",
    "agentops": "Run a local AgentOps server: agentops sends to it, and nothing leaves the machine.",
    "fake-model": "Run a fake model server: an agent can be tried without a GPU, a key or a download.",
}
"""Command → summary. The module of the same name, with ``_`` for ``-``, has the rest."""

MODULES = {"import": "importing"}
"""Command → its module, where the command's name cannot be one of Python's."""

Subparsers = Any
"""What ``ArgumentParser.add_subparsers`` returns; its class is private to argparse."""

ROLLOUT_STATUSES = ("queuing", "preparing", "running", "failed", "succeeded", "cancelled", "requeuing")
MODES = ("train", "val", "test")


def command(
    subparsers: Subparsers, name: str, run: Callable[[argparse.Namespace], int], *, details: str = ""
) -> argparse.ArgumentParser:
    """Declare a command with ``--store`` and ``--log-level``."""
    summary = COMMANDS[name]
    return described(subparsers, name, summary, run, details=details)


def described(
    subparsers: Subparsers,
    name: str,
    summary: str,
    run: Callable[[argparse.Namespace], int],
    *,
    details: str = "",
) -> argparse.ArgumentParser:
    """Declare a command or subcommand that is described here."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary} {details}".rstrip(),
    )
    # ``prog`` is the name in messages: "agl store check", which ``args.command`` alone does not have.
    parser.set_defaults(run=run, prog=parser.prog)
    parser.add_argument(
        "--store",
        metavar="URL",
        help=f"store to open, or the path of a SQLite file (default: $AGL_STORE, else {DEFAULT_STORE_URL})",
    )
    parser.add_argument(
        "--log-level",
        type=str.upper,
        choices=("DEBUG", "INFO", "WARNING", "ERROR"),
        help="of what is logged to stderr (default: $AGL_LOG_LEVEL, else WARNING)",
    )
    return parser


def again(args: argparse.Namespace) -> str:
    """Return what a suggested command needs to open the same store: `` --store URL``, if it was given.

    A password in it is not printed.
    """
    return f" --store {shlex.quote(without_password(args.store))}" if args.store else ""


def add_json(parser: argparse.ArgumentParser) -> None:
    """Declare ``--json``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")


def add_rollout(parser: argparse.ArgumentParser) -> None:
    """Declare the rollout that a command is about, and ``--attempt``."""
    parser.add_argument(
        "rollout",
        type=not_empty,
        metavar="ROLLOUT",
        nargs="?",
        default="latest",
        help="id, the unique beginning of one, or: latest (default)",
    )
    parser.add_argument(
        "--attempt",
        type=not_empty,
        metavar="ATTEMPT",
        default="latest",
        help="id, its beginning, number, or: latest (default)",
    )


def not_empty(text: str) -> str:
    """Return what names something; as the type of an argument.

    Raises:
        ArgumentTypeError: It is empty, as an unset variable of a shell leaves it. Every id begins with nothing, so
            where a store has one rollout, that would be the one that is meant.
    """
    if not text:
        raise argparse.ArgumentTypeError("it is empty")
    return text


def add_endpoints(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Declare ``--endpoint``."""
    parser.add_argument(
        "--endpoint", action="append", default=[], type=_endpoint, metavar="URL", help=purpose
    )


def _endpoint(text: str) -> str:
    from ..dialects import endpoint_urls  # no other command needs it

    try:
        return endpoint_urls.checked(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _limit(text: str) -> int:
    """Return a number of rollouts, or -1 for all; SQLite's LIMIT takes 64 bits."""
    number = int(text) if text.strip().removeprefix("-").isdecimal() else 0
    if number != -1 and not 0 < number < 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of rollouts from 1 on, nor -1 for all")
    return number


def add_model(parser: argparse.ArgumentParser, name: str = "--model") -> None:
    """Declare the model whose calls are meant."""
    parser.add_argument(
        name,
        action="append",
        type=not_empty,
        metavar="NAME",
        help="only calls of this model, as the server or the agent named it; repeat for several names",
    )


@dataclass(frozen=True)
class RewardRange:
    """Which rewards are meant: from ``least`` to ``most``, both included; ``None`` = no bound."""

    least: float | None = None
    most: float | None = None
    unscored: bool = False
    """Whether rollouts without a reward are meant instead."""

    def __contains__(self, reward: float | None) -> bool:
        """Whether a rollout with this reward is meant."""
        if reward is None or self.unscored:
            return reward is None and self.unscored
        return (self.least is None or reward >= self.least) and (self.most is None or reward <= self.most)


def _reward_range(text: str) -> RewardRange:
    """Return what ``0.5..``, ``..0``, ``0.25..1``, ``1`` or ``none`` mean."""
    if text == "none":
        return RewardRange(unscored=True)
    least, dots, most = text.partition("..")
    try:
        bounds = [float(each) if each.strip() else None for each in ((least, most) if dots else (text, text))]
    except ValueError:
        bounds = [None, None]
    if bounds == [None, None] or any(bound is not None and math.isnan(bound) for bound in bounds):
        raise argparse.ArgumentTypeError(f"{text!r} is no reward: 1, 0.5.., ..0, 0.25..1, or none")
    return RewardRange(bounds[0], bounds[1])


def add_filters(parser: argparse.ArgumentParser, *, limit: int) -> None:
    """Declare which rollouts are meant: by id, and by filters, all of which hold; ``limit`` -1 means all."""
    parser.add_argument(
        "rollouts",
        nargs="*",
        type=not_empty,
        metavar="ROLLOUT",
        help="ids, unique beginnings, or: latest (default: all)",
    )
    parser.add_argument("--status", action="append", choices=ROLLOUT_STATUSES, help="repeat for several")
    parser.add_argument("--mode", action="append", choices=MODES, help="repeat for several")
    parser.add_argument(
        "--group", action="append", metavar="GROUP", help="the group's id; repeat for several"
    )
    parser.add_argument(
        "--reward",
        type=_reward_range,
        metavar="RANGE",
        help="final reward: 1, 0.5.. (from), ..0 (up to), 0.25..1, or none; reads the spans of all that match else",
    )
    # argparse takes -1..0 for an option; the parser of ``agl`` asks for this.
    parser.set_defaults(signed=("--reward",))
    parser.add_argument("--name", metavar="TEXT", help="part of the name or of the input, in any case")
    parser.add_argument(
        "--tag",
        action="append",
        metavar="TAG",
        help="of a span of it; repeat for rollouts that have each of them",
    )
    parser.add_argument("--contains", metavar="TEXT", help="part of the rollout id")
    parser.add_argument(
        "--limit",
        type=_limit,
        default=limit,
        metavar="N",
        help="the first N, the newest first (default: all)"
        if limit < 0
        else f"the first N; -1 for all (default: {limit})",
    )


def is_filtered(args: argparse.Namespace) -> bool:
    """Whether some rollouts are left out because of what ``add_filters`` declares, beside ``--limit``."""
    named = ("rollouts", "status", "mode", "group", "reward", "name", "tag", "contains")
    return any(getattr(args, name) for name in named)
