"""The ports: all are taken before one is told of; what the log says of them, and of serving, is true."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fake_ec2 import FakeWorld
from grpc_health.v1 import health_pb2, health_pb2_grpc
from virtual import VirtualClock

from imagetasks_sandbox.launch import RunningSandbox, sandbox
from imagetasks_server.assembly import assemble
from imagetasks_server.config import Settings
from imagetasks_server.health import Health
from imagetasks_server.listening import listen
from imagetasks_server.observation import measured
from processes import SECONDS, Gateway, becomes, gateway

KEYS = ("listen", "health_listen", "metrics_listen")
EXPOSED = "others can reach this port, in plaintext"


def plain(**more: str) -> dict[str, str]:
    kept = {name: each for name, each in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}
    return kept | more


def events(running: Gateway) -> list[str]:
    return [json.loads(line)["event"] for line in running.log if line.startswith("{")]


@contextlib.contextmanager
def taken() -> Iterator[str]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield f"127.0.0.1:{holder.getsockname()[1]}"


@pytest.mark.parametrize("key", KEYS)
def test_a_port_that_is_taken_ends_it_before_any_is_told_of(key: str) -> None:
    with taken() as address:
        ports = {f"IMAGETASKS_{each.upper()}": "127.0.0.1:0" for each in KEYS}
        ports[f"IMAGETASKS_{key.upper()}"] = address
        done = subprocess.run(
            [sys.executable, "-m", "imagetasks_server"],
            env=plain(**ports),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [json.loads(line)["event"] for line in lines if line.startswith("{")] == ["starting"]
    assert [line for line in lines if line.startswith("imagetasks-server: ")] == [
        f"imagetasks-server: {key}: cannot listen on {address}; is something else there?"
    ]
    assert "Traceback" not in done.stderr


def test_one_address_for_two_ports_is_refused() -> None:
    with taken() as address:
        pass
    done = subprocess.run(
        [sys.executable, "-m", "imagetasks_server", "--listen", address],
        env=plain(IMAGETASKS_METRICS_LISTEN=address),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [
        f"imagetasks-server: metrics_listen: cannot listen on {address}; is something else there?"
    ]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"health_listen": "127.0.0.1:0", "metrics_listen": "localhost:0"}, []),
        ({"health_listen": "0.0.0.0:0"}, [("health_listen", "info")]),
        ({"metrics_listen": "0.0.0.0:0", "metrics_insecure": True}, [("metrics_listen", "warning")]),
        ({"listen": "0.0.0.0:0", "insecure": True}, [("listen", "warning")]),
        (
            {
                "listen": "[::]:0",
                "insecure": True,
                "health_listen": "[::]:0",
                "metrics_listen": "0.0.0.0:0",
                "metrics_insecure": True,
            },
            [("metrics_listen", "warning"), ("listen", "warning"), ("health_listen", "info")],
        ),
    ],
)
async def test_each_plaintext_port_that_others_reach_is_told_of_with_what_it_shows(
    world: FakeWorld,
    clock: VirtualClock,
    log: list[Any],
    settings: dict[str, Any],
    told: list[tuple[str, str]],
) -> None:
    configured = Settings(**{"listen": "127.0.0.1:0", "accounts": [{"name": "main"}], **settings})
    assembled = assemble(configured, world.accounts, clock)
    listening = await listen(configured, assembled)
    assert log == []
    async with measured(configured, assembled):
        await listening.start()
        await listening.drain(assembled, 1.0)
    found = [each for each in log if each["event"] == EXPOSED]
    assert [(each["key"], each["log_level"]) for each in found] == told
    for each in found:
        assert each["shows"]
        # The port that was chosen, not the 0 that was asked for.
        assert int(each["address"].rpartition(":")[2])
    (first,) = [each for each in log if each["event"] == "listening"]
    assert first["address"] == listening.address
    assert first.get("health", "") == listening.health_address


async def test_serving_is_said_once_when_it_begins_and_never_while_it_drains() -> None:
    health = Health()
    assert not await health.serve(well=False)
    assert await health.serve(well=True)
    assert not await health.serve(well=True)
    assert not await health.serve(well=False)
    assert await health.serve(well=True)
    await health.drain()
    assert not await health.serve(well=True)


def health_of(running: Gateway) -> int:
    with grpc.insecure_channel(running.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS).status)


@pytest.fixture(scope="module")
def aws() -> Iterator[RunningSandbox]:
    with sandbox("--seed", "--no-throttle", "--speed", "0.001") as running:
        yield running


def test_serving_is_said_only_once_health_says_it(aws: RunningSandbox, tmp_path: Path) -> None:
    environment = aws.environment(plain(IMAGETASKS_CHECK_CREDENTIALS_EVERY="0.2"))
    key, secret = environment.pop("AWS_ACCESS_KEY_ID"), environment.pop("AWS_SECRET_ACCESS_KEY")
    credentials = tmp_path / "credentials"
    environment |= {
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with gateway(environment=environment, once="listening") as running:
        assert becomes(lambda: "no account has credentials" in events(running))
        assert health_of(running) == health_pb2.HealthCheckResponse.NOT_SERVING
        assert "serving" not in events(running)
        credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
        assert becomes(lambda: "serving" in events(running))
        assert health_of(running) == health_pb2.HealthCheckResponse.SERVING
    assert events(running).count("serving") == 1
    assert events(running).index("listening") < events(running).index("serving")
