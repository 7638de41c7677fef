"""`ec2 wait`: equal where the AWS CLI's waiter is right, and right where it is not."""

import threading
from typing import Any

import pytest
from command_lines import Ending
from pairs import Pair, Stage
from worlds import task

from canned.launch import Canned

COMMAND = ["ec2", "wait", "store-image-task-complete"]
DONE = {"StoreTaskState": "Completed", "ProgressPercentage": 100, "StoreTaskFailureReason": ""}
BROKEN = {"StoreTaskState": "Failed", "StoreTaskFailureReason": "no bucket"}
RUNNING = {"StoreTaskState": "InProgress", "ProgressPercentage": 40, "StoreTaskFailureReason": ""}
# The task of image_id(n) is world[n].
WORLD = [task(0) | DONE, task(1) | BROKEN, task(2) | DONE]


@pytest.fixture(scope="module")
def few(stage: Stage) -> Pair:
    return stage.pair(tasks=WORLD, images=["ami-0000000a"])


def environment(pair: Pair) -> dict[str, str]:
    set_ = dict(pair.environment) | {"AWS_DEFAULT_REGION": pair.region, "AWS_MAX_ATTEMPTS": "1"}
    set_.pop("AWS_REGION", None)
    return set_ | {"IMAGETASKS_ENDPOINT": pair.address}


def aws(pair: Pair, *words: str) -> Ending:
    return pair.aws.run([*COMMAND, *words], environment(pair))


def ours(pair: Pair, *words: str) -> Ending:
    return pair.ours.run([*COMMAND, *words], environment(pair))


def both(pair: Pair, *words: str) -> tuple[Ending, Ending]:
    return aws(pair, *words), ours(pair, *words)


@pytest.mark.parametrize(
    "words",
    [
        f"--image-ids {WORLD[0]['AmiId']}",
        f"--image-ids {WORLD[0]['AmiId']} {WORLD[2]['AmiId']} --output text --query X",
        f"--image-ids {WORLD[0]['AmiId']} {WORLD[1]['AmiId']}",
        "--filters Name=task-state,Values=Completed",
        "--image-ids ami-x",
        "--image-ids ami-0000000b ami-0000000c",
        "--filters Name=size,Values=1",
        "--dry-run",
        "--page-size 5",
        "--max-items 5",
        "--starting-token x",
        f"--image-ids {WORLD[0]['AmiId']} --max-results 5",
        "--max-results 500",
        "--generate-cli-skeleton",
        "--generate-cli-skeleton output",
        '--cli-input-json {"Foo":1}',
        "--query [",
    ],
)
def test_what_the_aws_cli_does_well_is_equal(few: Pair, words: str) -> None:
    theirs, mine = both(few, *words.split())
    assert mine == theirs


@pytest.mark.parametrize("words", ["--foo", "foo"])
def test_words_that_mean_nothing_end_as_there(few: Pair, words: str) -> None:
    theirs, mine = both(few, *words.split())
    assert (mine.code, mine.last_line) == (theirs.code, theirs.last_line)


def test_a_refusal_of_ec2_reads_the_same(stage: Stage) -> None:
    denied = {"code": "UnauthorizedOperation", "message": "You are not authorized.", "status": 403}
    theirs, mine = both(stage.pair(refusal=denied))
    assert mine == theirs


def test_somebodys_old_failure_ends_only_the_aws_clis_wait(few: Pair) -> None:
    theirs, mine = both(few)
    assert (theirs.code, mine.code) == (255, 0)
    assert "terminal failure state" in theirs.stderr


def test_an_ami_without_a_task_is_told_at_once(few: Pair) -> None:
    ending = ours(few, "--image-ids", "ami-0000000a")
    assert (ending.code, ending.stdout) == (255, "")
    assert ending.stderr == (
        "\nWaiter StoreImageTaskComplete failed: There is no store task of ami-0000000a\n"
    )


def test_nothing_at_all_is_told_at_once(stage: Stage) -> None:
    assert "no store task that matches" in ours(stage.pair(tasks=[])).stderr


def test_a_task_on_the_second_page_is_waited_for(stage: Stage) -> None:
    tasks = [task(number) | DONE for number in range(205)]
    tasks[-1] |= RUNNING
    pair = stage.pair(tasks=tasks)
    theirs = aws(pair, "--max-results", "100")
    assert theirs.code == 0
    late = ours(pair, "--max-results", "100", "--timeout", "1.5")
    assert late.code == 255
    assert late.stderr == (
        "\nWaiter StoreImageTaskComplete failed: Max attempts exceeded. Previously accepted state: "
        'For expression "StoreImageTaskResults[].StoreTaskState" we matched expected path: "InProgress" '
        "at least once\n"
    )


def test_the_first_failure_ends_it_while_others_run(stage: Stage, canned_ec2: Canned) -> None:
    pair = stage.pair(tasks=[task(0) | RUNNING, task(1) | RUNNING])
    later: dict[str, Any] = {"account": "000000000001", "region": pair.region}
    change = threading.Timer(1.0, canned_ec2.post, [later | {"tasks": [task(0) | RUNNING, task(1) | BROKEN]}])
    change.start()
    ending = ours(pair)
    change.join()
    assert ending.code == 255
    assert "terminal failure state" in ending.stderr


def test_a_throttle_does_not_end_it(stage: Stage, canned_ec2: Canned) -> None:
    throttled = {"code": "RequestLimitExceeded", "message": "Request limit exceeded.", "status": 503}
    pair = stage.pair(tasks=WORLD, images=["ami-0000000b"], refusal=throttled)
    recovered = {"account": "000000000001", "region": pair.region, "tasks": WORLD, "refusal": None}
    change = threading.Timer(0.5, canned_ec2.post, [recovered])
    change.start()
    ending = ours(pair, "--image-ids", WORLD[0]["AmiId"])
    change.join()
    assert (ending.code, ending.stderr) == (0, "")


def test_a_task_that_began_while_ec2_throttles_is_waited_for(stage: Stage, canned_ec2: Canned) -> None:
    ami = task(0)["AmiId"]
    pair = stage.pair(tasks=[task(2) | DONE], images=[ami])
    assert ours(pair, "--image-ids", task(2)["AmiId"]).code == 0  # the gateway knows the target
    throttled = {"code": "RequestLimitExceeded", "message": "Request limit exceeded.", "status": 503}
    world: dict[str, Any] = {"account": "000000000001", "region": pair.region, "images": [ami]}
    canned_ec2.post(world | {"tasks": [task(0) | RUNNING, task(2) | DONE], "refusal": throttled})
    ends = world | {"tasks": [task(0) | BROKEN, task(2) | DONE], "refusal": None}
    change = threading.Timer(0.5, canned_ec2.post, [ends])
    change.start()
    ending = ours(pair, "--image-ids", ami)
    change.join()
    assert (ending.code, "terminal failure state" in ending.stderr) == (255, True)


@pytest.mark.parametrize("words", [["wait"], ["wait", "store-image-task-complete", "help"], ["wait", "help"]])
def test_wait_has_a_page_and_needs_a_word(few: Pair, words: list[str]) -> None:
    ending = few.ours.run(["ec2", *words], few.environment)
    if words == ["wait"]:
        assert (ending.code, ending.last_line) == (255, "imagetasks: error: too few arguments")
    else:
        assert ending.code == 0
        assert "--timeout SECONDS" in ending.stdout


def test_a_wrong_timeout_is_refused(few: Pair) -> None:
    assert "Bad value for --timeout soon" in ours(few, "--timeout", "soon").stderr
