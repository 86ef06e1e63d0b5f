"""What a model endpoint gives to a trainer: it is asked by a few short chats, as the recorder would ask.

These are the only requests of ``agl doctor`` that may leave this machine, and only to the endpoint that was named.
Answers are read by the code that reads recorded calls, so the verdict is the one that a recording would get.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..._printable import without_password
from ...dialects.endpoint_urls import checked, is_local
from ...dialects.model_call import CODES, VALID, ModelCall
from ...dialects.openai import token_request
from ...dialects.openai.asking import gives_no_ids
from ...dialects.openai.json_parts import json_object
from ...dialects.openai.reading import decode
from ...dialects.raw_call import CallStart, RawCall
from ...remote.tls import tls_context
from .engines import ENGINES, UNKNOWN, Engine, served_by_vllm
from .finding import Finding

TIMEOUT = 60.0
"""Seconds for one answer: a model may have to be loaded first."""
MAX_TOKENS = 16
TOP = 5
"""Likely tokens that are asked for beside the sampled one."""
_MAX_BODY = 4 * 1024 * 1024
_WANTS_KEY = frozenset({401, 403})
_TOLERANCE = 0.1
_SMALLEST_GAP = 0.02
"""Between two log-probabilities; below it rounding decides."""


class Unreachable(Exception):
    """Nobody answers at the endpoint."""


class Redirected(Unreachable):
    """The endpoint sends to another URL. It is not followed: the key would go there, too."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Return nothing, so that the answer is raised as an ``HTTPError``."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    content_type: str
    body: bytes

    @property
    def message(self) -> str:
        """The server's own words about an error."""
        found = json_object(self.body) or {}
        error = found.get("error", found.get("detail", found.get("message")))
        said = error.get("message") if isinstance(error, dict) else error
        text = said if isinstance(said, str) else json.dumps(said) if said else ""
        return f"HTTP {self.status}" + (f": {' '.join(text.split())[:200]}" if text else "")


