"""The table from AWS's errors to the gateway's, whole."""

from typing import Any

import botocore.exceptions as boto
import botocore.parsers
import grpc
import pytest
from google.rpc import error_details_pb2

from imagetasks_server.aws_errors import is_expiry, is_throttle, translate
from imagetasks_server.errors import Error

CODE = grpc.StatusCode
THROTTLES = [
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "EC2ThrottledException",
    "RequestThrottled",
    "RequestThrottledException",
    "SlowDown",
    "TooManyRequestsException",
]
ENDPOINT = "https://ec2.eu-central-1.amazonaws.com"


def of_aws(code: str, status: int = 400, message: str = "why", operation: str = "Op") -> boto.ClientError:
    return boto.ClientError(
        {
            "Error": {"Code": code, "Message": message},
            "ResponseMetadata": {"RequestId": "f1e2", "HTTPStatusCode": status},
        },
        operation,
    )


def translated(error: Exception, *, proven: bool = True) -> Error:
    return translate(error, credentials_proven=proven, account="main", region="eu-central-1")


def detail(error: Error, kind: type[Any]) -> Any:
    found = [kind() for packed in error.status().details if packed.Is(kind.DESCRIPTOR)]
    assert len(found) == 1
    (packed,) = [each for each in error.status().details if each.Is(kind.DESCRIPTOR)]
    packed.Unpack(found[0])
    return found[0]


@pytest.mark.parametrize(
    ("code", "status", "expected", "reason"),
    [
        *((each, 503, CODE.RESOURCE_EXHAUSTED, "AWS_THROTTLED") for each in THROTTLES),
        ("UnauthorizedOperation", 403, CODE.PERMISSION_DENIED, "AWS_UNAUTHORIZED_OPERATION"),
        ("AccessDenied", 403, CODE.PERMISSION_DENIED, "AWS_UNAUTHORIZED_OPERATION"),
        ("AccessDeniedException", 400, CODE.PERMISSION_DENIED, "AWS_UNAUTHORIZED_OPERATION"),
        ("InvalidClientTokenId", 403, CODE.FAILED_PRECONDITION, "AWS_CREDENTIALS_REJECTED"),
        ("SignatureDoesNotMatch", 403, CODE.FAILED_PRECONDITION, "AWS_CREDENTIALS_REJECTED"),
        ("OptInRequired", 401, CODE.FAILED_PRECONDITION, "AWS_REGION_NOT_ENABLED"),
        ("Blocked", 403, CODE.FAILED_PRECONDITION, "AWS_ACCOUNT_BLOCKED"),
        ("PendingVerification", 403, CODE.FAILED_PRECONDITION, "AWS_ACCOUNT_PENDING"),
        ("ExpiredToken", 403, CODE.UNAVAILABLE, "AWS_CREDENTIALS_EXPIRED"),
        ("ExpiredTokenException", 400, CODE.UNAVAILABLE, "AWS_CREDENTIALS_EXPIRED"),
        ("RequestExpired", 400, CODE.UNAVAILABLE, "AWS_CREDENTIALS_EXPIRED"),
        ("InvalidAMIID.NotFound", 400, CODE.NOT_FOUND, "IMAGE_NOT_FOUND"),
        ("InvalidAMIID.Malformed", 400, CODE.INVALID_ARGUMENT, "IMAGE_ID_MALFORMED"),
        ("InvalidParameterValue", 400, CODE.INTERNAL, "UPSTREAM_CONTRACT"),
        ("InvalidParameter", 400, CODE.INTERNAL, "UPSTREAM_CONTRACT"),
        ("MissingParameter", 400, CODE.INTERNAL, "UPSTREAM_CONTRACT"),
        ("ValidationError", 400, CODE.INTERNAL, "UPSTREAM_CONTRACT"),
        ("InvalidParameterCombination", 400, CODE.INTERNAL, "UPSTREAM_CONTRACT"),
        ("InvalidPaginationToken", 400, CODE.UNAVAILABLE, "AWS_PAGE_EXPIRED"),
        ("InvalidNextToken", 400, CODE.UNAVAILABLE, "AWS_PAGE_EXPIRED"),
        ("DryRunOperation", 412, CODE.FAILED_PRECONDITION, "DRY_RUN_OPERATION"),
        ("InternalError", 500, CODE.UNAVAILABLE, "AWS_INTERNAL_ERROR"),
        ("Whatever", 500, CODE.UNAVAILABLE, "AWS_INTERNAL_ERROR"),
        ("Whatever", 502, CODE.UNAVAILABLE, "AWS_INTERNAL_ERROR"),
        ("Whatever", 504, CODE.UNAVAILABLE, "AWS_INTERNAL_ERROR"),
        ("Unavailable", 503, CODE.UNAVAILABLE, "AWS_UNAVAILABLE"),
        ("ServiceUnavailable", 503, CODE.UNAVAILABLE, "AWS_UNAVAILABLE"),
        ("Whatever", 503, CODE.UNAVAILABLE, "AWS_UNAVAILABLE"),
        ("Whatever", 418, CODE.UNKNOWN, "AWS_UNCLASSIFIED"),
    ],
)
def test_each_code_of_aws_has_its_row(code: str, status: int, expected: grpc.StatusCode, reason: str) -> None:
    error = translated(of_aws(code, status))
    assert (type(error).code, error.reason) == (expected, reason)
    info = detail(error, error_details_pb2.ErrorInfo)
    # AWS's own text comes along where the gateway says it otherwise.
    otherwise = reason in {"AWS_UNAUTHORIZED_OPERATION", "AWS_REGION_NOT_ENABLED"}
    assert dict(info.metadata) == {
        "account": "main",
        "region": "eu-central-1",
        "awsErrorCode": code,
        "awsRequestId": "f1e2",
    } | ({"awsErrorMessage": "why"} if otherwise else {})


