"""`imagetasks watch` as a process: lines, json, the table on a terminal, commands, and its ends."""

import json
import os
import pty
import shlex
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
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
)
from test_command_line import run, running
from watch_events import (
    ENDED,
    FAILED,
    Event,
    at,
    change,
    closing,
    group,
    heartbeat,
    reset,
    snapshot,
    stale,
    started,
)

from imagetasks.cli import hindrances, watch
from imagetasks.cli.commands import Commands
from imagetasks.v1 import store_image_tasks_pb2 as pb

BUCKET = "Name=bucket,Values=images"
DENIED = status(grpc.StatusCode.PERMISSION_DENIED, "no", reason("AWS_UNAUTHORIZED_OPERATION"))


@pytest.fixture
def told(gateway: ScriptedGateway) -> ScriptedGateway:
    gateway.targets = lambda *_: targets_answer("eu-central-1")
    # Nothing that the watch has not shown.
    gateway.stream = lambda *_: [outcome_event(), summary_event()]
    return gateway


def scripted(gateway: ScriptedGateway, *calls: list[Event]) -> None:
    """Each call gets its events and is then cut; the last stays open."""
    left = list(calls)

    def respond(request: Any, context: grpc.ServicerContext) -> Any:
        events = left.pop(0)
        return iter(events) if left else gated(events, threading.Event())(request, context)

    gateway.watch = respond


def test_elsewhere_than_on_a_terminal_each_change_is_a_line(told: ScriptedGateway) -> None:
    scripted(
        told,
        [
            started(),
            *snapshot("s", at(10, s3_object_key="key"), at(20, 2, s3_object_key="key")),
            stale("eu-central-1", DENIED),
            group("g", change("MODIFIED", at(11, s3_object_key="key"))),
        ],
        [started(resumed=True), *ended()],
    )
    done = run(told, "watch", "--until-done")
    assert done.returncode == 0
    lines = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()]
    ami, other = task().ami_id, task(number=2).ami_id
    assert [line.split() for line in lines] == [
        ["CHANGE", "ACCOUNT", "REGION", "AMI", "STATE", "PROGRESS", "OBJECT", "REASON"],
        ["added", "prod", "eu-central-1", ami, "InProgress", "10%", "images/key"],
        ["added", "prod", "eu-central-1", other, "InProgress", "20%", "images/key"],
        ["modified", "prod", "eu-central-1", ami, "InProgress", "11%", "images/key"],
        ["ended", "prod", "eu-central-1", ami, "Completed", "100%", f"images/{ami}.bin"],
        ["ended", "prod", "eu-central-1", other, "Failed", "45%", f"images/{other}.bin", "no", "bucket"],
    ]
    assert done.stderr.splitlines() == [
        "imagetasks: prod/eu-central-1 cannot be read: AWS_UNAUTHORIZED_OPERATION: no",
        "imagetasks: the connection is lost, and tried again",
        "imagetasks: prod/eu-central-1 can be read now",
    ]


def ended() -> list[Event]:
    return [group("e", change("MODIFIED", task(**ENDED)), change("MODIFIED", task(number=2, **FAILED)))]


def test_json_is_one_object_on_a_line(told: ScriptedGateway) -> None:
    scripted(
        told,
        [
            *(started(), stale("eu-central-1", DENIED), *snapshot("s", at(10)), stale("eu-central-1", None)),
            group("g", change("REMOVED", at(10), "AGED_OUT")),
        ],
    )
    done = run(told, "watch", "--until-done", "--output", "json")
    assert (done.returncode, done.stderr) == (0, "")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    assert [next(iter(each)) for each in objects] == ["status", "change", "covered", "status", "change"]
    assert objects[0]["status"]["status"]["message"] == "no"
    assert "status" not in objects[3]["status"]
    assert objects[4]["change"]["removalReason"] == "REMOVAL_REASON_AGED_OUT"
    assert objects[4]["change"]["task"]["amiId"] == at(10).ami_id


