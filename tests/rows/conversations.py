"""Conversations with an engine that knows what it sampled: spans to convert, and the truth to hold rows against.

``tell`` plays a list of steps. Agents talk side by side; each conversation may fork, send a prompt again, have its text
come back as other tokens, forget, be cut off and go on, show images, put another image under the same ids, and ask a
second model: one that plays the user, a judge, one that answers in the policy's place. The truth is written down while it happens: which answer a
prompt was built on is what the player did, not what a search for prefixes finds afterwards.
"""

from __future__ import annotations

import base64
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hypothesis import strategies as st

from agentlightning.codec.attributes import make_link_attributes
from agentlightning.dialects.model_call import (
    LEFT_BY_AGENT,
    TOKENS_SAY_ALL,
    VALID,
    Choice,
    FinishReason,
    Issue,
    ModelCall,
    PolicySpan,
    Usage,
    invalid,
)
from agentlightning.dialects.spans.genai import call_attributes
from agentlightning.rows import RowPolicy, RowSet, build_rows
from agentlightning.rows.tree import order_key
from agentlightning.types import Span

Ids = tuple[int, ...]
Key = tuple[str, int]
"""Span id and index of the choice."""

ROLLOUT, ATTEMPT, TRACE = "ro-1", "at-1", "f" * 32
ROOT_ID = "e" * 16

ACTIONS = {
    "turn": 8,  # the environment says something, the agent asks
    "retry": 3,  # the last prompt is sent again
    "again": 5,  # the answer is broken off, or ends at its limit, and the prompt is sent again
    "fork": 2,  # the conversation goes on in two ways
    "drift": 2,  # the text of an answer comes back as other tokens
    "edit": 2,  # the history is written anew somewhere
    "compact": 2,  # the history is forgotten but for its beginning
    "cut": 2,  # the answer breaks off
    "resume": 2,  # the server stops half way, and the agent lets it go on
    "repeat": 3,  # all of a conversation's prompt is sent by a second branch
    "look": 2,  # the user shows an image
    "swap": 2,  # an image is another one, under the same ids
    "user": 2,  # a second model plays the user, on a prompt of its own
    "other": 2,  # a second model is asked on a prompt of its own, and its answer goes nowhere
    "judge": 2,  # a judge, the same model or another, is shown the conversation, and its answer goes nowhere
    "stand_in": 2,  # a second model answers on the very prompt, and the conversation goes on from there
}
FLAWS = {
    "": 14,
    "forced_unknown": 2,  # a grammar, and log-probabilities that do not tell what it forced
    "other_role": 1,
    "untrainable": 1,
    "beam_search": 1,
    "prompt_length": 1,  # the counts of the server do not agree: nothing of the call can be used
}
UNUSABLE = frozenset({"partial", "prompt_length"})
UNFINISHED: list[FinishReason] = ["abort", "length"]
CLOCKS = ("steps", "steps", "overlapping", "equal", "backwards", "skewed")
AGENTS = ("own", "shared", "none")
POLICY, FROZEN = "policy", "frozen"
PLACEHOLDER = 7
"""The id of any image: an engine renders images of one size alike."""


class Step(NamedTuple):
    """One thing that happens; ``chance`` is the seed of what it leaves open."""

    conversation: int
    branch: int
    action: str
    flaw: str
    chance: int


@dataclass(frozen=True)
class Answer:
    """What the engine sampled for one choice."""

    span_id: str
    choice: int
    conversation: int
    agent: str | None
    """Span id of the agent."""
    prompt: Ids
    output: Ids
    logprobs: tuple[float, ...]
    versions: Ids
    """Of each token; empty where the server names none."""
    parent: Key | None
    """The answer that the prompt was built on, with nothing changed up to its end."""
    flaw: str
    """Code of the reason why it must not be trained, whatever became of it; empty = none."""
    finish: FinishReason = "stop"
    times: tuple[float, float] = (0.0, 0.0)
    """Start and end of the call as the clock said; the player asks one after another."""
    media: tuple[str, ...] = ()
    """The images that the model saw, by name."""
    role: str = ""
    model: str = POLICY

    @property
    def key(self) -> Key:
        return self.span_id, self.choice

    @property
    def refused(self) -> str:
        """Code of the reason why it is not trained where the policy is named; empty = none."""
        return self.flaw if self.model == POLICY else "other_model"

    @property
    def usable(self) -> bool:
        return self.flaw not in UNUSABLE and bool(self.output)


