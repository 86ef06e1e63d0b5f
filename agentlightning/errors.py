"""Every error that agentlightning raises on purpose, as one tree.

::

    LightningError
    ├── StoreError
    │   ├── NotFound (ValueError)
    │   │   ├── RolloutNotFound
    │   │   ├── AttemptNotFound
    │   │   ├── RewardTargetNotFound
    │   │   ├── ResourcesNotFound
    │   │   └── WorkerNotFound
    │   ├── InvalidArgument (ValueError)
    │   ├── RolloutExists (ValueError)
    │   ├── InvalidTransition (ValueError)
    │   ├── NotSealable (ValueError)
    │   ├── AlreadySealed (ValueError)
    │   ├── NotSupported (NotImplementedError)
    │   ├── StoreUnavailable (ConnectionError)
    │   │   └── StoreBusy
    │   ├── StoreClosed (RuntimeError)
    │   └── StoreFileError (OSError)
    │       ├── NotAStore
    │       ├── SchemaTooNew
    │       └── StoreFileMoved
    ├── UnknownStoreScheme (ValueError)
    ├── TracerError (RuntimeError)
    │   ├── TracerNotReady
    │   ├── RolloutEnded
    │   ├── SpansNotKept
    │   └── ActiveTracerError (ValueError)
    ├── NotExportable (ValueError)
    ├── MisalignedWriteBack (ValueError)
    ├── NotVerifiable (ValueError)
    ├── ContextArgumentsError (ValueError)
    ├── NotAnExportRequest (ValueError)
    ├── NotADocument (ValueError)
    ├── DocumentDiffers (ValueError)
    ├── ConfigurationError (ValueError)
    │   └── InsecureEndpoint
    ├── UsageError (ValueError)
    ├── AgentOpsError
    │   ├── AgentOpsConfigurationError (ConfigurationError)
    │   │   └── UnknownOption (TypeError)
    │   ├── APIError (RuntimeError)
    │   │   └── AgentOpsServerError
    │   ├── SessionError (RuntimeError)
    │   └── AgentOpsUnsupported (RuntimeError)
    └── MissingExtra (ImportError)

Each class has a stable ``code`` and builds its own message. It inherits the builtin that code written for
Agent Lightning 0.x catches (``ValueError`` for an unknown id). ``HTTP_STATUS`` maps codes to statuses, so
that a client of a store server raises what the server raised.
"""

from __future__ import annotations

from typing import ClassVar


class LightningError(Exception):
    """Base of all errors of agentlightning."""

    code: ClassVar[str] = "lightning_error"


class StoreError(LightningError):
    """A store could not do what it was asked."""

    code = "store_error"


class NotFound(StoreError, ValueError):
    """The store knows nothing under this id."""

    code = "not_found"
    noun: ClassVar[str] = "object"

    def __init__(self, identifier: str, hint: str = "") -> None:
        # Kept apart from the message, so that ``__reduce__`` can give them to the constructor again: an
        # exception is pickled with its ``args``, which is the message here, and would be built with that in
        # place of the id.
        self.identifier, self.hint = identifier, hint
        super().__init__(f"{self.noun} {identifier!r} not found in this store{hint and '; ' + hint}")

    def __reduce__(self) -> tuple[type[NotFound], tuple[str, str]]:
        return type(self), (self.identifier, self.hint)


class RolloutNotFound(NotFound):
    """No rollout with this id."""

    code = "rollout_not_found"
    noun = "rollout"


class AttemptNotFound(NotFound):
    """No attempt with this id in this rollout."""

    code = "attempt_not_found"
    noun = "attempt"


class RewardTargetNotFound(NotFound):
    """No such call, choice or tokens in the attempt that a reward is for; nothing was written."""

    code = "reward_target_not_found"
    noun = "target"


class ResourcesNotFound(NotFound):
    """No resources with this id."""

    code = "resources_not_found"
    noun = "resources"


class WorkerNotFound(NotFound):
    """No worker with this id."""

    code = "worker_not_found"
    noun = "worker"


class InvalidArgument(StoreError, ValueError):
    """An argument has a value that the contract does not allow."""

    code = "invalid_argument"


class RolloutExists(StoreError, ValueError):
    """A rollout was to be made with the id of another one."""

    code = "rollout_exists"


class InvalidTransition(StoreError, ValueError):
    """A status change that ``store.lifecycle`` does not declare; nothing was written."""

    code = "invalid_transition"


class NotSealable(StoreError, ValueError):
    """The attempt is not complete, so it cannot be sealed; nothing was written."""

    code = "not_sealable"


class NotSupported(StoreError, NotImplementedError):
    """The store cannot do this: ``capabilities`` does not name it."""

    code = "not_supported"


