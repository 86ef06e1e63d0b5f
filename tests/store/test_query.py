"""Filters, order and pages: what they mean, and that SQL says the same."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentlightning.errors import InvalidArgument
from agentlightning.store.query import Condition, Query, contains, equals, make_query, within
from agentlightning.store.sqlite import statements


@dataclass(frozen=True)
class Item:
    key: int
    name: str | None
    size: float | None


TEXTS = st.text(st.sampled_from(["a", "b", "A", "é", "\x00", "%", "_", "\ud800", "'"]), max_size=3)
STORED_TEXTS = TEXTS.filter(lambda text: "\ud800" not in text)  # a column holds UTF-8
ITEMS = st.lists(
    st.tuples(st.none() | STORED_TEXTS, st.none() | st.sampled_from([-1.5, 0.0, 2.0, math.inf])), max_size=8
).map(lambda rows: [Item(key, *row) for key, row in enumerate(rows)])
CONDITIONS = st.one_of(
    st.builds(Condition, st.just("name"), st.sampled_from(["equals", "contains"]), TEXTS),
    st.builds(Condition, st.just("name"), st.just("within"), st.lists(TEXTS, max_size=3).map(tuple)),
)
QUERIES = st.builds(
    Query,
    conditions=st.lists(CONDITIONS, max_size=3).map(tuple),
    logic=st.sampled_from(["and", "or"]),
    sort_by=st.sampled_from([None, "name", "size", "key"]),
    descending=st.booleans(),
    limit=st.integers(-1, 4),
    offset=st.integers(0, 3),
)


def answer_in_sql(query: Query, items: list[Item]) -> list[int] | None:
    """Answer as the SQLite store does; ``None`` where SQL cannot say it."""
    condition = statements.where(query)
    if condition is None:
        return None
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE items (key INTEGER PRIMARY KEY, name TEXT, size REAL)")
        rows = [(item.key, item.name, item.size) for item in items]
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
        tail = f"{condition[0]}{statements.order(query, 'key')}{statements.page(query)}"
        return [key for (key,) in connection.execute(f"SELECT key FROM items{tail}", condition[1])]


@given(QUERIES, ITEMS)
def test_sql_gives_the_answer_of_the_pure_function(query: Query, items: list[Item]) -> None:
    in_sql = answer_in_sql(query, items)

    if in_sql is None:
        assert any(
            "\ud800" in str(condition.value) or "ud800" in repr(condition.value)
            for condition in query.conditions
        )
    else:
        assert in_sql == [item.key for item in query.select(items)]


@given(QUERIES, ITEMS)
def test_a_page_is_cut_out_of_the_whole_answer(query: Query, items: list[Item]) -> None:
    page = query.select(items)
    whole = Query(query.conditions, query.logic, query.sort_by, query.descending).select(items)

    assert (page.total, page.limit, page.offset) == (len(whole), query.limit, query.offset)
    end = None if query.limit < 0 else query.offset + query.limit
    assert list(page) == list(whole)[query.offset : end]


@pytest.mark.parametrize("descending", [True, False])
def test_nothing_sorts_last_and_ties_keep_their_order(descending: bool) -> None:
    items = [Item(0, None, 1.0), Item(1, "b", math.nan), Item(2, "a", 2.0), Item(3, "b", None)]

    by_name = Query(sort_by="name", descending=descending).arrange(items)
    by_size = Query(sort_by="size", descending=descending).arrange(items)

    assert [item.key for item in by_name] == ([1, 3, 2, 0] if descending else [2, 1, 3, 0])
    assert [item.key for item in by_size] == ([2, 0, 1, 3] if descending else [0, 2, 1, 3])


def test_without_conditions_everything_matches_and_an_empty_list_matches_nothing() -> None:
    items = [Item(0, "a", None), Item(1, None, None)]

    assert len(Query(logic="or").select(items)) == 2
    assert len(make_query(within("name", []), sortable=[]).select(items)) == 0
    assert len(make_query(within("name", None), sortable=[]).select(items)) == 2


def test_missing_text_fulfils_no_condition() -> None:
    nothing = Item(0, None, None)

    for condition in (equals("name", ""), contains("name", ""), within("name", ["", "None"])):
        assert condition is not None
        assert not condition.holds(nothing)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sort_by": "weight"},
        {"sort_by": ""},
        {"sort_order": "up"},
        {"filter_logic": "xor"},
        {"limit": -2},
        {"limit": 1.5},
        {"limit": True},
        {"limit": None},
        {"offset": -1},
        {"offset": "0"},
    ],
)
def test_an_argument_out_of_range_is_refused(arguments: Any) -> None:
    with pytest.raises(InvalidArgument):
        make_query(sortable=["name"], **arguments)


def test_conditions_on_what_is_no_text_are_refused() -> None:
    makes: list[Callable[[], object]] = [
        lambda: equals("name", 1),  # type: ignore[arg-type]
        lambda: contains("name", b"a"),  # type: ignore[arg-type]
        lambda: within("name", "abc"),
        lambda: within("name", [None]),  # type: ignore[list-item]
        lambda: within("status", ["runing"], frozenset({"running"})),
    ]
    for make in makes:
        with pytest.raises(InvalidArgument):
            make()


@given(st.lists(st.text(max_size=2), max_size=1_200))
def test_values_are_looked_up_in_few_different_shapes(values: list[str]) -> None:
    parts = statements.in_parts(values)

    assert {value for _, part in parts for value in part} == set(values)
    assert {text.count("?") for text, _ in parts} <= {1 << power for power in range(10)}
    assert all(text.count("?") == len(part) for text, part in parts)
