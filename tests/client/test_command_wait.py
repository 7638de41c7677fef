"""`imagetasks ec2 wait` as a process, on a gateway that says what no EC2 can be made to."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from scripted_gateway import ScriptedGateway, failing, outcome, reason, status, task, waiting
from test_command_line import run
from watch_events import ENDED, FAILED, Event, change, closing, complete, group, snapshot, stale, started

from imagetasks.cli import hindrances
from imagetasks.v1 import store_image_tasks_pb2 as pb

COMMAND = ("ec2", "wait", "store-image-task-complete")
HERE, THERE = "eu-central-1", "us-east-1"
FAILURE = "Waiter StoreImageTaskComplete failed: "
HAS_FAILED = "terminal failure state"


def throttled(seconds: float = 0.01) -> Status:
    delay = Duration()
    delay.FromNanoseconds(round(seconds * 1e9))
    why = reason("AWS_THROTTLED", account="prod", region=THERE, awsErrorCode="RequestLimitExceeded")
    return status(grpc.StatusCode.RESOURCE_EXHAUSTED, "slow down", why, RetryInfo(retry_delay=delay))


DENIED = status(
    grpc.StatusCode.PERMISSION_DENIED,
    "no",
    reason("AWS_UNAUTHORIZED_OPERATION", awsErrorCode="UnauthorizedOperation"),
)

Answer = pb.DescribeStoreImageTasksResponse


def answer(*tasks: pb.StoreImageTaskResult, there: Status | None = None) -> Answer:
    """Of both Regions, unless the second has failed."""
    second = outcome(THERE, there, pb.SOURCE_NONE if there else pb.SOURCE_LIVE)
    return Answer(store_image_task_results=tasks, target_outcomes=[outcome(HERE), second])


def listing(gateway: ScriptedGateway, *answers: Answer | Status) -> None:
    """Each call gets its answer, the last again and again."""
    left = list(answers)

    def respond(request: pb.DescribeStoreImageTasksRequest, context: grpc.ServicerContext) -> Any:
        now = left.pop(0) if len(left) > 1 else left[0]
        return failing(now)(request, context) if isinstance(now, Status) else now

    gateway.describe = respond


def watching(gateway: ScriptedGateway, *events: Event) -> None:
    gateway.watch = lambda *_: iter(events)


def asked(gateway: ScriptedGateway) -> list[pb.DescribeStoreImageTasksRequest]:
    return [
        call.request for call in gateway.calls if isinstance(call.request, pb.DescribeStoreImageTasksRequest)
    ]


def test_a_stale_state_is_no_answer(gateway: ScriptedGateway) -> None:
    old, new = task(number=1, **ENDED), task(number=2)

    def respond(request: pb.DescribeStoreImageTasksRequest, context: grpc.ServicerContext) -> Any:
        if len(asked(gateway)) > 2:
            return answer(new, old)
        if request.forbid_stale:
            return failing(throttled())(request, context)
        return Answer(
            store_image_task_results=[old], target_outcomes=[outcome(HERE, throttled(), pb.SOURCE_STALE)]
        )

    gateway.describe = respond
    watching(gateway, started(), *snapshot("s", new), group("g", change("MODIFIED", task(number=2, **ENDED))))
    done = run(gateway, *COMMAND)
    assert (done.returncode, done.stderr) == (0, "")
    assert [call.method for call in gateway.calls] == ["describe", "describe", "describe", "watch"]
    assert all(request.forbid_stale for request in asked(gateway))


def test_a_region_that_is_throttled_is_listed_again(gateway: ScriptedGateway) -> None:
    ended, running = task(HERE, **ENDED), task(THERE, 2)
    listing(gateway, answer(ended, there=throttled()), answer(ended, running))
    watching(gateway, started(THERE), *snapshot("s", task(THERE, 2, **ENDED), region=THERE))
    done = run(gateway, *COMMAND, "--region", f"{HERE},{THERE}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    first, second = asked(gateway)
    # What has answered is not read again.
    assert first.max_age.ToTimedelta() < second.max_age.ToTimedelta()
    assert gateway.calls[-1].method == "watch"


def test_max_age_is_as_the_caller_says(gateway: ScriptedGateway) -> None:
    listing(gateway, throttled(), answer(task(**ENDED)))
    assert run(gateway, *COMMAND, "--max-age", "30").returncode == 0
    assert [request.max_age.ToSeconds() for request in asked(gateway)] == [30, 30]


def test_a_task_that_fails_between_two_listings_has_failed(gateway: ScriptedGateway) -> None:
    failed = task(HERE, **FAILED)
    listing(gateway, answer(task(HERE), there=throttled()), answer(failed))
    done = run(gateway, *COMMAND)
    assert (done.returncode, HAS_FAILED in done.stderr) == (255, True)


def test_what_begins_after_a_target_has_answered_is_not_meant(gateway: ScriptedGateway) -> None:
    ended = task(HERE, **ENDED)
    listing(gateway, answer(ended, there=throttled()), answer(task(HERE, 2), ended))
    assert run(gateway, *COMMAND).returncode == 0


@pytest.mark.parametrize("rest", [throttled(), DENIED], ids=["one may recover", "none will"])
def test_of_several_that_all_failed_one_that_may_recover_is_enough(
    gateway: ScriptedGateway, rest: Status
) -> None:
    failures = pb.TargetFailures()
    for region, failure in ((HERE, DENIED), (THERE, rest)):
        name = "AWS_THROTTLED" if failure is not DENIED else "AWS_UNAUTHORIZED_OPERATION"
        failures.failures.add(account="prod", region=region, code=failure.code, reason=name)
    all_failed = status(
        grpc.StatusCode.UNAVAILABLE, "All 2 targets failed", reason("ALL_TARGETS_FAILED"), failures
    )
    # gRPC itself tries four times.
    listing(gateway, *[all_failed] * 4, answer(task(**ENDED)))
    assert run(gateway, *COMMAND).returncode == (0 if rest is not DENIED else 255)


def test_a_region_that_stays_refused_is_named_and_the_others_are_waited_for(gateway: ScriptedGateway) -> None:
    listing(gateway, answer(task(HERE), there=DENIED))
    watching(gateway, started(HERE), *snapshot("s", task(HERE, **ENDED)))
    done = run(gateway, *COMMAND)
    assert done.returncode == 255
    assert done.stderr == (
        "\nAn error occurred (UnauthorizedOperation) when calling the DescribeStoreImageTasks operation in "
        f"prod/{THERE}: no\n"
    )
    assert [call.method for call in gateway.calls] == ["describe", "watch"]


def test_an_ami_that_may_be_in_a_refused_region_is_not_just_lacking(gateway: ScriptedGateway) -> None:
    listing(gateway, answer(there=DENIED))
    done = run(gateway, *COMMAND, "--image-ids", task().ami_id)
    assert done.returncode == 255
    assert f"prod/{THERE}: no" in done.stderr
    assert done.stderr.endswith(f"{FAILURE}There is no store task of {task().ami_id}\n")


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (throttled(1000), "An error occurred (RequestLimitExceeded): slow down"),
        (
            answer(task(**ENDED), there=throttled(1000)),
            f"Max attempts exceeded; prod/{THERE}: RequestLimitExceeded: slow down",
        ),
    ],
    ids=["one target", "one of several"],
)
def test_what_recovers_only_after_the_timeout_ends_it(
    gateway: ScriptedGateway, answers: Answer | Status, text: str
) -> None:
    listing(gateway, answers)
    done = run(gateway, *COMMAND, "--timeout", "500")
    assert (done.returncode, done.stderr) == (255, f"\n{FAILURE}{text}\n")
    assert len(asked(gateway)) == 1


@pytest.mark.parametrize(
    ("words", "most"),
    [
        (["--timeout", "7"], 7),
        (["--timeout", "500"], 60),
        (["--timeout", "500", "--cli-read-timeout", "5"], 5),
        (["--timeout", "7", "--cli-read-timeout", "0"], 7),
    ],
)
def test_no_call_outlasts_the_timeout(gateway: ScriptedGateway, words: list[str], most: float) -> None:
    listing(gateway, throttled(), answer(task(**ENDED)))
    assert run(gateway, *COMMAND, *words).returncode == 0
    first, second = (call.time_remaining for call in gateway.calls)
    assert first is not None
    assert second is not None
    # The clocks of both ends round.
    assert most / 2 < first <= most + 0.1
    if "500" not in words:
        assert second < first


def test_a_gateway_that_does_not_answer_is_given_up_with_the_timeout(gateway: ScriptedGateway) -> None:
    gateway.describe = waiting
    done = run(gateway, *COMMAND, "--timeout", "1")
    assert (done.returncode, "Read timeout on endpoint URL" in done.stderr) == (255, True)


def test_a_gateway_that_is_away_after_it_has_answered_is_asked_again(gateway: ScriptedGateway) -> None:
    gone = status(grpc.StatusCode.UNAVAILABLE, "gone")
    # gRPC itself tries four times.
    listing(gateway, throttled(), gone, gone, gone, gone, answer(task(**ENDED)))
    assert run(gateway, *COMMAND).returncode == 0


def test_a_token_is_read_anew_for_each_call(gateway: ScriptedGateway, tmp_path: Any) -> None:
    file = tmp_path / "token"
    file.write_text("first")

    def respond(*_: Any) -> Answer:
        file.write_text("second")
        return answer(task())

    gateway.describe = respond
    watching(gateway, started(), *snapshot("s", task(**ENDED)))
    assert run(gateway, *COMMAND, "--token-file", str(file)).returncode == 0
    assert [call.metadata["authorization"] for call in gateway.calls] == ["Bearer first", "Bearer second"]


@pytest.fixture
def here(
    gateway: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Runs the command in this process, where nothing needs to last to be told; its lines on stderr."""
    from imagetasks.cli import ec2  # noqa: PLC0415

    monkeypatch.setattr(hindrances, "QUIET_SECONDS", 0.0)
    monkeypatch.setenv("IMAGETASKS_ENDPOINT", gateway.endpoint)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "IMAGETASKS_TOKEN"):
        monkeypatch.delenv(name, raising=False)

    def run_here(*words: str) -> list[str]:
        assert ec2.run([*COMMAND, *words]) == 0
        return capsys.readouterr().err.splitlines()

    return run_here


