"""What became of an exchange: whether an answer came, whether it was cut off, and by whom."""

from __future__ import annotations

from ..model_call import invalid, none
from ..raw_call import SeenCall
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


def failure_of(answer: ReceivedAnswer, call: SeenCall, unreadable: str | None = None) -> str | None:
    """Return the verdict on a call whose answer says nothing that could be trained on; ``None`` = it may.

    Args:
        answer: What has been received.
        call: The exchange.
        unreadable: The verdict on a body that could not be read.
    """
    if call.status is None:
        return none(reason_without_answer(call.error))
    if call.status >= 400:
        return none("http_error")
    # The status counts more than the body: what an error page holds is no answer, readable or not.
    if unreadable is not None:
        return unreadable
    if "body_truncated" in call.notes:
        return invalid("body_truncated")
    if answer.error is not None and not answer.parts:
        return none("error_answer")
    return None


def _was_left(call: SeenCall) -> bool:
    """Whether the agent itself ended the exchange, and not the server or the network."""
    return call.error is None or call.error.startswith(
        ("CancelledError", "GeneratorExit", "KeyboardInterrupt")
    )


def is_partial(answer: ReceivedAnswer, call: SeenCall, wanted: int | None) -> bool:
    """Whether the answer was cut off.

    An agent may close a stream at its last chunk, before ``[DONE]``: it is whole when each choice has
    finished.
    """
    if call.status is None or call.status >= 400:
        return False
    if answer.error is not None or "body_truncated" in call.notes:
        return True
    if answer.done:
        return False
    if call.error is not None:
        return True
    finished = sum(parts.finish is not None for parts in answer.parts.values())
    return not (finished == len(answer.parts) and wanted is not None and finished >= wanted)


def cut_code(answer: ReceivedAnswer, call: SeenCall) -> str:
    """Return the code of an answer that was cut off: by whom."""
    by_agent = _was_left(call) and answer.error is None and not call.complete
    return (
        "left_by_agent"
        if by_agent and not {"body_truncated", "recording_ended"} & {*call.notes}
        else "partial"
    )
