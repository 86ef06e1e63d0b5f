"""Rewards as evaluations of what they are about, in the form in which a receiver takes them.

Receivers of spans show a reward as what stands on its span. As an evaluation of a trace they take it

* by OpenTelemetry's GenAI conventions (0.1.0): an event ``gen_ai.evaluation.result``, a log record beneath the
  span that is evaluated (OTLP/HTTP, ``/v1/logs``);
* Phoenix (20): an annotation of a span (``POST /v1/span_annotations``), one for each name, span and ``identifier``;
* MLflow (3.17): an assessment of a trace (``POST /api/3.0/mlflow/traces/{trace_id}/assessments``), which is written
  once more each time that it is sent, so those that the trace has are asked for before, and before another try.

What is evaluated is the model call that a reward is linked to, by the rule that rows follow, else the attempt: its
first span. A reward that rows refuse is left out.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from .._printable import without_password
from ..codec.otlp_request import LogEvent, encode_events, has_ids_of_otlp
from ..dialects.spans.copies import EVALUATION_EVENT, EVALUATION_NAME, EVALUATION_SCORE, evaluations
from ..errors import ExportRefused
from ..rows.analysis import analyse
from ..rows.matching import RewardMatchPolicy, is_for_rollout
from ..rows.outcome import rewards_of
from ..rows.policy import RowPolicy
from ..rows.reasons import RewardReason
from .posting import Sender, beside_traces, refusal_of, rejected_of

if TYPE_CHECKING:
    from ..types import Span

_JSON = {"Content-Type": "application/json"}
_PROTOBUF = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
_SOURCE = "agentlightning"
_GIVEN_BY = "agentlightning.span_id"
_UNSCORED = "unscored"


class Evaluation(NamedTuple):
    """One dimension of a reward."""

    attributes: Mapping[str, Any]
    """Those of the event ``gen_ai.evaluation.result``."""
    given_by: Span
    """The copy of the span of the reward."""
    of: Span
    """The copy of the span that is evaluated."""

    @property
    def name(self) -> str:
        """That of the dimension."""
        return str(self.attributes[EVALUATION_NAME])

    @property
    def score(self) -> float | None:
        """``None``: the reward is unscored."""
        return self.attributes.get(EVALUATION_SCORE)

    @property
    def ids(self) -> dict[str, str]:
        """What tells where it comes from."""
        span = self.given_by
        return {
            _GIVEN_BY: span.span_id,
            "agentlightning.rollout_id": span.rollout_id,
            "agentlightning.attempt_id": span.attempt_id,
        }


class Evaluations(NamedTuple):
    """Those of an attempt."""

    found: list[Evaluation]
    left_out: tuple[str, ...]
    """Span ids of rewards that rows refuse as well: of an unknown or ambiguous target."""
    replaced: tuple[str, ...] = ()
    """Span ids of rewards that a later one of the same call replaces, in rows as well."""


def evaluations_of(copies: Sequence[Span], spans: Sequence[Span]) -> Evaluations:
    """Return the evaluations of an attempt; what each is about is decided as for rows (``rows.matching``).

    Args:
        copies: The copies of its spans, in their order.
        spans: The spans themselves.
    """
    sent = {span.span_id: span for span in copies if has_ids_of_otlp(span)}
    first = next((span for span in sent.values() if span.parent_id is None), None)
    targets, later = _targets(spans)
    found: list[Evaluation] = []
    left_out: list[str] = []
    replaced: list[str] = []
    for span in sent.values():
        given = evaluations(span.attributes)
        if not given:
            continue
        if span.span_id in later:
            replaced.append(span.span_id)
            continue
        call = targets.get(span.span_id, _REFUSED)
        of = (first or span) if call is None else sent.get(call)
        if of is None:
            left_out.append(span.span_id)
        else:
            found += [Evaluation(each, span, of) for each in given]
    return Evaluations(found, tuple(left_out), tuple(replaced))


_REFUSED = ""


def _targets(spans: Sequence[Span]) -> tuple[dict[str, str | None], set[str]]:
    """Return span id of each reward that counts → that of the call that it is for, and ids of those replaced.

    ``None`` in place of a call is the attempt.
    """
    policy = RowPolicy()
    targets: dict[str, str | None] = {}
    replaced: set[str] = set()
    for analysis in analyse(spans, policy.rules(), RewardMatchPolicy.FIRST_OCCURRENCE):
        rewards = rewards_of(analysis, policy)
        replaced |= {m.span.span_id for m in analysis.rewards if m.reason is RewardReason.REPLACED}
        refused = {match.span.span_id for match in rewards.unknown}
        for match in analysis.rewards:
            if match.span.span_id not in refused and (
                not match.reward.links or is_for_rollout(match.reward.links)
            ):
                targets[match.span.span_id] = None
        targets |= {step.span_id: step.call for step in rewards.steps}
    return targets, replaced


class EvaluationSender(Sender):
    """Sends evaluations to one receiver. Of what they are about, the spans have been sent before.

    ``not_taken`` counts none where the receiver takes no evaluations.
    """

    path: ClassVar[str]

    def send(self, found: Sequence[Evaluation]) -> None:
        """Send evaluations; ``sent`` counts them.

        Raises:
            ExportRefused: The receiver refuses them, or does not answer.
        """
        raise NotImplementedError

    def _post(self, path: str, value: Any, is_done: Callable[[], bool] = lambda: False) -> None:
        url = beside_traces(self._endpoint, path)
        answer = self._ask_unless(is_done, url, json.dumps(value).encode(), _JSON)
        if answer is not None and (refusal := refusal_of(url, answer)) is not None:
            raise refusal


_TAKES_NONE = frozenset({404, 405, 501})
"""How a receiver of traces alone answers log records."""


_DOES_NOT_ANSWER = "does not answer"
_BREAKS_OFF = "breaks off its answers"
_NO_ANSWER_OF_OTLP = "gives no answer of OTLP"
_UNCLEAR = frozenset({_BREAKS_OFF, _NO_ANSWER_OF_OTLP})


class LogRecords(EvaluationSender):
    """Evaluations as log records. A receiver of spans may take none: that is said, and the rewards are in its spans."""

    path = "/v1/logs"
    _has_refused = False
    _takes_none = False

    def send(self, found: Sequence[Evaluation]) -> None:
        """Send evaluations, until the receiver refuses a request; never raises for that."""
        if not found:
            return
        if self._has_refused:
            self.not_taken += 0 if self._takes_none else len(found)
            return
        url = beside_traces(self._endpoint, self.path)
        records = [
            LogEvent(
                EVALUATION_EVENT,
                {**each.attributes, **each.ids},
                each.of.trace_id,
                each.of.span_id,
                each.given_by.start_time,
            )
            for each in found
        ]
        body = gzip.compress(encode_events(records), 5, mtime=0)
        status: int | None = None
        what = _DOES_NOT_ANSWER
        try:
            answer = self._ask(url, body, _PROTOBUF)
            status = answer.status_code
            what = f"answers with HTTP status {status}"
            if refusal_of(url, answer) is None:
                what = _NO_ANSWER_OF_OTLP
                rejected, why = rejected_of(url, answer, len(found))
                self.sent += len(found) - rejected
                self.not_taken += rejected
                if why:
                    self._say(f"{without_password(url)} says: {why}")
                return
        except ExportRefused as error:
            what = _BREAKS_OFF if error.broke_off else what
        self._has_refused = True
        self._takes_none = status in _TAKES_NONE and not self.sent and not self.not_taken
        self.not_taken += 0 if self._takes_none else len(found)
        more = "not sent as log records any more" if self.sent else "not sent as log records"
        if what in _UNCLEAR:
            more = "it may have taken some as log records"
        self._say(f"{without_password(url)} {what}: rewards are on their spans, and {more}")


class PhoenixAnnotations(EvaluationSender):
    """Evaluations as annotations of spans in Phoenix."""

    path = "/v1/span_annotations"

    def send(self, found: Sequence[Evaluation]) -> None:
        """Send evaluations; a second time changes nothing.

        Raises:
            ExportRefused: Phoenix refuses them, or does not answer.
        """
        if not found:
            return
        data = [
            {
                "span_id": each.of.span_id,
                "name": each.name,
                "annotator_kind": "CODE",
                "identifier": each.given_by.span_id,
                "result": {"label": _UNSCORED} if each.score is None else {"score": each.score},
                "metadata": each.ids,
            }
            for each in found
        ]
        self._post(self.path, {"data": data})
        self.sent += len(found)


class MlflowAssessments(EvaluationSender):
    """Evaluations as assessments of traces in MLflow."""

    path = "/api/3.0/mlflow/traces"

    def send(self, found: Sequence[Evaluation]) -> None:
        """Send the evaluations of an attempt that its traces do not have yet.

        Raises:
            ExportRefused: MLflow refuses them, or does not answer.
        """
        present = {trace_id: self._present(trace_id) for trace_id in {each.of.trace_id for each in found}}
        for each in found:
            if not _is_in(present[each.of.trace_id], each):
                self._write(each)
            self.sent += 1

    def _write(self, each: Evaluation) -> None:
        trace = f"tr-{each.of.trace_id}"
        self._post(
            f"{self.path}/{trace}/assessments",
            {"assessment": _assessment(each, trace)},
            is_done=lambda: _is_in(self._present(each.of.trace_id), each),
        )

    def _present(self, trace_id: str) -> set[tuple[str, str]]:
        """Return what an MLflow has already: span of the reward and name of the dimension."""
        url = beside_traces(self._endpoint, f"{self.path}/tr-{trace_id}")
        answer = self._ask(url, None, {}, method="GET")
        if (refusal := refusal_of(url, answer)) is not None:
            raise refusal
        try:
            found = answer.json()["trace"]["trace_info"].get("assessments") or ()
            return {(each.get("metadata", {}).get(_GIVEN_BY, ""), each["assessment_name"]) for each in found}
        except (ValueError, LookupError, TypeError, AttributeError):
            said = "this is not what MLflow says of a trace"
            raise ExportRefused(without_password(url), answer.status_code, said) from None


def _is_in(present: set[tuple[str, str]], each: Evaluation) -> bool:
    return (each.given_by.span_id, each.name) in present


def _assessment(each: Evaluation, trace: str) -> dict[str, Any]:
    unscored = {"error": {"error_code": "UNSCORED", "error_message": "the reward is no finite number"}}
    return {
        "assessment_name": each.name,
        "trace_id": trace,
        "span_id": each.of.span_id,
        "source": {"source_type": "CODE", "source_id": _SOURCE},
        "feedback": {"value": each.score, **({} if each.score is not None else unscored)},
        "metadata": each.ids,
    }


RECEIVERS: dict[str, type[EvaluationSender]] = {
    "otlp": LogRecords,
    "phoenix": PhoenixAnnotations,
    "mlflow": MlflowAssessments,
}
"""Kind of receiver → how it takes evaluations."""
