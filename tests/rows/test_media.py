"""Images stand in ids as placeholders: prompts with other images are other prompts, and rows with images say so."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from conversations import ROOT_ID, call, work

from agentlightning.dialects.model_call import ModelCall
from agentlightning.rows import build_rows
from agentlightning.rows.flat import training_row
from agentlightning.rows.media import MediaReader, media_of
from agentlightning.types import Span

ROOT = work(ROOT_ID, None, 0.0, 1000.0)


def picture(data: bytes) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def asked(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "what is this?"}, *parts]}]


CAT, DOG = picture(b"cat"), picture(b"dog")


def rows_of(*spans: Span) -> list[tuple[int, ...]]:
    return [row.token_ids for row in build_rows([ROOT, *spans])]


def test_the_same_ids_with_another_image_are_not_the_same_prompt() -> None:
    cat, dog = call(1, (1, 99), (2,), asked=asked(CAT)), call(2, (1, 99), (3,), asked=asked(DOG))
    after_dog = call(3, (1, 99, 3, 4), (5,), asked=asked(DOG))

    assert rows_of(cat, dog, after_dog) == [(1, 99, 2), (1, 99, 3, 4, 5)]
    assert build_rows([ROOT, cat, dog, after_dog]).counts == {}  # nobody gave the answer on the cat up


def test_an_answer_on_another_image_is_not_what_a_prompt_goes_on_from() -> None:
    cat = call(1, (1, 99), (2,), asked=asked(CAT))
    after_dog = call(2, (1, 99, 2, 4), (5,), asked=asked(DOG))
    after_cat = call(3, (1, 99, 2, 4, 98), (6,), asked=asked(CAT, DOG))

    assert rows_of(cat, after_dog) == [(1, 99, 2), (1, 99, 2, 4, 5)]
    assert rows_of(cat, after_cat) == [(1, 99, 2, 4, 98, 6)]


def test_a_retry_with_another_image_is_another_question() -> None:
    other, again = (call(2, (1, 99), (3,), asked=asked(picture)) for picture in (DOG, CAT))
    cut, half = (call(1, (1, 99), (2,), finish=why, asked=asked(CAT)) for why in ("length", "abort"))

    assert rows_of(cut, other) == [(1, 99, 2), (1, 99, 3)]
    assert rows_of(cut, again) == rows_of(half, again) == rows_of(half, other) == [(1, 99, 3)]
    assert build_rows([ROOT, half, again]).counts == {"asked_again": 1}
    assert build_rows([ROOT, half, other]).counts == {"broken_off": 1}


def test_a_row_carries_the_hashes_of_what_the_policy_saw() -> None:
    (row,) = build_rows([ROOT, call(1, (1, 99), (2,), asked=asked(CAT, DOG))])

    digests = [hashlib.sha256(data).hexdigest() for data in (b"cat", b"dog")]
    assert [(each.kind, each.sha256) for each in row.media] == [("image_url", digest) for digest in digests]
    assert json.loads(json.dumps(training_row(row)))["media"][1] == {
        "kind": "image_url",
        "sha256": digests[1],
    }
    (text,) = build_rows([ROOT, call(1, (1,), (2,), asked=asked())])
    assert text.media == ()


PARTS: list[Any] = [
    {"type": "image_url", "image_url": "https://example.com/a.png"},
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,???"}},
    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    {"type": "file", "file": {"file_id": "file-1"}},
    {"type": "video_url"},
    {"type": 7},
]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_whatever_is_no_text_is_media_and_costs_no_exception(part: Any) -> None:
    (row,) = build_rows([ROOT, call(1, (1, 99), (2,), asked=asked(part))])

    assert [len(each.sha256) for each in row.media] == [64]


class Looked(dict[str, Any]):
    """A message that counts how often its content is looked at."""

    times = 0

    def get(self, key: str, default: Any = None) -> Any:
        self.times += key == "content"
        return super().get(key, default)


def test_a_message_that_every_call_repeats_is_searched_for_images_once() -> None:
    messages = tuple(map(Looked, [*asked(CAT), {"role": "assistant", "content": "a cat"}, *asked(DOG)]))
    reader = MediaReader()

    found = [reader.read(ModelCall(request_messages=messages[:end])) for end in (1, 2, 3)]

    assert [message.times for message in messages] == [1, 1, 1]
    assert found == [media_of(ModelCall(request_messages=messages[:end])) for end in (1, 2, 3)]


def test_after_other_messages_each_is_searched_anew() -> None:
    cat, dog = tuple(asked(CAT)), tuple(asked(DOG))
    reader = MediaReader()

    for messages in (cat, dog, dog + cat, cat, (), cat + dog):
        record = ModelCall(request_messages=messages)
        assert reader.read(record) == media_of(record)
