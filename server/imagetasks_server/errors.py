"""Every error of the gateway, and what it is on the wire.

Error:
    ├── InvalidRequest       INVALID_ARGUMENT      a field is malformed; names it
    ├── NotFound             NOT_FOUND             no such account, Region or image
    ├── Unauthenticated      UNAUTHENTICATED       no credential, or one that is not believed
    ├── PermissionDenied     PERMISSION_DENIED     the caller, or the gateway at AWS, may not
    ├── FailedPrecondition   FAILED_PRECONDITION   somebody has to change something first
    ├── Exhausted            RESOURCE_EXHAUSTED    an allowance is used up; tells when to come back
    ├── Unavailable          UNAVAILABLE           try again
    ├── Aborted              ABORTED               a target stays out of a listing
    ├── DeadlineExceeded     DEADLINE_EXCEEDED     the caller's deadline came first
    ├── OutOfRange           OUT_OF_RANGE          a watch cannot be continued from there
    ├── Unclassified         UNKNOWN               AWS refused for an unknown reason
    └── Internal             INTERNAL              a fault of the gateway

An instance may be kept and shown to many callers; whoever raises a kept one raises it `again()`, for
a raised exception collects tracebacks.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, Self

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from imagetasks.v1 import store_image_tasks_pb2 as pb

DOMAIN = "imagetasks"
# gRPC loses trailing metadata above 8 KiB at random; base64 and other metadata need their part.
MAX_DETAIL_BYTES = 4096
MAX_FAILURES_BYTES = 3072
MAX_MESSAGE_CHARS = 512

_PREFIX = "ERROR_REASON_"
REASONS = frozenset(
    name.removeprefix(_PREFIX)
    for name in pb.ErrorReason.keys()  # noqa: SIM118  # an enum wrapper is no dict
)


class Error(Exception):
    """What went wrong, in the words of the contract.

    Args:
        reason: A name of `ErrorReason` without its prefix.
        message: One sentence for a person.
        account: The gateway's name of the account it is about.
        region: The Region it is about.
        aws_code: EC2's or STS's error code.
        aws_message: EC2's or STS's own text, where `message` says it otherwise.
        aws_request_id: The AWS request that failed.
        retry_after: Seconds after which trying again makes sense.
        fields: Request fields at fault, each with what is wrong with it.
        details: More details for the status.
    """

    code: ClassVar[grpc.StatusCode]

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        account: str = "",
        region: str = "",
        aws_code: str = "",
        aws_message: str = "",
        aws_request_id: str = "",
        retry_after: float | None = None,
        fields: Sequence[tuple[str, str]] = (),
        details: Iterable[Message] = (),
    ) -> None:
        assert reason in REASONS, reason
        super().__init__(message)
        self.reason = reason
        self.message = (
            message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"
        )
        self.account = account
        self.region = region
        self.aws_code = aws_code
        self.aws_message = aws_message[:MAX_MESSAGE_CHARS]
        self.aws_request_id = aws_request_id
        self.retry_after = retry_after
        self.fields = tuple(fields)
        self.details = tuple(details)

    def again(self) -> Self:
        """The same error, fresh, to be raised."""
        copy = self.__class__.__new__(self.__class__)
        copy.args = self.args
        copy.__dict__.update(self.__dict__)
        return copy

    def at(self, account: str, region: str = "") -> Self:
        """The same error, fresh, about this target."""
        copy = self.again()
        copy.account, copy.region = account, region
        return copy

    def status(self) -> status_pb2.Status:
        """The error as google.rpc.Status, its details under `MAX_DETAIL_BYTES`."""
        metadata = {
            "account": self.account,
            "region": self.region,
            "awsErrorCode": self.aws_code,
            "awsErrorMessage": self.aws_message,
            "awsRequestId": self.aws_request_id,
        }
        details: list[Message] = [
            error_details_pb2.ErrorInfo(
                reason=self.reason, domain=DOMAIN, metadata={k: v for k, v in metadata.items() if v}
            )
        ]
        if self.retry_after is not None:
            delay = Duration()
            delay.FromMicroseconds(max(0, round(self.retry_after * 1_000_000)))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        if self.fields:
            violations = [
                error_details_pb2.BadRequest.FieldViolation(field=field, description=text)
                for field, text in self.fields
            ]
            details.append(error_details_pb2.BadRequest(field_violations=violations))
        status = status_pb2.Status(code=self.code.value[0], message=self.message)
        for detail in (*details, *self.details):
            status.details.add().Pack(detail)
            if status.ByteSize() > MAX_DETAIL_BYTES:
                del status.details[-1]
        return status


class InvalidRequest(Error):
    """A field of the request is malformed or out of range."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    def __init__(self, field: str, text: str, *, reason: str = "INVALID_FIELD") -> None:
        super().__init__(reason, f"{field}: {text}", fields=[(field, text)])


class NotFound(Error):
    """What was named does not exist, or not for this caller."""

    code = grpc.StatusCode.NOT_FOUND


class Unauthenticated(Error):
    """No credential was sent, or one that is not believed."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(Error):
    """The caller may not, or the gateway's AWS identity may not."""

    code = grpc.StatusCode.PERMISSION_DENIED


class FailedPrecondition(Error):
    """Trying again is useless until somebody changes something."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Exhausted(Error):
    """An allowance is used up for now."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(Error):
    """A passing fault."""

    code = grpc.StatusCode.UNAVAILABLE


class Aborted(Error):
    """The target stays out of this listing."""

    code = grpc.StatusCode.ABORTED


class DeadlineExceeded(Error):
    """The caller's deadline came first."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class OutOfRange(Error):
    """A place in the past that is no longer known."""

    code = grpc.StatusCode.OUT_OF_RANGE


class Unclassified(Error):
    """AWS refused for a reason the gateway does not know."""

    code = grpc.StatusCode.UNKNOWN


class Internal(Error):
    """A fault of the gateway; its log has the cause."""

    code = grpc.StatusCode.INTERNAL


def all_failed(errors: Sequence[Error]) -> Error:
    """The call's error when every one of several targets failed: their common code, else UNAVAILABLE."""
    kinds = {(type(error).code, error.reason) for error in errors}
    codes = {code for code, _ in kinds}
    cls = next(cls for cls in _BY_CODE if cls.code in codes) if len(codes) == 1 else Unavailable
    reason = errors[0].reason if len(kinds) == 1 else "ALL_TARGETS_FAILED"
    failures = pb.TargetFailures()
    for error in errors:
        failures.failures.add(
            account=error.account, region=error.region, code=type(error).code.value[0], reason=error.reason
        )
    while failures.ByteSize() > MAX_FAILURES_BYTES:
        del failures.failures[-1]
        failures.omitted_count += 1
    waits = [error.retry_after for error in errors if error.retry_after is not None]
    message = f"All {len(errors)} targets failed; the first: {errors[0].message}"
    return cls(reason, message, retry_after=min(waits, default=None), details=[failures])


_BY_CODE: tuple[type[Error], ...] = (
    NotFound,
    PermissionDenied,
    FailedPrecondition,
    Exhausted,
    Unavailable,
    Aborted,
    DeadlineExceeded,
    Unclassified,
    Internal,
)
