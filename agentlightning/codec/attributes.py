"""Nested values ⇄ the flat, dotted attributes of a span; links and tags in that form.

Names and shapes are those of Agent Lightning 0.3's ``utils.otel``. Everything here is a pure function that
changes nothing it is given. ``unflatten_attributes`` undoes ``flatten_attributes`` for any JSON object whose
keys are not empty, hold no dot and do not look like the indices of a list.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .. import semconv
from ..semconv import LightningSpanAttributes, LinkAttributes, SpanFlagAttributes
from ..types.attributes import AttributeValue

if TYPE_CHECKING:
    from ..types import Attributes, SpanLike
    from ..types.semconv import LinkPydanticModel

logger = logging.getLogger(__name__)

T_SpanLike = TypeVar("T_SpanLike", bound="SpanLike")
Nested = dict[str, Any] | list[Any]

_LINK = LightningSpanAttributes.LINK.value
_TAG = LightningSpanAttributes.TAG.value
_TAG_PREFIX = f"{_TAG}."
_LATE_OF = SpanFlagAttributes.LATE_OF.value
_AGENTOPS_TAGS = "agentops.tags"  # of its default_tags, sessions and decorators; agentops/semconv/core.py


def full_qualified_name(obj: type) -> str:
    """Return ``module.QualName`` of a class, without the module for builtins."""
    return obj.__qualname__ if obj.__module__ == "builtins" else f"{obj.__module__}.{obj.__qualname__}"


# ---------------------------------------------------------------------- flat and nested


def flatten_attributes(nested_data: Nested, *, expand_leaf_lists: bool = False) -> dict[str, Any]:
    """Return ``{"a.b": 1, "a.c.0": …}`` for nested dicts and lists.

    Args:
        nested_data: Dicts and lists to any depth; anything else is a leaf and kept as it is.
        expand_leaf_lists: Whether lists of strings or numbers are taken apart too. Lists that OpenTelemetry
            would refuse (mixed types, nested values) always are. Empty dicts and lists are leaves.

    Raises:
        ValueError: A key is not a string, or the value contains itself.
    """
    flat: dict[str, Any] = {}
    pending: list[tuple[str, Any, tuple[int, ...]]] = [("", nested_data, ())]
    while pending:  # a stack of our own: user data may be nested deeper than Python recurses
        prefix, value, above = pending.pop()
        children = _children(value, keep_lists=bool(prefix) and not expand_leaf_lists)
        if children is None:
            flat[prefix] = list(value) if isinstance(value, list) else value
            continue
        if id(value) in above:
            raise ValueError(f"the value at {prefix!r} contains itself")
        below = (*above, id(value))  # one for all children: a list may have thousands
        for key, child in reversed(children):
            if not isinstance(key, str):
                raise _bad_key(key, prefix)
            pending.append((f"{prefix}.{key}" if prefix else key, child, below))
    flat.pop("", None)  # the whole was empty
    return flat


def _bad_key(key: object, prefix: str = "") -> ValueError:
    where = f" under {prefix!r}" if prefix else ""
    return ValueError(f"attribute keys are strings, got {key!r} ({type(key).__name__}){where}")


def _children(value: Any, *, keep_lists: bool) -> list[tuple[Any, Any]] | None:
    """Return the parts that ``value`` is taken apart into, or ``None`` for a leaf."""
    if isinstance(value, dict) and value:
        return list(value.items())
    if isinstance(value, list) and value and not (keep_lists and _is_homogeneous(value)):
        return [(str(index), item) for index, item in enumerate(value)]
    return None


def _is_homogeneous(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    return len(kinds) == 1 and kinds <= {str, bool, int, float}


def unflatten_attributes(flat_data: Mapping[str, Any]) -> Nested:
    """Undo :func:`flatten_attributes`.

    Parts that are exactly ``0 … n-1`` become a list. Where one key is both a value and a prefix of others,
    the longer keys win.
    """
    if "." not in "".join(flat_data):  # as most settings: nothing is nested
        return _list_of(dict(flat_data))
    root: dict[str, Any] = {}
    inner = {id(root)}
    for flat_key in sorted(flat_data, key=lambda key: key.count(".")):
        node: Any = root
        *path, last = flat_key.split(".")
        for part in path:
            child = node.get(part)
            if id(child) not in inner:  # absent, or a value that was a dict itself
                child = node[part] = {}
                inner.add(id(child))
            node = child
        node[last] = flat_data[flat_key]
    return _with_lists(root, inner)


def _with_lists(root: dict[str, Any], inner: set[int]) -> Nested:
    order: list[dict[str, Any]] = [root]
    for node in order:
        order.extend(child for child in node.values() if id(child) in inner)
    done: dict[int, Nested] = {}
    for node in reversed(order):  # children before parents
        built = {
            key: done.get(id(child), child) if id(child) in inner else child for key, child in node.items()
        }
        done[id(node)] = _list_of(built)
    return done[id(root)]


def _list_of(parts: dict[str, Any]) -> Nested:
    """Return parts that are exactly ``0 … n-1`` as a list, and others as they are."""
    if "0" not in parts:
        return parts
    indices = [str(index) for index in range(len(parts))]
    return [parts[index] for index in indices] if set(parts) == set(indices) else parts


def filter_attributes(attributes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the attributes called ``prefix`` or ``prefix.<anything>``."""
    dotted = f"{prefix}."
    return {
        key: value
        for key, value in attributes.items()
        if key.startswith(prefix) and (key == prefix or key.startswith(dotted))
    }


