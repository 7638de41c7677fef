"""What a call can fail with, by meaning.

    Error                         any code not below, such as UNKNOWN: EC2 refused for an unclassified reason
    ├── InvalidArgumentError      INVALID_ARGUMENT: field_violations names the field
    ├── NotFoundError             NOT_FOUND: no such account, Region or AMI
    ├── PermissionDeniedError     PERMISSION_DENIED: the caller, or the gateway's AWS identity, may not
    ├── UnauthenticatedError      UNAUTHENTICATED: no credential, or one not believed
    ├── FailedPreconditionError   FAILED_PRECONDITION: somebody has to change something first
    ├── OutOfRangeError           OUT_OF_RANGE: a resume token cannot be continued
    ├── AbortedError              ABORTED: a target left out of a listing
    ├── ResourceExhaustedError    RESOURCE_EXHAUSTED: ask again after retry_after
    ├── UnavailableError          UNAVAILABLE, or a CANCELLED the caller did not cause: ask again
    ├── DeadlineExceededError     DEADLINE_EXCEEDED: the timeout came first
    ├── UnimplementedError        UNIMPLEMENTED: the gateway is older than the client
    └── InternalError             INTERNAL, DATA_LOSS: a fault of the gateway

The gateway's status, with all its details, is `google.rpc.Status`: in a call's trailing metadata, in a
`TargetOutcome` and in a `TargetState`. All three become an error by this module.
"""

from typing import TYPE_CHECKING, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status

from imagetasks.v1.store_image_tasks_pb2 import TargetFailures

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

DOMAIN = "imagetasks"
_DETAILS_KEY = "grpc-status-details-bin"

_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Error(Exception):
    """The gateway, or the way to it, answered with an error.

    Attributes:
        status: What was sent, with the details that have no attribute here.
        code: The gRPC status code.
        message: The text for people.
        reason: A name from `ErrorReason` without its prefix, as "AWS_THROTTLED". Empty if the error did not
            come from the gateway, as when no connection could be made.
        account: The gateway's name of the account at fault, else empty.
        region: The Region at fault, else empty.
        aws_error_code: AWS's own code, as "RequestLimitExceeded", else empty.
        aws_request_id: AWS's id of the failed request, else empty.
        retry_after: How long to wait before asking again, or None if the gateway did not say.
        field_violations: The fields of the request at fault, each with `field` and `description`.
        target_failures: If all of several targets failed: each with account, region, code and reason.
        omitted_target_failures: How many more target failures did not fit into the error.
    """

    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status
        self.code = code_of(status.code)
        self.message = status.message
        self.reason = ""
        self.account = ""
        self.region = ""
        self.aws_error_code = ""
        self.aws_request_id = ""
        self.retry_after: timedelta | None = None
        self.field_violations: tuple[error_details_pb2.BadRequest.FieldViolation, ...] = ()
        self.target_failures: tuple[TargetFailures.Failure, ...] = ()
        self.omitted_target_failures = 0

        info = error_details_pb2.ErrorInfo()
        if _find(status, info) and info.domain == DOMAIN:
            self.reason = info.reason
            self.account = info.metadata.get("account", "")
            self.region = info.metadata.get("region", "")
            self.aws_error_code = info.metadata.get("awsErrorCode", "")
            self.aws_request_id = info.metadata.get("awsRequestId", "")
        retry = error_details_pb2.RetryInfo()
        if _find(status, retry):
            self.retry_after = retry.retry_delay.ToTimedelta()
        request = error_details_pb2.BadRequest()
        if _find(status, request):
            self.field_violations = tuple(request.field_violations)
        failures = TargetFailures()
        if _find(status, failures):
            self.target_failures = tuple(failures.failures)
            self.omitted_target_failures = failures.omitted_count

    def __str__(self) -> str:
        return f"{self.reason or self.code.name}: {self.message}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"


class InvalidArgumentError(Error):
    """The request is malformed: `field_violations` names the field."""


class NotFoundError(Error):
    """No such account, Region or AMI, or none that this caller may see."""


class PermissionDeniedError(Error):
    """This caller, or the gateway's AWS identity, may not do that."""


class UnauthenticatedError(Error):
    """The credential (bearer token or client certificate) is missing, not believed, or expired."""


class FailedPreconditionError(Error):
    """Nothing helps until somebody changes something: a Region not enabled, AWS credentials rejected."""


class OutOfRangeError(Error):
    """A resume token cannot be continued."""


class AbortedError(Error):
    """In an outcome: the target failed on an earlier page and is left out to the listing's end."""


class ResourceExhaustedError(Error):
    """EC2's allowance, or this caller's at the gateway, has to recover: `retry_after` tells how long.

    Never retried by the client itself: EC2 allows so little that blind retries would make it worse.
    """


class UnavailableError(Error):
    """The gateway, or EC2 behind it, cannot be reached now, or too many calls wait at it.

    The client has already tried a few times.
    """


class DeadlineExceededError(Error):
    """The timeout came before the answer."""


class UnimplementedError(Error):
    """The gateway does not have this method."""


class InternalError(Error):
    """A fault of the gateway; its log has the cause."""


_CLASSES: dict[grpc.StatusCode, type[Error]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.OUT_OF_RANGE: OutOfRangeError,
    grpc.StatusCode.ABORTED: AbortedError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    # A server refuses with CANCELLED when too many calls arrive at once. The caller's own cancelling never
    # becomes an error of this tree.
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.UNIMPLEMENTED: UnimplementedError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
}


def from_status(status: Status) -> Error:
    """The error that a `TargetOutcome.status` or a `TargetState.last_error` stands for.

    Args:
        status: A status that is not OK.

    Raises:
        ValueError: The status is OK.
    """
    if status.code == grpc.StatusCode.OK.value[0]:
        raise ValueError("an OK status is no error")
    return _CLASSES.get(code_of(status.code), Error)(status)


def code_of(number: int) -> grpc.StatusCode:
    """The code of a number on the wire; UNKNOWN if there is none."""
    return _CODES.get(number, grpc.StatusCode.UNKNOWN)


def from_call(failure: grpc.RpcError) -> Error:
    """The error that a failed call stands for, with whatever details came along."""
    status = Status()
    # Pairs in both APIs, whatever the stubs say; None when nothing was received.
    trailing = cast("Iterable[tuple[str, bytes]] | None", failure.trailing_metadata())
    for key, value in trailing or ():
        if key == _DETAILS_KEY:
            try:
                status = Status.FromString(value)
            except DecodeError:
                status = Status()  # a proxy's own; the code and text are enough
    # The wire's code is the one that grpc acted upon.
    status.code = failure.code().value[0]
    status.message = status.message or failure.details() or ""
    return from_status(status)


def _find(status: Status, into: Message) -> bool:
    """Unpacks the status's first detail of the message's type; False if there is none that can be read."""
    for detail in status.details:
        if detail.Is(into.DESCRIPTOR):
            try:
                return bool(detail.Unpack(into))
            except DecodeError:
                return False
    return False
