"""Long values of spans in the SQLite file: what they have in common is stored once, and each comes back exactly."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from operator import is_
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from warm import Warm

from agentlightning.codec.rows import PACKED_CHARACTERS
from agentlightning.codec.token_ids import TokenIds
from agentlightning.errors import StoreFileError, StoreFileMoved
from agentlightning.store import SqliteLightningStore
from agentlightning.store.sqlite.connection import APPLICATION_ID, MIGRATIONS, statements_of
from agentlightning.store.sqlite.long_values import LONG_BYTES, MOST_PARTS
from agentlightning.testing import same_value, span_of
from agentlightning.types import AttemptedRollout, OtelResource, Span

LONG_IDS = LONG_BYTES // 4
WORDS = ("agent", "tool", "größer", "数学", "😀", '"quoted"', "back\\slash", "line\n")


def rows(path: Path, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Ask the file itself, as any SQLite tool would."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query, parameters).fetchall()


def execute(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


class Conversation:
    """What an agent says to a model, call by call: each prompt is all that was said, as messages and as token ids."""

    def __init__(self, seed: int = 0, tokens: int = LONG_IDS) -> None:
        self.chance = Random(seed)
        self.ids: list[int] = []
        self.messages: list[dict[str, str]] = []
        self.say(tokens)

    def say(self, tokens: int) -> None:
        """Add a message."""
        self.ids += [self.chance.randrange(150_000) for _ in range(tokens)]
        text = " ".join(self.chance.choice(WORDS) for _ in range(tokens))
        self.messages.append({"role": "user", "content": text})

    def attributes(self) -> dict[str, Any]:
        """Return the attributes of the next call."""
        answer = [self.chance.randrange(150_000) for _ in range(20)]
        return {
            "gen_ai.request.model": "policy",
            "gen_ai.input.messages": json.dumps(self.messages, ensure_ascii=False),
            "agentlightning.prompt_token_ids": list(self.ids),
            "agentlightning.choice.0.token_ids": answer,
            "agentlightning.choice.0.logprobs": [-self.chance.expovariate(1.0) for _ in answer],
        }


def conversation_of(rollout: AttemptedRollout, calls: int, tokens: int = 200, seed: int = 0) -> list[Span]:
    """Return the spans of a conversation that grows by so many tokens with each call."""
    talk, spans = Conversation(seed), []
    for number in range(calls):
        spans.append(span_of(rollout, f"call {number}", attributes=talk.attributes()))
        talk.say(tokens)
    return spans


async def assert_stored(store: SqliteLightningStore, spans: Sequence[Span]) -> None:
    """Every reader of the store sees each span exactly as it was handed in."""
    wanted = {span.span_id: span for span in spans}
    keys = {(span.rollout_id, span.attempt_id): None for span in spans}
    found = [span for key in keys for span in await store.query_spans(*key)]
    assert sorted(span.span_id for span in found) == sorted(wanted)
    for span in [*spans[:2], *spans[-2:]]:  # by themselves
        found += await store.query_spans(span.rollout_id, span.attempt_id, span_id=span.span_id, limit=1)
    for span in found:
        given_in = wanted[span.span_id]
        assert same_value(span.attributes, given_in.attributes)
        assert list(span.attributes) == list(given_in.attributes)


def delete_by_hand(path: Path, span: Span) -> None:
    """Take what is long of a span out of the file, which nothing in the store does."""
    of_span = f"SELECT span_key FROM spans WHERE span_id = '{span.span_id}'"
    execute(path, f"DELETE FROM long_values WHERE value_key / 256 = ({of_span})")


async def assert_read_or_named(store: SqliteLightningStore, spans: Sequence[Span]) -> list[str]:
    """Each span is as it was, or cannot be read and is named by the check; return the ids of the latter."""
    problems, unreadable = await store.check(), []
    for span in spans:
        named = any(span.span_id in problem for problem in problems)
        if named:
            unreadable.append(span.span_id)
            with pytest.raises(StoreFileError, match=f"{span.span_id}.*agl store check"):
                await store.query_spans(span.rollout_id, span.attempt_id, span_id=span.span_id)
        else:
            (read,) = await store.query_spans(span.rollout_id, span.attempt_id, span_id=span.span_id)
            assert same_value(read.attributes, span.attributes)
    return unreadable


# ---------------------------------------------------------------------- what it takes


@pytest.mark.asyncio
async def test_each_call_adds_to_the_file_what_it_adds_to_the_conversation(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        spans = conversation_of(await store.start_rollout("task"), calls=2 * MOST_PARTS + 5, tokens=50)
        for span in spans:
            await store.add_many_spans([span])
        await assert_stored(store, spans)
        assert await store.check() == []

    ((most,),) = rows(path, "SELECT max(json_array_length(parts)) FROM long_values")
    assert most == MOST_PARTS
    stored_again = rows(path, "SELECT key, count(*) FROM long_values WHERE length(data) > 2000 GROUP BY key")
    assert stored_again == [("agentlightning.prompt_token_ids", 3), ("gen_ai.input.messages", 3)]


@pytest.mark.asyncio
async def test_parts_that_are_put_together_do_not_make_the_file_grow_with_the_square_of_the_calls(
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        spans = conversation_of(await store.start_rollout("task"), calls=8 * MOST_PARTS, tokens=20)
        for start in range(0, len(spans), 50):
            await store.add_many_spans(spans[start : start + 50])
        await assert_stored(store, spans)
    ((most,),) = rows(path, "SELECT max(json_array_length(parts)) FROM long_values")
    assert most == MOST_PARTS
    stored = rows(path, "SELECT sum(length(data)) FROM long_values WHERE kind = 'int32'")
    # Stored whole at every 32nd part it were five times as much.
    assert stored[0][0] < 3 * 4 * len(spans[-1].attributes["agentlightning.prompt_token_ids"])


@pytest.mark.asyncio
async def test_lists_that_are_read_share_their_ids_and_have_no_room_to_grow(tmp_path: Path) -> None:
    store = SqliteLightningStore(tmp_path / "spans.db")
    rollout = await store.start_rollout(input={})
    spans = conversation_of(rollout, 4)
    await store.add_many_spans(spans)

    read = await store.query_spans(rollout.rollout_id, rollout.attempt.attempt_id)
    await store.close()

    prompts = [span.attributes["agentlightning.prompt_token_ids"] for span in read]
    for prompt in prompts:
        assert isinstance(prompt, list)
        assert sys.getsizeof(prompt) == sys.getsizeof([0] * len(prompt))
        assert all(map(is_, prompt, prompts[-1]))


@pytest.mark.asyncio
async def test_prompts_that_are_read_packed_are_one_copy_of_their_ids(tmp_path: Path) -> None:
    async with SqliteLightningStore(tmp_path / "spans.db") as store:
        rollout = await store.start_rollout("task")
        agents = [conversation_of(rollout, 4, seed=seed) for seed in range(2)]
        spans = [span for turn in zip(*agents, strict=True) for span in turn]
        await store.add_many_spans(spans)
        read = await store.query_spans(rollout.rollout_id, packed=True)
        one = await store.query_spans(rollout.rollout_id, span_id=spans[-1].span_id, limit=1, packed=True)

    assert [span.attributes for span in (*read, *one)] == [span.attributes for span in (*spans, spans[-1])]
    for name in ("agentlightning.prompt_token_ids", "agentlightning.choice.0.token_ids"):
        assert {type(span.attributes[name]) for span in (*read, *one)} == {TokenIds}
    prompts = [span.attributes["agentlightning.prompt_token_ids"] for span in read]
    assert [prompt.whole_buffer() is None for prompt in prompts] == [True] * 6 + [False] * 2


@pytest.mark.asyncio
async def test_packed_spans_take_as_little_space_in_the_next_store(tmp_path: Path) -> None:
    async with (
        SqliteLightningStore(tmp_path / "one.db") as one,
        SqliteLightningStore(tmp_path / "two.db") as two,
    ):
        rollout = await one.start_rollout("task")
        spans = conversation_of(rollout, 4)
        await one.add_many_spans(spans)
        read = await one.query_spans(rollout.rollout_id, packed=True)
        copied = await two.start_rollout("task", rollout_id=rollout.rollout_id)
        place = {"attempt_id": copied.attempt.attempt_id}
        await two.add_many_spans([span.model_copy(update=place) for span in read])
        again = await two.query_spans(rollout.rollout_id, packed=True)

    assert [span.attributes for span in again] == [span.attributes for span in spans]
    assert {type(span.attributes["agentlightning.prompt_token_ids"]) for span in again} == {TokenIds}


@pytest.mark.asyncio
async def test_texts_of_messages_that_calls_repeat_are_read_once(tmp_path: Path) -> None:
    talk, spans = Conversation(tokens=2_000), list[Span]()
    async with SqliteLightningStore(tmp_path / "spans.db") as store:
        rollout = await store.start_rollout("task")
        for _ in range(3):
            talk.say(200)
            flat = {f"gen_ai.prompt.{at}.content": each["content"] for at, each in enumerate(talk.messages)}
            spans.append(span_of(rollout, attributes={"messages": [*talk.messages], **flat}))
        await store.add_many_spans(spans)
        read = await store.query_spans(rollout.rollout_id)

    assert [span.attributes for span in read] == [span.attributes for span in spans]
    for name, values in (
        ("nested", [[each["content"] for each in span.attributes["messages"]] for span in read]),
        ("flat", [[text for key, text in span.attributes.items() if key != "messages"] for span in read]),
    ):
        assert [len(texts) for texts in values] == [2, 3, 4], name
        assert all(all(map(is_, texts, values[-1])) for texts in values), name


@pytest.mark.asyncio
async def test_a_text_that_is_cut_inside_of_a_character_is_put_together_again(tmp_path: Path) -> None:
    texts = ["x" * 4_096 + "ä" * number + "ö" for number in range(4)] + [
        "x" * 4_096 + "😀ö",
        "x" * 4_096 + "😁ö",
    ]
    async with SqliteLightningStore(tmp_path / "spans.db") as store:
        rollout = await store.start_rollout("task")
        spans = [span_of(rollout, attributes={"text": text}) for text in texts]
        await store.add_many_spans(spans)
        read = await store.query_spans(rollout.rollout_id)
    assert [span.attributes["text"] for span in read] == texts


@pytest.mark.asyncio
async def test_calls_of_one_batch_continue_each_other_and_other_attempts_do_not(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        first, second = [await store.start_rollout(number) for number in range(2)]
        spans = [*conversation_of(first, 4), *conversation_of(second, 4)]
        await store.add_many_spans(spans)
        await assert_stored(store, spans)

    crossing = """
        SELECT count(*) FROM long_values JOIN json_each(parts) AS part
        JOIN spans AS mine ON mine.span_key = value_key / 256
        JOIN spans AS other ON other.span_key = json_extract(part.value, '$[0]') / 256
        WHERE mine.attempt_key <> other.attempt_key
    """
    assert rows(path, crossing) == [(0,)]
    assert rows(path, "SELECT count(*) FROM long_values WHERE json_array_length(parts) > 1") == [(12,)]


@pytest.mark.asyncio
async def test_conversations_of_one_attempt_take_turns_and_go_back(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        agents = [conversation_of(rollout, 4, seed=seed) for seed in range(8)]
        spans = [span for turn in zip(*agents, strict=True) for span in turn]
        for _ in range(6):  # from its second call on, the last agent tries again and again
            talk = Conversation(seed=7)
            talk.attributes()
            talk.say(200)
            talk.chance.seed(len(spans))
            talk.say(200)
            spans.append(span_of(rollout, attributes=talk.attributes()))
        for span in spans:
            await store.add_span(span)
        await assert_stored(store, spans)

    whole = "SELECT count(*) FROM long_values WHERE json_extract(parts, '$[0][0]') = value_key"
    assert rows(path, whole) == [(2 * len(agents),)]


@pytest.mark.asyncio
async def test_a_call_that_is_made_again_adds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        attributes = Conversation().attributes()
        spans = [span_of(rollout, attributes=attributes) for _ in range(2 * MOST_PARTS)]
        for span in spans:
            await store.add_span(span)
        await assert_stored(store, spans)
    assert rows(path, "SELECT count(*) FROM long_values WHERE length(data) > 0") == [(2,)]


@pytest.mark.asyncio
async def test_a_prompt_that_differs_in_its_middle_or_at_its_end_has_its_own_tokens(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    ids, text = list(range(3 * LONG_IDS)), "größer 😀 " * LONG_IDS
    prompts = [
        ([*ids, 1, 2, 3], text + "]"),  # tokens and a bracket that the next prompt has not
        ([*ids, *range(50)], text + ", more]"),
        ([-1, *ids[1:], *range(50)], "G" + text[1:] + ", more]"),  # another beginning, and the same end
        ([*ids, *range(50), 7], text + ", more, and more]"),
        (ids[: 2 * LONG_IDS + 5], text[: len(text) // 2]),
    ]
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        spans = [
            span_of(rollout, attributes={"prompt_token_ids": ids, "text": text}) for ids, text in prompts
        ]
        for span in spans:
            await store.add_span(span)
        await assert_stored(store, spans)
    whole = (
        "SELECT value_key / 256 FROM long_values WHERE json_extract(parts, '$[0][0]') = value_key ORDER BY 1"
    )
    assert [number for (number,) in rows(path, whole)] == [1, 1, 3, 3, 5, 5]


@pytest.mark.asyncio
async def test_fields_behind_a_growing_list_cost_no_more_than_a_page(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout, talk, spans = await store.start_rollout("task"), Conversation(tokens=9_000), []
        for number in range(6):
            body = {"messages": talk.messages, "model": "policy", "seed": number}
            spans.append(span_of(rollout, attributes={"input.value": json.dumps(body)}))
            await store.add_span(spans[-1])
            talk.say(100)
        await assert_stored(store, spans)
    added = rows(path, "SELECT length(data) FROM long_values ORDER BY value_key")[1:]
    assert max(size for (size,) in added) < 3 * LONG_BYTES


# ---------------------------------------------------------------------- any conversation

STEP = st.one_of(
    st.tuples(st.just("say"), st.integers(0, 1_500)),
    st.tuples(st.just("branch"), st.integers(0, 10)),
    st.tuples(st.just("edit"), st.floats(0, 1)),
    st.tuples(st.just("cut"), st.floats(0, 1)),
    st.tuples(st.just("again"), st.integers(0, 0)),
    st.tuples(st.just("wide"), st.integers(0, 0)),
    st.tuples(st.just("other writer"), st.integers(0, 0)),
    st.tuples(st.just("other attempt"), st.integers(0, 0)),
    st.tuples(st.just("commit"), st.integers(0, 0)),
    st.tuples(st.just("commit backwards"), st.integers(0, 0)),
)


def changed(ids: list[int], texts: str, kind: str, place: float) -> tuple[list[int], str]:
    at, cut = int(place * (len(ids) - 1)), int(place * (len(texts) - 1))
    if kind == "cut":
        return ids[: max(at, LONG_IDS)], texts[: max(cut, PACKED_CHARACTERS)]
    return [*ids[:at], (ids[at] + 1) % 2**31, *ids[at + 1 :]], texts[:cut] + "é" + texts[cut + 1 :]


ANY = given(steps=st.lists(STEP, min_size=2, max_size=20), seed=st.integers(0, 2**16))


@settings(max_examples=8, deadline=None)
@ANY
def test_any_conversation_comes_back_exactly(steps: list[tuple[str, Any]], seed: int) -> None:
    check_conversation(steps, seed)


@pytest.mark.soak
@settings(max_examples=300, deadline=None)
@ANY
def test_any_conversation_comes_back_exactly_for_long(steps: list[tuple[str, Any]], seed: int) -> None:
    check_conversation(steps, seed)


def check_conversation(steps: list[tuple[str, Any]], seed: int) -> None:
    """Store a conversation as the steps say, in two attempts and by two writers, and read it back."""

    async def main(path: Path) -> None:
        chance = Random(seed)
        writers = [SqliteLightningStore(path) for _ in range(2)]
        rollouts = [await writers[0].start_rollout(number) for number in range(2)]
        writer = attempt = 0
        ids = [chance.randrange(150_000) for _ in range(LONG_IDS)]
        text = "".join(chance.choice(WORDS) for _ in range(PACKED_CHARACTERS))
        said, batch, spans = [(ids, text)], list[Span](), list[Span]()
        for kind, value in [*steps, ("commit", 0)]:
            if kind.startswith("commit"):
                await writers[writer].add_many_spans(batch[::-1] if kind.endswith("backwards") else batch)
                batch.clear()
                continue
            if kind == "other writer":
                await writers[writer].add_many_spans(batch)
                batch.clear()
                writer = 1 - writer
            elif kind == "other attempt":
                attempt = 1 - attempt
            elif kind == "branch":
                ids, text = said[value % len(said)]
            elif kind in ("edit", "cut"):
                ids, text = changed(ids, text, kind, value)
            elif kind == "wide":
                ids = [*ids, 2**40]
            elif kind == "say":
                ids = [*ids, *(chance.randrange(150_000) for _ in range(value))]
                text += "".join(chance.choice(WORDS) for _ in range(value))
            said.append((ids, text))
            attributes = {"messages": text, "prompt_token_ids": ids, "logprobs": [-0.5 * i for i in ids]}
            pieces = [text[start : start + 300] for start in range(0, len(text), 300)]
            attributes |= {f"gen_ai.prompt.{number}.content": piece for number, piece in enumerate(pieces)}
            attributes["nested"] = [{"role": "user", "content": piece} for piece in pieces]
            spans.append(span_of(rollouts[attempt], attributes=attributes))
            batch.append(spans[-1])
        for store in writers:
            await assert_stored(store, spans)
        assert await writers[0].check() == []

        if spans:
            delete_by_hand(path, chance.choice(spans))
            await assert_read_or_named(writers[1], spans)
        for store in writers:
            await store.close()

    with TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder, "any.db")))


# ---------------------------------------------------------------------- what is missing or was changed


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM long_values WHERE value_key = {first}",
        "UPDATE long_values SET data = substr(data, 1, 40) WHERE value_key = {first}",
        "UPDATE long_values SET data = zeroblob(length(data)) WHERE value_key = {first}",
    ],
)
@pytest.mark.asyncio
async def test_what_refers_to_a_part_that_is_gone_or_changed_is_named_and_never_another_value(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollouts = [await store.start_rollout(number) for number in range(2)]
        spans = [span for rollout in rollouts for span in conversation_of(rollout, 5)]
        await store.add_many_spans(spans)
    ((first,),) = rows(path, "SELECT min(value_key) FROM long_values WHERE kind = 'int32'")
    execute(path, damage.format(first=first))

    async with SqliteLightningStore(path) as store:
        unreadable = await assert_read_or_named(store, spans)
        assert unreadable == [span.span_id for span in spans[:5]]
        later = span_of(rollouts[0], attributes=Conversation().attributes())
        await store.add_span(later)
        (read,) = await store.query_spans(later.rollout_id, span_id=later.span_id)
        assert same_value(read.attributes, later.attributes)


@pytest.mark.parametrize(
    "change", ["DELETE FROM long_values", "UPDATE long_values SET digest = zeroblob(16)"]
)
@pytest.mark.asyncio
async def test_a_call_does_not_continue_what_somebody_changed_since(tmp_path: Path, change: str) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        spans = conversation_of(await store.start_rollout("task"), 6)
        await store.add_many_spans(spans[:3])
        execute(path, change)
        for span in spans[3:]:
            await store.add_span(span)
        unreadable = await assert_read_or_named(store, spans)
    assert unreadable == [span.span_id for span in spans[:3]]
    shared = "SELECT count(*) FROM long_values WHERE json_array_length(parts) > 1 AND value_key >= 4 * 256"
    assert rows(path, shared) == [(4,)]


@pytest.mark.asyncio
async def test_a_packed_list_that_is_missing_is_not_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        attributes = {"prompt_token_ids": list(range(20)), "token_ids": list(range(50, 70))}
        span = span_of(await store.start_rollout("task"), attributes=attributes)
        await store.add_span(span)
        assert await store.check() == []
    execute(path, "DELETE FROM span_arrays WHERE key = 'prompt_token_ids'")

    async with SqliteLightningStore(path) as store:
        assert await assert_read_or_named(store, [span]) == [span.span_id]


@pytest.mark.asyncio
async def test_a_span_that_was_deleted_by_hand_leaves_its_key_to_nobody(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        first, second, third = conversation_of(rollout, 3)
        await store.add_many_spans([first, second])
        execute(path, f"DELETE FROM spans WHERE span_id = '{second.span_id}'")
        await store.add_span(third)
        await assert_stored(store, [first, third])


@pytest.mark.parametrize("moment", ["between writes", "within a transaction"])
@pytest.mark.asyncio
async def test_where_a_backup_takes_the_place_of_the_file_nothing_refers_to_what_it_lacks(
    tmp_path: Path, moment: str
) -> None:
    path, backup = tmp_path / "store.db", tmp_path / "backup.db"
    act: list[Callable[[], None]] = []

    def clock() -> float:
        while act:
            act.pop()()
        return 1_000.0

    def restore() -> None:
        Path(f"{path}-wal").unlink()
        backup.rename(path)

    store = SqliteLightningStore(path, clock=clock)
    rollout = await store.start_rollout("task")
    before, lost, refused, *after = conversation_of(rollout, 6)
    made_by = OtelResource(attributes={"service.name": "a process that began after the backup"})
    lost, *after = (span.model_copy(update={"resource": made_by}) for span in (lost, *after))
    await store.add_span(before)
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)
    await store.add_span(lost)
    if moment == "between writes":
        restore()
    else:
        act.append(restore)
        with pytest.raises(StoreFileMoved):
            await store.add_span(refused)
    for span in after:
        await store.add_span(span)

    await assert_stored(store, [before, *after])
    assert [span.resource for span in await store.query_spans(rollout.rollout_id)][1:] == [made_by] * 3
    assert await store.check() == []
    await store.close()


# ---------------------------------------------------------------------- kill -9

WRITER = """
    import asyncio, json
    from agentlightning.store import SqliteLightningStore
    from agentlightning.types import Span

    async def main():
        store = SqliteLightningStore(args["path"])
        for text in args["spans"]:
            span = Span.model_validate_json(text)
            await store.add_many_spans([span])
            report(span.span_id)
        receive()

    asyncio.run(main())
