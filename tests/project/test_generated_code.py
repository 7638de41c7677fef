"""The contract, what is generated from it, and what was released of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from imagetasks.v1 import store_image_tasks_pb2 as pb
from processes import ROOT

PROTOSET = ROOT / "clients/python/imagetasks/v1/store_image_tasks.protoset"
RELEASED = ROOT / "protos/imagetasks.v1.released.binpb"


def buf(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("buf")), *arguments, "--config", "buf.yaml"]
    return subprocess.run(
        [*command, "--path", "imagetasks"], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_what_is_checked_in_is_what_the_contract_gives() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/stubs.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    # What is not here cannot be compared; .ci/run has it all.
    assert re.fullmatch(r"(stubs: left out: .*\n)*", done.stdout)


def test_the_descriptor_set_holds_all_that_a_tool_needs() -> None:
    files = {file.name: file for file in FileDescriptorSet.FromString(PROTOSET.read_bytes()).file}
    own = files["imagetasks/v1/store_image_tasks.proto"]
    assert set(own.dependency) <= set(files)
    methods = [method.name for service in own.service for method in service.method]
    service = pb.DESCRIPTOR.services_by_name["StoreImageTaskService"]
    assert methods == [method.name for method in service.methods]
    # What errors carry is imported by nothing, and shown by tools that know it.
    assert "google/rpc/error_details.proto" in files
    # With comments.
    assert any(location.leading_comments for location in own.source_code_info.location)


def test_the_contract_is_in_style() -> None:
    done = buf("lint", f"{PROTOSET}#format=binpb")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_contract_breaks_nothing_that_was_released() -> None:
    done = buf("breaking", f"{PROTOSET}#format=binpb", "--against", str(RELEASED))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("change", ["field removed", "field renamed", "number changed", "method removed"])
def test_a_breaking_change_would_be_found(change: str, tmp_path: Path) -> None:
    files = FileDescriptorSet.FromString(PROTOSET.read_bytes())
    own = next(file for file in files.file if file.name.startswith("imagetasks/"))
    target = next(message for message in own.message_type if message.name == "Target")
    if change == "field removed":
        del target.field[0]
    elif change == "field renamed":
        target.field[0].name = target.field[0].json_name = "name"
    elif change == "number changed":
        target.field[0].number = 100
    else:
        del own.service[0].method[0]
    changed = tmp_path / "changed.binpb"
    changed.write_bytes(files.SerializeToString())
    assert buf("breaking", str(changed), "--against", str(RELEASED)).returncode == 100
