"""From what AWS and botocore raise to the gateway's errors: one table."""

import re
from http import HTTPStatus
from typing import Any, Final

import botocore.exceptions as boto
import botocore.parsers
import structlog
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from imagetasks_server.errors import (
    Error,
    Exhausted,
    FailedPrecondition,
    Internal,
    InvalidRequest,
    PermissionDenied,
    Unavailable,
    Unclassified,
)
from imagetasks_server.telemetry import Event
from imagetasks_server.upstream import ImagesNotFound, PageExpired

log = structlog.get_logger()

_THROTTLED: Final = (Exhausted, "AWS_THROTTLED")
_DENIED: Final = (PermissionDenied, "AWS_UNAUTHORIZED_OPERATION")
_REJECTED: Final = (FailedPrecondition, "AWS_CREDENTIALS_REJECTED")
_EXPIRED: Final = (Unavailable, "AWS_CREDENTIALS_EXPIRED")
_NO_CREDENTIALS: Final = (FailedPrecondition, "AWS_CREDENTIALS_UNAVAILABLE")
_CONTRACT: Final = (Internal, "UPSTREAM_CONTRACT")
_INTERNAL: Final = (Unavailable, "AWS_INTERNAL_ERROR")
_UNAVAILABLE: Final = (Unavailable, "AWS_UNAVAILABLE")
_UNREACHABLE: Final = (Unavailable, "AWS_UNREACHABLE")
_NOT_ENABLED: Final = (FailedPrecondition, "AWS_REGION_NOT_ENABLED")

# AWS's error codes. The request's own fields were checked before EC2 was asked, so where EC2 finds fault
# with a parameter the gateway is at fault.
CODES: Final[dict[str, tuple[type[Error], str]]] = {
    "RequestLimitExceeded": _THROTTLED,
    "EC2ThrottledException": _THROTTLED,
    "ThrottledException": _THROTTLED,
    "SlowDown": _THROTTLED,
    "TooManyRequestsException": _THROTTLED,
    "UnauthorizedOperation": _DENIED,
    "AccessDenied": _DENIED,
    "AccessDeniedException": _DENIED,
    "AuthFailure": _REJECTED,
    "InvalidClientTokenId": _REJECTED,
    "UnrecognizedClientException": _REJECTED,
    "SignatureDoesNotMatch": _REJECTED,
    "InvalidSignatureException": _REJECTED,
    "IncompleteSignature": _REJECTED,
    "OptInRequired": _NOT_ENABLED,
    "RegionDisabledException": _NOT_ENABLED,
    "Blocked": (FailedPrecondition, "AWS_ACCOUNT_BLOCKED"),
    "PendingVerification": (FailedPrecondition, "AWS_ACCOUNT_PENDING"),
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "RequestExpired": _EXPIRED,
    "InvalidParameterValue": _CONTRACT,
    "InvalidParameter": _CONTRACT,
    "InvalidParameterCombination": _CONTRACT,
    "MissingParameter": _CONTRACT,
    "ValidationError": _CONTRACT,
    "DryRunOperation": (FailedPrecondition, "DRY_RUN_OPERATION"),
    "InternalError": _INTERNAL,
    "InternalFailure": _INTERNAL,
    "Unavailable": _UNAVAILABLE,
    "ServiceUnavailable": _UNAVAILABLE,
    "ServiceUnavailableException": _UNAVAILABLE,
}

# Families of codes: "Throttling", "ThrottlingException", "RequestThrottledException" ...
_THROTTLED_PREFIXES: Final = ("Throttling", "RequestThrottled")

# Botocore's own exceptions; the first that fits counts.
EXCEPTIONS: Final[tuple[tuple[type[Exception], tuple[type[Error], str]], ...]] = (
    (boto.NoCredentialsError, _NO_CREDENTIALS),
    (boto.PartialCredentialsError, _NO_CREDENTIALS),
    (boto.CredentialRetrievalError, _NO_CREDENTIALS),
    (boto.ProfileNotFound, _NO_CREDENTIALS),
    (boto.MetadataRetrievalError, _NO_CREDENTIALS),
    (boto.SSOError, _NO_CREDENTIALS),
    (boto.TokenRetrievalError, _NO_CREDENTIALS),
    (boto.UnknownCredentialError, _NO_CREDENTIALS),
    (boto.RefreshWithMFAUnsupportedError, _NO_CREDENTIALS),
    (boto.InfiniteLoopConfigError, _NO_CREDENTIALS),
    (boto.InvalidConfigError, _NO_CREDENTIALS),
    (boto.ConfigParseError, _NO_CREDENTIALS),
    (boto.SSLError, (FailedPrecondition, "AWS_TLS_FAILED")),
    (boto.ReadTimeoutError, (Unavailable, "AWS_TIMEOUT")),
    (boto.ConnectTimeoutError, _UNREACHABLE),
    (boto.EndpointConnectionError, _UNREACHABLE),
    (boto.ConnectionClosedError, _UNREACHABLE),
    (boto.ProxyConnectionError, _UNREACHABLE),
    (boto.HTTPClientError, _UNREACHABLE),
    (botocore.parsers.ResponseParserError, (Internal, "UPSTREAM_RESPONSE_UNPARSABLE")),
)

