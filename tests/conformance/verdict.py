"""Whether what a client told, and what it asked, is what the scenario says."""

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import Message
from scenario_data import Scenario
from scenario_messages import METHODS, build, decode, request_type, response_type, tasks, view
from scripted_conversation import Arrived

from imagetasks.v1 import store_image_tasks_pb2 as pb

# What an error tells when it tells nothing.
_ERROR: dict[str, Any] = {
    "reason": "",
    "account": "",
    "region": "",
    "aws_error_code": "",
    "aws_request_id": "",
    "retry_delay": None,
    "fields": [],
    "target_failures": [],
}
_CHANGE = {"before": None, "first": False, "ended": False, "removal_reason": "UNSPECIFIED"}


def observed(scenario: Scenario, told: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What is wrong with what the client told."""
    for number, expected in enumerate(scenario.observe, 1):
        if number > len(told):
            yield f"observation {number} is missing: {_short(expected)}"
            return
        for fault in _compare(scenario, expected, told[number - 1]):
            yield f"observation {number}: {fault}"
    for number, more in enumerate(told[len(scenario.observe) :], len(scenario.observe) + 1):
        yield f"observation {number} is too much: {_short(more)}"


def asked(scenario: Scenario, arrived: Sequence[Arrived]) -> Iterator[str]:
    """What is wrong with the calls that arrived."""
    needed = sum(not call.get("optional", False) for call in scenario.calls)
    if len(arrived) < needed:
        yield f"{len(arrived)} calls arrived in place of {needed}"
    for number, (expected, call) in enumerate(zip(scenario.calls, arrived, strict=False), 1):
        for fault in _compare_call(expected, call):
            yield f"call {number}: {fault}"


def _compare(scenario: Scenario, expected: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[str]:
    event = next(iter(expected))
    if told["event"] != event:
        yield f"{_short(told)} in place of {_short(expected)}"
        return
    if event == "message":
        yield from _compare_message(scenario, expected["message"], told)
    elif event == "change":
        yield from _compare_change(expected, told)
    elif event == "error":
        wanted = {**_ERROR, **expected["error"]}
        yield from _differences(wanted, told)
    for name in ("metadata", "held", "stale"):
        if name in expected:
            value = expected[name]
            if name == "held":
                value = sorted((view(_task(each)) for each in value), key=lambda each: each["task_id"])
            yield from _differences({name: value}, told)


def _compare_message(scenario: Scenario, data: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[str]:
    kind = response_type(METHODS[scenario.do["call"]])
    wanted = build(kind, data)
    try:
        message = decode(kind, told["bytes"])
    except (ValueError, KeyError) as error:
        yield f"not a message: {error}"
        return
    if message != wanted:
        yield f"message {_short(message)} in place of {_short(wanted)}"
    views = [view(task) for task in tasks(wanted)]
    if told.get("tasks") != views:
        yield f"tasks {_short(told.get('tasks'))} in place of {_short(views)}"


def _compare_change(expected: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[str]:
    wanted = {**_CHANGE, **{key: value for key, value in expected.items() if key != "change"}}
    for name in ("task", "before"):
        if wanted[name] is not None:
            wanted[name] = view(_task(wanted[name]))
    yield from _differences({"type": expected["change"], **wanted}, told)


def _compare_call(expected: Mapping[str, Any], call: Arrived) -> Iterator[str]:
    if call.method != expected["method"]:
        yield f"{call.method} in place of {expected['method']}"
        return
    data = expected.get("request", {})
    wanted = build(
        request_type(call.method), {key: value for key, value in data.items() if value is not None}
    )
    for name in data:
        value, came = _member(wanted, name), _member(call.request, name)
        if came != value:
            yield f"asked {name} {_short(came)}, not {_short(value)}"
    yield from _compare_metadata(expected, call)
    if "deadline" in expected:
        yield from _compare_deadline(expected["deadline"], call.remaining)
    if call.after < expected.get("not_before", 0):
        yield f"came {call.after:.2f} s after the call before it, and not after {expected['not_before']} s"
    if call.ended != expected.get("ended", "played"):
        yield f"{call.ended or 'still runs'}, not {expected.get('ended', 'played')}"


def _member(message: Message, name: str) -> Any:
    """A member's value; None where it is absent, which is not the same as empty."""
    if message.DESCRIPTOR.fields_by_name[name].has_presence and not message.HasField(name):
        return None
    return getattr(message, name)


def _compare_metadata(expected: Mapping[str, Any], call: Arrived) -> Iterator[str]:
    for key, value in expected.get("metadata", {}).items():
        came = call.metadata.get(key)
        came = base64.b64encode(came).decode() if isinstance(came, bytes) else came
        if came != value:
            yield f"metadata {key} is {came!r}, not {value!r}"
    for key, pattern in expected.get("metadata_like", {}).items():
        if not re.search(pattern, str(call.metadata.get(key, ""))):
            yield f"metadata {key} is {call.metadata.get(key)!r}, not like {pattern!r}"


def _compare_deadline(wanted: Mapping[str, float] | None, remaining: float | None) -> Iterator[str]:
    if (wanted is None) != (remaining is None):
        yield f"its deadline leaves {remaining}, not {wanted}"
    elif wanted is not None and remaining is not None and not wanted["least"] <= remaining <= wanted["most"]:
        yield f"its deadline leaves {remaining:.2f} s, not {wanted['least']} to {wanted['most']}"


def _differences(wanted: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[str]:
    for name, value in wanted.items():
        if name not in told:
            yield f"{name} is not told"
        elif told[name] != value:
            yield f"{name} is {_short(told[name])}, not {_short(value)}"


def _task(data: Mapping[str, Any]) -> pb.StoreImageTaskResult:
    made = build(pb.StoreImageTaskResult, data)
    assert isinstance(made, pb.StoreImageTaskResult)
    return made


def _short(value: Any) -> str:
    text = " ".join(str(value).split()) if isinstance(value, Message) else repr(value)
    return text if len(text) <= 400 else f"{text[:400]}…"
