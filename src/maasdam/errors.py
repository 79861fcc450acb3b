"""Every error Maasdam raises on purpose: one tree, two branches.

    MaasdamError
    ├── CallerError            the caller can fix it; the message is shown              exit 1
    │   ├── InvalidInput       400  INVALID_ARGUMENT
    │   │   ├── InvalidField   400      a field of a request's body; names it
    │   │   ├── InvalidTensor  400      wrong name, dtype, shape, NaN
    │   │   ├── InvalidPayload 400      not an image, not audio
    │   │   │   └── ContextExceeded         the prompt leaves no room in the model's context
    │   │   └── InvalidModel   400      a model file that is corrupt, unknown or not what it says
    │   ├── UnsafeModel        400  FAILED_PRECONDITION   could run code when loaded; needs --trust or is refused
    │   ├── Unsupported        400  UNIMPLEMENTED         an operator, task or conversion we do not have
    │   ├── Unauthenticated    401  UNAUTHENTICATED
    │   ├── Forbidden          403  PERMISSION_DENIED
    │   ├── NotFound           404  NOT_FOUND
    │   │   └── ModelNotFound  404      of this name
    │   ├── MethodNotAllowed   405  UNIMPLEMENTED
    │   ├── BodyTooSlow        408  DEADLINE_EXCEEDED
    │   ├── Conflict           409  ABORTED               name taken, version deployed
    │   ├── TooLarge           413  RESOURCE_EXHAUSTED
    │   ├── WrongContentType   415  INVALID_ARGUMENT
    │   ├── LimitExceeded      422  RESOURCE_EXHAUSTED    a model's work needs more time or memory than is allowed
    │   ├── VerificationFailed 422  FAILED_PRECONDITION   a report or certificate over its limits
    │   ├── TooManyRequests    429  RESOURCE_EXHAUSTED    quota
    │   └── MissingExtra       501  UNIMPLEMENTED         an optional dependency is not installed
    └── ServiceError           ours; the request id is shown, the message only in the log
        ├── EngineFailure      500  INTERNAL
        │   └── Crashed        500      the process that ran it is gone
        ├── UpstreamFailure    502  UNAVAILABLE           another server, which runs the model, broke or lied
        ├── Overloaded         503  UNAVAILABLE           queue full; retry later
        │   └── NoRoom         503      other models hold the memory
        ├── NotReady           503  UNAVAILABLE           replica loading
        │   ├── UpstreamGone   503      another server, which runs the model, can't be reached
        │   ├── Asleep         503      the router's: to be loaded first; inference waits for it, nobody sees it
        │   └── Left           503      a replica's: asked again of another, nobody sees it
        ├── StorageFailure     503  UNAVAILABLE           the disk is full, the database is gone
        │   └── LostConnection 503      the database's server went away
        └── DeadlineExceeded   504  DEADLINE_EXCEEDED

Where they arise on a request's way:
    door -(Unauthenticated, Forbidden, TooLarge, InvalidInput)-> operations -(NotFound, NotReady, TooManyRequests)->
    processor -(InvalidPayload)-> scheduler -(Overloaded, DeadlineExceeded)-> engine -(EngineFailure)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class MaasdamError(Exception):
    """Root. The message says what happened, to which thing, and what to do."""

    http_status = 500
    grpc_status = "INTERNAL"
    code = "internal_error"
    retry_after_seconds: float | None = None


class CallerError(MaasdamError):
    """The caller can fix it; the message is shown."""

    http_status = 400
    grpc_status = "INVALID_ARGUMENT"
    code = "invalid_request"
    param: str | None = None
    """The field it is about, in the caller's words."""


class InvalidInput(CallerError):
    """What was sent is not valid."""


