"""What is known of the endpoints of model calls, and whose distribution their log-probabilities are."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Union, cast

from .. import types
from ..dialects import endpoint_urls
from ..dialects.raw_call import Endpoint, LogprobKind, RawCall
from ..env_var import LightningEnvVar, resolve_setting
from ..errors import ConfigurationError
from ..recorder.scope import Scope, current_scope
from ..recorder.store_writes import within
from .event_loops import run_sync

if TYPE_CHECKING:
    from ..store.base import LightningStore
    from ..types import LLM

_log = logging.getLogger(__name__)

RESOURCES_TIMEOUT = 1.0
"""Seconds that the writer's thread waits for the resources of a rollout, as does a program under ``agl run`` at its
start."""

Endpoints = Union[str, "LLM", Endpoint, Iterable[Union[str, "LLM", Endpoint]]]
"""Those that a user names: URLs, ``LLM`` resources, ``Endpoint`` values; a single one stands for itself."""


class KnownEndpoints:
    """The endpoints of one tracer.

    Args:
        endpoints: Those that are known beside the rollouts' resources and those that ``AGL_ENDPOINTS`` names.

    Raises:
        ConfigurationError: A setting has a value that cannot be used, or an endpoint is no URL.
    """

    def __init__(self, endpoints: Endpoints) -> None:
        given = [endpoints] if isinstance(endpoints, (str, types.LLM, Endpoint)) else endpoints
        self._always = [*map(_endpoint, given), *_named_by_setting()]
        self.of_fallback: list[Endpoint] = []
        """Those of the attempt to which spans belong that start outside of every ``trace_context``."""
        self._stated = _stated_distribution()
        self._no_resources_until = 0.0

    def find(self, url: str, model: str | None = None) -> Endpoint | None:
        """Return what is known of the endpoint that a request goes to, or ``None``.

        An endpoint on loopback is known without having been named; it may be asked. What neither a resource nor
        ``endpoints`` says of its distribution, the environment may say of every endpoint; that alone makes none that is
        asked for token ids.

        Args:
            url: Of the request.
            model: The model that it names, if it names one: a server may have several, with settings of their own.
        """
        return self._described(url, model, self.known_here())

    def of_call(self, scope: Scope, raw: RawCall) -> Endpoint | None:
        """Return what is known of the endpoint of a call; the rollout's resources are read at its first one.

        Called on the writer's thread, so that no agent waits for it.
        """
        if scope.described is None:
            scope.described = scope.endpoints if scope.endpoints is not None else self._resources_of(scope)
        return self._described(raw.start.url, raw.start.model, [*self._always, *scope.described])

    def _resources_of(self, scope: Scope) -> list[Endpoint]:
        store = scope.store
        if store is None or time.monotonic() < self._no_resources_until:
            return []
        try:
            return run_sync(within(resource_endpoints(store, scope.rollout_id), RESOURCES_TIMEOUT))
        except Exception as error:  # noqa: BLE001 - a store may raise anything
            # One that is slow or gone holds up the writer once, and not once for each attempt.
            self._no_resources_until = time.monotonic() + 30.0
            _log.warning(
                "what the resources of rollout %s say of its model is not known: %r", scope.rollout_id, error
            )
            return []

    def _described(self, url: str, model: str | None, endpoints: Sequence[Endpoint]) -> Endpoint | None:
        found = endpoint_urls.find(url, endpoints, model) or endpoint_urls.on_loopback(url)
        defaults, kind = self._stated
        if (defaults is None and kind == "unknown") or (found is not None and found.disputed):
            return found
        if found is None:  # what the environment says of its distribution is no leave to change its requests
            return Endpoint(url, defaults, kind, may_ask=False)
        return replace(
            found,
            sampling_defaults=defaults if found.sampling_defaults is None else found.sampling_defaults,
            logprob_kind=kind if found.logprob_kind == "unknown" else found.logprob_kind,
        )

    def known_here(self) -> list[Endpoint]:
        """Return the endpoints that are known without asking anybody, those of the current rollout among them."""
        scope = current_scope()
        of_rollout = scope.endpoints if scope is not None else self.of_fallback
        return self._always + (of_rollout or [])


async def resource_endpoints(store: LightningStore, rollout_id: str) -> list[Endpoint]:
    """Return the model endpoints among a rollout's resources."""
    rollout = await store.get_rollout_by_id(rollout_id)
    if rollout is None or rollout.resources_id is None:
        return []
    update = await store.get_resources_by_id(rollout.resources_id)
    resources: Mapping[str, Any] = update.resources if update is not None else {}
    found = []
    for name, resource in resources.items():
        if isinstance(resource, types.LLM):
            try:
                found.append(_endpoint(resource))
            except (
                ConfigurationError
            ) as error:  # of the other resources their endpoints are known all the same
                _log.warning("the resource %r of rollout %s: %s", name, rollout_id, error)
    return found


def _named_by_setting() -> list[Endpoint]:
    try:
        urls = endpoint_urls.named(resolve_setting(LightningEnvVar.AGL_ENDPOINTS, None, "") or "")
    except ConfigurationError as error:
        raise ConfigurationError(f"AGL_ENDPOINTS: {error}") from None
    return [Endpoint(url) for url in urls]


def _endpoint(value: str | LLM | Endpoint) -> Endpoint:
    if isinstance(value, Endpoint):
        return replace(value, url=endpoint_urls.checked(value.url))
    if isinstance(value, types.LLM):
        url, is_proxy = endpoint_urls.checked(value.endpoint), isinstance(value, types.ProxyLLM)
        return Endpoint(
            url,
            value.sampling_defaults,
            value.logprob_kind,
            names_attempts=is_proxy,
            model=value.model or None,
        )
    if not isinstance(value, str):
        raise ConfigurationError(f"endpoints= takes URLs, LLM resources and Endpoint values, not {value!r}")
    return Endpoint(endpoint_urls.checked(value))


def _stated_distribution() -> tuple[dict[str, Any] | None, LogprobKind]:
    """Return what the settings say of every endpoint: its sampling defaults, and the kind of its log-probabilities."""
    text = resolve_setting(LightningEnvVar.AGL_SAMPLING_DEFAULTS)
    kind = resolve_setting(LightningEnvVar.AGL_LOGPROB_KIND, None, "unknown")
    if kind not in {"processed", "raw", "unknown"}:
        raise ConfigurationError(f"AGL_LOGPROB_KIND is 'processed', 'raw' or 'unknown', not {kind!r}")
    if text is None:
        return None, cast("LogprobKind", kind)
    try:
        defaults = json.loads(text)
    except (ValueError, RecursionError):
        defaults = None
    if not isinstance(defaults, dict):
        raise ConfigurationError(
            f'AGL_SAMPLING_DEFAULTS is a JSON object such as {{}} or {{"top_k": 20}}, not {text!r}'
        )
    return defaults, cast("LogprobKind", kind)
