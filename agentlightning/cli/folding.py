"""The spans of an attempt as a tree that fits on a page: repeats are one line, long lists and deep chains are cut.

Nothing here recurses (traces may be nested deeper than Python is), and each step looks at every span a bounded number
of times. What is folded is never gone: whoever draws a line has all the spans that it stands for, to count what failed,
what is open and what is late among them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

from ..types import Span

PAGE = 40
"""Lines of a tree that are shown at most, unless all are asked for."""
_LONGEST_CYCLE = 6
"""Spans in a row that are looked at as one turn of a loop."""
_REPEATS = 3
"""Repeats from which on they are folded."""
_LIMITS = ((40, 16), (24, 12), (16, 10), (12, 8), (9, 7), (7, 6), (5, 5), (4, 4), (3, 3))
"""Children of one span, and levels, that are shown: each is tried until the tree fits. The last always does."""


@dataclass(slots=True, eq=False)
class Node:
    """A span and what happened inside it."""

    span: Span
    open: bool
    children: list[Node] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Item:
    """What stands on one line: a span, spans that repeat each other, a loop, or what is cut."""

    nodes: list[Node]
    """The spans of this line itself; of a loop, its turns' first spans."""
    children: list[Item] = field(default_factory=list)
    is_loop: bool = False
    """Whether the children are the steps of a turn, each with the spans of all turns."""
    is_cut: bool = False
    """Whether this stands for spans that are not shown: ``nodes``, and everything inside of them."""


@dataclass(frozen=True, slots=True)
class Line:
    """An item at its place: how deep, and below which ancestors lines go on."""

    item: Item
    depth: int
    is_last: bool
    open_levels: tuple[bool, ...]
    """For each ancestor but the root: whether it has later siblings."""


Key = Callable[[Node], Hashable]
"""What spans have in common that repeat each other."""


def tree(ended: Sequence[Span], opened: Sequence[Span]) -> list[Node]:
    """Return the roots, siblings by start; a span whose parent is not here is a root.

    Parents that form a circle, as broken data may, are opened at their first span.
    """
    # By time, then by number: an open span has no number yet (0). One without a time stands behind the one that was
    # stored before it.
    moments: dict[int, float] = {}
    last = 0.0
    for span in sorted([*ended, *opened], key=lambda span: span.sequence_id):
        last = moments[id(span)] = span.start_time or last
    spans = sorted([*ended, *opened], key=lambda span: (moments[id(span)], span.sequence_id))
    is_open = {span.span_id for span in opened}
    nodes: dict[str, Node] = {}
    for span in spans:
        nodes.setdefault(span.span_id, Node(span, span.span_id in is_open))
    roots: list[Node] = []
    for node in nodes.values():
        parent = nodes.get(str(node.span.parent_id))
        (roots if parent is None else parent.children).append(node)
    reached = {id(node) for root in roots for node in walk(root)}
    for node in nodes.values():
        # Only spans in a circle are reached from no root.
        if id(node) not in reached:
            nodes[str(node.span.parent_id)].children.remove(node)
            roots.append(node)
            reached.update(id(below) for below in walk(node))
    return roots


def walk(node: Node) -> Iterator[Node]:
    """Yield a node and everything inside it, depth first."""
    pending = [node]
    while pending:
        found = pending.pop()
        yield found
        pending.extend(reversed(found.children))


def whole(roots: Sequence[Node]) -> list[Item]:
    """Return an item for each span."""
    made = [Item([root]) for root in roots]
    pending = list(made)
    while pending:
        item = pending.pop()
        item.children = [Item([child]) for child in item.nodes[0].children]
        pending += item.children
    return made


def page(roots: Sequence[Node], key: Key, lines: int = PAGE) -> list[Item]:
    """Return items that take at most so many lines; as many spans as there are lines are shown one by one."""
    if sum(1 for root in roots for _ in walk(root)) <= lines:
        return whole(roots)
    kinds = _kinds(roots, key)
    items = _folded(roots, kinds)
    if _height(items, lines) <= lines:
        return items
    for width, depth in _LIMITS:
        cut = _cut(items, width, depth)
        if _height(cut, lines) <= lines:
            break
    return cut


def drawn(items: Sequence[Item]) -> Iterator[Line]:
    """Yield the lines, depth first."""
    pending = [Line(item, 0, place == len(items) - 1, ()) for place, item in reversed([*enumerate(items)])]
    while pending:
        line = pending.pop()
        yield line
        below = (*line.open_levels, not line.is_last) if line.depth else ()
        if line.depth > _DEEPEST_GUIDE:
            below = line.open_levels  # no longer: what is so deep is numbered, and its guides are not drawn
        count = len(line.item.children)
        pending.extend(
            Line(child, line.depth + 1, place == count - 1, below)
            for place, child in reversed([*enumerate(line.item.children)])
        )


