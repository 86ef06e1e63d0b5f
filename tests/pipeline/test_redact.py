from __future__ import annotations

import copy
import json
import logging
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentlightning.adapter import TracerTraceToTriplet
from agentlightning.dialects.model_call import Choice, ModelCall, PolicySpan, ToolCall
from agentlightning.dialects.spans.genai import call_attributes, read_call
from agentlightning.pipeline import Chain, RedactionRule, Redactor, SecretFilter
from agentlightning.pipeline.rules import is_card_number, is_cnpj, is_cpf
from agentlightning.types import Event, Link, OtelResource, Span, SpanContext, TraceStatus

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
SECRETS = {
    "openai": "sk-proj-Ab12Cd34Ef56Gh78Ij90Kl",
    "anthropic": "sk-ant-api03-Ab12Cd34Ef56Gh78",
    "github": "ghp_Ab12Cd34Ef56Gh78Ij90Kl12Mn34Op56Qr78",
    "github fine-grained": "github_pat_11ABCDEFG0Ab12Cd34Ef56Gh78",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "google": "AIzaSyA1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q",
    "slack": "xoxb-123456789012-Ab12Cd34Ef56",
    "stripe": "sk_live_Ab12Cd34Ef56Gh78",
    "hugging face": "hf_Ab12Cd34Ef56Gh78Ij90",
    "jwt": JWT,
    "visa": "4111111111111111",
    "visa with spaces": "4111 1111 1111 1111",
    "amex": "3782-822463-10005",
    "mastercard": "5555555555554444",
    "e-mail": "ada.lovelace+test@example.co.uk",
    "phone": "+55 (11) 91234-5678",
    "phone us": "(555) 123-4567",
    "phone br": "(11) 91234-5678",
    "cpf": "529.982.247-25",
    "cpf plain": "52998224725",
    "cnpj": "11.222.333/0001-81",
    "cnpj plain": "11222333000181",
    "cnpj with letters": "12.ABC.345/01DE-35",
}
CONTEXTUAL = {
    "Authorization: Bearer Ab12Cd34Ef56": "Ab12Cd34Ef56",
    "authorization: basic dXNlcjpwYXNz": "dXNlcjpwYXNz",
    "OPENAI_API_KEY=plainkeywithoutform": "plainkeywithoutform",
    'config = {"password": "hunter2222"}': "hunter2222",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY": "wJalrXUtnFEMI",
    "postgresql://user:s3cr3tpw@db.local/x": "s3cr3tpw",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----": "MIIEow",
    "-----BEGIN PRIVATE KEY-----\nMIIEcutoff": "MIIEcutoff",
    "https://hooks.slack.com/services/T000/B000/XXXXyyyy": "T000/B000",
}
HARMLESS = [
    "sk-learn is a library",
    "task-manager-with-a-long-name-of-parts",
    "max_tokens: 1024, token_ids: [1, 2, 3]",
    "order 4111111111111112",
    "1763642668000000000",
    "at-0123456789ab ro-0123456789ab",
    "123e4567-e89b-12d3-a456-426614174000",
    "2026-11-20 12:44:28.123456",
    "192.168.100.200:8080",
    "12 + 34 = 46, 5+12345678",
    "0.1234567890123456 -9999.0",
    "the bearer certificates of a basic self-assessment",
    "529.982.247-26",
    "11.222.333/0001-82",
    "00000000000",
    "user@localhost",
    "3 5 6 7 8 1 2 3 4 5 6 7 8 9 1 2 3",
]

redactor = Redactor()


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("frame", ["{}", "say {}.", "({})", '"{}"', "a\n{}\nb", "x={},y"])
def test_a_secret_is_masked_wherever_it_stands_in_a_text(secret: str, frame: str) -> None:
    masked = redactor.text(frame.format(secret))

    assert secret not in masked
    assert "[redacted:" in masked


