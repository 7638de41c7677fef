"""The time between listening and serving: what is reloaded or fails meanwhile leaves no gateway waiting."""

import asyncio
import functools
import json
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from imagetasks_sandbox.launch import sandbox
from imagetasks_server.account_settings import AccountSettings
from imagetasks_server.config import Settings
from imagetasks_server.ec2 import Aws
from imagetasks_server.errors import Unavailable
from imagetasks_server.serving import _fallen
from processes import SECONDS, Gateway, becomes, gateway

ROLE = "arn:aws:iam::{}:role/imagetasks"


def plain() -> dict[str, str]:
    return {name: each for name, each in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}


def events(running: Gateway) -> list[str]:
    return [json.loads(line)["event"] for line in running.log if line.startswith("{")]


def accounts(home: str) -> str:
    """Two accounts, all of whose Regions have a client each; another home makes each of them another."""
    return "".join(
        f'[[accounts]]\nname = "a{number}"\nrole_arn = "{ROLE.format(number)}"\nhome_region = "{home}"\n'
        for number in ("444455556666", "111122223333")
    )


def test_a_reload_while_accounts_warm_up_leaves_a_gateway_that_serves(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text(accounts("us-east-1"))
    with sandbox("--seed", "--no-throttle", "--speed", "0.001") as aws:
        environment = aws.environment(plain())
        with gateway("--config", str(config), environment=environment, once="listening") as running:
            for number, home in enumerate(("us-west-2", "eu-west-1", "us-east-1")):
                config.write_text(accounts(home))
                running.process.send_signal(signal.SIGHUP)
                taken = functools.partial(
                    lambda count: events(running).count("configuration read again") > count, number
                )
                assert becomes(taken)
            assert becomes(lambda: "serving" in events(running)), "".join(running.log)
            # The first at least came before.
            assert events(running).index("configuration read again") < events(running).index("serving")
            with grpc.insecure_channel(running.address) as channel:
                stub: Any = health_pb2_grpc.HealthStub(channel)
                answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert running.process.poll() is None
    assert "gateway ends: what should last has failed" not in events(running)


async def test_who_waits_for_a_client_of_an_account_that_goes_is_told_so_and_not_cancelled() -> None:
    go_on, blocked = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        go_on.wait()

    with ThreadPoolExecutor(1) as builders:
        builders.submit(block)
        await asyncio.to_thread(blocked.wait)
        aws = Aws(Settings(), builders)
        opened = await asyncio.to_thread(aws.open, AccountSettings(name="main", home_region="us-east-1"))
        warming = asyncio.create_task(opened.warm("us-east-1"))
        await asyncio.sleep(0)
        await opened.close()
        with pytest.raises(Unavailable) as told:
            await warming
        go_on.set()
    assert told.value.reason == "AWS_UNREACHABLE"


@pytest.mark.parametrize("error", [RuntimeError("bug"), asyncio.CancelledError()])
async def test_what_should_last_and_ends_takes_the_gateway_along(
    log: list[Any], error: BaseException
) -> None:
    stop = asyncio.Event()

    async def falls() -> None:
        raise error

    task = asyncio.create_task(falls())
    await asyncio.wait([task])
    _fallen(stop, task)
    assert stop.is_set()
    (told,) = log
    assert (told["event"], told["log_level"]) == ("gateway ends: what should last has failed", "critical")


async def test_what_is_cancelled_at_the_end_is_no_fault(log: list[Any]) -> None:
    stop = asyncio.Event()
    task = asyncio.create_task(stop.wait())
    await asyncio.sleep(0)
    task.cancel()
    stop.set()
    await asyncio.wait([task])
    lasting: Any = task
    _fallen(stop, lasting)
    assert log == []
