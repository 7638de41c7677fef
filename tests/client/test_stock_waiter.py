"""What is wrong with boto3's waiter for store tasks, and that the gateway's Wait is right on the same EC2."""

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import WaiterError

import imagetasks
from canned.launch import Canned, canned
from imagetasks.v1 import store_image_tasks_pb2 as pb

ACCOUNT = "000000000001"
SETTINGS = {
    "IMAGETASKS_BUDGET__CAPACITY": "1000000",
    "IMAGETASKS_BUDGET__REFILL": "1000000",
    "IMAGETASKS_BUDGET__INITIAL": "1000000",
    "IMAGETASKS_POLL_INTERVAL": "0.1",
    "IMAGETASKS_IDLE_POLL_INTERVAL": "0.1",
    "IMAGETASKS_LOG_JSON": "true",
    "AWS_REGION": "us-east-1",
}
# Regions that were not asked before: a gateway never forgets what it has seen.
REGIONS = [f"zz-{name}-1" for name in ("limit", "failure", "page", "without", "throttle", "create")]

Task = dict[str, Any]


def task(number: int, state: str = "Completed") -> Task:
    return {
        "AmiId": f"ami-{number:017x}",
        "TaskStartTime": f"2026-01-01T{23 - number // 60:02d}:{59 - number % 60:02d}:00.001Z",
        "Bucket": "images",
        "S3objectKey": f"ami-{number:017x}.bin",
        "ProgressPercentage": 40 if state == "InProgress" else 100,
        "StoreTaskState": state,
    }


class Ec2:
    """One EC2, as boto3 sees it and as a gateway does."""

    def __init__(self, running: Canned, gateway: str) -> None:
        self._running = running
        self._gateway = gateway

    def show(self, region: str, *tasks: Task, **more: Any) -> None:
        self._running.post({"account": ACCOUNT, "region": region, "tasks": tasks, **more})

    def stock(self, region: str, **arguments: Any) -> None:
        """boto3's waiter; a second of its clock takes a thousandth."""
        session = botocore.session.Session()
        session.set_credentials(f"AKIA{ACCOUNT}", "canned")
        client = session.create_client(
            "ec2",
            region_name=region,
            endpoint_url=self._running.endpoint,
            config=Config(retries={"max_attempts": 0}),
        )
        with contextlib.closing(client):
            waiter = client.get_waiter("store_image_task_complete")
            assert (waiter.config.delay, waiter.config.max_attempts) == (5, 40)
            waiter.wait(WaiterConfig={"Delay": 0.005, "MaxAttempts": 40}, **arguments)

    def wait(self, region: str, **arguments: Any) -> pb.WaitStoreImageTasksResponse:
        with imagetasks.connect_blocking(self._gateway) as client:
            return client.wait(regions=[region], **({"timeout": 20.0} | arguments))


@pytest.fixture(scope="module")
def ec2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ec2]:
    configuration = tmp_path_factory.mktemp("gateway") / "gateway.toml"
    configuration.write_text(f'[[accounts]]\nname = "canned"\nregions = {json.dumps(REGIONS)}\n')
    with canned() as running:
        environment = running.environment(ACCOUNT) | SETTINGS
        command = [str(Path(sys.executable).with_name("imagetasks-server")), "--config", str(configuration)]
        with subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", "--log-level", "info"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stderr is not None
            address = ""
            for line in process.stderr:
                if '"serving"' in line:
                    address = json.loads(line)["address"]
                    break
            assert address, "the gateway ended before it served"
            reading = threading.Thread(target=process.stderr.read)
            reading.start()
            try:
                yield Ec2(running, address)
            finally:
                process.terminate()
                process.wait(20)
                reading.join()


@pytest.fixture
def later() -> Iterator[list[threading.Timer]]:
    timers: list[threading.Timer] = []
    yield timers
    for timer in timers:
        timer.join()


def states(answer: pb.WaitStoreImageTasksResponse) -> list[str]:
    return [each.ec2_store_task_state for each in answer.store_image_task_results]


def test_a_task_that_takes_longer_than_195_seconds(ec2: Ec2, later: list[threading.Timer]) -> None:
    ec2.show("zz-limit-1", task(1, "InProgress"))
    with pytest.raises(WaiterError, match="Max attempts exceeded"):
        ec2.stock("zz-limit-1")

    ending = threading.Timer(0.5, ec2.show, ["zz-limit-1", task(1)])
    later.append(ending)
    ending.start()
    answer = ec2.wait("zz-limit-1")
    assert (answer.done, states(answer)) == (True, ["Completed"])


def test_somebodys_old_failure_ends_no_wait(ec2: Ec2, later: list[threading.Timer]) -> None:
    ec2.show("zz-failure-1", task(1, "InProgress"), task(2, "Failed"))
    with pytest.raises(WaiterError, match="terminal failure state"):
        ec2.stock("zz-failure-1")

    ending = threading.Timer(0.5, ec2.show, ["zz-failure-1", task(1), task(2, "Failed")])
    later.append(ending)
    ending.start()
    answer = ec2.wait("zz-failure-1")
    assert (answer.done, states(answer)) == (True, ["Completed", "Failed"])


def test_what_runs_on_the_second_page_is_waited_for(ec2: Ec2) -> None:
    ended = [task(number) for number in range(200)]
    ec2.show("zz-page-1", *ended, task(200, "InProgress"))
    ec2.stock("zz-page-1")

    answer = ec2.wait("zz-page-1", timeout=0.5)
    assert (answer.done, answer.reason) == (False, pb.WaitStoreImageTasksResponse.REASON_TIMEOUT)
    assert states(answer).count("InProgress") == 1


def test_an_ami_without_a_task_is_told_at_once(ec2: Ec2) -> None:
    ami = task(9)["AmiId"]
    ec2.show("zz-without-1", task(1), images=[ami])
    with pytest.raises(WaiterError, match="Max attempts exceeded"):
        ec2.stock("zz-without-1", ImageIds=[ami])

    answer = ec2.wait("zz-without-1", image_ids=[ami])
    assert (answer.done, answer.reason) == (False, pb.WaitStoreImageTasksResponse.REASON_NOTHING_MATCHES)


def test_a_throttle_ends_no_wait(ec2: Ec2, later: list[threading.Timer]) -> None:
    throttled = {"code": "RequestLimitExceeded", "message": "Request limit exceeded.", "status": 503}
    ec2.show("zz-throttle-1", task(1), refusal=throttled)
    with pytest.raises(WaiterError, match="RequestLimitExceeded"):
        ec2.stock("zz-throttle-1")

    def recover() -> None:
        ec2.show("zz-throttle-1", task(1), refusal=None)

    recovering = threading.Timer(0.5, recover)
    later.append(recovering)
    recovering.start()
    assert ec2.wait("zz-throttle-1").done


def test_a_wait_right_after_the_create_sees_the_task(ec2: Ec2, later: list[threading.Timer]) -> None:
    ec2.show("zz-create-1", task(2))
    # The gateway has just read the target.
    assert ec2.wait("zz-create-1").done

    ec2.show("zz-create-1", task(1, "InProgress"), task(2))
    ending = threading.Timer(0.5, ec2.show, ["zz-create-1", task(1), task(2)])
    later.append(ending)
    ending.start()
    answer = ec2.wait("zz-create-1", image_ids=[task(1)["AmiId"]])
    assert (answer.done, states(answer)) == (True, ["Completed"])