@pytest.mark.parametrize(("text", "secret"), CONTEXTUAL.items())
def test_a_secret_that_only_its_context_tells_is_masked(text: str, secret: str) -> None:
    masked = redactor.text(text)

    assert secret not in masked
    assert "[redacted:" in masked


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_resembles_a_secret_stays(text: str) -> None:
    assert redactor.text(text) == text


def test_the_marker_names_the_rule_and_keeps_what_is_around() -> None:
    assert redactor.text("mail bob@example.com now") == "mail [redacted:email] now"
    assert redactor.text("Authorization: Bearer Ab12Cd34Ef56") == "Authorization: Bearer [redacted:bearer]"


def test_check_digits_are_verified() -> None:
    assert is_cpf("529.982.247-25")
    assert not is_cpf("529.982.247-24")
    assert not is_cpf("111.111.111-11")
    assert is_cnpj("12.ABC.345/01DE-35")
    assert is_cnpj("11.222.333/0001-81")
    assert not is_cnpj("11.222.333/0001-80")
    assert is_card_number("4111 1111 1111 1111")
    assert is_card_number("2221000000000009")
    assert not is_card_number("4111 1111 1111 1112")
    assert not is_card_number("1111111111111117")


secrets = st.sampled_from(sorted({*SECRETS.values(), *CONTEXTUAL}))
texts = st.lists(
    st.text(max_size=6) | secrets | st.sampled_from(["@", "sk-", "+", "[redacted:x]", " "]), max_size=6
).map("".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(texts, inner, max_size=3)
    | inner.map(json.dumps),
    max_leaves=6,
)
some = settings(max_examples=60)


@some
@given(values)
def test_masking_twice_is_masking_once(value: Any) -> None:
    before = copy.deepcopy(value)
    once = redactor.value(value)

    assert repr(redactor.value(once)) == repr(once)
    assert repr(value) == repr(before)


@some
@given(
    st.text(alphabet="abc ", max_size=5),
    st.sampled_from(sorted(SECRETS.values())),
    st.text(alphabet="xyz ", max_size=5),
)
def test_no_planted_secret_survives_in_any_structure(before: str, secret: str, after: str) -> None:
    text = f"{before} {secret} {after}"
    arguments = json.dumps({"q": [text, {"deep": text}]})

    masked = redactor.value(
        {"a": text, text: 1, "b": [text, {"c": (text,)}], "json": arguments, "twice": json.dumps(arguments)}
    )

    assert secret not in json.dumps(masked, ensure_ascii=False)
    assert secret not in json.loads(json.loads(masked["twice"]))["q"][0]


@some
@given(texts)
def test_hints_save_time_and_change_nothing(text: str) -> None:
    without = Redactor([replace(rule, hints=()) for rule in redactor.rules])

    assert redactor.text(text) == without.text(text)


def test_numbers_are_masked_too() -> None:
    assert redactor.value([4111111111111111, 52998224725, 5, 1.5, True]) == [
        "[redacted:card]",
        "[redacted:cpf]",
        5,
        1.5,
        True,
    ]
    assert redactor.value({"n": 4111111111111111.0}) == {"n": "[redacted:card]"}
    assert redactor.value([1, 2, 3]) == [1, 2, 3]


def test_the_value_under_a_telling_key_is_masked_whatever_it_is() -> None:
    value = {
        "headers": {"Authorization": "x", "X-API-Key": "y"},
        "password": ["a"],
        "user.client_secret": 7,
        "cookie": "",
    }

    assert redactor.value(value) == {
        "headers": {"Authorization": "[redacted:key]", "X-API-Key": "[redacted:key]"},
        "password": "[redacted:key]",
        "user.client_secret": "[redacted:key]",
        "cookie": "",
    }


def test_a_repeated_key_of_json_hides_nothing() -> None:
    masked = redactor.value('{"a": "sk-proj-Ab12Cd34Ef56Gh78Ij90Kl", "a": "x"}')

    assert "Ab12Cd34" not in masked


def test_escapes_in_json_hide_nothing() -> None:
    masked = redactor.value('{"a": "bob\\u0040example.com"}')

    assert json.loads(masked) == {"a": "[redacted:email]"}