@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [
        (boto.NoCredentialsError(), CODE.FAILED_PRECONDITION, "AWS_CREDENTIALS_UNAVAILABLE"),
        (
            boto.PartialCredentialsError(provider="env", cred_var="x"),
            CODE.FAILED_PRECONDITION,
            "AWS_CREDENTIALS_UNAVAILABLE",
        ),
        (
            boto.CredentialRetrievalError(provider="p", error_msg="x"),
            CODE.FAILED_PRECONDITION,
            "AWS_CREDENTIALS_UNAVAILABLE",
        ),
        (boto.ProfileNotFound(profile="p"), CODE.FAILED_PRECONDITION, "AWS_CREDENTIALS_UNAVAILABLE"),
        (boto.MetadataRetrievalError(error_msg="x"), CODE.FAILED_PRECONDITION, "AWS_CREDENTIALS_UNAVAILABLE"),
        (
            boto.SSOTokenLoadError(profile_name="p", error_msg="x"),
            CODE.FAILED_PRECONDITION,
            "AWS_CREDENTIALS_UNAVAILABLE",
        ),
        (boto.EndpointConnectionError(endpoint_url=ENDPOINT), CODE.UNAVAILABLE, "AWS_UNREACHABLE"),
        (boto.ConnectTimeoutError(endpoint_url=ENDPOINT), CODE.UNAVAILABLE, "AWS_UNREACHABLE"),
        (boto.ConnectionClosedError(endpoint_url=ENDPOINT), CODE.UNAVAILABLE, "AWS_UNREACHABLE"),
        (boto.ProxyConnectionError(proxy_url="http://p"), CODE.UNAVAILABLE, "AWS_UNREACHABLE"),
        (boto.ReadTimeoutError(endpoint_url=ENDPOINT), CODE.UNAVAILABLE, "AWS_TIMEOUT"),
        (boto.SSLError(endpoint_url=ENDPOINT, error="x"), CODE.FAILED_PRECONDITION, "AWS_TLS_FAILED"),
        (botocore.parsers.ResponseParserError("x"), CODE.INTERNAL, "UPSTREAM_RESPONSE_UNPARSABLE"),
        (RuntimeError("secret"), CODE.INTERNAL, "INTERNAL"),
    ],
)
def test_each_exception_of_botocore_has_its_row(
    error: Exception, expected: grpc.StatusCode, reason: str
) -> None:
    ours = translated(error)
    assert (type(ours).code, ours.reason) == (expected, reason)
    assert "secret" not in ours.message
    assert (ours.account, ours.region) == ("main", "eu-central-1")


def test_an_auth_failure_is_the_regions_where_the_credentials_are_known_to_be_good() -> None:
    assert translated(of_aws("AuthFailure", 401)).reason == "AWS_REGION_NOT_ENABLED"
    rejected = translated(of_aws("AuthFailure", 401), proven=False)
    # The caller's own token is not at fault, and must not be renewed.
    assert (type(rejected).code, rejected.reason) == (CODE.FAILED_PRECONDITION, "AWS_CREDENTIALS_REJECTED")


def test_a_throttle_says_whose_quota_it_is_and_when_to_come_back() -> None:
    error = translated(of_aws("RequestLimitExceeded", 503))
    (violation,) = detail(error, error_details_pb2.QuotaFailure).violations
    assert violation.subject == "main/eu-central-1"
    assert detail(error, error_details_pb2.RetryInfo).retry_delay.seconds > 0


def test_a_region_that_is_not_enabled_is_a_precondition_in_our_own_words() -> None:
    error = translated(of_aws("AuthFailure", 401, "AWS was not able to validate the provided credentials"))
    (violation,) = detail(error, error_details_pb2.PreconditionFailure).violations
    assert (violation.type, violation.subject) == ("REGION_NOT_ENABLED", "main/eu-central-1")
    assert "not enabled the Region" in error.message
    assert "credentials" not in error.message


def test_a_malformed_id_names_the_field() -> None:
    error = translated(of_aws("InvalidAMIID.Malformed"))
    (violation,) = detail(error, error_details_pb2.BadRequest).field_violations
    assert violation.field == "image_ids"


@pytest.mark.parametrize("code", ["ServiceUnavailable", "ExpiredToken"])
def test_passing_faults_say_when_to_come_back(code: str) -> None:
    assert detail(translated(of_aws(code, 503)), error_details_pb2.RetryInfo).retry_delay.seconds > 0


def test_a_refusal_names_the_action_and_drops_the_blob() -> None:
    message = "You are not authorized. Encoded authorization failure message: " + "x" * 500
    error = translated(of_aws("UnauthorizedOperation", 403, message, "DescribeStoreImageTasks"))
    assert error.message == "You are not authorized. (DescribeStoreImageTasks)"


@pytest.mark.parametrize("code", THROTTLES)
def test_throttles_are_known_by_their_codes(code: str) -> None:
    assert is_throttle(code)


def test_only_expiry_is_expiry() -> None:
    assert is_expiry(of_aws("RequestExpired"))
    assert not is_expiry(of_aws("AuthFailure"))
    assert not is_expiry(ValueError())
    assert not is_throttle("Unavailable")
