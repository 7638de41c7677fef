"""AWS's errors from the wire to the caller: each as code, reason, details, the client's type, a line of text.

EC2 is canned XML in a process of its own, and so is the gateway.
"""

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from canned_stage import account, account_id
from google.protobuf import duration_pb2
from google.rpc import status_pb2

import imagetasks
from canned.launch import Canned, canned
from imagetasks import cli
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
from processes import gateway

CODE = grpc.StatusCode
REQUEST_ID = "00000000-0000-0000-0000-000000000000"
AMI = "ami-00000000000000001"
# Seconds that a call may take; a busy machine takes some.
TIMEOUT = 60.0


@dataclass(frozen=True)
class Answer:
    """What the caller gets.

    Attributes:
        code: gRPC's.
        reason: Of the ErrorInfo.
        kind: The Python client's exception.
        details: The types of the details beside ErrorInfo.
    """

    code: grpc.StatusCode
    reason: str
    kind: type[imagetasks.Error]
    details: frozenset[str] = frozenset()


def _answer(code: grpc.StatusCode, kind: type[imagetasks.Error]) -> Callable[..., Answer]:
    return lambda reason, *details: Answer(code, reason, kind, frozenset(details))


_exhausted = _answer(CODE.RESOURCE_EXHAUSTED, imagetasks.ResourceExhaustedError)
_denied = _answer(CODE.PERMISSION_DENIED, imagetasks.PermissionDeniedError)
_precondition = _answer(CODE.FAILED_PRECONDITION, imagetasks.FailedPreconditionError)
_unavailable = _answer(CODE.UNAVAILABLE, imagetasks.UnavailableError)
_internal = _answer(CODE.INTERNAL, imagetasks.InternalError)
_invalid = _answer(CODE.INVALID_ARGUMENT, imagetasks.InvalidArgumentError)
_not_found = _answer(CODE.NOT_FOUND, imagetasks.NotFoundError)
_unknown = _answer(CODE.UNKNOWN, imagetasks.Error)

THROTTLED = _exhausted("AWS_THROTTLED", "RetryInfo", "QuotaFailure")
DENIED = _denied("AWS_UNAUTHORIZED_OPERATION")
REJECTED = _precondition("AWS_CREDENTIALS_REJECTED")
NOT_ENABLED = _precondition("AWS_REGION_NOT_ENABLED", "PreconditionFailure")
MISSING = _precondition("AWS_CREDENTIALS_UNAVAILABLE")
EXPIRED = _unavailable("AWS_CREDENTIALS_EXPIRED", "RetryInfo")
BROKEN = _unavailable("AWS_INTERNAL_ERROR")
BUSY = _unavailable("AWS_UNAVAILABLE", "RetryInfo")
UNREACHABLE = _unavailable("AWS_UNREACHABLE", "RetryInfo")
PAGE_EXPIRED = _unavailable("AWS_PAGE_EXPIRED")
CONTRACT = _internal("UPSTREAM_CONTRACT")
UNPARSABLE = _internal("UPSTREAM_RESPONSE_UNPARSABLE")


@dataclass(frozen=True)
class Row:
    """One way to fail.

    Attributes:
        name: Of the row.
        answer: What the caller gets.
        text: What a command line prints, in the AWS CLI's form; a regular expression.
        fault: What EC2 is told to do: `fault` or `refusal`.
        account: Which account is asked; "main" has a Region for each row.
        gateway: Which gateway.
        asked: What is asked beside the target, as the contract's fields.
        words: The same in the AWS CLI's words.
        aws_code: Of the ErrorInfo.
        request_id: Of the ErrorInfo.
    """

    name: str
    answer: Answer
    text: str
    _: KW_ONLY
    fault: Mapping[str, Any] = field(default_factory=dict)
    account: str = "main"
    gateway: str = "usual"
    asked: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    aws_code: str = ""
    request_id: str = ""


def said(code: str, text: str) -> str:
    """A line as the AWS CLI prints it."""
    return re.escape(f"An error occurred ({code}) when calling the DescribeStoreImageTasks operation: {text}")


def refused(aws_code: str, status: int, answer: Answer, message: str = "", **more: Any) -> Row:
    """EC2 answers with an error."""
    message = message or f"EC2 says {aws_code}."
    refusal = {"code": aws_code, "message": message, "status": status}
    more = {"text": said(aws_code, message), "aws_code": aws_code, "request_id": REQUEST_ID} | more
    return Row(f"{aws_code} {status}", answer, fault={"refusal": refusal}, **more)