# Seconds after which trying again makes sense, where AWS does not say.
_RETRY_AFTER: Final = {
    "AWS_THROTTLED": 2.0,
    "AWS_UNAVAILABLE": 1.0,
    "AWS_UNREACHABLE": 1.0,
    "AWS_CREDENTIALS_EXPIRED": 1.0,
}

_IMAGE_ID = re.compile(r"ami-[0-9a-f]+")
_ENCODED_BLOB = re.compile(r"\s*Encoded authorization failure message:.*", re.DOTALL)


def is_throttle(code: str) -> bool:
    """Whether an error code says that calls come too fast."""
    return CODES.get(code) is _THROTTLED or code.startswith(_THROTTLED_PREFIXES)


def raised_for(answer: dict[str, Any], operation: str) -> Exception:
    """What botocore raises for an error that AWS answered."""
    return boto.ClientError(answer, operation)  # type: ignore[no-any-return]


def is_expiry(error: Exception) -> bool:
    """Whether AWS says that the credentials have expired, so that others may help."""
    return isinstance(error, boto.ClientError) and CODES.get(_code(error)) is _EXPIRED


def translate(error: Exception, *, credentials_proven: bool, account: str = "", region: str = "") -> Error:
    """The gateway's error for one that AWS or botocore raised.

    Args:
        error: What was raised.
        credentials_proven: AWS has accepted these credentials elsewhere, so that an AuthFailure is
            the Region's: EC2 answers so where a Region is not enabled.
        account: The gateway's name of the account that was asked.
        region: The Region that was asked.
    """
    if isinstance(error, boto.ClientError):
        translated = _of_code(error, credentials_proven=credentials_proven, account=account, region=region)
    else:
        translated = _of_exception(error)
    return translated.at(account, region)


def _of_exception(error: Exception) -> Error:
    for kind, (cls, reason) in EXCEPTIONS:
        if isinstance(error, kind):
            return cls(reason, str(error), retry_after=_RETRY_AFTER.get(reason))
    if isinstance(error, ValueError | KeyError | UnicodeDecodeError):
        return Internal("UPSTREAM_RESPONSE_UNPARSABLE", "EC2's answer cannot be parsed")
    log.error(Event.UNCLASSIFIED, exc_info=error)
    return Internal("INTERNAL", "asking AWS failed inside the gateway")


def _of_code(error: boto.ClientError, *, credentials_proven: bool, account: str, region: str) -> Error:
    response: dict[str, Any] = error.response
    code = _code(error)
    message = str(response.get("Error", {}).get("Message", "")) or code
    metadata = response.get("ResponseMetadata", {})
    request_id = str(metadata.get("RequestId", ""))
    if code == "InvalidAMIID.NotFound":
        return ImagesNotFound(_IMAGE_ID.findall(message), aws_request_id=request_id)
    if code == "InvalidAMIID.Malformed":
        malformed = InvalidRequest("image_ids", message, reason="IMAGE_ID_MALFORMED")
        malformed.aws_code, malformed.aws_request_id = code, request_id
        return malformed
    if code in {"InvalidPaginationToken", "InvalidNextToken"}:
        return PageExpired(message, aws_code=code, aws_request_id=request_id)
    cls, reason = _classify(
        code, int(metadata.get("HTTPStatusCode", 0)), credentials_proven=credentials_proven
    )
    aws_message = ""
    if reason == "AWS_UNAUTHORIZED_OPERATION":
        action = getattr(error, "operation_name", "") or "the operation"
        aws_message = _ENCODED_BLOB.sub("", message)
        message = f"{aws_message} ({action})"
    elif reason == "AWS_REGION_NOT_ENABLED":
        # EC2's own words speak of credentials.
        aws_message = message
        message = f"The account has not enabled the Region; EC2 answers {code}"
    elif reason == "AWS_UNCLASSIFIED":
        log.warning(Event.UNCLASSIFIED, aws_code=code, aws_request_id=request_id)
    return cls(
        reason,
        message,
        aws_code=code,
        aws_message=aws_message,
        aws_request_id=request_id,
        retry_after=_RETRY_AFTER.get(reason),
        details=_details(reason, message, account, region),
    )


def _code(error: boto.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _classify(code: str, http_status: int, *, credentials_proven: bool) -> tuple[type[Error], str]:
    if code == "AuthFailure" and credentials_proven:
        return _NOT_ENABLED
    if is_throttle(code):
        return _THROTTLED
    if code in CODES:
        return CODES[code]
    if http_status == HTTPStatus.SERVICE_UNAVAILABLE:
        return _UNAVAILABLE
    if http_status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _INTERNAL
    return (Unclassified, "AWS_UNCLASSIFIED")


def _details(reason: str, message: str, account: str, region: str) -> tuple[Message, ...]:
    subject = "/".join(part for part in (account, region) if part)
    if reason == "AWS_THROTTLED":
        quota = error_details_pb2.QuotaFailure()
        quota.violations.add(subject=subject, description=f"EC2's calls per account and Region: {message}")
        return (quota,)
    if reason == "AWS_REGION_NOT_ENABLED":
        precondition = error_details_pb2.PreconditionFailure()
        precondition.violations.add(
            type="REGION_NOT_ENABLED", subject=subject, description="The account has not enabled the Region"
        )
        return (precondition,)
    return ()
