"""Everything that Darkroom refuses or fails with, as types.

    DarkroomError
    ├── RequestError                 the caller can mend it
    │   ├── InvalidRequest           one or more fields are wrong
    │   ├── ModelChanged             a rerun would draw another picture
    │   ├── MalformedRequest         the body is not JSON as we take it
    │   ├── RequestTooLarge
    │   ├── RequestTimedOut          the body did not arrive
    │   ├── UnsupportedMedia
    │   ├── Unauthenticated
    │   ├── Forbidden
    │   ├── NotFound
    │   ├── Gone                     it existed, and was erased
    │   ├── EndpointOff              nothing is sent to this endpoint of webhooks
    │   └── IdempotencyMismatch
    ├── LimitReached                 the tenant's own limit
    │   ├── RateLimited              of calls in a time
    │   ├── QuotaExceeded            of GPU seconds in a day
    │   └── TooManyAttempts          with wrong keys, from one address
    ├── Overloaded                   the system's limit
    ├── Unavailable                  Redis or the storage does not answer
    └── GenerationFailed             a job ended without a picture

HTTP statuses are not here: `service.api.problems` alone knows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from inspect import cleandoc
from typing import ClassVar

from service.contract.rate import RequestRate


class FailureCode(StrEnum):
    """Why a job ended without a picture; stable, part of the HTTP contract."""

    #: The request cannot be drawn by this model; sending it again changes nothing.
    INVALID_REQUEST = "invalid_request"
    #: An input picture could not be decoded.
    INVALID_INPUT = "invalid_input"
    #: The prompt is longer than the text encoder reads.
    PROMPT_TOO_LONG = "prompt_too_long"
    #: The model could not be loaded by any worker that holds it.
    MODEL_UNAVAILABLE = "model_unavailable"
    #: The picture was not finite or came out all black.
    NUMERICAL_ERROR = "numerical_error"
    #: The device ran out of memory, also when drawn alone.
    OUT_OF_MEMORY = "out_of_memory"
    #: The engine died again and again while drawing this job alone.
    POISON = "poison"
    #: Workers were lost again and again while they held this job.
    WORKER_LOST = "worker_lost"
    #: The deadline that the caller gave passed first.
    DEADLINE_EXCEEDED = "deadline_exceeded"
    #: The result could not be stored.
    STORAGE_FAILED = "storage_failed"
    #: A defect of ours.
    INTERNAL = "internal"


#: Failures that may pass when the same request is sent again.
RETRYABLE_FAILURES = frozenset(
    {
        FailureCode.MODEL_UNAVAILABLE,
        FailureCode.OUT_OF_MEMORY,
        FailureCode.WORKER_LOST,
        FailureCode.DEADLINE_EXCEEDED,
        FailureCode.STORAGE_FAILED,
        FailureCode.INTERNAL,
    }
)


@dataclass(frozen=True, slots=True)
class FieldError:
    """One wrong field of a request."""

    #: JSON pointer (RFC 6901) into the request body, or the name of its part, of a query parameter or header.
    pointer: str
    #: What was wrong and what is allowed; never the offending value itself.
    message: str


class DarkroomError(Exception):
    """Something went wrong in Darkroom."""

    #: Stable name for programs; documented in docs/errors.md.
    code: ClassVar[str] = "internal"

    def __init__(self, message: str | None = None) -> None:
        self.message = message or cleandoc(self.__doc__ or self.code).splitlines()[0]
        super().__init__(self.message)


class RequestError(DarkroomError):
    """The request cannot be served as it is."""

    code = "bad_request"


class InvalidRequest(RequestError):
    """The request has fields that are not allowed."""

    code = "invalid_request"

    def __init__(self, errors: list[FieldError], message: str | None = None) -> None:
        super().__init__(message)
        self.errors = errors


class MalformedRequest(RequestError):
    """The body is not valid JSON."""

    code = "malformed_request"


class ModelChanged(RequestError):
    """The model is not the one that drew this generation, or is not served any more."""

    code = "model_changed"


class RequestTooLarge(RequestError):
    """The body is larger than this server takes."""

    code = "request_too_large"


class RequestTimedOut(RequestError):
    """The body did not arrive in time."""

    code = "request_timeout"


class UnsupportedMedia(RequestError):
    """The content type is not supported here."""

    code = "unsupported_media_type"


class Unauthenticated(RequestError):
    """A valid API key is needed: send `Authorization: Bearer dk_…`."""

    code = "unauthenticated"


class Forbidden(RequestError):
    """This is not allowed."""

    code = "forbidden"


class NotFound(RequestError):
    """There is no such thing here."""

    code = "not_found"


class Gone(RequestError):
    """It was here once and has been erased."""

    code = "gone"


class EndpointOff(RequestError):
    """This endpoint of webhooks is switched off."""

    code = "endpoint_off"


class IdempotencyMismatch(RequestError):
    """This Idempotency-Key was used before with another body."""

    code = "idempotency_key_reused"


class LimitReached(DarkroomError):
    """This tenant's limit is reached."""

    code = "limit_reached"

    def __init__(self, message: str | None = None, *, retry_after_s: int | None = None) -> None:
        """`retry_after_s`: None where nobody knows when it would pass."""
        super().__init__(message)
        self.retry_after_s = 5 if retry_after_s is None else retry_after_s


class RateLimited(LimitReached):
    """This tenant creates generations faster than it may."""

    code = "rate_limited"

    def __init__(self, rate: RequestRate, asked: int = 1) -> None:
        """`asked`: generations of the refused call."""
        wait_s = max(1, rate.wait_s(asked))
        what = "the next one" if asked == 1 else f"these {asked}"
        message = f"This tenant may create {rate.per_minute} generations a minute; {what} in {wait_s} s."
        super().__init__(message, retry_after_s=wait_s)
        self.rate = rate


class QuotaExceeded(LimitReached):
    """This tenant has used the GPU seconds that it may use in a day (UTC)."""

    code = "quota_exceeded"


class TooManyAttempts(LimitReached):
    """Too many calls with a wrong key came from this address."""

    code = "too_many_attempts"


class Overloaded(DarkroomError):
    """The queue is full."""

    code = "overloaded"

    def __init__(self, message: str | None = None, *, retry_after_s: int | None = None) -> None:
        """`retry_after_s`: None where nobody knows when it would pass."""
        super().__init__(message)
        self.retry_after_s = 10 if retry_after_s is None else retry_after_s


class Unavailable(DarkroomError):
    """A service that this one depends on does not answer."""

    code = "unavailable"

    def __init__(self, message: str | None = None, *, retry_after_s: int = 2) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class GenerationFailed(DarkroomError):
    """The generation ended without a picture."""

    code = "generation_failed"

    def __init__(self, failure: str, message: str) -> None:
        super().__init__(message)
        self.failure = failure