class AlreadySealed(StoreError, ValueError):
    """The attempt is sealed, so what it is trained on does not change any more; nothing was written."""

    code = "already_sealed"


class StoreUnavailable(StoreError, ConnectionError):
    """The store cannot be reached now; trying again later may help."""

    code = "store_unavailable"


class StoreBusy(StoreUnavailable):
    """Another process held the store for longer than the deadline."""

    code = "store_busy"


class StoreClosed(StoreError, RuntimeError):
    """The store was used after ``close()``."""

    code = "store_closed"


class StoreFileError(StoreError, OSError):
    """A store file cannot be opened, read or written."""

    code = "store_file_error"


class NotAStore(StoreFileError):
    """The file exists and is something else; it was left untouched."""

    code = "not_a_store"


class SchemaTooNew(StoreFileError):
    """The file was written by a newer agentlightning; it was left untouched."""

    code = "schema_too_new"


class StoreFileMoved(StoreFileError):
    """The file of a store in use was deleted, renamed or replaced; what was written to it is not acknowledged."""

    code = "store_file_moved"


class UnknownStoreScheme(LightningError, ValueError):
    """No installed package registers this URL scheme as a store."""

    code = "unknown_store_scheme"


class TracerError(LightningError, RuntimeError):
    """A tracer was used against its life cycle."""

    code = "tracer_error"


class TracerNotReady(TracerError):
    """``trace_context`` before ``init_worker`` (or after ``teardown_worker``)."""

    code = "tracer_not_ready"


class RolloutEnded(TracerError):
    """A reward for a rollout whose block has been left."""

    code = "rollout_ended"


class SpansNotKept(TracerError):
    """Rows were asked of what a process keeps in memory, and it does not keep all spans of the attempt."""

    code = "spans_not_kept"


class ActiveTracerError(TracerError, ValueError):
    """Another tracer is already active in this context."""

    code = "active_tracer"


class NotExportable(LightningError, ValueError):
    """Rows cannot be brought into the shape that a trainer takes without losing or inventing something."""

    code = "not_exportable"


class MisalignedWriteBack(LightningError, ValueError):
    """The values of a trainer do not fit the row that they are for; nothing was written."""

    code = "misaligned_write_back"


class NotVerifiable(LightningError, ValueError):
    """Rows cannot be held against this model: there are none, or the model does not know their tokens."""

    code = "not_verifiable"


class ContextArgumentsError(LightningError, ValueError):
    """``trace_context`` got only a part of (``rollout_id``, ``attempt_id``), or ids without a store."""

    code = "context_arguments"


class NotAnExportRequest(LightningError, ValueError):
    """These bytes are no OTLP trace export request; nothing of them was taken."""

    code = "not_an_export_request"


class NotADocument(LightningError, ValueError):
    """A file, or a place in it, is not what a format of trajectories allows."""

    code = "not_a_document"

    def __init__(self, place: str, sentence: str) -> None:
        self.place, self.sentence = place, sentence
        super().__init__(f"{place}: {sentence}")

    def __reduce__(self) -> tuple[type[NotADocument], tuple[str, str]]:
        return type(self), (self.place, self.sentence)


class DocumentDiffers(LightningError, ValueError):
    """Another document with the same id says something else; nothing of this one was written."""

    code = "document_differs"

    def __init__(self, own_id: str, rollout_id: str) -> None:
        self.own_id, self.rollout_id = own_id, rollout_id
        super().__init__(
            f"another document with the id {own_id!r} says something else, and is or would be rollout {rollout_id}; "
            "import one of them into another store, or give it another id"
        )

    def __reduce__(self) -> tuple[type[DocumentDiffers], tuple[str, str]]:
        return type(self), (self.own_id, self.rollout_id)


class ImportBrokeOff(LightningError):
    """An import ended before all documents were stored; those before it stay, and the next import goes on."""

    code = "import_broke_off"

    def __init__(self, documents: int, why: str) -> None:
        self.documents, self.why = documents, why
        stored = "1 document was" if documents == 1 else f"{documents:,} documents were"
        super().__init__(f"{why}. {stored} imported before that; run the command again for the rest")

    def __reduce__(self) -> tuple[type[ImportBrokeOff], tuple[int, str]]:
        return type(self), (self.documents, self.why)


class ConfigurationError(LightningError, ValueError):
    """A setting, argument or environment variable has a value that cannot be used."""

    code = "configuration"


class InsecureEndpoint(ConfigurationError):
    """Plain http to another machine, which was not allowed."""

    code = "insecure_endpoint"


