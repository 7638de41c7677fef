"""A strict suite: what is left behind or blocks the event loop fails the test that did it.

pyproject.toml makes every warning an error and sets asyncio's debug mode and a time limit per test.
"""

import asyncio
import contextlib
import gc
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from blockbuster import BlockBuster
from hypothesis import HealthCheck, settings

# A test may block its own loop, with a server in threads for example. What is watched is our code, and
# whatever it calls on the loop.
WATCHED = ["imagetasks", "imagetasks_server"]

# Where ours may block. Each with its reason.
MAY_BLOCK = (
    # Certificates are read once, when a client is made.
    ("imagetasks/channel.py", {"_read"}),
    # Botocore looks for credentials in small files: at the start, and when AWS says they have expired.
    ("imagetasks_server/aws_access.py", {"_search"}),
    # Tests make settings on the loop, and have an issuer's keys read there.
    ("imagetasks_server/account_settings.py", {"_is_file"}),
    ("imagetasks_server/jwks.py", {"load_keys", "__init__"}),
)

# Asyncio's debug mode keeps of each future and callback where it was made. The whole stack, with its lines
# read from files, took a third of the suite's time. pytest shows exceptions by itself, whole.
asyncio.constants.DEBUG_STACK_DEPTH = 3
sys.tracebacklimit = 3

# gRPC closes its sockets and ends its calls on threads of its own, soon after it was told to.
CLOSING_SECONDS = 5.0

# CI tests the same examples each time, so that a red build is of its change; elsewhere new ones are
# looked for. A failure prints its blob, which `@reproduce_failure` replays, and the seed does it too.
settings.register_profile(
    "imagetasks",
    deadline=None,  # time is measured by benchmarks
    print_blob=True,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no fault of a test
)
settings.load_profile("imagetasks")


def pytest_collection_finish() -> None:
    # What is imported now lives on: collections after each test need not look at it.
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and item.get_closest_marker("asyncio"):
            # Early, so that they end late: when they look, nothing of the test is to be there any more.
            place = item.fixturenames.index("_nothing_is_left") + 1
            item.fixturenames[place:place] = ["_no_task_is_left", "_nothing_blocks"]


@pytest.fixture(scope="session", autouse=True)
def _grpc_lives_on() -> Iterator[None]:
    # Otherwise it ends with a test's last channel, in whatever loop that is, and its thread is waited for.
    grpc.aio.init_grpc_aio()

    async def first_channel() -> None:
        # With it comes the pair of sockets by which gRPC's thread wakes a loop: one for all loops.
        await grpc.aio.insecure_channel("unix:/nowhere").close()

    asyncio.run(first_channel())
    yield
    grpc.aio.shutdown_grpc_aio()


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    processes, sockets = _children(), _sockets()
    yield
    # Unclosed sockets, unawaited coroutines and exceptions nobody saw speak up when they are collected.
    gc.collect()
    # What has outlived this is a module's or a cache's: the next collection need not look at it again.
    gc.freeze()
    left = _children() - processes
    assert not left, f"processes left behind: {left}"
    deadline = time.monotonic() + CLOSING_SECONDS
    while (open_still := _sockets() - sockets) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not open_still, f"sockets left behind: {open_still}"


@pytest.fixture
async def _no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    # Those that were cancelled and are on their way out.
    for _ in range(10):
        if left:
            await asyncio.sleep(0)
            left = {task for task in left if not task.done()}
    left.discard(asyncio.current_task())
    deadline = time.monotonic() + CLOSING_SECONDS
    while left and all(map(_is_of_grpc, left)) and time.monotonic() < deadline:
        await asyncio.sleep(0)
        left = {task for task in left if not task.done()}
    assert not left, f"tasks left behind: {left}"


@pytest.fixture
def _nothing_blocks() -> Iterator[None]:
    buster = BlockBuster(WATCHED)
    for watched in buster.functions.values():
        for file, functions in MAY_BLOCK:
            watched.can_block_in(file, functions)
    buster.activate()
    yield
    buster.deactivate()


def _is_of_grpc(task: asyncio.Task[object]) -> bool:
    """Whether it only waits for gRPC's thread to say that a call is over."""
    return getattr(task.get_coro(), "__qualname__", "").startswith("_AioCall.")


def _children() -> set[str]:
    """Process ids of our children; empty where the system does not tell."""
    children: set[str] = set()
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            children.update(path.read_text().split())
    return children


def _sockets() -> set[str]:
    """Our open sockets; empty where the system does not tell."""
    sockets: set[str] = set()
    for path in Path("/proc/self/fd").glob("*"):
        with contextlib.suppress(OSError):  # closed meanwhile, as the one that lists them
            sockets.add(str(path.readlink()))
    return {name for name in sockets if name.startswith("socket:")}
