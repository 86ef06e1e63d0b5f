"""Capture of model calls at the HTTP client, below all client libraries of model servers.

httpx and httpx2 (openai, LiteLLM), http.client (urllib, urllib3, requests) and aiohttp get methods that recognise
OpenAI-compatible calls and copy their bytes. Everything else passes untouched. Where one library is built on another,
only the lowest is watched, so that a call is seen once. The agent gets the same response object, bytes and exceptions
as without the patches. On its thread bytes are copied and nothing is decoded; exceptions of our own code end in a
``Guard``.

With ``capture_tokens='request'`` calls to known endpoints ask for token ids on the agent's behalf, and what that
brings is taken out before the client parses (``dialects.openai.token_request``); what follows where a server refuses
is in ``refusals``. With ``'observe'`` no byte is touched.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from ..dialects.raw_call import Endpoint
from .exchange import MAX_BODY_BYTES, Exchange
from .guard import Guard
from .imports import when_imported
from .own_hosts import Baggage, IsOwnHost, is_loopback
from .patch import Patch, Patches
from .refusals import Refusals
from .sink import CallSink
from .watch import CallWatch, CaptureTokens, EndpointFor

PatchModule = Callable[[CallWatch, ModuleType], list[Patch]]


class ModelCallPatches(Patches):
    """The patches of one capture, and the calls that are under way in it."""

    def __init__(self, open_exchanges: set[Exchange]) -> None:
        super().__init__("model calls captured at the wire")
        self._open_exchanges = open_exchanges

    def leave(self) -> None:
        """End calls whose answers nobody has read to the end, as cut off; the agent may read on, unseen."""
        for exchange in list(self._open_exchanges):
            exchange.cut_off()


def no_endpoint(url: str) -> Endpoint | None:
    """The default of ``endpoint_for``: nothing is known of any endpoint, so none is asked for token ids."""
    del url
    return None


def instrument_model_calls(
    sink: CallSink,
    *,
    capture_tokens: CaptureTokens = "observe",
    endpoint_for: EndpointFor = no_endpoint,
    is_own_host: IsOwnHost = is_loopback,
    guard: Guard | None = None,
    max_body_bytes: int = MAX_BODY_BYTES,
    refusals: Refusals | None = None,
) -> ModelCallPatches:
    """Tell ``sink`` of every OpenAI-compatible call that this process makes from now on.

    Libraries that are imported already are patched at once, others right after their import; none is imported
    here, nor is what we have for one that the agent does not import. Flags by which other libraries suppress
    their own spans do not matter here.

    Args:
        sink: Called twice for each call: when it leaves, and once when it has ended.
        capture_tokens: ``request`` asks endpoints that ``endpoint_for`` knows for token ids.
        endpoint_for: URL without query → what is known of its endpoint.
        is_own_host: Hosts that may see our baggage.
        guard: Where exceptions of our own code go (also those of ``sink``); by default they are logged once.
        max_body_bytes: Bytes of a response that are kept; of a longer one, its beginning.
        refusals: What servers have refused; by default nothing yet.

    Returns:
        The patch; ``undo()`` puts back the objects that were there and stops waiting for imports. Calls that are
        under way go on being noted until they are over, or until ``leave()``.
    """
    guard = guard or Guard()
    watch = CallWatch(
        sink,
        capture_tokens=capture_tokens,
        endpoint_for=endpoint_for,
        baggage=Baggage(is_own_host, guard),
        guard=guard,
        max_body_bytes=max_body_bytes,
        refusals=refusals or Refusals(),
    )
    patches = ModelCallPatches(watch.open_exchanges)

    def adding(patch_module: PatchModule) -> Callable[[ModuleType], None]:
        def callback(module: ModuleType) -> None:
            for patch in patch_module(watch, module):
                patches.add(patch)

        return callback

    patches.add(when_imported({name: adding(patch) for name, patch in _LIBRARIES.items()}, guard))
    return patches


# -- the libraries
#
# The module that watches a library is imported by the function that patches it, so right after the library itself:
# ``http_client_calls`` imports ``http.client``, which takes a fifth as long as the SDK, and many agents never use it.
# The thread that imports the library holds its import lock meanwhile, so a process that is forked on another thread in
# this moment could not import that library anyway. What the modules share is imported above, before any agent runs.


def _patch_httpx(watch: CallWatch, library: ModuleType) -> list[Patch]:
    from .httpx_calls import HttpxCalls

    return HttpxCalls(watch).patch_http(library)


def _patch_openai(watch: CallWatch, base_client: ModuleType) -> list[Patch]:
    from .httpx_calls import HttpxCalls

    return HttpxCalls(watch).patch_openai(base_client)


def _patch_http_client(watch: CallWatch, library: ModuleType) -> list[Patch]:
    from .http_client_calls import HttpClientCalls

    return HttpClientCalls(watch).patch_http_client(library)


def _patch_urllib3(watch: CallWatch, connectionpool: ModuleType) -> list[Patch]:
    from .http_client_calls import HttpClientCalls

    return HttpClientCalls(watch).patch_urllib3(connectionpool)


def _patch_requests(watch: CallWatch, sessions: ModuleType) -> list[Patch]:
    return watch.baggage.patch_requests(sessions)


def _patch_aiohttp(watch: CallWatch, client: ModuleType) -> list[Patch]:
    from .aiohttp_calls import AiohttpCalls

    return [*watch.baggage.patch_aiohttp(client), *AiohttpCalls(watch).patch_aiohttp(client)]


_LIBRARIES: dict[str, PatchModule] = {
    "httpx": _patch_httpx,
    "httpx2": _patch_httpx,
    "openai._base_client": _patch_openai,
    "http.client": _patch_http_client,
    "urllib3.connectionpool": _patch_urllib3,
    "requests.sessions": _patch_requests,
    "aiohttp.client": _patch_aiohttp,
}
"""Module → what patches it once it is imported."""