_DEEPEST_GUIDE = 64


def hidden(item: Item) -> Iterator[Node]:
    """Yield all spans of an item that is cut."""
    for node in item.nodes:
        yield from walk(node)


# ---------------------------------------------------------------------- folding


def _kinds(roots: Sequence[Node], key: Key) -> dict[int, int]:
    """Return id of a node → a number; nodes with one number have one key and do the same things inside."""
    numbers: dict[Hashable, int] = {}
    kinds: dict[int, int] = {}
    # From the leaves up: a node comes after its parent, so backwards it comes before.
    for node in reversed([node for root in roots for node in walk(root)]):
        # The steps, whatever their number and order: turns of a loop inside differ from run to run.
        inside = frozenset(kinds[id(child)] for child in node.children)
        kinds[id(node)] = numbers.setdefault((key(node), inside), len(numbers))
    return kinds


def _folded(roots: Sequence[Node], kinds: dict[int, int]) -> list[Item]:
    top = _runs(roots, kinds)
    pending = list(top)
    while pending:
        item = pending.pop()
        if not item.is_loop:
            if len(item.nodes) == 1:
                item.children = _runs(item.nodes[0].children, kinds)
            else:
                item.children = _merged([child for node in item.nodes for child in node.children], kinds)
        pending += item.children
    return top


def _runs(nodes: Sequence[Node], kinds: dict[int, int]) -> list[Item]:
    """Return the items of siblings: a run of one kind, and a run of equal turns, is one item."""
    found: list[Item] = []
    place, ids = 0, [kinds[id(node)] for node in nodes]
    while place < len(nodes):
        period, turns = _best_cycle(ids, place)
        end = place + period * turns
        if turns < _REPEATS:
            found.append(Item([nodes[place]]))
            place += 1
        elif period == 1:
            found.append(Item(list(nodes[place:end])))
            place = end
        else:
            steps = [Item(list(nodes[place + step : end : period])) for step in range(period)]
            found.append(Item(list(nodes[place:end:period]), steps, is_loop=True))
            place = end
    return found


def _best_cycle(ids: Sequence[int], place: int) -> tuple[int, int]:
    """Return the period that covers most of what follows, and how often it repeats; the shortest of equals."""
    best = (1, 1)
    for period in range(1, _LONGEST_CYCLE + 1):
        turns, end = 1, place + period
        while end + period <= len(ids) and ids[end : end + period] == ids[place : place + period]:
            turns, end = turns + 1, end + period
        if turns >= _REPEATS and period * turns > best[0] * best[1]:
            best = period, turns
    return best


def _merged(nodes: Sequence[Node], kinds: dict[int, int]) -> list[Item]:
    """Return one item for each kind, in the order in which the kinds came."""
    by_kind: dict[int, list[Node]] = {}
    for node in nodes:
        by_kind.setdefault(kinds[id(node)], []).append(node)
    return [Item(same) for same in by_kind.values()]


def _height(items: Sequence[Item], most: int) -> int:
    """Return how many lines items take; counting ends beyond ``most``."""
    count, pending = 0, list(items)
    while pending and count <= most:
        count += 1
        pending += pending.pop().children
    return count


def _cut(items: Sequence[Item], width: int, depth: int) -> list[Item]:
    """Return the items with at most ``width`` siblings side by side and ``depth`` levels; the middle is cut."""
    top = _shortened(items, width)
    pending = [(item, 1) for item in top]
    while pending:
        item, level = pending.pop()
        if item.is_cut or not item.children:
            continue
        if level >= depth:
            item.children = [Item(_nodes_of(item.children), is_cut=True)]
            continue
        item.children = _shortened(item.children, width)
        pending += [(child, level + 1) for child in item.children]
    return top


def _shortened(items: Sequence[Item], width: int) -> list[Item]:
    copies = [Item(item.nodes, item.children, item.is_loop, item.is_cut) for item in items]
    if len(copies) <= width:
        return copies
    # How it began says most, and how it ended.
    tail = max(1, (width - 1) // 3)
    head = width - 1 - tail
    between = copies[head : len(copies) - tail]
    return [*copies[:head], Item(_nodes_of(between), is_cut=True), *copies[len(copies) - tail :]]


def _nodes_of(items: Sequence[Item]) -> list[Node]:
    """Return the spans that items stand for themselves; of a loop, those of all steps."""
    found: list[Node] = []
    for item in items:
        if item.is_loop:
            found += [node for step in item.children for node in step.nodes]
        else:
            found += item.nodes
    return found
