"""The command line as a process: what it prints where, and its exit codes."""

import json
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from scripted_gateway import (
    PATIENCE,
    ScriptedGateway,
    failing,
    gated,
    outcome_event,
    page_event,
    reason,
    status,
    summary_event,
    targets_answer,
    task,
    waiting,
)

import imagetasks
from imagetasks.v1 import store_image_tasks_pb2 as pb

THROTTLED = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "EC2 throttled", reason("AWS_THROTTLED"))


def row(*cells: str) -> str:
    return "{:7}  {:14}  {:21}  {:10}  {:>8}  {:20}  {}".format(*cells)


HEADER = row("ACCOUNT", "REGION", "AMI", "STATE", "PROGRESS", "STARTED", "OBJECT  REASON")

# A shell that starts a test run in the background lets it ignore Ctrl-C, and its children inherit that.
INTERRUPTIBLE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from imagetasks.cli import main
sys.exit(main())
"""


def environment(gateway: ScriptedGateway | None) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith("IMAGETASKS_")}
    plain |= {"TERM": "xterm", "COLUMNS": "200"}
    if gateway is not None:
        plain["IMAGETASKS_ENDPOINT"] = gateway.endpoint
    return plain


def run(gateway: ScriptedGateway | None, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "imagetasks", *words],
        env=environment(gateway),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@contextmanager
def running(gateway: ScriptedGateway, *words: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *words],
        env=environment(gateway),
        text=True,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def scripted(gateway: ScriptedGateway, *events: pb.StreamStoreImageTasksResponse) -> None:
    gateway.stream = lambda *_: events
    gateway.targets = lambda *_: targets_answer("eu-central-1", "us-east-1")


def test_a_table_has_an_aligned_line_for_each_task(gateway: ScriptedGateway) -> None:
    failed = task(
        "us-east-1",
        2,
        store_task_state=pb.STORE_TASK_STATE_FAILED,
        ec2_store_task_state="Failed",
        progress_percentage=7,
        store_task_failure_reason="no bucket",
    )
    for member in ("bucket", "s3_object_key"):
        failed.ClearField(member)
    bare = pb.StoreImageTaskResult(account="prod", region="us-east-1", bucket="b", s3_object_key="k")
    scripted(gateway, page_event(task(s3_object_key="key")), page_event(failed, bare), summary_event(3, 2))

    done = run(gateway, "stream")

    assert (done.returncode, done.stderr) == (0, "")
    first, second = task().ami_id, failed.ami_id
    assert done.stdout.splitlines() == [
        HEADER,
        row("prod", "eu-central-1", first, "InProgress", "45%", "2026-01-01T00:00:01Z", "images/key"),
        row("prod", "us-east-1", second, "Failed", "7%", "2026-01-01T00:00:02Z", "-  no bucket"),
        row("prod", "us-east-1", "-", "-", "-", "-", "b/k"),
    ]


def test_an_empty_table_has_its_header(gateway: ScriptedGateway) -> None:
    scripted(gateway, outcome_event(), summary_event(0, 1))

    done = run(gateway, "stream")

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{HEADER}\n", "")


def test_control_characters_do_not_reach_the_terminal(gateway: ScriptedGateway) -> None:
    scripted(gateway, page_event(task(s3_object_key="a\x1b[2Jb\nc")), summary_event(1, 1))

    done = run(gateway, "stream")

    assert done.stdout.endswith("images/a\\x1b[2Jb\\nc\n")


def test_json_is_an_object_on_a_line(gateway: ScriptedGateway) -> None:
    unknown = AnyMessage(type_url="type.googleapis.com/imagetasks.v99.Detail", value=b"x")
    failure = status(grpc.StatusCode.RESOURCE_EXHAUSTED, "EC2 throttled", reason("AWS_THROTTLED"))
    failure.details.append(unknown)
    scripted(
        gateway,
        page_event(task(bucket="bücket"), task(number=2)),
        outcome_event(),
        outcome_event("us-east-1", failure, pb.SOURCE_NONE),
        summary_event(2, 2, failed=1),
    )

    done = run(gateway, "stream", "--output", "json")
    first, second, answered, failed, summary = map(json.loads, done.stdout.splitlines())

    assert done.returncode == 1
    assert first == {
        "task": {
            "amiId": "ami-00000000000000001",
            "taskStartTime": "2026-01-01T00:00:01.001Z",
            "bucket": "bücket",
            "s3ObjectKey": "ami-00000000000000001.bin",
            "progressPercentage": 45,
            "storeTaskState": "STORE_TASK_STATE_IN_PROGRESS",
            "ec2StoreTaskState": "InProgress",
            "taskId": "task-1",
            "account": "prod",
            "accountId": "123456789012",
            "region": "eu-central-1",
        },
    }
    assert second["task"]["amiId"] == "ami-00000000000000002"
    assert answered["outcome"]["source"] == "SOURCE_LIVE"
    assert failed["outcome"]["target"]["region"] == "us-east-1"
    assert [detail["reason"] for detail in failed["outcome"]["status"]["details"]] == ["AWS_THROTTLED"]
    assert summary == {
        "summary": {"taskCount": 2, "targetCount": 2, "staleTargetCount": 0, "failedTargetCount": 1},
    }


def test_rows_come_as_regions_answer(gateway: ScriptedGateway) -> None:
    scripted(gateway)
    gate = threading.Event()
    gateway.stream = gated(
        [page_event(task()), outcome_event()],
        gate,
        [page_event(task("us-east-1")), outcome_event("us-east-1"), summary_event(2, 2)],
    )

    with running(gateway, "stream") as process:
        assert process.stdout.readline().startswith("ACCOUNT")
        assert "eu-central-1" in process.stdout.readline()
        gate.set()
        assert "us-east-1" in process.stdout.readline()
        assert process.wait(PATIENCE) == 0


def test_a_whole_stream_is_not_cancelled(gateway: ScriptedGateway) -> None:
    scripted(gateway)
    seen, active = threading.Event(), []

    def respond(_: Any, context: grpc.ServicerContext) -> Iterator[pb.StreamStoreImageTasksResponse]:
        yield summary_event()
        seen.wait(PATIENCE)
        active.append(context.is_active())

    gateway.stream = respond

    with running(gateway, "stream") as process:
        process.stdout.readline()
        seen.set()
        assert process.wait(PATIENCE) == 0
    assert active == [True]


def test_failed_and_stale_targets_are_named(gateway: ScriptedGateway) -> None:
    scripted(
        gateway,
        page_event(task()),
        outcome_event("eu-central-1", THROTTLED, pb.SOURCE_STALE),
        outcome_event("us-east-1", THROTTLED, pb.SOURCE_NONE),
        summary_event(1, 2, stale=1, failed=1),
    )

    done = run(gateway, "stream")

    assert done.returncode == 1
    stale, failed = done.stderr.splitlines()
    why = "AWS_THROTTLED: EC2 throttled"
    assert stale == f"imagetasks: prod/eu-central-1 is stale, last read 2026-01-01T00:00:00Z: {why}"
    assert failed == f"imagetasks: prod/us-east-1 failed: {why}"


def test_a_stale_target_is_no_failure(gateway: ScriptedGateway) -> None:
    scripted(gateway, outcome_event("us-east-1", THROTTLED, pb.SOURCE_STALE), summary_event(0, 1, stale=1))

    assert run(gateway, "stream").returncode == 0


def test_the_options_become_the_question(gateway: ScriptedGateway) -> None:
    scripted(gateway, summary_event())

    words = (
        "stream --accounts prod,dev --accounts test --regions eu-west-1 eu-central-1 --image-ids ami-1,ami-2 "
        "--filters Name=task-state,Values=InProgress,Failed Name=bucket,Values=a=b "
        "--max-age 1.5 --forbid-stale --timeout 500"
    )
    assert run(gateway, *words.split()).returncode == 0

    asked = {call.method: call for call in gateway.calls}
    assert asked["stream"].time_remaining == pytest.approx(500, abs=30)
    assert asked["stream"].request == pb.StreamStoreImageTasksRequest(
        selector=pb.TaskSelector(
            accounts=["prod", "dev", "test"],
            regions=["eu-west-1", "eu-central-1"],
            image_ids=["ami-1", "ami-2"],
            filters=[
                pb.Filter(name="task-state", values=["InProgress", "Failed"]),
                pb.Filter(name="bucket", values=["a=b"]),
            ],
        ),
        max_age=Duration(seconds=1, nanos=500_000_000),
        forbid_stale=True,
    )
    assert asked["targets"].request == pb.ListTargetsRequest(
        accounts=["prod", "dev", "test"],
        regions=["eu-west-1", "eu-central-1"],
    )


def test_the_token_file_is_sent(gateway: ScriptedGateway, tmp_path: Path) -> None:
    scripted(gateway, summary_event())
    token = tmp_path / "token"
    token.write_text("secret\n")

    assert run(gateway, "stream", "--token-file", str(token)).returncode == 0

    assert {call.metadata["authorization"] for call in gateway.calls} == {"Bearer secret"}


@pytest.mark.parametrize(
    "words",
    [
        "",
        "nonsense",
        "--nonsense",
        "stream --filters bucket=a",
        "stream --filters Name=bucket",
        "stream --max-age -1",
        "stream --max-age nan",
        "stream --timeout soon",
        "stream --output xml",
        "stream --regio eu-west-1",
        "stream --endpoint-url ftp://gateway",
        "stream --ca-bundle /nonexistent",
        "stream --token-file /nonexistent",
        "protoset now",
    ],
)
def test_a_wrong_command_line_exits_2(words: str) -> None:
    done = run(None, *words.split())

    assert done.returncode == 2
    assert done.stdout == ""
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_gateway_the_endpoint_is_named(tmp_path: Path) -> None:
    endpoint = f"unix:{tmp_path}/none.sock"

    for command in ("stream", "targets"):
        done = run(None, command, "--endpoint-url", endpoint)

        assert (done.returncode, done.stdout) == (3, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"imagetasks: no gateway answers at {endpoint} (")
        assert "start one with imagetasks-server" in line


def test_a_failed_call_is_one_line(gateway: ScriptedGateway) -> None:
    failure = status(
        grpc.StatusCode.INVALID_ARGUMENT,
        "no good",
        reason("INVALID_FIELD", account="prod", region="eu-west-1", awsErrorCode="X", awsRequestId="1-2"),
        BadRequest(
            field_violations=[
                BadRequest.FieldViolation(field="regions", description="odd"),
                BadRequest.FieldViolation(field="accounts", description="no good"),
            ],
        ),
        pb.TargetFailures(
            failures=[pb.TargetFailures.Failure(account="dev", region="us-east-1", reason="AWS_TIMEOUT")],
            omitted_count=2,
        ),
        RetryInfo(retry_delay=Duration(seconds=2, nanos=500_000_000)),
    )
    gateway.stream = gateway.targets = failing(failure)

    for command in ("stream", "targets"):
        done = run(gateway, command)

        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == (
            "imagetasks: no good; regions: odd; dev us-east-1: AWS_TIMEOUT; and 2 more "
            "(INVALID_ARGUMENT INVALID_FIELD, prod eu-west-1, AWS: X, request id 1-2, ask again in 2.5 s)\n"
        )


def test_a_passed_deadline_exits_3(gateway: ScriptedGateway) -> None:
    gateway.targets = waiting

    done = run(gateway, "targets", "--timeout", "0.2")

    assert done.returncode == 3
    assert "DEADLINE_EXCEEDED" in done.stderr


def test_a_stream_without_its_summary_is_incomplete(gateway: ScriptedGateway) -> None:
    scripted(gateway, page_event(task()), outcome_event())

    done = run(gateway, "stream")

    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == "imagetasks: the stream ended before its summary: the answer is incomplete\n"


def test_rows_do_not_depend_on_the_list_of_targets(gateway: ScriptedGateway) -> None:
    scripted(gateway, page_event(task()), summary_event(1, 1))
    gateway.targets = failing(status(grpc.StatusCode.INTERNAL, "broken", reason("INTERNAL")))

    done = run(gateway, "stream")

    assert (done.returncode, len(done.stdout.splitlines()), done.stderr) == (0, 2, "")


def test_a_reader_that_leaves_ends_the_command_quietly(gateway: ScriptedGateway) -> None:
    scripted(
        gateway, *(page_event(*(task(number=n) for n in range(200))) for _ in range(50)), summary_event()
    )

    with running(gateway, "stream") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(PATIENCE) == 141
        assert process.stderr.read() == ""


def test_ctrl_c_ends_the_command_and_its_call(gateway: ScriptedGateway) -> None:
    scripted(gateway)
    gateway.stream = gated([page_event(task())], threading.Event())

    with running(gateway, "stream") as process:
        process.stdout.readline()
        process.send_signal(2)
        assert process.wait(PATIENCE) == 130
        assert process.stderr.read() == ""

    (stream,) = (call for call in gateway.calls if call.method == "stream")
    assert stream.over.wait(PATIENCE)


class Terminal:
    """A pseudo-terminal; `seen` is what has been written to it."""

    def __init__(self, columns: int) -> None:
        self._ours, self.end = pty.openpty()
        termios.tcsetwinsize(self.end, (24, columns))
        self.seen = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ours)
        os.close(self.end)

    def read_until(self, text: str) -> None:
        while text not in self.seen:
            assert select.select([self._ours], [], [], PATIENCE)[0], self.seen
            self.seen += os.read(self._ours, 10_000).decode()


def test_a_terminal_shows_which_targets_are_awaited(gateway: ScriptedGateway) -> None:
    scripted(gateway)
    gate = threading.Event()
    gateway.stream = gated(
        [page_event(task()), outcome_event()],
        gate,
        [outcome_event("us-east-1", THROTTLED, pb.SOURCE_NONE), summary_event(1, 2, failed=1)],
    )

    with Terminal(80) as terminal, running(gateway, "stream", stderr=terminal.end) as process:
        terminal.read_until("waiting for 2 of 2 targets: eu-central-1, us-east-1")
        terminal.read_until("waiting for 1 of 2 targets: us-east-1")
        gate.set()
        terminal.read_until("1 tasks of 2 targets, 1 failed")
        assert process.wait(PATIENCE) == 1
        # Piped output stays clean.
        assert "\x1b" not in (output := process.stdout.read())
        assert len(output.splitlines()) == 2

    # The line is wiped before anything that stays.
    assert "\r\x1b[Kimagetasks: prod/us-east-1 failed" in terminal.seen


def test_a_long_status_line_is_cut_to_the_terminal(gateway: ScriptedGateway) -> None:
    scripted(gateway)
    gateway.stream = gated([], threading.Event())

    with Terminal(40) as terminal, running(gateway, "stream", stderr=terminal.end) as process:
        terminal.read_until("waiting for 2 of 2 targets: eu-central-…"[:38])
        terminal.read_until("…")
        process.send_signal(2)
        assert process.wait(PATIENCE) == 130
        # Ctrl-C leaves no trace of it.
        terminal.read_until("…\r\x1b[K")


def test_targets_are_a_table(gateway: ScriptedGateway) -> None:
    read = Timestamp()
    read.FromMilliseconds(round(time.time() * 1000) - 12 * 60_000)
    answer = targets_answer("eu-central-1", "us-east-1")
    answer.targets[0].read_time.CopyFrom(read)
    answer.targets[0].task_count = 34
    answer.targets[0].in_progress_count = 5
    answer.targets[0].budget.CopyFrom(pb.Budget(available=3.25, capacity=40, refill_per_second=0.4))
    answer.targets[1].last_error.CopyFrom(status(grpc.StatusCode.INTERNAL, "odd"))
    answer.targets.append(pb.TargetState(target=pb.Target(account="[b]dev")))
    gateway.targets = lambda *_: answer

    done = run(gateway, "targets")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "ACCOUNT  ACCOUNT ID    REGION         LAST READ  TASKS  IN PROGRESS         BUDGET  LAST ERROR",
        "prod     123456789012  eu-central-1  12 min ago     34            5  3.2/40 +0.4/s",
        "prod     123456789012  us-east-1          never      0            0              -  INTERNAL: odd",
        "[b]dev   -             -                  never      0            0              -",
    ]


def test_targets_are_json(gateway: ScriptedGateway) -> None:
    gateway.targets = lambda *_: targets_answer("eu-central-1", "us-east-1")

    done = run(gateway, "targets", "--output", "json", "--regions", "eu-central-1,us-east-1")

    answer = json.loads(done.stdout)
    assert answer["serverVersion"] == "1.2.3"
    assert [state["target"]["region"] for state in answer["targets"]] == ["eu-central-1", "us-east-1"]
    assert gateway.calls[0].request.regions == ["eu-central-1", "us-east-1"]


def test_the_descriptor_set_is_found_or_missed() -> None:
    done = run(None, "protoset")

    if done.returncode == 0:
        assert Path(done.stdout.strip()).is_file()
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert "lacks the descriptor set" in done.stderr


def test_help_and_version_are_quick_answers() -> None:
    version = run(None, "--version")
    assert (version.returncode, version.stdout) == (0, f"imagetasks {imagetasks.__version__}\n")

    for words in ("--help", "stream --help", "targets --help", "protoset --help"):
        done = run(None, *words.split())
        assert (done.returncode, done.stderr) == (0, "")
        assert "example" in done.stdout