def test_a_secret_that_is_split_over_items_is_masked() -> None:
    pieces = ["my key: ", "sk-", "proj-Ab12", "Cd34Ef56Gh78", "Ij90Kl", " ok"]

    assert redactor.value(pieces) == ["my key: ", *["[redacted:openai_key]"] * 4, " ok"]
    masked = redactor.value([{"token": piece, "logprob": -0.1} for piece in pieces])
    assert [entry["token"] for entry in masked] == redactor.value(pieces)


def test_two_keys_that_become_one_marker_both_stay() -> None:
    assert redactor.value({"a@example.com": 1, "b@example.com": 2}) == {
        "[redacted:email]": 1,
        "[redacted:email]#2": 2,
    }


def test_json_that_is_clean_stays_byte_for_byte() -> None:
    text = '{"b":1e5,  "a":[1.0,"\\u00e9"]}'

    assert redactor.value(text) == text


# ------------------------------------------------------------------ rules


def test_more_rules_may_be_given() -> None:
    house = Redactor(
        [RedactionRule("badge", re.compile(r"B-(?P<secret>\d{4})"), lambda text: text != "0000")]
    )

    assert house.text("B-1234 B-0000 a@example.com") == "B-[redacted:badge] B-0000 a@example.com"
    assert repr(house) == "Redactor(badge)"
    with pytest.raises(ValueError, match="the name of a rule"):
        RedactionRule("bad]", re.compile("x"))


def test_a_value_whose_check_fails_is_replaced_and_costs_no_other() -> None:
    def broken(text: str) -> bool:
        raise RuntimeError(text)

    house = Redactor([RedactionRule("broken", re.compile("x"), broken)])

    assert house.value({"a": "xyz", "b": "abc"}) == {"a": "[redacted:error]", "b": "abc"}


def test_a_rule_that_never_settles_masks_the_whole_value() -> None:
    house = Redactor([RedactionRule("loop", re.compile("redacted"))])

    assert house.text("redacted") == "[redacted:error]"


def test_a_text_nested_deeper_than_python_recurses_does_not_pass_unseen() -> None:
    deep = "[" * 5_000 + '"bob@example.com"' + "]" * 5_000

    assert "bob@example.com" not in redactor.value(deep)


# ------------------------------------------------------------------ spans


CHOICE = Choice(
    content="fine", token_ids=(3, 4), logprobs=(-0.1, -0.2), finish_reason="stop", token_capture="valid"
)
CALL = ModelCall(
    request_model="policy",
    request_messages=({"role": "user", "content": "hello"},),
    choices=(CHOICE,),
    prompt_token_ids=(70001, 70002),
    sampling_requested={"logprobs": True},
    sampling_effective={"temperature": 1.0},
    sampling_defaults={},
    logprob_kind="processed",
    token_capture="valid",
)


def call_span(call: ModelCall = CALL, **changes: Any) -> Span:
    span = Span.from_attributes(
        attributes=call_attributes(call), rollout_id="ro-1", attempt_id="at-1", name="chat policy"
    )
    return span.model_copy(update=changes)


def planted(secret: str) -> Span:
    unknown: dict[str, Any] = {"kind": [secret], "place": {"deep": secret}}
    context = SpanContext(
        trace_id="a" * 32, span_id="b" * 16, is_remote=False, trace_state={"vendor": secret}, **unknown
    )
    return call_span(
        **unknown,
        name=f"call {secret}",
        status=TraceStatus(status_code="ERROR", description=f"refused {secret}", **unknown),
        events=[
            Event(
                name=f"event {secret}",
                attributes={"message": secret, secret: [secret]},
                timestamp=1.0,
                **unknown,
            )
        ],
        links=[Link(context=context, attributes={"why": {"deep": secret}}, **unknown)],
        context=context,
        parent=context,
        resource=OtelResource(attributes={"host": secret}, schema_url=f"https://x/{secret}"),
        attributes={
            **call_attributes(CALL),
            "text": f"say {secret} again",
            f"key {secret}": 1,
            "gen_ai.tool.call.arguments": json.dumps({"body": json.dumps({"x": secret})}),
            "list": [1, secret, None],
        },
    )


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_no_secret_survives_in_any_field_of_a_span(secret: str) -> None:
    span = planted(secret)
    before = copy.deepcopy(span)

    masked = redactor.span(span)
    document = masked.model_dump_json()

    assert secret not in document
    assert json.dumps(secret)[1:-1] not in document
    assert span == before
    assert redactor.span(masked) is masked
    assert (masked.rollout_id, masked.attempt_id, masked.span_id) == ("ro-1", "at-1", span.span_id)