@dataclass(frozen=True)
class Row:
    """What a row must say."""

    token_ids: Ids
    loss_mask: Ids
    logprobs: tuple[float, ...]
    keys: tuple[Key, ...]
    trained: tuple[Key, ...]
    media: tuple[str, ...]
    """Hashes of the images that the policy saw."""


class Shown(NamedTuple):
    """An image of a conversation, by its place in the ids and in the messages."""

    name: str
    position: int
    message: int


@dataclass
class Branch:
    context: Ids
    anchors: tuple[tuple[Key, int], ...] = ()
    """Answers that stand in the context unchanged, and where each ends."""
    messages: tuple[dict[str, Any], ...] = ()
    said: tuple[tuple[Key, int], ...] = ()
    """Answers whose message stands in the messages, with all before it as it was, and its place."""
    media: tuple[Shown, ...] = ()
    """The images of the messages, by place."""
    asked: Branch | None = None
    """The branch when the last prompt was sent."""

    def restore(self, kept: Branch) -> None:
        """Be what the branch was."""
        self.context, self.anchors, self.messages, self.said, self.media = (
            kept.context,
            kept.anchors,
            kept.messages,
            kept.said,
            kept.media,
        )

    def show(self, name: str, words: str) -> None:
        """Show an image behind everything else."""
        self.media += (Shown(name, len(self.context), len(self.messages)),)
        self.context += (PLACEHOLDER,)
        self.messages += (showing(name, words),)

    def swap(self, place: int, name: str) -> None:
        """Show another image where one is shown; what was answered behind it was answered to something else."""
        shown = self.media[place]
        self.media = (*self.media[:place], shown._replace(name=name), *self.media[place + 1 :])
        words = self.messages[shown.message]["content"][0]["text"]
        self.messages = (
            *self.messages[: shown.message],
            showing(name, words),
            *self.messages[shown.message + 1 :],
        )
        self.anchors = tuple(each for each in self.anchors if each[1] <= shown.position)
        self.said = tuple(each for each in self.said if each[1] < shown.message)

    def hide(self, position: int, length: int) -> None:
        """Take the images at these positions out of the messages: their ids are about to be written over."""
        gone = [each for each in self.media if position <= each.position < position + length]
        for shown in gone:
            hidden = {"role": "user", "content": "an image was here"}
            self.messages = (*self.messages[: shown.message], hidden, *self.messages[shown.message + 1 :])
            self.said = tuple(each for each in self.said if each[1] < shown.message)
        self.media = tuple(each for each in self.media if each not in gone)

    def move(self, position: int, by: int) -> None:
        """Say that the ids behind ``position`` have moved."""
        self.media = tuple(
            each._replace(position=each.position + by) if each.position >= position else each
            for each in self.media
        )