class Conversation:
    """Talks with one endpoint.

    Args:
        base: What a client takes as its base URL.
        key: Sent as a bearer token; ``None`` = none is.
    """

    def __init__(self, base: str, key: str | None) -> None:
        self.base = base
        self._headers = {"content-type": "application/json", "accept-encoding": "identity"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        # Clients go to this machine by way of a proxy only by mistake, which another check is about.
        around = [urllib.request.ProxyHandler({})] if is_local(base) else []
        tls = urllib.request.HTTPSHandler(context=tls_context())
        self._opener = urllib.request.build_opener(tls, _NoRedirects, *around)

    def get(self, url: str) -> Reply:
        """Return the answer to a GET.

        Raises:
            Unreachable: There is none.
            Redirected: It names another URL.
        """
        return self._send(urllib.request.Request(url, headers=self._headers))  # noqa: S310 - a URL that was checked

    def ask(self, model: str, fields: Mapping[str, Any]) -> tuple[Reply, ModelCall]:
        """Return the answer to a chat that asks for ids as a recorder does: in each way, until one is not refused."""
        first, *others = token_request.ways(fields, "chat")
        asked = self.chat(model, fields, way=first)
        for way in others if asked[0].status >= 400 else ():
            again = self.chat(model, fields, way=way)
            if again[0].status < 400:
                return again
        return asked

    def chat(self, model: str, fields: Mapping[str, Any], *, way: str = "") -> tuple[Reply, ModelCall]:
        """Return the answer to a short chat, and what a recorder reads of it.

        Args:
            model: Whom to ask.
            fields: Of the request, beside model, message and limit.
            way: In which ``capture_tokens='request'`` asks for ids, of ``token_request.ways``; empty: it does not.

        Raises:
            Unreachable: There is no answer.
            Redirected: It names another URL.
        """
        request = {
            "model": model,
            "messages": [{"role": "user", "content": "Name three animals."}],
            "max_tokens": MAX_TOKENS,
            "temperature": 1.0,
            **fields,
        }
        own, added = json.dumps(request).encode(), frozenset[str]()
        body = own
        if way:
            body, added = token_request.ask(request, "chat", way)
        url = f"{self.base}/chat/completions"
        reply = self._send(urllib.request.Request(url, body, self._headers))  # noqa: S310 - as above
        start = CallStart("chat", url, model, bool(fields.get("stream")))
        raw = RawCall(
            start,
            own,
            status=reply.status,
            content_type=reply.content_type,
            response_body=reply.body,
            complete=True,
            added=added,
        )
        return reply, decode(raw)

    def _send(self, request: urllib.request.Request) -> Reply:
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                return Reply(answer.status, answer.headers.get("content-type", ""), answer.read(_MAX_BODY))
        except urllib.error.HTTPError as error:
            with error:
                if error.code < 400:
                    raise Redirected(_leads_to(request.full_url, error.headers.get("location", ""))) from None
                return Reply(error.code, error.headers.get("content-type", ""), error.read(_MAX_BODY))
        except OSError as error:  # no connection, no name, no time, no certificate
            raise Unreachable(str(getattr(error, "reason", None) or error or type(error).__name__)) from None


def endpoint(url: str, model: str | None, key_variable: str | None) -> Iterator[Finding]:
    """Say what the engine behind a URL gives, and what to set.

    Args:
        url: Its base URL, with or without ``/v1``.
        model: Whom to ask; ``None`` = the first that it lists.
        key_variable: The environment variable that holds its key.
    """
    base = checked(url)
    if gives_no_ids(base):
        sentence = f"{urlsplit(base).hostname} gives no token ids; serve the model that you train yourself"
        yield Finding("fail", "ids", sentence, served_by_vllm(base, "MODEL"))
        return
    key = os.environ.get(key_variable, "").strip() if key_variable else None
    if key is not None and not (key and key.isascii() and key.isprintable()):
        what = "holds characters that no key has" if key else "is not set"
        sentence = f"{key_variable} {what}, which --api-key-env names"
        yield Finding("fail", "endpoint", sentence, f"export {key_variable}=KEY")
        return
    try:
        yield from _Examination(base, model, key_variable, key).findings()
    except Redirected as error:
        sentence = f"{base} redirects to {error}, where nothing was sent"
        yield Finding("fail", "endpoint", sentence, "name the URL of the engine itself, or correct the URL")
    except Unreachable as error:
        yield Finding(
            "fail", "endpoint", f"nobody answers at {base}: {error}", "start the engine, or correct the URL"
        )


class _Examination:
    def __init__(self, base: str, model: str | None, key_variable: str | None, key: str | None) -> None:
        self._base = base
        self._model = model
        self._key_variable = key_variable
        self._talk = Conversation(base, key)
        self._guarded: Reply | None = None
        """The refusal of its list of models for want of a key."""
        self._engine: Engine = UNKNOWN

    def findings(self) -> Iterator[Finding]:
        listed = self._listed()
        model = self._model or next(iter(listed), None)
        if model is None and self._guarded is not None:
            yield self._wants_key(self._guarded, None)
            return
        if model is None:
            sentence = f"{self._base} lists no model"
            yield Finding("fail", "endpoint", sentence, f"{self._again('NAME')}")
            return
        reply, call = self._talk.ask(model, {})
        own, _ = (reply, call) if reply.status < 400 else self._talk.chat(model, {})
        if own.status >= 400:
            yield self._no_chat(own, model, listed)
            return
        yield Finding("ok", "endpoint", f"{self._base} answers: {self._name()}, model {model}")
        plain = yield from self._ids("ids", "a plain answer", model, {}, reply, call)
        streamed, streamed_call = self._talk.ask(model, {"stream": True})
        yield from self._ids(
            "ids_streamed", "a streamed answer", model, {"stream": True}, streamed, streamed_call, plain=plain
        )
        kind = yield from self._logprobs(model)
        if plain:
            yield self._use(kind)

    # -- who it is

    def _listed(self) -> list[str]:
        """Return the models that it lists, and learn its base URL and its name."""
        found: dict[str, Any] = {}
        guarded, redirected = "", None
        for base in dict.fromkeys((self._base, f"{self._base.removesuffix('/v1')}/v1")):
            try:
                reply = self._talk.get(f"{base}/models")
            except Redirected as error:  # such as the page of a gateway, which has its API at /v1
                redirected = error
                continue
            found = (json_object(reply.body) or {}) if reply.status < 400 else {}
            if isinstance(found.get("data"), list):
                self._base = self._talk.base = base
                break
            if reply.status in _WANTS_KEY:
                guarded, self._guarded = base, reply
        else:
            if guarded:
                self._base = self._talk.base = guarded
            elif redirected is not None:
                raise redirected
        models = [each for each in found.get("data") or () if isinstance(each, dict)]
        owner = next((each.get("owned_by") for each in models), None)
        self._engine = ENGINES.get(str(owner), UNKNOWN)
        return [each["id"] for each in models if isinstance(each.get("id"), str)]

    def _name(self) -> str:
        if not self._engine.version_path:
            return self._engine.name
        parts = urlsplit(self._base)
        reply = self._talk.get(f"{parts.scheme}://{parts.netloc}{self._engine.version_path}")
        version = (json_object(reply.body) or {}).get(self._engine.version_field)
        return f"{self._engine.name} {version}" if isinstance(version, str) else self._engine.name

    def _again(self, model: str) -> str:
        key = f" --api-key-env {self._key_variable}" if self._key_variable else ""
        return f"agl doctor --endpoint {shlex.quote(self._base)} --model {shlex.quote(model)}{key}"

    def _no_chat(self, reply: Reply, model: str, listed: list[str]) -> Finding:
        sentence = f"{self._base} does not answer a chat of model {model}: {reply.message}"
        if reply.status in _WANTS_KEY:
            return self._wants_key(reply, model)
        other = next((each for each in listed if each != model), None)
        return Finding("fail", "endpoint", sentence, self._again(other) if other else "correct what it says")

    def _wants_key(self, reply: Reply, model: str | None) -> Finding:
        if self._key_variable:
            sentence = f"{self._base} refuses the key in {self._key_variable}: {reply.message}"
            return Finding("fail", "endpoint", sentence, f"export {self._key_variable}=KEY")
        named = f" --model {shlex.quote(model)}" if model else ""
        cure = f"agl doctor --endpoint {shlex.quote(self._base)}{named} --api-key-env OPENAI_API_KEY"
        return Finding("fail", "endpoint", f"{self._base} wants a key: {reply.message}", cure)

    # -- what it gives

    def _ids(
        self,
        check: str,
        what: str,
        model: str,
        fields: Mapping[str, Any],
        reply: Reply,
        call: ModelCall,
        *,
        plain: bool | None = None,
    ) -> Generator[Finding, None, bool]:
        """Yield what is to be said of the ids of one way to ask; return whether they are believed."""
        if reply.status < 400 and call.token_capture == VALID:
            prompt, sampled = len(call.prompt_token_ids or ()), len(call.choices[0].token_ids or ())
            sentence = f"{what} has the ids of its prompt ({prompt}) and of what was sampled ({sampled})"
            yield Finding("ok", check, sentence)
            return True
        if reply.status >= 400:
            why = f"the engine refuses {self._refused(model, fields)} ({reply.message})"
        else:
            why = CODES.get(call.capture_code or "", call.token_capture)
        cure = self._cure(model)
        if plain:  # what it gives as a whole answer it need not give in pieces
            yield Finding(
                "warn",
                check,
                f"{what} has no ids that are believed: {why}",
                "stream=False in the agent's requests",
            )
        else:
            gateway = (
                "; a gateway drops ids as well: name the engine behind it" if self._engine is UNKNOWN else ""
            )
            yield Finding("fail", check, f"{what} has no ids that are believed: {why}{gateway}", cure)
        return False

    def _refused(self, model: str, fields: Mapping[str, Any]) -> str:
        """Return which of the fields that are added it does not take."""
        each: dict[str, Any] = {"return_token_ids": True, "logprobs": True}
        if fields.get("stream"):
            each["stream_options"] = {"include_usage": True}
        refused = [
            name
            for name, value in each.items()
            if self._talk.chat(model, {**fields, name: value})[0].status >= 400
        ]
        return " and ".join(refused) or "them together: " + ", ".join(each)

    def _cure(self, model: str) -> str:
        return self._engine.upgrade or served_by_vllm(self._base, model)

    def _logprobs(self, model: str) -> Generator[Finding, None, str]:
        """Yield what is to be said of log-probabilities and versions; return their kind."""
        wanted = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP, "return_weight_versions": True}
        replies = self._at_two_temperatures(model, wanted)
        if replies[0][0].status >= 400:
            del wanted["return_weight_versions"]
            replies = self._at_two_temperatures(model, wanted)
        cool, warm = (_likeliest(reply) for reply, _ in replies)
        kind = _kind(cool, warm)
        if cool:
            yield self._of_kind(kind, model)
            sentence = f"the {len(cool)} likeliest tokens are named where {TOP} are asked for"
            yield Finding("ok", "top_logprobs", sentence)
        else:
            reply = replies[0][0]
            why = f": {reply.message}" if reply.status >= 400 else ""
            cure = self._trainable(model, "let the trainer recompute them")
            yield Finding("warn", "logprobs", f"no log-probabilities of likely tokens{why}", cure)
        yield _of_versions(replies[0][1])
        return kind

    def _at_two_temperatures(self, model: str, wanted: Mapping[str, Any]) -> list[tuple[Reply, ModelCall]]:
        return [self._talk.chat(model, {**wanted, "temperature": each}) for each in (1.0, 2.0)]

    def _of_kind(self, kind: str, model: str) -> Finding:
        if kind == "processed":
            sentence = "log-probabilities are processed: of the distribution that is sampled from"
            return Finding("ok", "logprobs", sentence)
        if kind == "raw":
            sentence = (
                "log-probabilities are raw: of the model before temperature, truncation and penalties, and so proven "
                "at temperature 1 alone"
            )
            return Finding("warn", "logprobs", sentence, self._trainable(model, "sample at temperature 1"))
        sentence = (
            "whether log-probabilities are raw or processed does not show: the first token is all but certain"
        )
        return Finding("warn", "logprobs", sentence, "see the engine's options, and say it: AGL_LOGPROB_KIND")

    def _trainable(self, model: str, otherwise: str) -> str:
        return served_by_vllm(self._base, model) if self._engine is ENGINES["vllm"] else otherwise

    def _use(self, kind: str) -> Finding:
        named = "" if is_local(self._base) else f" --endpoint {shlex.quote(self._base)}"
        said = f"AGL_LOGPROB_KIND={kind} " if kind != "unknown" else ""
        return Finding(
            "ok",
            "use",
            "to record a program with its token ids",
            f"{said}agl run --capture-tokens request{named} -- PROGRAM",
            details=(
                "where the engine adds no sampling settings of its own (vLLM: --generation-config vllm), say so, and "
                "log-probabilities are proven: export AGL_SAMPLING_DEFAULTS='{}'",
            ),
        )