def spoiled(fault: str, answer: Answer, text: str, **more: Any) -> Row:
    """EC2's answer is none."""
    return Row(fault, answer, text, fault={"fault": fault}, **more)


TEXT = "You are not authorized to perform this operation."
BLOB = " Encoded authorization failure message: blobblob"
IMAGE: dict[str, Any] = {"asked": {"image_ids": [AMI]}, "words": ("--image-ids", AMI)}
NO_CONNECTION = "Could not connect to the endpoint URL.*"
NO_XML = said("InternalError", "EC2's answer is not XML: ") + ".*"

ROWS = [
    *(
        refused(code, 503, THROTTLED)
        for code in (
            *("RequestLimitExceeded", "Throttling", "ThrottlingException", "ThrottledException"),
            *("EC2ThrottledException", "RequestThrottled", "RequestThrottledException", "SlowDown"),
            "TooManyRequestsException",
        )
    ),
    *(
        refused(code, 403, DENIED, TEXT + BLOB, text=said(code, TEXT))
        for code in ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException")
    ),
    refused("InvalidClientTokenId", 403, REJECTED),
    refused("UnrecognizedClientException", 403, REJECTED),
    refused("SignatureDoesNotMatch", 403, REJECTED),
    # STS has accepted the credentials, so this is about the Region.
    refused("AuthFailure", 401, NOT_ENABLED),
    refused("OptInRequired", 401, NOT_ENABLED),
    refused("Blocked", 403, _precondition("AWS_ACCOUNT_BLOCKED")),
    refused("PendingVerification", 403, _precondition("AWS_ACCOUNT_PENDING")),
    refused("ExpiredToken", 400, EXPIRED),
    refused("ExpiredTokenException", 400, EXPIRED),
    refused("RequestExpired", 400, EXPIRED),
    refused("InternalError", 500, BROKEN),
    refused("InternalFailure", 500, BROKEN),
    refused("Unheard.Of", 500, BROKEN),
    refused("Unheard.Of", 502, BROKEN),
    refused("Unheard.Of", 504, BROKEN),
    refused("Unavailable", 503, BUSY),
    refused("ServiceUnavailable", 503, BUSY),
    refused("Unheard.Of", 503, BUSY),
    refused("InvalidPaginationToken", 400, PAGE_EXPIRED),
    refused("InvalidNextToken", 400, PAGE_EXPIRED),
    refused("InvalidParameterValue", 400, CONTRACT),
    refused("InvalidParameter", 400, CONTRACT),
    refused("InvalidParameterCombination", 400, CONTRACT),
    refused("MissingParameter", 400, CONTRACT),
    refused("ValidationError", 400, CONTRACT),
    refused("Unheard.Of", 418, _unknown("AWS_UNCLASSIFIED")),
    refused(
        "InvalidAMIID.NotFound",
        400,
        _not_found("IMAGE_NOT_FOUND"),
        f"The image id '[{AMI}]' does not exist",
        **IMAGE,
    ),
    refused(
        "InvalidAMIID.Malformed",
        400,
        _invalid("IMAGE_ID_MALFORMED", "BadRequest"),
        # The AWS CLI's word for what the gateway says of a field.
        text=said("InvalidParameterValue", "image_ids: EC2 says InvalidAMIID.Malformed."),
        **IMAGE,
    ),
    refused(
        "DryRunOperation",
        412,
        _precondition("DRY_RUN_OPERATION"),
        "Request would have succeeded, but DryRun flag is set.",
        asked={"dry_run": True},
        words=("--dry-run",),
    ),
    # No answer, or none that can be read.
    spoiled("reset", UNREACHABLE, NO_CONNECTION),
    spoiled("cut", UNREACHABLE, "(Response payload|Connection was closed|Could not connect).*"),
    spoiled("garbage", UNPARSABLE, NO_XML),
    spoiled("truncated", UNPARSABLE, NO_XML),
    spoiled("proxy", BROKEN, said("502", "Bad Gateway"), aws_code="502"),
    spoiled(
        "hang",
        _unavailable("AWS_TIMEOUT"),
        "(EC2 did not answer within|Read timeout on endpoint URL).*",
        gateway="hasty",
    ),
    Row("refused", UNREACHABLE, NO_CONNECTION, account="refusing"),
    Row("no such name", UNREACHABLE, NO_CONNECTION, account="unknown"),
    Row("dead proxy", UNREACHABLE, "Failed to connect to proxy URL.*", account="proxied"),
    Row("mute", UNREACHABLE, "Connect timeout on endpoint URL.*", account="mute", gateway="hasty"),
    Row(
        "plaintext",
        _precondition("AWS_TLS_FAILED"),
        "SSL validation failed for .*",
        account="plaintext",
    ),
    # Before EC2 is asked.
    Row("no credentials", MISSING, "Unable to locate credentials", account="bare"),
    Row("half credentials", MISSING, "Partial credentials found.*", account="partial"),
    Row("no retrieval", MISSING, "Error when retrieving credentials.*", account="broken"),
    Row(
        "unknown to STS",
        REJECTED,
        said("InvalidClientTokenId", "The security token included in the request is invalid."),
        account="rejected",
        aws_code="InvalidClientTokenId",
    ),
    Row(
        "no such account",
        _not_found("UNKNOWN_ACCOUNT"),
        r"The config profile \(nobody\) could not be found",
        account="nobody",
    ),
    Row(
        "malformed id",
        _invalid("IMAGE_ID_MALFORMED", "BadRequest"),
        said("InvalidAMIID.Malformed", 'Invalid id: "ami-x" (expecting "ami-...")'),
        asked={"image_ids": ["ami-x"]},
        words=("--image-ids", "ami-x"),
    ),
    Row(
        "too large a page",
        _invalid("INVALID_FIELD", "BadRequest"),
        said("InvalidParameterValue", "Value ( 201 ) for parameter maxResults is invalid.") + ".*",
        asked={"max_results": 201},
        words=("--no-paginate", "--max-results", "201"),
    ),
    Row(
        "ids and a page size",
        _invalid("FIELD_CONFLICT", "BadRequest"),
        said("InvalidParameterCombination", "") + ".*",
        asked={"max_results": 5, "image_ids": [AMI]},
        words=("--no-paginate", "--max-results", "5", "--image-ids", AMI),
    ),
    Row(
        "bad page token",
        _invalid("PAGE_TOKEN_INVALID", "BadRequest"),
        said("InvalidPaginationToken", "The specified pagination token is not valid or is expired."),
        asked={"next_token": "no-token"},
        words=("--no-paginate", "--next-token", "no-token"),
    ),
    Row(
        "no budget",
        _exhausted("BUDGET_EXHAUSTED", "RetryInfo"),
        said("RequestLimitExceeded", "EC2's allowance for this target must recover") + ".*",
        gateway="poor",
    ),
]
REGIONS = {row.name: f"eu-row-{number}" for number, row in enumerate(ROWS, 1)}