def test_a_span_without_secrets_is_the_very_same_span() -> None:
    span = call_span()

    assert redactor.span(span) is span
    assert Chain([redactor])(span) is span


def masked_call(call: ModelCall, **extra: Any) -> Span:
    span = call_span(call)
    span.attributes.update(extra)
    return redactor.span(span)


@pytest.mark.parametrize(
    "call",
    [
        replace(CALL, request_messages=({"role": "user", "content": "I am bob@example.com"},)),
        replace(CALL, choices=(replace(CHOICE, content="write to bob@example.com"),)),
        replace(
            CALL, choices=(replace(CHOICE, tool_calls=(ToolCall("1", "mail", '{"to": "bob@example.com"}'),)),)
        ),
        replace(
            CALL,
            request_messages=(
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "bob@"}, {"type": "text", "text": "example.com"}],
                },
            ),
        ),
    ],
    ids=["request", "response", "tool call", "split over parts"],
)
def test_a_call_with_a_match_loses_all_its_ids_and_is_not_trained_on(call: ModelCall) -> None:
    span = masked_call(call)
    document = span.model_dump_json()
    record = read_call(span)

    assert "example.com" not in document
    assert "70001" not in document
    assert "-0.1" not in document
    assert span.attributes["agentlightning.redacted"] is True
    assert span.attributes["agentlightning.untrainable"] == "redacted"
    assert record is not None
    assert record.token_capture == "invalid(redacted)"
    assert record.sampling_requested == {"logprobs": True}
    assert TracerTraceToTriplet().adapt([span]) == []
    assert TracerTraceToTriplet().explain([span]).skipped == {"redacted": 1}
    assert redactor.span(span) is span


def test_a_call_with_a_match_loses_everything_that_was_captured_of_each_token() -> None:
    choice = replace(
        CHOICE,
        policy=(PolicySpan("v70017", 0, 2),),
        routed_experts="ZXhwZXJ0cw==",
        sampling_mask=[[3, 70018], None],
    )
    call = replace(
        CALL,
        request_messages=({"role": "user", "content": "bob@example.com"},),
        choices=(choice,),
        prompt_logprobs=(None, -7.25),
    )
    body = {
        "choices": [{"routed_experts": "ZXhwZXJ0cw==", "hidden_states": [-7.25], "sampling_mask": [[70018]]}]
    }

    span = masked_call(call, body=json.dumps(body))
    record = read_call(span)

    document = span.model_dump_json()
    assert [said for said in ("v70017", "70018", "ZXhwZXJ0cw", "-7.25") if said in document] == []
    assert record is not None
    assert record.prompt_logprobs is None
    assert [(each.policy, each.routed_experts, each.sampling_mask) for each in record.choices] == [
        ((), None, None)
    ]
    assert "attribute_unreadable" not in [issue.code for issue in record.issues]


