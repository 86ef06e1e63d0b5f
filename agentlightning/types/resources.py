"""Resources: the versioned, named things that an agent runs with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, SerializationInfo, field_serializer

from ._model import Model
from .core import AttemptedRollout


class Resource(Model):
    """Base of everything that an algorithm hands to an agent."""

    # The input may hold a key. A ``TypeAdapter`` of a class that is not built yet does not see that it is to be hidden.
    model_config = ConfigDict(hide_input_in_errors=True, defer_build=False)

    resource_type: Any


class LLM(Resource):
    """An OpenAI-compatible model endpoint.

    ``api_key`` never shows in a ``repr``; a store keeps it, because workers need it.
    """

    resource_type: Literal["llm"] = "llm"
    endpoint: str
    """Base URL, with ``/v1`` where the server wants it."""
    model: str
    api_key: str | None = Field(default=None, repr=False)
    sampling_parameters: dict[str, Any] = Field(default_factory=dict)
    """Settings that an agent is to put into its requests (0.3); nothing is said here of what a server does without."""
    sampling_defaults: dict[str, Any] | None = None
    """What the server applies where a request names nothing: every setting that is not neutral; ``{}`` = none is
    (vLLM: ``--generation-config vllm``). ``None`` = not known, and log-probabilities count as unproven."""
    logprob_kind: Literal["processed", "raw", "unknown"] = "unknown"
    """Whether its log-probabilities are of the distribution that was sampled from (``processed``) or of the one
    before temperature, truncation and penalties (``raw``, vLLM's default)."""

    def get_base_url(self, *args: Any, **kwargs: Any) -> str:
        """Return the base URL for an OpenAI client."""
        del args, kwargs
        return self.endpoint

    @field_serializer("api_key")
    # Only where it is asked for: a store dumps resources to keep them, and workers need the key.
    def _mask_on_request(self, value: str | None, info: SerializationInfo) -> str | None:
        """Mask the key where a dump asks for it: ``model_dump(context={'redact': True})``."""
        if value is not None and isinstance(info.context, dict) and info.context.get("redact"):
            return "[redacted]"
        return value


class ProxyLLM(LLM):
    """An endpoint whose URL names the rollout and the attempt, so that a gateway can attribute calls."""

    # The discriminator of ``ResourceUnion``; a subclass has to narrow it, which mypy takes for a change of the
    # base.
    resource_type: Literal["proxy_llm"] = "proxy_llm"  # type: ignore[assignment]

    def get_base_url(self, rollout_id: str | None = None, attempt_id: str | None = None) -> str:
        """Return the base URL for one attempt.

        Raises:
            ValueError: Only one of the two ids is given.
        """
        if rollout_id is None and attempt_id is None:
            return self.endpoint
        if not rollout_id or not attempt_id:
            raise ValueError("give both rollout_id and attempt_id, or neither")
        # ``/v1`` stays last, as clients of the OpenAI API append ``/chat/completions`` to it.
        base, v1 = self.endpoint.rstrip("/"), ""
        if base.endswith("/v1"):
            base, v1 = base.removesuffix("/v1"), "/v1"
        return f"{base}/rollout/{rollout_id}/attempt/{attempt_id}{v1}"

    def with_attempted_rollout(self, rollout: AttemptedRollout) -> LLM:
        """Return a plain ``LLM`` that points at this attempt's URL."""
        # A plain one: its URL names the attempt already, and must not be given another.
        return LLM(
            endpoint=self.get_base_url(rollout.rollout_id, rollout.attempt.attempt_id),
            model=self.model,
            api_key=self.api_key,
            sampling_parameters=self.sampling_parameters,
            sampling_defaults=self.sampling_defaults,
            logprob_kind=self.logprob_kind,
        )


class PromptTemplate(Resource):
    """A prompt with placeholders."""

    resource_type: Literal["prompt_template"] = "prompt_template"
    template: str
    engine: Literal["jinja", "f-string", "poml"]

    def format(self, **kwargs: Any) -> str:
        """Fill the placeholders (``f-string`` engine: ``str.format`` rules).

        Raises:
            NotImplementedError: The engine is not ``f-string``; render ``template`` with that engine itself.
        """
        if self.engine != "f-string":
            raise NotImplementedError(f"format() renders f-string templates; render {self.engine!r} yourself")
        # Of a template that somebody else wrote: ``str.format`` reads attributes of its arguments, so give
        # it plain values.
        return self.template.format(**kwargs)


ResourceUnion = Annotated[LLM | ProxyLLM | PromptTemplate, Field(discriminator="resource_type")]
NamedResources = dict[str, ResourceUnion]


class ResourcesUpdate(Model):
    """One version of a set of named resources."""

    model_config = ConfigDict(hide_input_in_errors=True, defer_build=False)

    resources_id: str
    create_time: float
    """Seconds since the epoch."""
    update_time: float
    """Seconds since the epoch; the latest update is what ``get_latest_resources`` returns."""
    version: int
    """1 for a new id, one more with each ``update_resources``."""
    resources: NamedResources