@dataclass
class Story:
    """Everything that happened in one attempt."""

    answers: list[Answer] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    repeated: set[Key] = field(default_factory=set)
    """Answers that a later request repeats in its messages."""
    rewarded: set[Key] = field(default_factory=set)
    """Answers that were given a reward of their own."""
    side_by_side: bool = False
    """Whether the times of calls may overlap."""

    def ordered(self) -> list[Answer]:
        """The usable answers by start of their call."""
        places = {span.span_id: place for place, span in enumerate(sorted(self.spans, key=order_key))}
        usable = [answer for answer in self.answers if answer.usable]
        return sorted(usable, key=lambda answer: (places[answer.span_id], answer.choice))

    def given_up(self) -> dict[Key, str]:
        """Answers that are not the agent's answer to their prompt, and the code of the reason."""
        usable = [answer for answer in self.answers if answer.usable]
        continued = {answer.parent for answer in usable if answer.role != "judge"}
        found: dict[Key, str] = {}
        for same in _groups(usable):
            went_on = {each.key for each in same} & continued or {each.key for each in same} & self.repeated
            if went_on:
                found |= {each.key: "abandoned" for each in same if each.key not in went_on}
            else:
                found |= self._ended(same)
        for answer in usable:
            if answer.finish == "abort" and answer.key not in continued | self.repeated:
                found.setdefault(answer.key, "broken_off")
        return {key: code for key, code in found.items() if key not in self.rewarded}

    def _ended(self, same: Sequence[Answer]) -> dict[Key, str]:
        found: dict[Key, str] = {}
        for place, answer in enumerate(same):
            if answer.finish == "stop":
                continue
            others = [other for other in same if other.span_id != answer.span_id]
            if answer.finish == "length":
                others = [other for other in same[place:] if other in others and self._follows(answer, other)]
            whole = {"stop", "length"} if answer.finish == "abort" else {"stop"}
            if any(other.finish in whole for other in others):
                found.setdefault(answer.key, "asked_again")
            elif others:
                found |= {each.key: "retry_undecided" for each in (answer, *others)}
        return found

    def _follows(self, first: Answer, second: Answer) -> bool:
        return not self.side_by_side or second.times[0] >= first.times[1]

    def trained(self) -> list[Answer]:
        """The answers that are trained where the policy is named."""
        given_up = self.given_up()
        return [each for each in self.ordered() if not each.refused and each.key not in given_up]

    def models(self) -> set[str]:
        """The models that may be the policy: somebody who has not seen the marks takes any of them for it."""
        marked = {"other_role", "untrainable"}
        return {answer.model for answer in self.answers if answer.flaw not in marked and not answer.role}

    def rows(self) -> list[Row]:
        """The rows where the policy is named."""
        ordered, wanted = self.ordered(), {each.key for each in self.trained()}
        by_key = {each.key: each for each in ordered}
        given_up = self.given_up()
        parents = {each.parent for each in ordered if each.key not in given_up}
        rows = []
        for leaf in ordered:
            if leaf.key in parents or leaf.key in given_up:
                continue
            path = [leaf]
            while path[0].parent is not None:
                path.insert(0, by_key[path[0].parent])
            while path and path[-1].key not in wanted:
                path.pop()
            if path:
                rows.append(_row(path, wanted))
                wanted -= {each.key for each in path}
        return rows


def _groups(answers: Iterable[Answer]) -> list[list[Answer]]:
    """The answers to one question of one agent, by the order in which they were asked for."""
    groups: dict[Any, list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer.parent, answer.agent, answer.prompt, answer.media), []).append(answer)
    return list(groups.values())


def _row(path: Sequence[Answer], wanted: set[Key]) -> Row:
    last = path[-1]
    length = len(last.prompt) + len(last.output)
    mask, logprobs = [0] * length, [0.0] * length
    for answer in path:
        if answer.key in wanted:
            for offset, logprob in enumerate(answer.logprobs):
                mask[len(answer.prompt) + offset] = 1
                logprobs[len(answer.prompt) + offset] = logprob
    return Row(
        last.prompt + last.output,
        tuple(mask),
        tuple(logprobs),
        tuple(each.key for each in path),
        tuple(each.key for each in path if each.key in wanted),
        tuple(hashlib.sha256(name.encode()).hexdigest() for name in last.media),
    )


def showing(name: str, words: str) -> dict[str, Any]:
    """The message of a user who shows an image, whose bytes are its name."""
    url = f"data:image/png;base64,{base64.b64encode(name.encode()).decode()}"
    parts = [{"type": "text", "text": words}, {"type": "image_url", "image_url": {"url": url}}]
    return {"role": "user", "content": parts}


# ------------------------------------------------------------------ the player


