"""Which rollouts a command is about, by ids and filters, and what a person calls each of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..codec.task_text import only_text
from ..semconv import GROUP_ID, IMPORTED_FROM
from ..store.base import LightningStore
from ..types import Attempt, Rollout
from . import output
from .final_reward import final_reward
from .lookup import BEGUN, find_rollout

NEWEST = "newest"
SORTS: Mapping[str, Callable[[Rollout, float | None], Any]] = {
    NEWEST: lambda rollout, _: -rollout.start_time,
    "reward": lambda _, reward: None if reward is None else -reward,
    "took": lambda rollout, began: _longest_first(rollout, began),
    "group": lambda rollout, _: group_of(rollout) or None,
    "name": lambda rollout, _: title(rollout).casefold(),
}
"""Order → sort key of a rollout and what is read for it: its reward, or when it began. ``None`` stands last always."""


@dataclass(frozen=True)
class Matches:
    """The rollouts that ``options.add_filters`` describes."""

    rollouts: list[Rollout]
    """At most ``--limit``, newest first where no other order is asked for."""
    total: int
    """How many there are without ``--limit``."""


async def matching(
    store: LightningStore,
    args: argparse.Namespace,
    *,
    sort: str = NEWEST,
    reverse: bool = False,
    to_read: bool = False,
) -> Matches:
    """Return the rollouts that ``options.add_filters`` describes.

    Args:
        store: Where to look.
        args: What was asked for.
        sort: One of ``SORTS``. For ``reward``, and where rewards are asked for, the spans of all are read.
        reverse: Whether the last come first.
        to_read: Whether to leave out those that only wait in a queue, unless they are named or their status is.
    """
    by_hand = bool(args.rollouts or args.mode or args.group or args.name or args.reward or sort != NEWEST)
    found: Sequence[Rollout]
    if args.rollouts:
        named = [await find_rollout(store, text) for text in args.rollouts]
        found = list({each.rollout_id: each for each in named}.values())
    else:
        found = await store.query_rollouts(
            status_in=args.status or (BEGUN if to_read else None),
            rollout_id_contains=args.contains,
            **({"tags": args.tag} if args.tag else {}),  # a store of 0.3 knows none
            sort_by="start_time",
            sort_order="asc" if reverse else "desc",
            # Stores know no filter by mode, group, name or reward: these are applied here, and the limit after them.
            limit=-1 if by_hand else args.limit,
        )
        if not by_hand:
            return Matches(list(found), getattr(found, "total", len(found)))
    rollouts = [rollout for rollout in found if _is_meant(rollout, args)]
    rewards: Mapping[str, float | None] = {}
    if args.reward is not None or sort == "reward":
        rewards = await _rewards(store, rollouts)
    if args.reward is not None:
        rollouts = [each for each in rollouts if rewards[each.rollout_id] in args.reward]
    read = await _beginnings(store, rollouts) if sort == "took" else rewards
    keyed = [(SORTS[sort](each, read.get(each.rollout_id)), each) for each in rollouts]
    known = sorted((pair for pair in keyed if pair[0] is not None), key=lambda pair: pair[0], reverse=reverse)
    ordered = [each for _, each in [*known, *(pair for pair in keyed if pair[0] is None)]]
    return Matches(ordered if args.limit < 0 else ordered[: args.limit], len(ordered))


async def _rewards(store: LightningStore, rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """Return the final reward of the latest attempt of each rollout."""
    found: dict[str, float | None] = {}
    with output.progress(len(rollouts), "reading rewards") as advance:
        for rollout in rollouts:
            found[rollout.rollout_id] = (await final_reward(store, rollout.rollout_id)).value
            advance()
    return found


def _longest_first(rollout: Rollout, began: float | None) -> float | None:
    began, ended = times_of(rollout, began)
    return None if began is None or ended is None else began - ended


def import_of(rollout: Rollout) -> Mapping[str, Any] | None:
    """Return what is kept of the document that a rollout was imported from; ``None`` where it was not."""
    found = (rollout.metadata or {}).get(IMPORTED_FROM)
    return found if isinstance(found, Mapping) else None


def times_of(rollout: Rollout, began: float | None) -> tuple[float | None, float | None]:
    """Return when a rollout began and ended; of one that was imported, as its document says it, where it does.

    Args:
        rollout: The rollout.
        began: When its first attempt started here.
    """
    document = import_of(rollout)
    if document is None:
        return began, rollout.end_time
    return time_in(document, "began"), time_in(document, "ended")


def time_in(document: Mapping[str, Any], name: str) -> float | None:
    """Return a time that ``import_of`` gives; metadata are anybody's to write."""
    found = document.get(name)
    return found if isinstance(found, (int, float)) else None


def ending_of(status: str, document: Mapping[str, Any] | None) -> str:
    """Return the status of a rollout for a person; a document of another tool may not say how it ended.

    Args:
        status: The store's word.
        document: What ``import_of`` gives.
    """
    said = None if document is None or status != "succeeded" else document.get("ending")
    return status if said is None else f"ending {said}"


async def _beginnings(store: LightningStore, rollouts: Sequence[Rollout]) -> dict[str, float | None]:
    """Return when the first attempt of each rollout started."""
    found: dict[str, float | None] = {}
    for rollout in rollouts:
        attempts = await store.query_attempts(rollout.rollout_id)
        found[rollout.rollout_id] = attempts[0].start_time if attempts else None
    return found


def _is_meant(rollout: Rollout, args: argparse.Namespace) -> bool:
    """Whether the filters hold that can be told from a rollout alone."""
    if args.mode and rollout.mode not in args.mode:
        return False
    if args.group and group_of(rollout) not in args.group:
        return False
    if args.name:
        words = f"{title(rollout)}\n{task(rollout)}".casefold()
        if args.name.casefold() not in words:
            return False
    # The store has looked at these, but not where rollouts were named.
    if args.status and rollout.status not in args.status:
        return False
    if args.contains and args.contains not in rollout.rollout_id:
        return False
    return not args.tag or set(args.tag) <= set(rollout.tags)


# ---------------------------------------------------------------------- what a rollout is called


def title(rollout: Rollout) -> str:
    """Return what a person calls a rollout: the name that it was given, else what it is about, else its id.

    What a rollout is about whose input is messages of a chat, is what the user asked last.
    """
    name = (rollout.metadata or {}).get("name")
    if isinstance(name, str) and name.strip():
        return name
    return _asked_last(rollout.input) or task(rollout) or rollout.rollout_id


def _asked_last(given: Any) -> str:
    """Return the text of the last message of a user, in messages or a mapping that has them; else nothing."""
    messages = given.get("messages") if isinstance(given, dict) else given
    if not isinstance(messages, list):
        return ""
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            text = message.get("content")
            return text if isinstance(text, str) else ""
    return ""


def task(rollout: Rollout) -> str:
    """Return the input of a rollout as a text; a mapping with one text is that text."""
    found = only_text(rollout.input)
    return output.to_json(rollout.input) if found is None else found


def status_of(attempt: Attempt) -> str:
    """Return the status of an attempt, or that it was cancelled, for which attempts have no status."""
    return "cancelled" if attempt.was_cancelled else attempt.status


def group_of(rollout: Rollout) -> str:
    """Return the group whose rewards are compared with each other, as it was named; empty where none was."""
    found = (rollout.metadata or {}).get(GROUP_ID)
    return "" if found is None else str(found)
