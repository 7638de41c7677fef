"""A whole gateway in this process over an EC2 of canned XML in another: real bytes, botocore itself."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest
from gateway_stage import Gateway, eventually, serving
from virtual import VirtualClock

from canned.launch import Canned
from imagetasks_server.account_settings import AccountSettings
from imagetasks_server.clock import Clock
from imagetasks_server.config import Settings
from imagetasks_server.ec2 import Aws, AwsAccount

T = TypeVar("T")

AMBIENT = "000000000000"
# Long enough for a busy machine; a test that needs a call to time out moves its clock.
PAGE_TIMEOUT = 60.0
# Seconds that calls give the gateway, so that the page's time is over first.
LONG = 300.0


def account_id(number: int) -> str:
    """The 12 digits of the canned EC2's n-th account."""
    return f"{number:012}"


def account(ec2: Canned, name: str, number: int, regions: Sequence[str], **more: Any) -> dict[str, Any]:
    """An account of the configuration. Its role names it; the canned STS lets everybody assume it."""
    return {
        "name": name,
        "role_arn": f"arn:aws:iam::{account_id(number)}:role/reader",
        "regions": regions,
        "endpoint_url": ec2.endpoint,
        "sts_endpoint_url": ec2.endpoint,
        **more,
    }


def tasks(count: int, *, first: int = 0, **members: Any) -> list[dict[str, Any]]:
    """Finished tasks as EC2's members, a minute apart, the newest five minutes old."""
    newest = datetime.now(UTC) - timedelta(minutes=5)
    return [
        {
            "AmiId": f"ami-{first + number:017x}",
            "TaskStartTime": f"{newest - timedelta(minutes=number):%Y-%m-%dT%H:%M:%S.000Z}",
            "Bucket": "archive",
            "S3objectKey": f"ami-{first + number:017x}.bin",
            "ProgressPercentage": 100,
            "StoreTaskState": "Completed",
            "StoreTaskFailureReason": "",
            **members,
        }
        for number in range(count)
    ]


def use_ambient_credentials(patch: pytest.MonkeyPatch) -> None:
    """Those of the canned EC2, and nothing else of this machine's."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        patch.delenv(name)
    patch.setenv("AWS_ACCESS_KEY_ID", f"AKIA{AMBIENT}")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "canned")
    patch.setenv("AWS_CONFIG_FILE", os.devnull)
    patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")


async def until_time_is_over(
    gateway: Gateway,
    clock: VirtualClock,
    hanging: tuple[str, str],
    pages: int,
    call: Awaitable[T],
    *,
    seconds: float = PAGE_TIMEOUT + 1,
) -> T:
    """A call's answer where one target hangs behind so many pages, without waiting for its time to be over.

    Args:
        gateway: What is called.
        clock: Its clock.
        hanging: The target's account id and Region.
        pages: After which it hangs.
        call: The call, of several targets.
        seconds: How far time is moved on.
    """
    task = asyncio.ensure_future(call)

    def only_it_is_missing() -> bool:
        readers = {key[1:]: tracked.reader for key, tracked in gateway.registry._tracked.items()}
        read = readers.pop(hanging)._running if hanging in readers else None
        hangs = read is not None and read.started is not None and len(read.pages) == pages
        return hangs and all(reader.is_idle for reader in readers.values())

    await eventually(lambda: task.done() or only_it_is_missing())
    clock.advance(seconds)
    return await task


class _World:
    """What `serving` wants of a world."""

    def __init__(self, accounts: Mapping[str, AwsAccount]) -> None:
        self.accounts = accounts


@contextlib.asynccontextmanager
async def serving_canned(
    clock: Clock, accounts: Sequence[Mapping[str, Any]], **settings: Any
) -> AsyncIterator[Gateway]:
    """A gateway over these accounts of the configuration. Each call to AWS is tried once unless told."""
    settings = {"page_timeout": PAGE_TIMEOUT, "attempts": 1, **settings}
    with ThreadPoolExecutor(1) as builders:
        async with contextlib.AsyncExitStack() as stack:
            aws = Aws(Settings(**settings), builders)
            opened = {}
            for each in accounts:
                opened[each["name"]] = await asyncio.to_thread(aws.open, AccountSettings(**each))
                stack.push_async_callback(opened[each["name"]].close)
            world: Any = _World(opened)
            yield await stack.enter_async_context(serving(world, clock, accounts=accounts, **settings))
