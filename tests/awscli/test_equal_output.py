"""The AWS CLI and ours over the same EC2: the same output, exit code and error."""

import json
from typing import Any

import pytest
from pairs import Pair, Stage
from worlds import task

WORLD = [task(number) for number in range(23)]
IDS = [each["AmiId"] for each in WORLD]


@pytest.fixture(scope="module")
def few(stage: Stage) -> Pair:
    """23 tasks, and an AMI without one."""
    return stage.pair(tasks=WORLD, images=["ami-0000000a"])


FILTERS_JSON = json.dumps([{"Name": "bucket", "Values": ["*a*"]}])


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--output text",
        "--output table",
        "--image-ids ID1 ID3",
        "--image-ids ID1 ami-0000000a",
        "--image-ids ami-0000000b ami-0000000c ID1 ami-0000000a",
        "--image-ids ami-x",
        "--image-ids",
        "--filters",
        "--dry-run",
        "--no-dry-run",
        "--dry-run --no-dry-run",
        "--filters Name=task-state,Values=Completed,Failed",
        "--filters Name=bucket,Values=*a* Name=task-state,Values=InProgress",
        "--filters Name=bucket",
        "--filters Name=bucket,Values=",
        "--filters Name=size,Values=1",
        "--filters Values=1",
        "--filters Name=bucket,Name=x",
        "--filters Name",
        "--filters Name=a,b,Values=c",
        "--filters Foo=bar",
        "--page-size 5 --output text",
        "--page-size 5 --max-items 7",
        "--page-size 0",
        "--page-size 201",
        "--page-size x",
        "--page-size 5 --image-ids ID1",
        "--max-items 0",
        "--max-items -1",
        "--max-it 3",
        "--m 3",
        "--no-paginate",
        "--no-paginate --max-items 3 --page-size 3",
        "--max-results 7",
        "--max-results 7 --output text",
        "--max-results x",
        "--max-results 7 --max-items 2",
        "--next-token x",
        "--starting-token x",
        "--starting-token a___3",
        "--starting-token None___3",
        "--starting-token a___b___3",
        "--starting-token MTIz",
        "--starting-token e30=",
        "--starting-token e30= --max-items 1",
        "--starting-token W10=",
        "--output xml",
        "--color on --output table",
        "--color on --output table --image-ids ami-x",
        "--color sometimes",
        "--query StoreImageTaskResults[0]",
        "--query StoreImageTaskResults[].AmiId --output text --max-items 2",
        "--query [",
        "--query length(Foo)",
        "--foo",
        "foo",
        "--dry-run foo",
        "--cli x",
        "--p x --region",
        "--cli-read-timeout x",
        "--cli-connect-timeout x",
        "--cli-read-timeout 0 --cli-connect-timeout 0",
        "--cli-input-json {}",
        "--cli-input-json []",
        "--cli-input-json {",
        "--cli-input-json file:///nonexistent/file",
        '--cli-input-json {"MaxResults":3}',
        '--cli-input-json {"MaxResults":3,"NextToken":"x"}',
        '--cli-input-json {"PaginationConfig":{"MaxItems":3}}',
        '--cli-input-json {"ImageIds":["ID1"]} --image-ids ID2',
        '--cli-input-json {"Foo":1,"MaxResults":"3","Filters":[{"Name":3,"Values":"x"}],"DryRun":"no"}',
        "--generate-cli-skeleton",
        "--generate-cli-skeleton input --query Foo --output text",
        "--generate-cli-skeleton output",
        "--generate-cli-skeleton output --output text",
        "--generate-cli-skeleton output --output table",
        "--generate-cli-skeleton output --max-items 3",
        "--generate-cli-skeleton output --query StoreImageTaskResults[].TaskStartTime",
        "--generate-cli-skeleton outputs",
        "--filters [",
        "--filters []",
        '--filters {"Name":"bucket","Values":["*"]}',
        '--filters {"Name":"bucket","Values":["*"]} {"Name":"task-state"}',
        '--filters {"Name":"bucket"} Name=bucket',
        "--filters " + FILTERS_JSON.replace(" ", ""),
        '--image-ids ["ID1","ID2"]',
        '--image-ids [1,{"a":2}]',
        "--image-ids file:///nonexistent/file",
        "--filters file:///nonexistent/file",
    ],
)
def test_outputs_are_equal(few: Pair, words: str) -> None:
    given = words.replace("ID1", IDS[3]).replace("ID2", IDS[7]).replace("ID3", IDS[1])
    few.walk(given.split(), steps=3)


def test_a_table_is_equal_on_terminals_of_many_widths(few: Pair) -> None:
    for columns in (0, 20, 80, 151, 200):
        few.compare(["--output", "table"], columns)
        few.compare(["--output", "table", "--query", "StoreImageTaskResults[0]"], columns)
        few.compare(["--output", "table", "--color", "off"], columns)


def test_an_empty_world_prints_the_same(stage: Stage) -> None:
    empty = stage.pair(tasks=[])
    for output in ("json", "text", "table"):
        empty.compare(["--output", output])
        empty.compare(["--output", output, "--query", "StoreImageTaskResults[0]"])
        empty.compare(["--output", output, "--max-items", "0"])


DENIED = "You are not authorized to perform this operation."
REFUSALS: list[dict[str, Any]] = [
    {
        "code": "UnauthorizedOperation",
        "message": DENIED,
        "status": 403,
    },
    {
        "code": "UnauthorizedOperation",
        "message": f"{DENIED} Encoded authorization failure message: a-b_c",
        "status": 403,
    },
    {
        "code": "AuthFailure",
        "message": "AWS was not able to validate the provided access credentials",
        "status": 401,
    },
    {"code": "OptInRequired", "message": "You are not subscribed to this service.", "status": 401},
    {"code": "RequestLimitExceeded", "message": "Request limit exceeded.", "status": 503},
    {"code": "Blocked", "message": "This account is currently blocked.", "status": 400},
    {"code": "InternalError", "message": "An internal error has occurred", "status": 500},
    {"code": "Unavailable", "message": "The service is unavailable.", "status": 503},
    {"code": "RequestExpired", "message": "Request has expired.", "status": 400},
    {"code": "SomethingNew", "message": "Nobody has seen « this » before.", "status": 400},
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal["code"])
def test_a_refusal_of_ec2_reads_the_same(stage: Stage, refusal: dict[str, Any]) -> None:
    stage.pair(refusal=refusal).compare(["--output", "table", "--color", "on"])


def test_a_refusal_reads_the_same_whatever_is_asked(stage: Stage) -> None:
    refusing = stage.pair(refusal=REFUSALS[0])
    for words in ("", "--output text", "--dry-run", "--no-paginate", "--image-ids ami-12345678"):
        refusing.compare(words.split())
