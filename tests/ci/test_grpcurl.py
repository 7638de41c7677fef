"""grpcurl, a client nobody here wrote, on the gateway: by reflection and by the descriptor set."""

import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from processes import ROOT, Gateway, gateway

GRPCURL = ROOT / ".build/bin/grpcurl"
PROTOSET = ROOT / "clients/python/imagetasks/v1/store_image_tasks.protoset"
SERVICE = "imagetasks.v1.StoreImageTaskService"


@pytest.fixture(scope="module")
def running() -> Iterator[Gateway]:
    with gateway("--sandbox") as running:
        yield running


@pytest.fixture(params=["by reflection", "by the descriptor set"])
def knowing(request: pytest.FixtureRequest) -> list[str]:
    """The options by which grpcurl comes to know the contract."""
    return [] if request.param == "by reflection" else ["-protoset", str(PROTOSET)]


def grpcurl(*arguments: str, **request: Any) -> "subprocess.CompletedProcess[str]":
    assert GRPCURL.is_file(), ".ci/run builds it"
    data = ["-d", json.dumps(request)] if request else []
    command = [str(GRPCURL), "-plaintext", *data, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def answers(done: "subprocess.CompletedProcess[str]") -> list[dict[str, Any]]:
    """The messages of a call that succeeded."""
    assert (done.returncode, done.stderr) == (0, "")
    return messages(done.stdout)


def messages(text: str) -> list[dict[str, Any]]:
    """The messages it printed, one after the other, with the contract's own names.

    By reflection it knows no JSON names and prints these as they are.
    """
    decoder = json.JSONDecoder(object_hook=_contract_names)
    found = []
    while text := text.strip():
        message, end = decoder.raw_decode(text)
        found.append(message)
        text = text[end:]
    return found


def _contract_names(members: dict[str, Any]) -> dict[str, Any]:
    return {re.sub("[A-Z]", lambda c: f"_{c[0].lower()}", name): value for name, value in members.items()}


def test_lists(running: Gateway, knowing: list[str]) -> None:
    done = grpcurl(*knowing, running.address, "list")
    assert SERVICE in done.stdout.splitlines()
    assert ("grpc.health.v1.Health" in done.stdout.splitlines()) == (not knowing)
    methods = grpcurl(*knowing, running.address, "list", SERVICE).stdout.splitlines()
    assert {f"{SERVICE}.DescribeStoreImageTasks", f"{SERVICE}.ListTargets"} <= set(methods)


@pytest.mark.parametrize("name", ["StoreImageTaskService", "StoreImageTaskResult", "ErrorReason"])
def test_describes(name: str, running: Gateway, knowing: list[str]) -> None:
    symbol = f"imagetasks.v1.{name}"
    done = grpcurl(*knowing, running.address, "describe", symbol)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{symbol} is ")
    # Reflection answers what the gateway runs with, which is without comments.
    assert ("//" in done.stdout) == bool(knowing)


def test_describes_without_a_gateway() -> None:
    done = subprocess.run(
        [str(GRPCURL), "-protoset", str(PROTOSET), "describe", SERVICE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "rpc StreamStoreImageTasks" in done.stdout


def test_calls_describe(running: Gateway, knowing: list[str]) -> None:
    method = f"{SERVICE}/DescribeStoreImageTasks"
    question = {"max_results": 2, "regions": ["eu-west-1", "us-east-1"]}
    (first,) = answers(grpcurl(*knowing, running.address, method, **question))
    assert len(first["store_image_task_results"]) == 2
    assert len(first["target_outcomes"]) == 6
    question["next_token"] = first["next_token"]
    (second,) = answers(grpcurl(*knowing, running.address, method, **question))
    ids = [task["task_id"] for page in (first, second) for task in page["store_image_task_results"]]
    assert len(set(ids)) == 4


def test_calls_stream(running: Gateway, knowing: list[str]) -> None:
    events = answers(
        grpcurl(
            *knowing,
            running.address,
            f"{SERVICE}/StreamStoreImageTasks",
            selector={"accounts": ["main"], "regions": ["us-east-1", "sa-east-1"]},
        )
    )
    kinds = [next(iter(message)) for message in events]
    assert kinds[-1] == "summary"
    assert sorted(kinds[:-1])[:2] == ["outcome", "outcome"]
    pages = [message["page"]["store_image_task_results"] for message in events if "page" in message]
    assert sum(map(len, pages)) == events[-1]["summary"]["task_count"] >= 450
    # The denied Region is told, with its details resolved.
    (denied,) = [message["outcome"] for message in events if "status" in message.get("outcome", {})]
    assert denied["target"]["region"] == "sa-east-1"
    assert denied["status"]["details"][0]["reason"] == "AWS_UNAUTHORIZED_OPERATION"


def test_calls_list_targets(running: Gateway, knowing: list[str]) -> None:
    (answer,) = answers(grpcurl(*knowing, running.address, f"{SERVICE}/ListTargets", accounts=["images-dev"]))
    assert {target["target"]["account"] for target in answer["targets"]} == {"images-dev"}
    assert len(answer["targets"]) == 13


def test_calls_watch(running: Gateway, knowing: list[str]) -> None:
    done = grpcurl(
        *("-max-time", "2"),
        *knowing,
        running.address,
        f"{SERVICE}/WatchStoreImageTasks",
        selector={"accounts": ["main"], "regions": ["eu-west-1"]},
    )
    # It goes on until the caller leaves.
    assert "DeadlineExceeded" in done.stderr
    kinds = {kind for message in messages(done.stdout) for kind in message}
    assert {"started", "changes", "snapshot_complete"} <= kinds


def test_calls_wait(running: Gateway, knowing: list[str]) -> None:
    ended = {"name": "task-state", "values": ["Completed"]}
    selector = {"accounts": ["main"], "regions": ["eu-west-1"], "filters": [ended]}
    (answer,) = answers(
        grpcurl(*knowing, running.address, f"{SERVICE}/WaitStoreImageTasks", selector=selector)
    )
    assert answer["done"] is True


def test_shows_an_errors_details(running: Gateway, knowing: list[str]) -> None:
    done = grpcurl(*knowing, running.address, f"{SERVICE}/ListTargets", accounts=["nobody"])
    assert done.returncode != 0
    assert "NotFound" in done.stderr
    assert "UNKNOWN_ACCOUNT" in done.stderr


def test_health(running: Gateway) -> None:
    assert answers(grpcurl(running.address, "grpc.health.v1.Health/Check")) == [{"status": "SERVING"}]
    assert answers(grpcurl(running.address, "grpc.health.v1.Health/Check", service=SERVICE)) == [
        {"status": "SERVING"}
    ]