def _leads_to(url: str, location: str) -> str:
    """Return where a redirect leads, without its query, which may hold what is secret."""
    return without_password(urljoin(url, location).partition("?")[0])


def _of_versions(call: ModelCall) -> Finding:
    if any(choice.policy for choice in call.choices):
        sentence = "the version of the weights is named for each token"
    elif call.answer_versions:
        sentence = "the version of the weights is named for an answer, not for each token"
    else:
        sentence = "no version of the weights is named; RowPolicy(min_version=…) would leave every answer out"
    return Finding("ok", "versions", sentence)


def _likeliest(reply: Reply) -> dict[str, float]:
    """Return token → log-probability of what may have come first."""
    if reply.status >= 400:
        return {}
    try:
        entries = (json_object(reply.body) or {})["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {str(each["token"]): float(each["logprob"]) for each in entries}
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return {token: value for token, value in found.items() if math.isfinite(value) and value > -100}


def _kind(cool: Mapping[str, float], warm: Mapping[str, float]) -> str:
    """Return whose log-probabilities they are, by the gap between two tokens at temperature 1 and 2.

    Temperature divides logits, so a gap of the distribution that is sampled from is half as wide at 2; one of the model
    itself stays as it is.
    """
    both = sorted(cool.keys() & warm.keys(), key=lambda token: -cool[token])
    for first, second in itertools.pairwise(both):
        before, after = cool[first] - cool[second], warm[first] - warm[second]
        if before < _SMALLEST_GAP:
            continue
        ratio = after / before
        if abs(ratio - 0.5) < _TOLERANCE:
            return "processed"
        return "raw" if abs(ratio - 1) < _TOLERANCE else "unknown"
    return "unknown"
