"""What a dialect is: one API for model calls, read and written.

A dialect knows a request of its API by method and path, reads what passed (as bytes, or as parsed bodies) into a
``ModelCall``, and writes a ``ModelCall`` as an answer of its API. Reading and writing undo each other as far as the API
has words: what was read of an answer and is written again is read as the same call. Dialects do no I/O and keep no
state, so one instance serves all threads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

from .model_call import ModelCall
from .raw_call import Operation, ParsedCall, RawCall
from .sse import Event


class Dialect(ABC):
    """One API for model calls."""

    name: str
    """In lower case, such as ``openai``."""

    @abstractmethod
    def operation_of(self, method: str, path: str) -> Operation | None:
        """Return what a request asks for, or ``None`` where it is no model call of this API.

        Args:
            method: Of HTTP, in upper case.
            path: Of the URL, without its query. What stands before the API's own path does not matter.
        """

    @abstractmethod
    def decode(self, raw: RawCall) -> ModelCall:
        """Return the call that was seen as bytes; what cannot be read becomes an issue of the call. Never raises."""

    @abstractmethod
    def read(self, call: ParsedCall) -> ModelCall:
        """Return the call whose bodies are parsed already; what cannot be read becomes an issue. Never raises."""

    @abstractmethod
    def write_answer(self, call: ModelCall, request: Mapping[str, Any], *, created: int) -> dict[str, Any]:
        """Return the body of a whole answer.

        Args:
            call: What was said. What is not known of it is left out.
            request: The body of the request to answer, which tells what the answer holds beside the text.
            created: When the answer was made, in seconds since the epoch.
        """

    @abstractmethod
    def write_stream(self, call: ModelCall, request: Mapping[str, Any], *, created: int) -> Iterator[Event]:
        """Yield the events of a streamed answer, up to the one that ends the stream; arguments as above."""

    @abstractmethod
    def write_error(self, message: str, *, status: int) -> dict[str, Any]:
        """Return the body of an error.

        Args:
            message: For a person; without secrets.
            status: Of HTTP, at least 400.
        """