@pytest.fixture(scope="module")
def ec2() -> Iterator[Canned]:
    with canned() as running:
        running.fail(
            *(
                {"account": account_id(1), "region": REGIONS[row.name], **row.fault}
                for row in ROWS
                if row.fault
            ),
            {
                "account": account_id(9),
                "region": "us-east-1",
                "action": "GetCallerIdentity",
                "refusal": {
                    "code": "InvalidClientTokenId",
                    "message": "The security token included in the request is invalid.",
                    "status": 403,
                },
            },
        )
        yield running


@contextmanager
def closed_port() -> Iterator[str]:
    """An address that refuses: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def mute_port() -> Iterator[str]:
    """An address that does not say anything to who connects: its queue is full."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def accounts(ec2: Canned, refusing: str, mute: str) -> list[dict[str, Any]]:
    plain = {"regions": ["eu-central-1"], "endpoint_url": ec2.endpoint, "sts_endpoint_url": ec2.endpoint}

    def lost(name: str, number: int, **more: Any) -> dict[str, Any]:
        return account(ec2, name, number, ["eu-central-1"], **more)

    return [
        account(ec2, "main", 1, list(REGIONS.values())),
        lost("refusing", 2, endpoint_url=refusing),
        # RFC 6761: a name that never resolves.
        lost("unknown", 3, endpoint_url="http://ec2.invalid"),
        lost("proxied", 4, proxy=refusing),
        lost("mute", 5, endpoint_url=mute),
        lost("plaintext", 6, endpoint_url=ec2.endpoint.replace("http:", "https:")),
        {"name": "bare", "profile": "bare", **plain},
        {"name": "partial", "profile": "partial", **plain},
        {"name": "broken", "profile": "broken", **plain},
        lost("rejected", 9),
    ]


