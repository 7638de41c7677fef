"""From a status to a typed error."""

import pickle
from datetime import timedelta
from typing import Any

import grpc
import pytest
from either_client import Connect
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from scripted_gateway import ScriptedGateway, failing, outcome, reason, status

import imagetasks
from imagetasks import errors
from imagetasks.v1 import store_image_tasks_pb2 as pb


async def error_of(client: Any) -> imagetasks.Error:
    with pytest.raises(imagetasks.Error) as raised:
        await client.targets()
    return raised.value


async def test_an_error_has_every_detail_the_gateway_sent(gateway: ScriptedGateway, client: Any) -> None:
    failures = pb.TargetFailures(
        failures=[
            pb.TargetFailures.Failure(account="prod", region="eu-west-1", code=8, reason="RATE_LIMITED")
        ],
        omitted_count=3,
    )
    violation = BadRequest.FieldViolation(field="regions", description="none")
    sent = status(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "EC2 throttled",
        QuotaFailure(),
        reason(
            "AWS_THROTTLED",
            account="prod",
            region="eu-central-1",
            awsErrorCode="RequestLimitExceeded",
            awsRequestId="1-2-3",
        ),
        RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)),
        BadRequest(field_violations=[violation]),
        failures,
    )
    gateway.targets = failing(sent)

    error = await error_of(client)

    assert type(error) is imagetasks.ResourceExhaustedError
    assert error.status == sent
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.message == "EC2 throttled"
    assert error.reason == "AWS_THROTTLED"
    assert (error.account, error.region) == ("prod", "eu-central-1")
    assert (error.aws_error_code, error.aws_request_id) == ("RequestLimitExceeded", "1-2-3")
    assert error.retry_after == timedelta(seconds=2.5)
    assert error.field_violations == (violation,)
    assert error.target_failures == tuple(failures.failures)
    assert error.omitted_target_failures == 3
    assert str(error) == "AWS_THROTTLED: EC2 throttled"
    assert repr(error) == "<ResourceExhaustedError AWS_THROTTLED: EC2 throttled>"


async def test_an_error_without_details_has_its_code_and_text(gateway: ScriptedGateway, client: Any) -> None:
    def respond(_: Any, context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    gateway.targets = respond

    error = await error_of(client)

    assert type(error) is imagetasks.NotFoundError
    assert error.message == "no such thing"
    assert (error.reason, error.account, error.region) == ("", "", "")
    assert (error.aws_error_code, error.aws_request_id) == ("", "")
    assert error.retry_after is None
    assert error.field_violations == error.target_failures == ()
    assert str(error) == "NOT_FOUND: no such thing"


async def test_damaged_details_leave_the_code_and_text(gateway: ScriptedGateway, client: Any) -> None:
    def respond(_: Any, context: grpc.ServicerContext) -> None:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\xff\xff\xff"),))
        context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    gateway.targets = respond

    error = await error_of(client)

    assert type(error) is imagetasks.NotFoundError
    assert error.message == "no such thing"


async def test_no_connection_is_unavailable_without_a_reason(connect: Connect) -> None:
    async with connect("unix:/nonexistent/socket") as nowhere:
        error = await error_of(nowhere)

    assert type(error) is imagetasks.UnavailableError
    assert error.reason == ""


def test_a_damaged_detail_counts_as_absent() -> None:
    damaged = AnyMessage(type_url="type.googleapis.com/google.rpc.ErrorInfo", value=b"\xff")

    error = errors.from_status(Status(code=5, message="x", details=[damaged]))

    assert error.reason == ""


def test_another_domains_reason_is_not_the_gateways() -> None:
    foreign = ErrorInfo(domain="proxy.example", reason="OVERLOADED", metadata={"account": "x"})

    error = errors.from_status(status(grpc.StatusCode.UNAVAILABLE, "x", foreign))

    assert (error.reason, error.account) == ("", "")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("CANCELLED", imagetasks.UnavailableError),
        ("UNKNOWN", imagetasks.Error),
        ("INVALID_ARGUMENT", imagetasks.InvalidArgumentError),
        ("DEADLINE_EXCEEDED", imagetasks.DeadlineExceededError),
        ("NOT_FOUND", imagetasks.NotFoundError),
        ("ALREADY_EXISTS", imagetasks.Error),
        ("PERMISSION_DENIED", imagetasks.PermissionDeniedError),
        ("UNAUTHENTICATED", imagetasks.UnauthenticatedError),
        ("RESOURCE_EXHAUSTED", imagetasks.ResourceExhaustedError),
        ("FAILED_PRECONDITION", imagetasks.FailedPreconditionError),
        ("ABORTED", imagetasks.AbortedError),
        ("UNIMPLEMENTED", imagetasks.UnimplementedError),
        ("OUT_OF_RANGE", imagetasks.OutOfRangeError),
        ("INTERNAL", imagetasks.InternalError),
        ("UNAVAILABLE", imagetasks.UnavailableError),
        ("DATA_LOSS", imagetasks.InternalError),
    ],
)
def test_a_code_has_its_class(code: str, kind: type[imagetasks.Error]) -> None:
    error = errors.from_status(status(grpc.StatusCode[code], "x"))

    assert type(error) is kind
    assert error.code is grpc.StatusCode[code]


def test_a_code_that_grpc_does_not_know_is_unknown() -> None:
    error = errors.from_status(Status(code=99, message="x"))

    assert type(error) is imagetasks.Error
    assert error.code is grpc.StatusCode.UNKNOWN
    assert error.status.code == 99


def test_an_outcomes_status_becomes_the_same_error() -> None:
    failed = outcome(
        failure=status(grpc.StatusCode.PERMISSION_DENIED, "no", reason("AWS_UNAUTHORIZED_OPERATION")),
    )

    error = errors.from_status(failed.status)

    assert type(error) is imagetasks.PermissionDeniedError
    assert error.reason == "AWS_UNAUTHORIZED_OPERATION"


def test_an_ok_status_is_no_error() -> None:
    with pytest.raises(ValueError, match="no error"):
        errors.from_status(Status())


def test_an_error_survives_pickling() -> None:
    error = errors.from_status(status(grpc.StatusCode.NOT_FOUND, "x", reason("UNKNOWN_REGION")))

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is imagetasks.NotFoundError
    assert copy.status == error.status
    assert copy.reason == "UNKNOWN_REGION"