class Player:
    """Plays steps; numbers are counted within a conversation, so that it is the same whoever talks beside it."""

    def __init__(self, *, clock: str, agents: str, distinct: bool) -> None:
        self.story = Story(side_by_side=clock in {"overlapping", "equal"})
        self._clock, self._agents, self._distinct = clock, agents, distinct
        self._branches: dict[int, list[Branch]] = {}
        self._counts: Counter[tuple[str, int]] = Counter()
        self._chance = random.Random(0)
        self._number = 0

    def play(self, step: Step) -> None:
        number, self._number = step.conversation, step.conversation
        self._chance = random.Random(step.chance)
        branches = self._branches.get(number)
        if branches is None:
            branches = self._branches[number] = [Branch(self._begin())]
        branch = branches[step.branch % len(branches)]
        action = step.action if branch.asked is not None else "turn"
        self.story.seen[action] += 1
        self.story.seen[step.flaw or "flawless"] += 1
        if action == "retry":
            self._retry(branch, step.flaw)
        elif action == "cut":
            self._cut(branch)
        elif action == "resume":
            self._ask(branch, step.flaw, "abort")
            self._ask(branch, step.flaw)
        elif action == "again":
            self._ask(branch, step.flaw, self._chance.choice(UNFINISHED))
            for _ in range(self._chance.choice([1, 1, 2])):
                self._retry(branch, step.flaw, self._chance.choice(["stop", "stop", *UNFINISHED]))
        elif action == "repeat":
            branches.append(replace(branch))
            self._ask(branches[-1], step.flaw)
        elif action == "swap":
            self._swap(branch, step.flaw)
        elif action == "judge":
            shown = replace(branch)
            self._hear(shown)
            model = self._chance.choice([POLICY, FROZEN])
            self._sample(shown, step.flaw or "other_role", 1, model=model, role="judge")
        elif action in {"user", "other"}:
            self._consult(branch, step.flaw, goes_on=action == "user")
        elif action == "stand_in":
            self._ask(branch, step.flaw, model=FROZEN)
        else:
            if action == "fork":
                branches.append(replace(branch))
                branch = branches[-1]
            elif action in {"drift", "edit"}:
                self._rewrite(branch, inside=action == "drift")
            elif action == "compact":
                self._forget(branch)
            if action == "look":
                self._show(branch)
            self._hear(branch)
            self._ask(branch, step.flaw)

    # -- tokens

    def _begin(self) -> Ids:
        return self._text(self._chance.randint(0, 3))

    def _text(self, more: int) -> Ids:
        """Return tokens of which the first was never there before; 0 is both padding and end of text."""
        small = tuple(self._chance.randint(0, 3) for _ in range(more))
        if not self._distinct:
            return small or (0,)
        self._counts["token", self._number] += 1
        return (1000 * (self._number + 1) + self._counts["token", self._number], *small)

    def _image(self) -> str:
        return self._chance.choice(["cat", "dog", "map"])

    # -- what an agent does

    def _show(self, branch: Branch) -> None:
        said = self._text(0)
        branch.context += said
        branch.show(self._image(), _words(said))

    def _swap(self, branch: Branch, flaw: str) -> None:
        """Ask again, or go on, with an image that was never shown in the place of one."""
        if branch.asked is None or not branch.asked.media:
            self._show(branch)
            self._ask(branch, flaw)
        if branch.asked is not None and self._chance.random() < 0.5:
            branch.restore(branch.asked)
        self._counts["image", self._number] += 1
        branch.swap(
            self._chance.randrange(len(branch.media)),
            f"image {self._number}.{self._counts['image', self._number]}",
        )
        self._ask(branch, flaw)

    def _consult(self, branch: Branch, flaw: str, *, goes_on: bool) -> None:
        """Ask the second model on a prompt of its own; what it says is the next that the user says, or nothing."""
        words = self._text(1)
        asked = Branch(words, messages=({"role": "user", "content": _words(words)},))
        answer = self._sample(asked, flaw, 1, model=FROZEN)[0]
        if goes_on:
            branch.context += answer.output
            branch.messages += ({"role": "user", "content": _words(answer.output)},)
            self._ask(branch, flaw)

    def _hear(self, branch: Branch) -> None:
        if self._chance.random() < 0.8:
            said = self._text(self._chance.randint(0, 2))
            branch.context += said
            branch.messages += ({"role": "user", "content": " ".join(map(str, said))},)

    def _retry(self, branch: Branch, flaw: str, finish: FinishReason = "stop") -> None:
        assert branch.asked is not None
        kept = replace(branch)
        branch.restore(branch.asked)
        self._ask(branch, flaw, finish)
        if self._chance.random() < 0.3:  # the agent looks at both, and goes on with the first
            branch.restore(kept)

    def _cut(self, branch: Branch) -> None:
        self._hear(branch)
        answers = self._sample(branch, "partial", 1)
        kept = answers[0].output[: self._chance.randint(0, len(answers[0].output))]
        branch.asked = replace(branch)
        if kept and self._chance.random() < 0.5:  # the agent goes on with what it got
            branch.context += kept
            branch.messages += ({"role": "assistant", "content": "..."},)

    def _forget(self, branch: Branch) -> None:
        kept = self._chance.randint(0, 2)
        branch.hide(0, len(branch.context))
        branch.context = branch.context[:kept] + self._text(2)
        branch.anchors = tuple(each for each in branch.anchors if each[1] <= kept)
        branch.messages = branch.messages[:1]
        branch.said = tuple(each for each in branch.said if each[1] < 1)

    def _rewrite(self, branch: Branch, *, inside: bool) -> None:
        low, high = 0, len(branch.context) - 1
        if inside and branch.anchors:
            key, high = branch.anchors[-1]
            output = next(each.output for each in self.story.answers if each.key == key)
            low, high = high - len(output), high - 1
        position = self._chance.randint(low, high)
        gone = self._chance.randint(0, 2)
        branch.hide(position, gone)
        written = self._text(0)
        branch.move(position, len(written) - gone)
        branch.context = branch.context[:position] + written + branch.context[position + gone :]
        branch.anchors = tuple(each for each in branch.anchors if each[1] <= position)
        if not inside and branch.messages:
            self._counts["edit", self._number] += 1
            edited = f"edited {self._counts['edit', self._number]}"
            shown = next((each for each in branch.media if each.message == 0), None)
            first = {"role": "user", "content": edited} if shown is None else showing(shown.name, edited)
            branch.messages = (first, *branch.messages[1:])
            branch.said = ()

    def _ask(self, branch: Branch, flaw: str, finish: FinishReason = "stop", *, model: str = POLICY) -> None:
        choices = self._chance.choice([1, 1, 1, 1, 2, 3]) if finish == "stop" else 1
        self.story.seen["several choices"] += choices > 1
        answers = self._sample(branch, flaw, choices, finish, model=model)
        branch.asked = replace(branch)
        chosen = self._chance.choice(answers)
        branch.context += chosen.output
        branch.messages += ({"role": "assistant", "content": _words(chosen.output)},)
        if chosen.usable:
            branch.anchors += ((chosen.key, len(branch.context)),)
            branch.said += ((chosen.key, len(branch.messages) - 1),)
        if flaw not in UNUSABLE and self._chance.random() < 0.1:
            judged = self._chance.choice(answers)
            self.story.rewarded.add(judged.key)
            self.story.seen["rewarded"] += 1

    # -- what the engine does

    def _sample(
        self,
        branch: Branch,
        flaw: str,
        choices: int,
        finish: FinishReason = "stop",
        *,
        model: str = POLICY,
        role: str = "",
    ) -> list[Answer]:
        self._counts["call", self._number] += 1
        turn = self._counts["call", self._number]
        span_id = f"{self._number + 1:08x}{turn:08x}"
        versions = self._versions(turn)
        times = self._times()
        if role != "judge":
            self.story.repeated |= {key for key, _ in branch.said}
        answers = []
        for index in range(choices):
            empty = finish == "stop" and flaw != "partial" and self._chance.random() < 0.06
            self.story.seen["empty"] += empty
            output = () if empty else self._text(self._chance.randint(0, 3))
            answers.append(
                Answer(
                    span_id=span_id,
                    choice=index,
                    conversation=self._number,
                    agent=self._agent_id(),
                    prompt=branch.context,
                    output=output,
                    logprobs=tuple(-self._chance.random() * 3 for _ in output),
                    versions=versions(len(output)),
                    parent=branch.anchors[-1][0] if branch.anchors else None,
                    flaw=flaw,
                    finish=finish,
                    times=times,
                    media=tuple(each.name for each in branch.media),
                    model=model,
                    role=role,
                )
            )
        self.story.answers += answers
        self.story.spans.append(self._span(answers, branch.messages, finish))
        return answers

    def _versions(self, turn: int) -> Callable[[int], Ids]:
        kind = self._chance.choice(["one", "one", "two", "none"])
        self.story.seen[f"{kind} version"] += 1
        if kind == "none":
            return lambda length: ()
        if kind == "one":
            return lambda length: (turn,) * length
        return lambda length: (turn,) * (length // 2) + (turn + 1,) * (length - length // 2)

    # -- spans

    def _agent_id(self) -> str | None:
        if self._agents == "none" or (self._agents == "mixed" and self._number == 0):
            return None
        return f"{0 if self._agents == 'shared' else self._number + 1:08x}{'a' * 8}"

    def _times(self) -> tuple[float, float]:
        tick = float(len(self.story.spans) + 1)
        if self._clock == "equal":
            return 1.0, 2.0
        if self._clock == "overlapping":
            return tick, tick + self._chance.choice([0.5, 500.0])
        if self._clock == "backwards":
            return tick, tick - 0.5
        if self._clock == "skewed":
            return (start := tick + self._chance.choice([-6.25, 0.0, 7.5])), start + 0.25
        return tick, tick + 0.5

    def _span(
        self, answers: Sequence[Answer], messages: Iterable[dict[str, Any]], finish: FinishReason
    ) -> Span:
        start, end = answers[0].times
        attributes = call_attributes(_record(answers, tuple(messages), finish))
        flaw = answers[0].flaw
        if flaw == "other_role":
            attributes["agentlightning.role"] = "auxiliary"
        if answers[0].role:
            attributes["agentlightning.role"] = answers[0].role
        if flaw == "untrainable":
            attributes["agentlightning.untrainable"] = True
        return Span.from_attributes(
            attributes=attributes,
            rollout_id=ROLLOUT,
            attempt_id=ATTEMPT,
            sequence_id=len(self.story.spans) + 1,
            trace_id=TRACE,
            span_id=answers[0].span_id,
            parent_id=answers[0].agent or ROOT_ID,
            name="chat policy",
            start_time=start,
            end_time=end,
        )

    def surroundings(self) -> list[Span]:
        """The spans of the rollout and of its agents."""
        agents = {each.agent for each in self.story.answers if each.agent is not None}
        ends = [span.end_time or 0.0 for span in self.story.spans]
        found = [work(ROOT_ID, None, 0.0, max(ends, default=0.0) + 1)]
        for place, agent in enumerate(sorted(agents)):
            own = [span for span in self.story.spans if span.parent_id == agent]
            start, end = min(s.start_time or 0.0 for s in own), max(s.end_time or 0.0 for s in own)
            span = work(agent, ROOT_ID, start - 0.1, end + 0.1, {"gen_ai.agent.name": f"agent-{agent[:8]}"})
            found.append(span.model_copy(update={"sequence_id": 1000 + place}))
        return [*found, *(_reward_of(*key) for key in sorted(self.story.rewarded))]


def _reward_of(span_id: str, choice: int) -> Span:
    attributes = {
        "agentlightning.reward.0.name": "primary",
        "agentlightning.reward.0.value": 0.5,
        **make_link_attributes({"span_id": span_id, "choice_index": str(choice)}),
    }
    name = f"{span_id[4:8]}{span_id[-4:]}{choice:04x}{'d' * 4}"
    return work(name, ROOT_ID, 900.0, None, attributes, "agentlightning.annotation")


def left_by_agent(record: ModelCall, tokens: str) -> ModelCall:
    """The record of an answer that the agent left before its end; ``tokens`` are ``whole`` where they say all of it."""
    choices = tuple(
        replace(each, finish_reason=None, finish_reason_raw=None, broken_off=True) for each in record.choices
    )
    issues = (Issue("info", TOKENS_SAY_ALL),) if tokens == "whole" else ()
    return replace(
        record, choices=choices, usage=None, partial=True, token_capture=LEFT_BY_AGENT, issues=issues
    )


def _words(ids: Ids) -> str:
    return " ".join(map(str, ids))


def _record(
    answers: Sequence[Answer], messages: tuple[dict[str, Any], ...], finish: FinishReason
) -> ModelCall:
    first = answers[0]
    partial, verdict = first.flaw == "partial", VALID
    if first.flaw in UNUSABLE:
        verdict = invalid(first.flaw)
    choices = tuple(
        Choice(
            index=each.choice,
            content=_words(each.output),
            finish_reason=None if partial else finish,
            finish_reason_raw=None if partial else finish,
            broken_off=partial,
            token_ids=each.output,
            logprobs=None if each.flaw == "no_logprobs" else each.logprobs,
            policy=_policy(each.versions),
            token_capture=verdict,
        )
        for each in answers
    )
    return ModelCall(
        endpoint="http://127.0.0.1:8000/v1/chat/completions",
        request_model=first.model,
        response_id=f"chatcmpl-{first.span_id}",
        request_messages=({"role": "system", "content": "be brief"}, *messages),
        choices=choices,
        prompt_token_ids=first.prompt,
        usage=None
        if partial
        else Usage(
            len(first.prompt) + (first.flaw == "prompt_length"), sum(len(each.output) for each in answers)
        ),
        sampling_effective={
            "temperature": 1.0,
            "n": len(answers),
            **({"best_of": 9} if first.flaw == "beam_search" else {}),
            **({"guided_regex": "a"} if first.flaw == "forced_unknown" else {}),
        },
        sampling_defaults={},
        logprob_kind="raw" if first.flaw == "forced_unknown" else "processed",
        partial=partial,
        token_capture=verdict,
    )


def _policy(versions: Ids) -> tuple[PolicySpan, ...]:
    spans: list[PolicySpan] = []
    for position, version in enumerate(versions):
        if spans and spans[-1].version == str(version):
            spans[-1] = replace(spans[-1], end=position + 1)
        else:
            spans.append(PolicySpan(str(version), position, position + 1))
    return tuple(spans)


# ------------------------------------------------------------------ spans by hand


def work(
    span_id: str,
    parent: str | None,
    start: float,
    end: float | None = None,
    attributes: dict[str, Any] | None = None,
    name: str = "work",
) -> Span:
    """A span of the rollout that is no model call."""
    return Span.from_attributes(
        attributes=attributes or {},
        rollout_id=ROLLOUT,
        attempt_id=ATTEMPT,
        sequence_id=500,
        trace_id=TRACE,
        span_id=span_id,
        parent_id=parent,
        name=name,
        start_time=start,
        end_time=start if end is None else end,
    )


def call(
    number: int, prompt: Ids, *outputs: Ids, start: float | None = None, flaw: str = "", **changes: Any
) -> Span:
    """The span of one call, by hand: ``number`` is its place in time and in its span id."""
    agent = changes.pop("agent", None)
    logprobs = changes.pop("logprobs", None)
    versions = changes.pop("versions", ())
    finish, asked = changes.pop("finish", "stop"), changes.pop("asked", ())
    left = changes.pop("left", None)
    span_id = f"{number:016x}"
    answers = [
        Answer(
            span_id=span_id,
            choice=index,
            conversation=0,
            agent=agent,
            prompt=prompt,
            output=output,
            logprobs=logprobs or tuple(-(number + place / 8) for place in range(1, len(output) + 1)),
            versions=versions,
            parent=None,
            flaw=flaw,
        )
        for index, output in enumerate(outputs)
    ]
    moment = float(number if start is None else start)
    record = _record(answers, tuple(asked), finish)
    span = Span.from_attributes(
        attributes=call_attributes(record if left is None else left_by_agent(record, left)),
        rollout_id=ROLLOUT,
        attempt_id=ATTEMPT,
        sequence_id=number,
        trace_id=TRACE,
        span_id=span_id,
        parent_id=agent or ROOT_ID,
        name="chat policy",
        start_time=moment,
        end_time=moment + 0.5,
    )
    return span.model_copy(update=changes)


# ------------------------------------------------------------------ strategies


def tell(steps: Sequence[Step], *, clock: str = "steps", agents: str = "own", distinct: bool = True) -> Story:
    """Play ``steps`` and return what happened.

    Args:
        steps: What happens, in order.
        clock: How true the times of the spans are.
        agents: Whether each conversation is an agent's own, all are of one agent, or no agent has a span.
        distinct: Whether no text begins like another, so that each prompt could only be built in one way.
    """
    player = Player(clock=clock, agents=agents, distinct=distinct)
    for step in steps:
        player.play(step)
    if clock == "overlapping":  # a store numbers spans as they end
        ended = sorted(player.story.spans, key=lambda span: span.end_time or 0.0)
        for number, span in enumerate(ended, start=1):
            span.sequence_id = number
    player.story.spans += player.surroundings()
    player.story.seen[f"{len({step.conversation for step in steps})} conversations"] += 1
    return player.story


def _weighted(weights: dict[str, int]) -> st.SearchStrategy[str]:
    return st.sampled_from([name for name, weight in weights.items() for _ in range(weight)])


NAMED = RowPolicy(model=POLICY)
"""The user has said which model is the policy."""


def rows_of(story: Story, **policy: Any) -> RowSet:
    """The rows of a story, where the policy is named."""
    return build_rows(story.spans, RowPolicy(model=POLICY, **policy))


steps = st.lists(
    st.builds(
        Step,
        st.integers(0, 2),
        st.integers(0, 2),
        _weighted(ACTIONS),
        _weighted(FLAWS),
        st.integers(0, 2**20),
    ),
    min_size=3,
    max_size=16,
)
stories = st.builds(tell, steps, clock=st.sampled_from(CLOCKS), agents=st.sampled_from(AGENTS))
"""Attempts in which every prompt could only be built in one way: the truth is one."""
lookalikes = st.builds(
    tell, steps, clock=st.sampled_from(CLOCKS), agents=st.sampled_from(AGENTS), distinct=st.just(False)
)
"""Attempts of a few tokens: prompts and answers are often the same by chance."""