def attributes_below(attributes: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the attributes called ``prefix.<anything>``, by what stands behind the dot."""
    dotted = f"{prefix}."
    return {key[len(dotted) :]: value for key, value in attributes.items() if key.startswith(dotted)}


def filter_and_unflatten_attributes(attributes: Mapping[str, Any], prefix: str) -> Nested:
    """Return what lies under ``prefix.`` as nested data.

    Raises:
        ValueError: There is an attribute that is called ``prefix`` exactly.
    """
    if prefix in attributes:
        raise ValueError(f"attribute {prefix!r} is a value, not a prefix")
    return unflatten_attributes(attributes_below(attributes, prefix))


def indexed_attributes(attributes: Mapping[str, Any], prefix: str) -> list[Any]:
    """Return what lies under ``prefix.<i>`` by index, and skip everything that is no such list.

    Unlike :func:`filter_and_unflatten_attributes` it accepts gaps and strangers between the indices, and
    never raises: spans come from anywhere.
    """
    return list(numbered_attributes(attributes, prefix).values())


def numbered_attributes(attributes: Mapping[str, Any], prefix: str) -> dict[int, Any]:
    """Return what lies under ``prefix.<i>`` as index → value, in the order of the indices; never raises."""
    dotted = f"{prefix}."
    under: dict[str, Any] = {
        key[len(dotted) :]: value for key, value in attributes.items() if str(key).startswith(dotted)
    }
    if not under:
        return {}
    groups: dict[int, dict[str, Any]] = {}
    leaves: dict[int, Any] = {}
    for key, value in under.items():
        head, dot, rest = key.partition(".")
        if not (head.isascii() and head.isdigit() and len(head) < 10):
            continue
        if dot:
            groups.setdefault(int(head), {})[rest] = value
        else:
            leaves[int(head)] = value
    return {
        index: unflatten_attributes(groups[index]) if index in groups else leaves[index]
        for index in sorted({*groups, *leaves})
    }


# ---------------------------------------------------------------------- values that OpenTelemetry takes


def sanitize_attribute_value(object: Any, force: bool = True) -> AttributeValue:  # noqa: A002 - 0.3's name
    """Return a value that every OpenTelemetry release keeps: a primitive, a list of one kind, or JSON text.

    Args:
        object: Anything.
        force: Whether what is no JSON value becomes its ``str``.

    Raises:
        ValueError: ``force`` is false and ``object`` is no JSON value.
    """
    if isinstance(object, (str, bool, int, float)):
        return object
    if isinstance(object, list):
        try:
            return sanitize_list_attribute_sanity(object)
        except ValueError:
            logger.debug("a list of mixed values is kept as JSON text")
    try:
        return json.dumps(object, default=_text if force else None)
    except (TypeError, ValueError, RecursionError) as exc:
        if force:
            return _text(object)
        raise ValueError(f"not a JSON value: {type(object).__name__}") from exc


def _text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a stranger's broken __str__ must not reach user code
        return f"[{type(value).__name__}: no text]"


def sanitize_attributes(attributes: Mapping[str, Any], force: bool = True) -> Attributes:
    """Apply :func:`sanitize_attribute_value` to each value.

    Raises:
        ValueError: ``force`` is false and a value is no JSON value; the message names its key.
    """
    clean: Attributes = {}
    for key, value in attributes.items():
        try:
            clean[key] = sanitize_attribute_value(value, force=force)
        except ValueError as exc:
            raise ValueError(f"attribute {key!r}: {exc}") from exc
    return clean


def sanitize_list_attribute_sanity(maybe_list: Sequence[Any]) -> AttributeValue:
    """Return the list with one element type: numbers of several types become the widest of them.

    Raises:
        ValueError: The list holds something else than strings, booleans and numbers, or mixes them.
    """
    for kinds, widen in (((str,), str), ((bool,), bool), ((bool, int), int), ((bool, int, float), float)):
        if all(isinstance(item, kinds) for item in maybe_list):
            try:
                return [widen(item) for item in maybe_list]
            except OverflowError:
                break
    names = sorted({type(item).__name__ for item in maybe_list})
    raise ValueError(f"a list attribute holds values of one type, got {', '.join(names)}")


def check_attributes_sanity(attributes: Mapping[Any, Any]) -> None:
    """Accept what every OpenTelemetry release keeps.

    Raises:
        ValueError: A key is not a string, or a value is no primitive and no list of one kind of primitives.
    """
    for key, value in attributes.items():
        if not isinstance(key, str):
            raise _bad_key(key)
        if isinstance(value, list):
            try:
                sanitize_list_attribute_sanity(value)
            except ValueError as exc:
                raise ValueError(f"attribute {key!r}: {exc}") from exc
        elif not isinstance(value, (str, bool, int, float)):
            noun = type(value).__name__
            raise ValueError(f"attribute {key!r} is no str, int, float, bool or list of these: {noun}")  # noqa: TRY004 - 0.3's


def format_exception_attributes(exception: BaseException) -> Attributes:
    """Describe an exception by OpenTelemetry's ``exception.*`` attributes (semantic conventions 1.x)."""
    attributes: Attributes = {
        "exception.type": type(exception).__name__,
        "exception.message": _text(exception),
        "exception.escaped": True,
    }
    try:
        stacktrace = "".join(traceback.format_exception(exception))
    except Exception:  # noqa: BLE001 - a stranger's broken __str__ must not reach user code
        stacktrace = ""
    if stacktrace.strip():
        attributes["exception.stacktrace"] = stacktrace
    return attributes


# ---------------------------------------------------------------------- links and tags


def make_tag_attributes(tags: Sequence[str]) -> dict[str, Any]:
    """Return ``agentlightning.tag.<i>`` for each tag; tags are free text."""
    return flatten_attributes({_TAG: list(tags)}, expand_leaf_lists=True) if tags else {}


def extract_tags_from_attributes(attributes: Mapping[str, Any]) -> list[str]:
    """Return the tags in order; what is no tag is skipped."""
    return [tag for tag in indexed_attributes(attributes, _TAG) if isinstance(tag, str)]


def is_late(attributes: Mapping[str, Any]) -> bool:
    """Whether a span started after the ``trace_context`` whose context it was started in had closed."""
    return isinstance(attributes.get(_LATE_OF), str)


def tags_of_span(attributes: Mapping[str, Any]) -> list[str]:
    """Return the tags that a rollout gets from a span: ours, and AgentOps' ``agentops.tags``; unordered."""
    if not _may_have_tags(attributes):
        return []
    found = [
        value
        for key, value in attributes.items()
        if isinstance(key, str) and key.startswith(_TAG_PREFIX) and isinstance(value, str) and _is_index(key)
    ]
    of_agentops = attributes.get(_AGENTOPS_TAGS)
    if isinstance(of_agentops, (list, tuple)):
        found += [tag for tag in of_agentops if isinstance(tag, str)]
    return found


def _may_have_tags(attributes: Mapping[str, Any]) -> bool:
    try:
        # Few spans have any, and this is several times faster than a look at each key.
        return _AGENTOPS_TAGS in attributes or _TAG_PREFIX in "\n".join(attributes)
    except TypeError:  # a key that is no text
        return True


def _is_index(key: str) -> bool:
    place = key[len(_TAG_PREFIX) :]
    return place.isascii() and place.isdigit()


def make_link_attributes(links: Mapping[str, object]) -> dict[str, Any]:
    """Return attributes that point at spans: those that have *all* of these attributes.

    ``{"gen_ai.response.id": "chatcmpl-1"}``; the keys ``span_id`` and ``trace_id`` mean the ids of the span.

    Raises:
        ValueError: A value is not a string.
    """
    flat: dict[str, Any] = {}
    for index, (key, value) in enumerate(links.items()):
        if not isinstance(value, str):
            noun = type(value).__name__
            raise ValueError(f"a link value is a string, got {noun} for {key!r}")  # noqa: TRY004 - 0.3's
        flat[f"{_LINK}.{index}.{LinkAttributes.KEY_MATCH.value}"] = key
        flat[f"{_LINK}.{index}.{LinkAttributes.VALUE_MATCH.value}"] = value
    return flat


def extract_links_from_attributes(attributes: Mapping[str, Any]) -> list[LinkPydanticModel]:
    """Return the links in order; what is no link is skipped."""
    links = []
    for candidate in indexed_attributes(attributes, _LINK):
        try:
            links.append(semconv.LinkPydanticModel.model_validate(candidate))
        except ValueError:
            logger.debug("an attribute under %s is no link", _LINK)
    return links


def query_linked_spans(spans: Sequence[T_SpanLike], links: Sequence[LinkPydanticModel]) -> list[T_SpanLike]:
    """Return the spans that match every link, in their order; without links, all of them.

    Ids and strings match when they are equal, other attribute values when their text is.
    """
    return LinkedSpans(spans).find(links)


class LinkedSpans(Generic[T_SpanLike]):
    """Answers :func:`query_linked_spans` for many links: each key is looked up in all spans once."""

    def __init__(self, spans: Sequence[T_SpanLike]) -> None:
        self._spans = spans
        self._places: dict[str, dict[str, set[int]]] = {}
        """Key → text of its value → places of the spans that have it."""

    def find(self, links: Sequence[LinkPydanticModel]) -> list[T_SpanLike]:
        """Return the spans that match every link, in their order; without links, all of them."""
        if not links:
            return list(self._spans)
        found = [self._by(link.key_match).get(link.value_match, set()) for link in links]
        return [self._spans[place] for place in sorted(set.intersection(*found))]

    def _by(self, key: str) -> dict[str, set[int]]:
        if key not in self._places:
            places: dict[str, set[int]] = {}
            for place, span in enumerate(self._spans):
                value = _linked_value(span, key)
                if value is not None:
                    places.setdefault(_text(value), set()).add(place)
            self._places[key] = places
        return self._places[key]


def _linked_value(span: SpanLike, key: str) -> object:
    if key == "span_id":
        return span_id_of(span)
    return trace_id_of(span) if key == "trace_id" else attributes_of(span).get(key)


# ---------------------------------------------------------------------- our spans and OpenTelemetry's alike


def attributes_of(span: SpanLike) -> Mapping[str, Any]:
    """Return the attributes of our span or of OpenTelemetry's; empty where there are none."""
    attributes = getattr(span, "attributes", None)
    return attributes if type(attributes) is dict or isinstance(attributes, Mapping) else {}


def span_id_of(span: SpanLike) -> str | None:
    """Return the span id as 16 hex digits (ours: as it is stored)."""
    own = getattr(span, "span_id", None)
    if own is not None:
        return str(own)
    context = getattr(span, "context", None)
    return None if context is None else f"{context.span_id:016x}"


def trace_id_of(span: SpanLike) -> str | None:
    """Return the trace id as 32 hex digits (ours: as it is stored)."""
    own = getattr(span, "trace_id", None)
    if own is not None:
        return str(own)
    context = getattr(span, "context", None)
    return None if context is None else f"{context.trace_id:032x}"