"""


@pytest.mark.asyncio
async def test_a_conversation_whose_writer_was_killed_has_all_calls_that_were_acknowledged(
    recording: Warm,
    tmp_path: Path,
) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        spans = conversation_of(rollout, 60)
        args = {"path": str(path), "spans": [span.model_dump_json() for span in spans]}
        with recording.start_child(WRITER, args=args) as child:
            await asyncio.to_thread(child.kill, when=lambda: len(child.reports) >= 20)
            assert child.error is None, child.error
        found = await store.query_spans(rollout.rollout_id)
        assert set(child.reports) <= {span.span_id for span in found}
        by_id = {span.span_id: span for span in spans}
        assert all(same_value(span.attributes, by_id[span.span_id].attributes) for span in found)
        await store.add_many_spans(spans[len(found) :])  # another process goes on
        await assert_stored(store, spans)
        assert await store.check() == []


# ---------------------------------------------------------------------- files of before, and any tool


async def file_of_before(path: Path, calls: int) -> list[Span]:
    """Make a file as the version before long values made it: everything whole, texts in the attributes."""
    made = path.with_name("made.db")
    async with SqliteLightningStore(made) as store:
        spans = conversation_of(await store.start_rollout("task"), calls)
        await store.add_many_spans(spans)
    before = [statement for step in MIGRATIONS[:9] for statement in statements_of(step.script)]
    execute(path, "PRAGMA journal_mode = wal", f"PRAGMA application_id = {APPLICATION_ID}", *before)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("ATTACH ? AS made", (str(made),))
        connection.execute("DELETE FROM store_identity")
        for table in ("rollouts", "attempts", "resources_otel", "spans", "span_arrays", "store_identity"):
            connection.execute(f"INSERT INTO main.{table} SELECT * FROM made.{table}")
        connection.executemany(
            "INSERT INTO migrations VALUES (?, ?, '2026-11-01')",
            [(step.number, step.name) for step in MIGRATIONS[:9]],
        )
        for number, span in enumerate(spans, 1):
            ids = span.attributes["agentlightning.prompt_token_ids"]
            data = b"".join(token.to_bytes(4, "little") for token in ids)
            connection.execute(
                "INSERT INTO span_arrays VALUES (?, 'agentlightning.prompt_token_ids', 'int32', ?)",
                (number * 256 + 1, data),
            )
            connection.execute(
                """UPDATE spans SET attributes = json_set(attributes, '$."gen_ai.input.messages"', ?) WHERE span_key = ?""",
                (span.attributes["gen_ai.input.messages"], number),
            )
        connection.execute("PRAGMA user_version = 9")
    return spans


@pytest.mark.asyncio
async def test_a_file_of_before_is_read_and_continued_and_its_rows_stay_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    spans = await file_of_before(path, 4)
    old = rows(path, "SELECT * FROM span_arrays"), rows(path, "SELECT * FROM spans")
    async with SqliteLightningStore(path) as store:
        await assert_stored(store, spans)
        (rollout,) = await store.query_rollouts()
        attempt = await store.get_latest_attempt(rollout.rollout_id)
        assert attempt is not None
        more = [
            span.model_copy(update={"attempt_id": attempt.attempt_id, "rollout_id": rollout.rollout_id})
            for span in conversation_of(await store.start_rollout("other"), 6)[4:]
        ]
        await store.add_many_spans(more)
        await assert_stored(store, [*spans, *more])
        assert await store.check() == []
    assert rows(path, "SELECT * FROM span_arrays WHERE array_key < 5 * 256") == old[0]
    assert rows(path, "SELECT * FROM spans WHERE span_key < 5") == old[1]


def test_migrating_writes_no_row_whatever_the_size_of_the_file() -> None:
    heads = {" ".join(strip_comments(statement).split()[:2]) for statement in statements_since_long_values()}
    assert heads == {"CREATE TABLE", "CREATE VIEW", "DROP VIEW"}


def statements_since_long_values() -> list[str]:
    return [statement for step in MIGRATIONS[9:] for statement in statements_of(step.script)]


def strip_comments(statement: str) -> str:
    return "\n".join(line for line in statement.splitlines() if not line.startswith("--"))


KILLED = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
for statement in sys.argv[2:]:
    connection.execute(statement)
os.kill(os.getpid(), signal.SIGKILL)
"""


