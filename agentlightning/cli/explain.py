"""``agl explain``: why an attempt gives the rows that it gives, as sentences with the cure."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping

from ..rows import CallVerdict, Explanation, RewardVerdict, RowPolicy, explain_rows
from ..rows.matching import MatchedBy
from ..rows.reasons import explained, with_detail
from ..store.base import receipt_of
from ..store.primitives import packed_spans
from ..store.sealing import resources_of
from ..types import Attempt, Rollout
from . import lookup, options, output, selection
from .call_numbers import call_numbers
from .entry import DONE, NEGATIVE


def add_parser(subparsers: options.Subparsers) -> None:
    """Declare the command."""
    parser = options.command(subparsers, "explain", run, details="Exit code 1: there is no row.")
    options.add_rollout(parser)
    options.add_model(parser)
    options.add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Print the explanation."""
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    async with lookup.open_existing(args.store) as store:
        rollout = await lookup.find_rollout(store, args.rollout)
        attempt = await lookup.find_attempt(store, rollout, args.attempt)
        spans = [
            *await packed_spans(store, rollout.rollout_id, attempt.attempt_id),
            # Late spans give no row, and are often the reason why one is missing: without them, that
            # would not be said.
            *await store.query_late_spans(rollout.rollout_id, attempt.attempt_id),
        ]
        receipt = await receipt_of(store, rollout.rollout_id, attempt.attempt_id)
        resources = await resources_of(store, rollout)
    explanation = explain_rows(
        spans, RowPolicy(model=args.model), receipt=receipt, rollout=rollout, resources=resources
    )
    if args.json:
        output.print_json(explanation.as_json())
    else:
        _print(rollout, attempt, explanation, call_numbers(spans))
    return DONE if explanation.rows else NEGATIVE


def _print(rollout: Rollout, attempt: Attempt, explanation: Explanation, numbers: Mapping[str, int]) -> None:
    reward = output.number(explanation.final_reward) or "none"
    output.out(
        f"rollout {rollout.rollout_id}, attempt {attempt.sequence_id} ({selection.status_of(attempt)})"
    )
    output.out(
        f"{output.count(explanation.rows, 'row')} of {output.count(len(explanation.calls), 'model call')}"
    )
    output.out(f"final reward: {reward}")
    for reason in explanation.reasons:
        _say(reason.code, reason.sentence, reason.cure)
    if explanation.calls:
        output.out()
        _print_calls(explanation.calls, numbers)
    # Each reason once and not for each call: a rollout of 200 calls has one sentence to read.
    for code, sentence, cure in _skips(explanation):
        _say(code, sentence, cure)
    for call in _unproven(explanation):
        why = with_detail(call.unproven or "", call.unproven_detail)
        _say(why.code, why.sentence, why.cure)
    for lines in dict.fromkeys(call.lines_to_add for call in explanation.calls if call.lines_to_add):
        # ``print`` and not ``out``: these lines are to be copied, and hold nothing that was recorded.
        print("\nwhat to add, where it is true of the server (vLLM: --generation-config vllm --logprobs-mode")
        print("processed_logprobs; else name its defaults); the resource, or the environment:")
        for line in lines:
            print(f"  {line}")
    if explanation.rewards:
        output.out()
        _print_rewards(explanation, numbers)
    for verdict in explanation.rewards:
        if verdict.code:
            _say(verdict.code, verdict.sentence, verdict.cure)


def _say(code: str, sentence: str, cure: str) -> None:
    output.out()
    output.out(f"{code}: {sentence}")
    if cure:
        output.out(f"  → {cure}")


def _skips(explanation: Explanation) -> list[tuple[str, str, str]]:
    """Return code, sentence and cure of the calls that give no row, each once; several endpoints have a cure each."""
    said = {(reason.code, reason.sentence, reason.cure) for reason in explanation.reasons}
    found = dict.fromkeys((call.code, call.sentence, call.cure) for call in explanation.calls if call.code)
    codes = {code for code, _, _ in found} | set(explanation.codes)
    for code in dict.fromkeys(code for call in explanation.calls for code in call.left_out):
        if code not in codes:
            found[code, explained(code).sentence, explained(code).cure] = None
    return [each for each in found if each not in said]


def _unproven(explanation: Explanation) -> list[CallVerdict]:
    """Return one call for each reason why rows have no log-probabilities."""
    found = {(call.unproven, call.unproven_detail): call for call in explanation.calls if call.unproven}
    return list(found.values())


def _print_calls(calls: tuple[CallVerdict, ...], numbers: Mapping[str, int]) -> None:
    from . import terminal

    terminal.print_table(
        ("CALL", "SPAN", ">TOKENS", ">REWARD", "VERDICT"),
        [
            (
                _named(call.span_id, call.name, numbers),
                call.span_id,
                # Of a call that gives no row the counts are not known to be right.
                f"{call.prompt_tokens} → {call.response_tokens}" if call.rows else "",
                output.number(call.reward),
                _verdict(call),
            )
            for call in calls
        ],
        wrap="VERDICT",
    )


def _verdict(call: CallVerdict) -> str:
    why = f"{call.code} ({call.detail})" if call.detail else call.code
    words: list[str] = [f"left out: {why}" if call.code else output.count(call.rows, "trained answer")]
    words += [f"{count} left out: {code}" for code, count in call.left_out.items()]
    words += [f"log-probabilities unproven: {call.unproven}"] if call.unproven else []
    words += [f"same as {call.same_as}"] if call.same_as else []
    words += [issue for issue in call.issues if issue != call.code]
    return ", ".join(words)


def _print_rewards(explanation: Explanation, numbers: Mapping[str, int]) -> None:
    from . import terminal

    names = {call.span_id: call.name for call in explanation.calls}
    terminal.print_table(
        ("REWARD", ">VALUE", "GOES TO", "BECAUSE"),
        [
            (
                verdict.span_id,
                output.number(verdict.value),
                _goes_to(verdict, names, numbers),
                _because(verdict),
            )
            for verdict in explanation.rewards
        ],
        wrap="BECAUSE",
    )


def _named(span_id: str, name: str, numbers: Mapping[str, int]) -> str:
    """Return a call with its number, which ``agl show`` has, too."""
    number = numbers.get(span_id)
    return f"{'' if number is None else f'#{number} '}{output.one_line(name, 40)}"


def _goes_to(verdict: RewardVerdict, names: Mapping[str, str], numbers: Mapping[str, int]) -> str:
    if verdict.call:
        return f"{_named(verdict.call, names.get(verdict.call, 'call'), numbers)} {verdict.call}"
    return "the attempt" if verdict.by == MatchedBy.OUTCOME.value else "nothing"


def _because(verdict: RewardVerdict) -> str:
    return ", ".join(word for word in (verdict.by, verdict.code) if word)