def test_ids_in_other_forms_are_masked_too() -> None:
    call = replace(CALL, request_messages=({"role": "user", "content": "bob@example.com"},))
    forms = {
        "prompt_token_ids": [70001],
        "llm.hosted_vllm.response_token_ids": "[[70001]]",
        "llm.hosted_vllm.choices": "[{'token_ids': [70001], 'x': None}]",
        "logprobs.content": json.dumps(
            [{"token": "bo", "logprob": -0.12, "bytes": [98, 111], "top_logprobs": []}]
        ),
        "raw": json.dumps(
            {"choices": [{"token_ids": [70001], "logprobs": {"content": [{"token": "token_id:70001"}]}}]}
        ),
        "strings": "token_id:70001",
        "gen_ai.request.logprobs": True,
    }

    span = masked_call(call, **forms)

    assert "70001" not in span.model_dump_json()
    assert "-0.12" not in span.model_dump_json()
    assert span.attributes["gen_ai.request.logprobs"] is True


def test_ids_without_the_text_that_they_decode_to_are_masked() -> None:
    sent_as_ids = replace(CALL, operation="text_completion", request_messages=(), prompt=[70001, 70002])
    silent = replace(CALL, choices=(replace(CHOICE, content=None),))

    for call in (sent_as_ids, silent):
        span = masked_call(call)
        assert "70001" not in span.model_dump_json()
        assert span.attributes["agentlightning.untrainable"] == "redacted"


def test_a_match_in_what_surrounds_a_call_costs_no_tokens() -> None:
    span = call_span(resource=OtelResource(attributes={"owner": "bob@example.com"}))

    masked = redactor.span(span)

    assert masked.resource.attributes == {"owner": "[redacted:email]"}
    assert masked.attributes == {**span.attributes, "agentlightning.redacted": True}
    assert len(TracerTraceToTriplet().adapt([masked])) == 1


def test_other_spans_are_masked_without_a_mark() -> None:
    span = Span.from_attributes(attributes={"tool.result": "bob@example.com", "ids": [1, 2]}, name="tool")

    masked = redactor.span(span)

    assert masked.attributes == {
        "tool.result": "[redacted:email]",
        "ids": [1, 2],
        "agentlightning.redacted": True,
    }


def test_without_redaction_the_rows_are_the_same_byte_for_byte() -> None:
    spans = [planted(secret) for secret in SECRETS.values()]
    before = [row.model_dump_json() for row in TracerTraceToTriplet().adapt(spans)]
    passed = [span for span in map(Chain(), spans) if span is not None]

    assert [row.model_dump_json() for row in TracerTraceToTriplet().adapt(passed)] == before
    assert len(before) == len(spans)


# ------------------------------------------------------------------ logs


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Any:
    secret_filter = SecretFilter()
    caplog.handler.addFilter(secret_filter)
    yield caplog
    caplog.handler.removeFilter(secret_filter)


def test_keys_are_masked_in_log_lines(log: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("agentlightning.some.module")
    try:
        raise ValueError("bad key sk-proj-Ab12Cd34Ef56Gh78Ij90Kl")
    except ValueError:
        logger.exception("calling with %s and %d", "Bearer Ab12Cd34Ef56", 7, stack_info=True)
    logger.warning("all is well with %s", "bob@example.com")
    logger.warning("no argument %s")

    assert "Ab12Cd34" not in log.text
    assert "calling with Bearer [redacted:bearer] and 7" in log.text
    assert "ValueError: bad key [redacted:openai_key]" in log.text
    assert "all is well with bob@example.com" in log.text


def test_a_record_that_cannot_be_printed_is_replaced() -> None:
    record = logging.LogRecord(
        "x", logging.INFO, "f", 1, "%d sk-proj-Ab12Cd34Ef56Gh78Ij90Kl", ("word",), None
    )

    assert SecretFilter().filter(record)
    assert record.getMessage() == "[redacted:error]"


def test_many_keys_that_become_one_marker_are_numbered_in_linear_time() -> None:
    """Counted by lookups and not by time: each name is looked up twice at most."""
    keys = 3_000
    masked = Redactor().value({f"user{number}@example.com": number for number in range(keys)})
    assert list(masked) == ["[redacted:email]", *(f"[redacted:email]#{n}" for n in range(2, keys + 1))]
    assert list(masked.values()) == list(range(keys))
    assert Redactor().value(masked) == masked
