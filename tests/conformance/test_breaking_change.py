"""A change of the contract that breaks a published client: buf refuses it, and the scenarios catch it."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, json_format, message_factory
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from google.protobuf.message import Message
from run import Authority, command_of, play
from runner_process import running
from scenario_data import load

from processes import ROOT

PROTOSET = ROOT / "clients/python/imagetasks/v1/store_image_tasks.protoset"
RELEASED = ROOT / "protos/imagetasks.v1.released.binpb"
SCENARIOS = {scenario.name: scenario for scenario in load()}


def message(own: FileDescriptorProto, name: str) -> DescriptorProto:
    return next(each for each in own.message_type if each.name == name)


def renumber(own: FileDescriptorProto, of: str, field: str) -> None:
    for each in message(own, of).field:
        if each.name == field:
            each.number += 100


def nothing(own: FileDescriptorProto) -> None:
    assert own.syntax == "proto3"


def move_the_percentage(own: FileDescriptorProto) -> None:
    renumber(own, "StoreImageTaskResult", "progress_percentage")


def move_the_next_token(own: FileDescriptorProto) -> None:
    renumber(own, "DescribeStoreImageTasksResponse", "next_token")


def move_the_changes(own: FileDescriptorProto) -> None:
    renumber(own, "WatchStoreImageTasksResponse", "changes")


def exchange_the_final_states(own: FileDescriptorProto) -> None:
    (states,) = [each for each in own.enum_type if each.name == "StoreTaskState"]
    states.value[2].number, states.value[3].number = 3, 2


def make_the_percentage_a_text(own: FileDescriptorProto) -> None:
    for each in message(own, "StoreImageTaskResult").field:
        if each.name == "progress_percentage":
            each.type = each.TYPE_STRING


# Each with the scenario that catches it; nothing changed is nothing to catch.
CHANGES: dict[Callable[[FileDescriptorProto], None], str] = {
    nothing: "watch-tells-an-end-once",
    move_the_percentage: "percentage-absent-zero-and-some",
    make_the_percentage_a_text: "describe-one-page",
    move_the_next_token: "list-follows-next-tokens",
    move_the_changes: "watch-snapshot-then-changes",
    exchange_the_final_states: "watch-snapshot-then-changes",
}


def speaking(files: FileDescriptorSet) -> Callable[[Message], bytes]:
    """How a gateway of another contract writes the messages of this one."""
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)

    def encode(said: Message) -> bytes:
        kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(said.DESCRIPTOR.full_name))
        data = json_format.MessageToDict(said, preserving_proto_field_name=True)
        return json_format.ParseDict(_texts(data, kind), kind()).SerializeToString()

    return encode


def _texts(data: dict[str, object], kind: type[Message]) -> dict[str, object]:
    """The same, with the percentage as the other contract has it."""
    field = kind.DESCRIPTOR.file.message_types_by_name["StoreImageTaskResult"].fields_by_name
    if field["progress_percentage"].type == field["progress_percentage"].TYPE_STRING:
        for task in data.get("store_image_task_results", ()):  # type: ignore[attr-defined]
            task["progress_percentage"] = str(task["progress_percentage"])
    return data


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_a_breaking_change_is_refused_and_caught(
    change: Callable[[FileDescriptorProto], None], tmp_path: Path
) -> None:
    files = FileDescriptorSet.FromString(PROTOSET.read_bytes())
    (own,) = [file for file in files.file if file.package == "imagetasks.v1"]
    change(own)
    changed = tmp_path / "changed.binpb"
    changed.write_bytes(files.SerializeToString())
    buf = await asyncio.create_subprocess_exec(
        *(Path(sys.executable).with_name("buf"), "breaking", changed, "--against", RELEASED),
        *("--config", "buf.yaml", "--path", "imagetasks"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    said = (await buf.communicate())[0].decode()
    async with running(command_of("python")) as runner:
        faults = await play(SCENARIOS[CHANGES[change]], runner, Authority(tmp_path), speaking(files))
    breaks = change is not nothing
    assert (buf.returncode, bool(faults)) == (100 if breaks else 0, breaks), (said, faults)