def test_a_command_runs_for_each_task_that_ends_and_is_waited_for(
    told: ScriptedGateway, tmp_path: Path
) -> None:
    old = task(number=3, **ENDED)
    scripted(
        told,
        [started(), *snapshot("s", at(10), at(20, 2), old)],
        # The gateway has restarted, and one ended meanwhile; then again, with no news.
        [started(), reset(), *snapshot("t", task(**ENDED), at(20, 2), old), heartbeat("u")],
        [started(), reset(), *snapshot("v", task(**ENDED), at(20, 2), old), closing("w")],
        [started(), reset(), *snapshot("x", task(**ENDED), task(number=2, **FAILED), old)],
    )
    script = tmp_path / "command.py"
    script.write_text(
        "import os, pathlib, sys\n"
        "told = [os.environ['IMAGETASKS_' + name] for name in sys.argv[2:]]\n"
        "with pathlib.Path(sys.argv[1], told[0]).open('a') as file: print(*told, sep='|', file=file)\n"
        "print('heard of', told[0])\n"
        "sys.exit(told[6] == 'Failed')\n"
    )
    names = "TASK_ID ACCOUNT REGION AMI_ID BUCKET OBJECT_KEY STATE FAILURE_REASON"
    command = shlex.join([sys.executable, str(script), str(tmp_path)])
    done = run(told, "watch", "--until-done", "--exec", f"{command} {names}")
    first, second = task().ami_id, task(number=2).ami_id
    assert {path.name: path.read_text() for path in tmp_path.glob("task-*")} == {
        "task-1": f"task-1|prod|eu-central-1|{first}|images|{first}.bin|Completed|\n",
        "task-2": f"task-2|prod|eu-central-1|{second}|images|{second}.bin|Failed|no bucket\n",
    }
    assert done.returncode == 1
    assert f"for prod/eu-central-1 {second}: exit code 1" in done.stderr
    assert "heard of task-1" in done.stderr
    assert "heard of" not in done.stdout


def test_a_command_that_is_not_there_is_told(told: ScriptedGateway) -> None:
    scripted(told, [started(), *snapshot("s", at(10)), group("g", change("MODIFIED", task(**ENDED)))])
    done = run(told, "watch", "--until-done", "--exec", "/nonexistent/command")
    assert done.returncode == 1
    assert "imagetasks: /nonexistent/command for prod/eu-central-1" in done.stderr


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--exec", "true", "--filters", "Name=task-state,Values=InProgress"], "out of sight"),
        (["--exec", "'"], "No closing quotation"),
        (["--exec", ""], "no command"),
    ],
)
def test_a_wrong_command_line_is_refused(words: list[str], problem: str) -> None:
    done = run(None, "watch", *words)
    assert done.returncode == 2
    assert problem in done.stderr


def test_a_call_that_cannot_be_made_is_told_at_once(told: ScriptedGateway) -> None:
    told.targets = failing(status(grpc.StatusCode.NOT_FOUND, "no such account", reason("UNKNOWN_ACCOUNT")))
    done = run(told, "watch", "--accounts", "x")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no such account" in done.stderr


def test_a_time_limit_ends_it(told: ScriptedGateway) -> None:
    scripted(told, [started(), *snapshot("s", at(10))])
    assert run(told, "watch", "--timeout", "1").returncode == 0
    scripted(told, [started(), *snapshot("s", at(10))])
    done = run(told, "watch", "--timeout", "1", "--until-done")
    assert done.returncode == 3
    assert "still in progress after 1 s" in done.stderr


def test_no_call_outlasts_the_time_limit(told: ScriptedGateway) -> None:
    scripted(told, [started(), *snapshot("s")])
    assert run(told, "watch", "--timeout", "7", "--until-done").returncode == 0
    limits = {call.method: call.time_remaining or 0.0 for call in told.calls}
    # The clocks of both ends round.
    assert 0 < limits["targets"] < 7.1
    assert 0 < limits["stream"] < 7.1


def test_until_done_asks_for_what_was_read_after_it_began(told: ScriptedGateway) -> None:
    running, ended_ = at(5, 2), task(number=2, **ENDED)
    added, modified = change("ADDED", running), change("MODIFIED", ended_)
    scripted(told, [started(), *snapshot("s"), group("g", added), group("h", modified)])
    answers = [[page_event(running), outcome_event()], [page_event(ended_), outcome_event()]]
    told.stream = lambda *_: answers.pop(0)
    done = run(told, "watch", "--until-done", "--regions", "eu-central-1", "--filters", BUCKET)
    assert (done.returncode, answers) == (0, [])
    requests: list[Any] = [call.request for call in told.calls if call.method in {"watch", "stream"}]
    watched, first, second = requests
    assert first.forbid_stale
    assert first.selector == second.selector == watched.selector
    assert first.max_age.ToTimedelta() < second.max_age.ToTimedelta()


def test_until_done_waits_for_the_tasks_of_image_ids(told: ScriptedGateway) -> None:
    scripted(told, [started(), *snapshot("s")])
    done = run(told, "watch", "--until-done", "--image-ids", "ami-00000001", "--timeout", "1")
    assert done.returncode == 3
    why = "no news of ami-00000001 (it has no store task yet) after 1 s"
    assert done.stderr.splitlines()[-1] == f"imagetasks: {why}"
    scripted(told, [started(), *snapshot("s"), *ended()])
    assert run(told, "watch", "--until-done", "--image-ids", task().ami_id).returncode == 0


