"""What became of an exchange: whether an answer came, whether it was cut off, and by whom."""

from __future__ import annotations

from ..raw_call import RawCall
from .received import ReceivedAnswer

_BREAKS = (
    "ReadError", "WriteError", "RemoteProtocolError", "ConnectionResetError", "BrokenPipeError", "IncompleteRead",
    "RemoteDisconnected", "ProtocolError", "ChunkedEncodingError", "ServerDisconnectedError", "ClientPayloadError",
    "ClientOSError",
)  # fmt: skip
"""What HTTP libraries raise where a connection breaks that had been made."""


def reason_without_answer(error: str | None) -> str:
    """Return why there is no answer.

    httpx reads a plain answer inside of its own method, so one that breaks half way shows nothing but its error.
    """
    kind, _, said = (error or "").partition(": ")
    # aiohttp's words, which come as a read error where httpx sends through it.
    if kind in _BREAKS and not said.startswith("Cannot connect to host"):
        return "connection_broken"
    return "timed_out" if "Timeout" in kind else "no_response"


def was_left(raw: RawCall) -> bool:
    """Whether the agent itself ended the exchange, and not the server or the network."""
    return raw.error is None or raw.error.startswith(("CancelledError", "GeneratorExit", "KeyboardInterrupt"))


def is_partial(answer: ReceivedAnswer, raw: RawCall, wanted: int | None) -> bool:
    """Whether the answer was cut off.

    An agent may close a stream at its last chunk, before ``[DONE]``: it is whole when each choice has
    finished.
    """
    if raw.status is None or raw.status >= 400:
        return False
    if answer.error is not None or "body_truncated" in raw.notes:
        return True
    if answer.done:
        return False
    if raw.error is not None:
        return True
    finished = sum(parts.finish is not None for parts in answer.parts.values())
    return not (finished == len(answer.parts) and wanted is not None and finished >= wanted)


def cut_code(answer: ReceivedAnswer, raw: RawCall) -> str:
    """Return the code of an answer that was cut off: by whom."""
    by_agent = was_left(raw) and answer.error is None and not raw.complete
    return (
        "left_by_agent"
        if by_agent and not {"body_truncated", "recording_ended"} & {*raw.notes}
        else "partial"
    )
