"""A gateway on a loop whose time can be moved, and EC2 behind it as a fake or as the sandbox."""

import asyncio
import contextlib
import os
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import structlog.testing
from fake_ec2 import FakeWorld
from gateway_stage import Gateway, Serve, serving
from scripted_aws import ScriptedAws, scripted_aws
from virtual import SteeredLoop, VirtualClock


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"steered": SteeredLoop}


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    """What was logged. Exceptions are shown where a test fails."""
    with structlog.testing.capture_logs() as entries:
        yield entries
    for entry in entries:
        if isinstance(error := entry.get("exc_info"), Exception):
            traceback.print_exception(error)


@pytest.fixture
async def clock() -> VirtualClock:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SteeredLoop)
    return VirtualClock(loop)


@pytest.fixture
def world(clock: VirtualClock) -> FakeWorld:
    """Two accounts, three targets."""
    return FakeWorld(clock, {"main": ("eu-central-1", "us-east-1"), "other": ("eu-central-1",)})


@pytest.fixture
async def serve(world: FakeWorld, clock: VirtualClock) -> AsyncIterator[Serve]:
    """Starts gateways over a world, with settings; they end with the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(over: FakeWorld | None = None, **settings: Any) -> Gateway:
            return await stack.enter_async_context(serving(over or world, clock, **settings))

        yield start


@pytest.fixture
async def gateway(serve: Serve) -> Gateway:
    """A gateway over the world."""
    return await serve()


@pytest.fixture
async def aws(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedAws]:
    """An AWS by script; to what has no other settings, the one there is."""
    async with scripted_aws() as aws:
        monkeypatch.setenv("AWS_ENDPOINT_URL", aws.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
        monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield aws