def test_until_done_names_what_it_does_not_wait_for(told: ScriptedGateway) -> None:
    scripted(told, [started("eu-central-1", "us-east-1"), stale("us-east-1", DENIED), *snapshot("s")])
    told.stream = lambda *_: [outcome_event(), outcome_event("us-east-1", DENIED, pb.SOURCE_NONE)]
    done = run(told, "watch", "--until-done", "--output", "json")
    assert done.returncode == 1
    assert done.stderr == "imagetasks: not waited for: prod/us-east-1: AWS_UNAUTHORIZED_OPERATION: no\n"


@pytest.mark.parametrize("output", ["table", "json"])
def test_until_done_says_why_it_still_waits(
    told: ScriptedGateway, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    # In this process, where nothing needs to last to be told.
    monkeypatch.setattr(hindrances, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    unknown = status(grpc.StatusCode.UNAVAILABLE, "no STS", reason("AWS_UNREACHABLE"))
    nothing = started()
    nothing.started.ClearField("targets")
    scripted(told, [nothing, stale("", unknown), stale("", None)])
    answers = [[outcome_event("", unknown, pb.SOURCE_NONE)], [outcome_event()]]
    told.stream = lambda *_: answers.pop(0)
    assert watch.run(["--until-done", "--output", output, "--endpoint-url", told.endpoint]) == 0
    lines = capsys.readouterr().err.splitlines()
    own = ["imagetasks: prod cannot be read: AWS_UNREACHABLE: no STS", "imagetasks: prod can be read now"]
    assert [line for line in lines if line not in own] == [
        "imagetasks: no news of prod, still waiting: AWS_UNREACHABLE: no STS",
    ]


def test_ctrl_c_ends_it_once_its_commands_have_ended(told: ScriptedGateway, tmp_path: Path) -> None:
    scripted(told, [started(), *snapshot("s", at(10)), group("g", change("MODIFIED", task(**ENDED)))])
    began, may_end = tmp_path / "began", tmp_path / "pipe"
    os.mkfifo(began)
    os.mkfifo(may_end)
    command = shlex.join(["sh", "-c", f"echo > {began}; cat {may_end}"])
    with running(told, "watch", "--exec", command) as process:
        began.read_text()
        process.send_signal(signal.SIGINT)
        assert told.calls[-1].over.wait(PATIENCE)
        may_end.write_text("finished\n")
        _, stderr = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert stderr.splitlines()[-2:] == ["waiting for 1 commands", "finished"]


def test_a_second_ctrl_c_ends_the_commands(told: ScriptedGateway, tmp_path: Path) -> None:
    scripted(told, [started(), *snapshot("s", at(10)), group("g", change("MODIFIED", task(**ENDED)))])
    began = tmp_path / "began"
    os.mkfifo(began)
    command = shlex.join(["sh", "-c", f"echo > {began}; exec sleep 1000"])
    with running(told, "watch", "--exec", command) as process:
        began.read_text()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "waiting for 1 commands" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130


def test_a_command_that_began_while_ctrl_c_came_is_waited_for_and_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    may_end = tmp_path / "pipe"
    os.mkfifo(may_end)
    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        if line.startswith("waiting"):
            may_end.write_text("finished\n")

    submit = ThreadPoolExecutor.submit

    def interrupted(*words: Any) -> None:
        submit(*words)
        raise KeyboardInterrupt

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    commands = Commands(["cat", str(may_end)], tell)
    with pytest.raises(KeyboardInterrupt):
        commands.run(task(**ENDED))
    commands.finish()
    assert lines == ["waiting for 1 commands", "finished"]


def paced() -> pb.StoreImageTaskResult:
    moving = at(30)
    moving.pace.percent_per_second = 0.5
    moving.pace.estimated_completion_time.FromSeconds(4_102_444_800)
    return moving


def test_on_a_terminal_it_is_a_table_that_fits(told: ScriptedGateway) -> None:
    stalled = at(40, 2)
    stalled.pace.stalled = True
    many = [at(5, number) for number in range(10, 60)]
    scripted(
        told,
        [
            started(),
            *snapshot("s", paced(), stalled, *many),
            group("g", change("MODIFIED", task(number=10, **ENDED))),
        ],
    )
    ours, theirs = pty.openpty()
    with running(told, "watch", stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = ""
        while "1 targets, 52 tasks" not in shown or "more" not in shown:
            shown += os.read(ours, 65536).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk.decode(errors="replace")
        except OSError:
            pass
        assert process.wait(PATIENCE) == 130
    os.close(ours)
    for part in ("In progress now", "30.0%/min", "stalled", "Completed"):
        assert part in shown
    assert "\x1b[?25h" in shown.rpartition("\x1b[?25l")[2]