class InvalidField(InvalidInput):
    """A field of a request's body is wrong; `param` names it."""

    def __init__(self, message: str, param: str | None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class InvalidTensor(InvalidInput):
    """A tensor does not fit the model's signature."""

    code = "invalid_tensor"


class InvalidPayload(InvalidInput):
    """Not an image, not audio, not a prompt."""

    code = "invalid_payload"


class ContextExceeded(InvalidPayload):
    """The prompt leaves no room in the model's context. `tokens`: how many it has, or "at least N"; `context`: of the model."""

    code = "context_length_exceeded"  # OpenAI's own, which clients look for

    def __init__(self, tokens: int | str, context: int) -> None:
        """The message says both, and what to send. It begins as OpenAI's does: clients look for that and cut their prompts."""
        begins = f"This model's maximum context length is {context} tokens. However, "
        says = f"the prompt has {tokens} tokens and this model's context is {context}; send at most {context - 1}"
        super().__init__(begins + says)


class InputTooLong(InvalidPayload):
    """A text is longer than the model that is to read it does. `tokens`: how many it has, or "at least N"."""

    code = "context_length_exceeded"

    def __init__(self, tokens: int | str, longest: int) -> None:
        begins = f"This model's maximum context length is {longest} tokens. However, the text has {tokens} tokens with those "
        super().__init__(f"{begins}around it; send less")


class InvalidModel(InvalidInput):
    """A model file that is corrupt, unknown or not what it says."""

    code = "invalid_model"


class UnsafeModel(CallerError):
    """Loading it could run code."""

    grpc_status = "FAILED_PRECONDITION"
    code = "unsafe_model"


class Unsupported(CallerError):
    """An operator, task or conversion that does not exist here."""

    grpc_status = "UNIMPLEMENTED"
    code = "unsupported"


class Unauthenticated(CallerError):
    """No key, or one that is unknown or revoked."""

    http_status = 401
    grpc_status = "UNAUTHENTICATED"
    code = "invalid_api_key"


class Forbidden(CallerError):
    """The key lacks the scope."""

    http_status = 403
    grpc_status = "PERMISSION_DENIED"
    code = "insufficient_scope"


class NotFound(CallerError):
    """No such model, version, key, artifact or file."""

    http_status = 404
    grpc_status = "NOT_FOUND"
    code = "not_found"


class ModelNotFound(NotFound):
    """No model of this name."""

    code = "model_not_found"
    param = "model"


class MethodNotAllowed(CallerError):
    """The path exists; this method on it does not."""

    http_status = 405
    grpc_status = "UNIMPLEMENTED"
    code = "method_not_allowed"


class BodyTooSlow(CallerError):
    """The body did not come in time."""

    http_status = 408
    grpc_status = "DEADLINE_EXCEEDED"
    code = "request_timeout"


class Conflict(CallerError):
    """It exists already, or is in use."""

    http_status = 409
    grpc_status = "ABORTED"
    code = "conflict"


class TooLarge(CallerError):
    """More bytes, pixels or depth than the service takes."""

    http_status = 413
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "too_large"


class WrongContentType(CallerError):
    """The body is not of a kind this route reads."""

    http_status = 415
    code = "unsupported_media_type"


class LimitExceeded(CallerError):
    """What is done with a model takes more time or memory than the settings allow."""

    http_status = 422
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "limit_exceeded"


class VerificationFailed(CallerError):
    """A report or certificate is over its limits."""

    http_status = 422
    grpc_status = "FAILED_PRECONDITION"
    code = "verification_failed"


class TooManyRequests(CallerError):
    """A quota is used up."""

    http_status = 429
    grpc_status = "RESOURCE_EXHAUSTED"
    code = "rate_limit_exceeded"
    retry_after_seconds = 1.0


class MissingExtra(CallerError):
    """An optional dependency is not installed; the message names the extra."""

    http_status = 501
    grpc_status = "UNIMPLEMENTED"
    code = "missing_extra"


class ServiceError(MaasdamError):
    """Ours to fix; the caller sees the request id."""


class EngineFailure(ServiceError):
    """An engine broke on a batch."""

    code = "engine_failure"


class Crashed(EngineFailure):
    """A process that worked with a model is gone."""

    code = "crashed"


class UpstreamFailure(ServiceError):
    """Another server, which runs the model, broke, lied or refused us. Whoever asks did nothing wrong."""

    http_status = 502
    grpc_status = "UNAVAILABLE"
    code = "upstream_failure"


class Overloaded(ServiceError):
    """The queue is full."""

    http_status = 503
    grpc_status = "UNAVAILABLE"
    code = "overloaded"
    retry_after_seconds = 1.0


class NoRoom(Overloaded):
    """Other models hold the memory that this one needs."""

    code = "no_room"
    retry_after_seconds = 5.0


class NotReady(ServiceError):
    """A replica is loading or stopping."""

    http_status = 503
    grpc_status = "UNAVAILABLE"
    code = "not_ready"
    retry_after_seconds = 1.0


class UpstreamGone(NotReady):
    """Another server, which runs the model, can't be reached."""

    code = "upstream_gone"


class Asleep(NotReady):
    """What was asked for has to be loaded first: `Router.woken` waits for it."""

    def __init__(self, message: str, name: str, group: Any) -> None:
        """`name` is what was asked for, `group` the router's own replica set that it meant."""
        super().__init__(message)
        self.name = name
        self.group = group


class Left(NotReady):
    """A replica that left on its own computed nothing of this request, which is asked again of another.

    Its `when_gone` was told before.
    """


class StorageFailure(ServiceError):
    """The disk or the database can't keep what must be kept."""

    http_status = 503
    grpc_status = "UNAVAILABLE"
    code = "storage_failure"
    retry_after_seconds = 5.0


class LostConnection(StorageFailure):
    """The database's server went away; what was under way may have been committed or not."""


class DeadlineExceeded(ServiceError):
    """The answer would come too late."""

    http_status = 504
    grpc_status = "DEADLINE_EXCEEDED"
    code = "deadline_exceeded"


@contextmanager
def from_extra(extra: str, package: str) -> Iterator[None]:
    """What is imported of a package that an extra brings. Raises MissingExtra naming both where it is not there."""
    try:
        yield
    except ImportError as error:
        raise MissingExtra(f"{package} is not installed; run: pip install 'maasdam[{extra}]'") from error


def words(error: BaseException) -> str:
    """Its message, as it can be written anywhere: the name of a file may hold halves of characters."""
    return str(error).encode(errors="replace").decode()


def remade(kind: type[MaasdamError], text: str, facts: Mapping[str, Any]) -> MaasdamError:
    """An error that was raised in another process, with its message and its fields."""
    error = kind.__new__(kind)  # not by its own __init__, which may take other things
    error.args = (text,)
    vars(error).update(facts)
    return error