PROFILES = """\
[profile bare]
region = us-east-1
[profile partial]
aws_access_key_id = AKIAHALF
[profile broken]
credential_process = false
"""

GATEWAYS: dict[str, dict[str, str]] = {
    "usual": {},
    # Whatever is asked of it runs out of time.
    "hasty": {"PAGE_TIMEOUT": "0.5", "CONNECT_TIMEOUT": "0.2"},
    "poor": {"BUDGET__INITIAL": "0", "BUDGET__REFILL": "0.0001"},
}


@pytest.fixture(scope="module")
def addresses(ec2: Canned, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where each of the gateways listens."""
    directory = tmp_path_factory.mktemp("gateways")
    (directory / "aws").write_text(PROFILES)
    ample = {"ATTEMPTS": "1", **{f"BUDGET__{key}": "1000000" for key in ("CAPACITY", "REFILL", "INITIAL")}}
    with ExitStack() as stack:
        refusing, mute = stack.enter_context(closed_port()), stack.enter_context(mute_port())
        configuration = directory / "gateway.toml"
        _write(configuration, accounts(ec2, refusing, mute))
        found = {}
        for name, settings in GATEWAYS.items():
            environment = ec2.environment(account_id(0)) | {"AWS_CONFIG_FILE": str(directory / "aws")}
            environment |= {f"IMAGETASKS_{key}": value for key, value in (ample | settings).items()}
            environment.pop("AWS_ENDPOINT_URL")
            running = gateway("--config", str(configuration), environment=environment)
            found[name] = stack.enter_context(running).address
        yield found


def _write(path: Path, tables: Sequence[Mapping[str, Any]]) -> None:
    # JSON's strings and lists of strings are TOML's too.
    lines = [
        line
        for table in tables
        for line in ("[[accounts]]", *(f"{key} = {json.dumps(value)}" for key, value in table.items()))
    ]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_an_error_reaches_the_caller_as_the_table_says(
    row: Row, addresses: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    address = addresses[row.gateway]
    region = REGIONS[row.name] if row.account == "main" else "eu-central-1"
    request = pb.DescribeStoreImageTasksRequest(
        accounts=[row.account], regions=[region], max_age=duration_pb2.Duration(), **row.asked
    )
    with grpc.insecure_channel(address) as channel:
        stub: Any = StoreImageTaskServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.DescribeStoreImageTasks(request, timeout=TIMEOUT)
    failed: Any = caught.value
    status = status_pb2.Status()
    status.ParseFromString(dict(failed.trailing_metadata())["grpc-status-details-bin"])
    assert (failed.code(), failed.details()) == (row.answer.code, status.message)
    details = {each.TypeName().removeprefix("google.rpc.") for each in status.details}
    assert details == row.answer.details | {"ErrorInfo"}

    error = imagetasks.errors.from_call(failed)
    assert type(error) is row.answer.kind
    assert (error.reason, error.aws_error_code) == (row.answer.reason, row.aws_code)
    is_of_target = row.answer.code is not CODE.INVALID_ARGUMENT or bool(row.aws_code)
    assert (error.account, error.aws_request_id) == (row.account if is_of_target else "", row.request_id)
    assert (error.retry_after is not None) == ("RetryInfo" in details)

    place = ("--profile", row.account, "--region", region, "--max-age", "0", "--endpoint-url", address)
    printed = printed_by(capsys, "ec2", "describe-store-image-tasks", *place, *row.words)
    assert re.fullmatch(row.text, printed.strip()), printed
    if not row.asked and row.answer.reason != "UNKNOWN_ACCOUNT":
        options = ("--accounts", row.account, "--regions", region, "--max-age", "0")
        printed = printed_by(capsys, "stream", *options, "--endpoint-url", address)
        where = f"imagetasks: {row.account}(/{region})? failed: {row.answer.reason}: "
        assert re.match(where, printed), printed


def printed_by(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a command that does not succeed says on stderr."""
    assert cli.main(list(words)) != 0
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed
