"""The Python client does as every scenario says; the scenarios leave nothing out; a hole fails."""

import asyncio
import re
import shlex
import sys
from itertools import groupby
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from run import RUNNERS, conform, lacks, main, matrix
from runner_process import RunnerError, running
from scenario_data import LANGUAGES, Scenario, load

from imagetasks.v1 import store_image_tasks_pb2 as pb
from processes import ROOT

SCENARIOS = {scenario.name: scenario for scenario in load()}
PROTOSET = ROOT / "clients/python/imagetasks/v1/store_image_tasks.protoset"
HERE = Path(__file__).parent


@pytest.mark.parametrize("group", sorted({scenario.group for scenario in SCENARIOS.values()}))
async def test_the_python_client_conforms(group: str) -> None:
    of_group = [scenario for scenario in SCENARIOS.values() if scenario.group == group]
    scenarios = [scenario for scenario in of_group if not lacks("python", scenario)]
    results = await conform("python", scenarios, asyncio.Semaphore(RUNNERS))
    assert {name: faults for name, faults in results.items() if faults != []} == {}


def test_every_reason_of_the_contract_has_a_scenario_with_its_code() -> None:
    files = FileDescriptorSet.FromString(PROTOSET.read_bytes())
    (own,) = [file for file in files.file if file.package == "imagetasks.v1"]
    number = next(i for i, enum in enumerate(own.enum_type) if enum.name == "ErrorReason")
    codes = {
        own.enum_type[number].value[place.path[3]].name.removeprefix("ERROR_REASON_"): match[1]
        for place in own.source_code_info.location
        if list(place.path[:2]) == [5, number]
        and len(place.path) == 4
        and (match := re.search(r"\b([A-Z_]{5,}):? ?", place.leading_comments))
    }
    reasons = {value.name.removeprefix("ERROR_REASON_") for value in pb.ErrorReason.DESCRIPTOR.values}
    played = {
        scenario.observe[0]["error"]["reason"]: scenario.observe[0]["error"]["code"]
        for name, scenario in SCENARIOS.items()
        if name.removeprefix("error-") in reasons
    }
    assert set(played) == reasons - {"UNSPECIFIED"}
    assert played == codes


def test_grpcs_own_cases_are_among_them() -> None:
    assert {scenario.interop for scenario in SCENARIOS.values()} >= {
        "cancel_after_begin",
        "cancel_after_first_response",
        "custom_metadata",
        "empty_stream",
        "empty_unary",
        "large_unary",
        "server_streaming",
        "special_status_message",
        "status_code_and_message",
        "timeout_on_sleeping_server",
        "unimplemented_method",
        "unimplemented_service",
    }


def test_every_event_of_a_watch_is_played() -> None:
    played = {
        name
        for scenario in SCENARIOS.values()
        for call in scenario.calls
        for step in call.get("play", ())
        if isinstance(step, dict) and isinstance(step.get("send"), dict)
        for name in step["send"]
    }
    events = {
        field.name for field in pb.WatchStoreImageTasksResponse.DESCRIPTOR.oneofs_by_name["event"].fields
    }
    assert events <= played


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("", "the runner has ended with 0"),
        ("print('hello', flush=True); input()", "not JSON: b'hello\\n'"),
        ("print('{}', flush=True); input()", "no event: b'{}\\n'"),
    ],
)
async def test_a_runner_that_breaks_the_protocol_is_a_fault(program: str, words: str) -> None:
    async with running([sys.executable, "-c", program]) as runner:
        with pytest.raises(RunnerError, match=re.escape(words)):
            await runner.run({"scenario": "any"})


async def test_runners_are_few_at_once_and_warm_before_they_are_judged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    program = (
        "import json, os, sys\n"
        f"for line in sys.stdin:\n"
        f"    print(os.getpid(), json.loads(line)['scenario'], file=open({str(told)!r}, 'a'))\n"
        '    print(\'{"event": "end"}\', flush=True)\n'
    )
    for name in ("one", "other", "third"):
        monkeypatch.setitem(LANGUAGES, name, {"run": shlex.join(["{python}", "-c", program])})
    room = asyncio.Semaphore(1)
    scenarios = [SCENARIOS["describe-one-page"], SCENARIOS["stream-of-nothing"]]
    await asyncio.gather(*(conform(name, scenarios, room) for name in ("one", "other", "third")))
    lines = [line.split() for line in told.read_text().splitlines()]
    processes = [[scenario for _, scenario in of] for _, of in groupby(lines, key=lambda each: each[0])]
    assert processes == [["describe-nothing", "describe-one-page", "stream-of-nothing"]] * 3


async def test_a_hole_in_the_matrix_fails(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = f"{{python}} {HERE / 'wrong_clients.py'} ends-at-the-first-page"
    monkeypatch.setitem(LANGUAGES, "wrong", {"run": wrong, "lacks": {"retries": "none of its own"}})
    assert await main(["--languages", "python,wrong", "--scenarios", "list-follows"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^list-follows-next-tokens +ok +HOLE$", said, re.MULTILINE)
    assert "wrong: list-follows-next-tokens: observation 1: " in said
    assert "- wrong has no retries: none of its own" in said


async def test_what_is_not_built_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LANGUAGES, "later", {"run": "later", "built": "clients/later"})
    assert await main(["--languages", "later", "--scenarios", "describe-nothing"]) == 1
    assert "later is not built: make client-later" in capsys.readouterr().out


def test_what_a_language_lacks_is_shown_as_a_dash() -> None:
    scenario: Scenario = SCENARIOS["describe-nothing"]
    shown = matrix([scenario], {"one": {scenario.name: None}, "other": {scenario.name: []}})
    assert shown.splitlines()[-1].split() == ["describe-nothing", "-", "ok"]