class ExportRefused(LightningError, ConnectionError):
    """A receiver of spans refuses them, or does not answer; what it took before, it has."""

    code = "export_refused"

    def __init__(self, url: str, status: int | None, said: str, broke_off: bool = False) -> None:
        """``status`` is ``None`` where no answer came, or, with ``broke_off``, none that can be read to its end."""
        self.url, self.status, self.said, self.broke_off = url, status, said, broke_off
        text = " ".join(said.split())[:300]
        is_otlp = url.partition("?")[0].rstrip("/").endswith(("/v1/traces", "/v1/logs"))
        cure = _CURES_OF_REFUSALS.get(status, "")
        if status in (404, 405, 415) and not is_otlp:
            cure = _OTHER_RECEIVER
        if status is None and broke_off:
            what, cure = "answers, and its answers break off or cannot be read", _HALF
        elif status is None:
            what = "does not answer"
        elif status < 400:
            answers = "takes no spans, and answers" if is_otlp else "answers"
            what = f"{'redirects' if status >= 300 else answers} with HTTP status {status}"
            cure = "; give the URL of its OTLP receiver, or its key: --header 'Authorization: …'"
            if not is_otlp:
                cure = _OTHER_RECEIVER
        else:
            what = f"refuses with HTTP status {status}"
        super().__init__(f"{url} {what}{f': {text}' if text else ''}{cure}")

    def __reduce__(self) -> tuple[type[ExportRefused], tuple[str, int | None, str, bool]]:
        return type(self), (self.url, self.status, self.said, self.broke_off)


_HALF = "; it may have taken what it was sent: look there before you send again"
_OTHER_RECEIVER = (
    "; is this the address of the receiver that --to names, and is its version one that takes this?"
)
_CURES_OF_REFUSALS = {
    None: "; is it running, and is this its address?",
    401: "; give its key: --header 'Authorization: …', or OTEL_EXPORTER_OTLP_HEADERS",
    403: "; give its key: --header 'Authorization: …', or OTEL_EXPORTER_OTLP_HEADERS",
    404: "; does it take OTLP over HTTP below this path?",
    405: "; does it take OTLP over HTTP below this path?",
    415: "; it takes no protobuf here: is this the address of its OTLP receiver?",
}


class UsageError(LightningError, ValueError):
    """A command was called with arguments that it cannot take."""

    code = "usage"


class AgentOpsError(LightningError):
    """Base of what goes wrong with AgentOps; see also the subclasses.

    Errors of ``agentops`` itself become these where code of ours meets them, with the original as ``__cause__``. What
    an agent's own calls raise reaches the agent unchanged.
    """

    code = "agentops_error"


class AgentOpsConfigurationError(AgentOpsError, ConfigurationError):
    """An option of AgentOps, or of the tracer that records it, has a value that cannot be used."""

    code = "agentops_configuration"


class UnknownOption(AgentOpsConfigurationError, TypeError):
    """The tracer has no option of this name."""

    code = "unknown_option"


class APIError(AgentOpsError, RuntimeError):
    """A server of AgentOps' interface refused a request or could not be reached."""

    code = "agentops_api"


class AgentOpsServerError(APIError):
    """The local AgentOps server did not start, or does not answer."""

    code = "agentops_server"


class SessionError(AgentOpsError, RuntimeError):
    """A session of AgentOps is missing, or there are several."""

    code = "agentops_session"


class AgentOpsUnsupported(AgentOpsError, RuntimeError):
    """There is no ``agentops`` that can be recorded, and the tracer is strict."""

    code = "agentops_unsupported"


class MissingExtra(LightningError, ImportError):
    """An optional dependency is not installed."""

    code = "missing_extra"

    def __init__(self, package: str, extra: str) -> None:
        self.package, self.extra = package, extra
        super().__init__(
            f"{package} is not installed; run: pip install 'agentlightning-otel[{extra}]'", name=package
        )

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str]]:
        # As in ``NotFound``: the message alone would not fit the constructor.
        return type(self), (self.package, self.extra)


HTTP_STATUS: dict[str, int] = {
    NotFound.code: 404,
    RolloutNotFound.code: 404,
    AttemptNotFound.code: 404,
    RewardTargetNotFound.code: 404,
    ResourcesNotFound.code: 404,
    WorkerNotFound.code: 404,
    InvalidArgument.code: 400,
    RolloutExists.code: 409,
    InvalidTransition.code: 409,
    NotSealable.code: 409,
    AlreadySealed.code: 409,
    # What needs no entry is raised on the side of the client only, or is the base of others.
    NotSupported.code: 501,
    NotAnExportRequest.code: 400,
    # 503 says "later", which a client takes as leave to try again; 500 is for what will not get better by
    # itself.
    StoreBusy.code: 503,
    StoreUnavailable.code: 503,
    StoreClosed.code: 503,
    StoreError.code: 500,
}
"""Error code → HTTP status of a store server."""