async def assert_sound(path: Path, spans: Sequence[Span]) -> None:
    async with SqliteLightningStore(path) as store:
        await assert_stored(store, spans)
        assert await store.check() == []


def test_a_migration_that_is_killed_at_any_statement_leaves_the_file_of_before(tmp_path: Path) -> None:
    before, path = tmp_path / "before.db", tmp_path / "store.db"
    spans = asyncio.run(file_of_before(before, 2))
    statements = statements_since_long_values()
    for place in range(1, len(statements) + 1):
        shutil.copy(before, path)
        ended = subprocess.run([sys.executable, "-c", KILLED, str(path), *statements[:place]], check=False)
        assert ended.returncode == -signal.SIGKILL
        asyncio.run(assert_sound(path, spans))
        assert rows(path, "PRAGMA user_version") == [(len(MIGRATIONS),)]
        path.unlink()


@pytest.mark.asyncio
async def test_long_values_are_put_together_by_views(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with SqliteLightningStore(path) as store:
        rollout = await store.start_rollout("task")
        spans = conversation_of(rollout, 3, tokens=1_100)
        wide = [2**63 - 1, -(2**63), *range(LONG_IDS)]
        logprobs = [-0.5 * number for number in range(LONG_IDS)]
        spans.append(span_of(rollout, attributes={"wide.token_ids": wide, "a.logprobs": logprobs}))
        spans.append(
            span_of(rollout, attributes={"wide.token_ids": [*wide, -1], "a.logprobs": [*logprobs, -0.25]})
        )
        await store.add_many_spans(spans)

    for span in spans:
        for key, value in span.attributes.items():
            if key.endswith(("token_ids", "logprobs")):
                column, view = ("token_id", "token_ids") if key.endswith("ids") else ("logprob", "logprobs")
                query = f"SELECT {column} FROM {view} WHERE span_id = ? AND key = ? ORDER BY position"
                assert [number for (number,) in rows(path, query, span.span_id, key)] == value
        texts = {key: value for key, value in span.attributes.items() if len(str(value)) >= PACKED_CHARACTERS}
        texts = {key: value for key, value in texts.items() if isinstance(value, str)}
        assert dict(rows(path, "SELECT key, text FROM long_texts WHERE span_id = ?", span.span_id)) == texts

    delete_by_hand(path, spans[0])
    read = dict(rows(path, "SELECT span_id, text FROM long_texts"))
    assert read == {spans[1].span_id: None, spans[2].span_id: None}
    left = "SELECT position, token_id FROM token_ids WHERE span_id = ? AND key LIKE '%prompt%'"
    ids = spans[2].attributes["agentlightning.prompt_token_ids"]
    found = rows(path, left, spans[2].span_id)
    assert 0 < len(found) < len(ids)
    assert all(ids[position] == token for position, token in found)