def test_that_the_listing_is_throttled_is_told_once_and_so_is_its_end(
    gateway: ScriptedGateway, here: Callable[..., list[str]]
) -> None:
    listing(gateway, throttled(), throttled(), answer(there=throttled()), answer(task(**ENDED)))
    assert here() == [
        f"imagetasks: no news of prod/{THERE}, still waiting: RequestLimitExceeded: slow down",
        f"imagetasks: news of prod/{THERE} again",
    ]


def test_that_a_followed_target_is_stale_is_told_once_and_so_is_its_end(
    gateway: ScriptedGateway, here: Callable[..., list[str]]
) -> None:
    listing(gateway, answer(task()))
    unknown = status(grpc.StatusCode.UNAVAILABLE, "no STS", reason("AWS_UNREACHABLE", account="prod"))
    calls = [
        [
            *(started(), *snapshot("s", task()), stale(HERE, DENIED), stale("", unknown)),
            # Where no task that is waited for is.
            *(stale(THERE, DENIED), stale("", None), stale(HERE, None)),
            closing("c"),
        ],
        [started(resumed=True), group("g", change("MODIFIED", task(**ENDED))), complete("d")],
    ]
    gateway.watch = lambda *_: iter(calls.pop(0))
    assert here() == [
        f"imagetasks: no news of prod/{HERE}, still waiting: UnauthorizedOperation: no",
        "imagetasks: no news of prod, still waiting: AWS_UNREACHABLE: no STS",
        "imagetasks: news of prod again",
        f"imagetasks: news of prod/{HERE} again",
        "imagetasks: no news of the gateway, still waiting: the connection is cut",
        "imagetasks: news of the gateway again",
    ]
