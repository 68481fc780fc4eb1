"""Failures with a name, a status and a code, as a client or an operator sees them.

    LoramemError                     500
    ├── BadRequest                   400  a value that is not allowed: key, value, allowed
    │   ├── InvalidValue             422
    │   │   ├── UnreadableDocument   422  the file is of a known type but cannot be read
    │   │   └── WindowExceeded       422  the prompt is longer than the model's window
    │   ├── BodyTooLarge             413
    │   └── UnsupportedMediaType     415
    ├── NotFound                     404  document, job, adapter, model or path
    ├── MethodNotAllowed             405
    ├── Conflict                     409
    │   ├── MemoryNotReady           409  names the job to wait for
    │   └── WrongJobState            409
    ├── Unauthorized                 401
    ├── Forbidden                    403
    ├── Unavailable                  503  try again later; nothing was lost
    │   ├── DiskFull                 503  until somebody makes room
    │   ├── EngineUnavailable        503
    │   ├── EngineBusy               503  other answers hold all that it has
    │   ├── NamespaceBusy            503  it is being read into memory
    │   ├── WriterUnavailable        503  the job waits, no attempt is counted
    │   └── MakesWay                      a job that can wait lets another go first
    ├── StoredDataDamaged            500  a checksum does not match
    └── JobError                     500  the worker's own
        ├── LeaseLost                     another worker owns the job: stop, discard the output
        ├── JobCancelled                  asked for by a user
        ├── TrainingFailed                terminal: a retry would fail the same way
        │   └── AdapterRejected           what was trained may not be stored: pickle, numbers that are not finite
        └── AttemptsExhausted             the job is dead until a user retries it

Two stand with what raises them: `trainer_worker.lease.WorkerStopping`, a `JobError`, and
`trainer_worker.writer.PromptRefused`, a `TrainingFailed`. `SettingsError` stops the start of a process and never
crosses HTTP, so it stands apart.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

SHOWN_CHARS = 120
"""Of a user's value in a message."""


class LoramemError(Exception):
    """Base of the tree. `code` is stable and machine-readable, the message is for people."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Internal error"

    def __init__(self, detail: str, **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra: Mapping[str, Any] = extra

    def problem(self) -> dict[str, Any]:
        """The problem document (RFC 9457) without `extra`: JSON whatever the error carries."""
        kind = f"urn:loramem:error:{self.code}"
        return {"type": kind, "title": self.title, "status": self.status, "detail": self.detail, "code": self.code}


class BadRequest(LoramemError):
    """A request that cannot be served as it stands. `key`, `value` and `allowed` say why."""

    status = 400
    code = "bad-request"
    title = "Bad request"

    def __init__(
        self,
        detail: str,
        *,
        key: str | None = None,
        value: object = None,
        allowed: str | None = None,
        **extra: Any,
    ) -> None:
        named = {"key": key, "value": value, "allowed": allowed} if key is not None else {}
        super().__init__(detail, **named, **extra)


class InvalidValue(BadRequest):
    status = 422
    code = "invalid-value"
    title = "Invalid value"


class UnreadableDocument(InvalidValue):
    code = "unreadable-document"
    title = "Document cannot be read"


class WindowExceeded(InvalidValue):
    code = "window-exceeded"
    title = "Prompt exceeds the model's window"


class BodyTooLarge(BadRequest):
    status = 413
    code = "body-too-large"
    title = "Body too large"


class UnsupportedMediaType(BadRequest):
    status = 415
    code = "unsupported-media-type"
    title = "Unsupported media type"


class NotFound(LoramemError):
    status = 404
    code = "not-found"
    title = "Not found"

    def __init__(self, kind: str, wanted: str, key: str | None = None) -> None:
        """`key` in the request, where it is not the kind."""
        named = wanted if len(wanted) <= SHOWN_CHARS else f"{wanted[:SHOWN_CHARS]}…"
        super().__init__(f"no {kind} {named!r}", key=key or kind, value=wanted)


class MethodNotAllowed(LoramemError):
    status = 405
    code = "method-not-allowed"
    title = "Method not allowed"


class Conflict(LoramemError):
    status = 409
    code = "conflict"
    title = "Conflict"


class MemoryNotReady(Conflict):
    code = "memory-not-ready"
    title = "The memory cannot answer this yet"


class WrongJobState(Conflict):
    code = "wrong-job-state"
    title = "The job's state does not allow this"


class Unauthorized(LoramemError):
    status = 401
    code = "unauthorized"
    title = "Missing or wrong API key"


class Forbidden(LoramemError):
    status = 403
    code = "forbidden"
    title = "Not from here"


class Unavailable(LoramemError):
    status = 503
    code = "unavailable"
    title = "Temporarily unavailable"


class DiskFull(Unavailable):
    code = "disk-full"
    title = "The disk is full"


class EngineUnavailable(Unavailable):
    code = "engine-unavailable"
    title = "The inference engine is not available"


class EngineBusy(Unavailable):
    code = "engine-busy"
    title = "The inference engine is busy"


class NamespaceBusy(Unavailable):
    code = "namespace-busy"
    title = "The namespace is being read into memory"


class WriterUnavailable(Unavailable):
    code = "writer-unavailable"
    title = "The writer endpoint is not available"


class MakesWay(Unavailable):
    """Raised in a worker; never crosses HTTP."""

    code = "makes-way"
    title = "The worker is wanted elsewhere"


class StoredDataDamaged(LoramemError):
    code = "stored-data-damaged"
    title = "Stored data is damaged"


class JobError(LoramemError):
    code = "job-error"
    title = "The job failed"


class LeaseLost(JobError):
    code = "lease-lost"
    title = "The job's lease is lost"


class JobCancelled(JobError):
    code = "job-cancelled"
    title = "The job was cancelled"


class TrainingFailed(JobError):
    code = "training-failed"
    title = "Training failed"


class AdapterRejected(TrainingFailed):
    code = "adapter-rejected"
    title = "The trained adapter may not be stored"


class AttemptsExhausted(JobError):
    code = "attempts-exhausted"
    title = "The job failed in every attempt"


class SettingsError(SystemExit):
    """A setting that is wrong stops the start. Its message names key, value and what is allowed."""
