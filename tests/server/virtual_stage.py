"""A gateway over two Regions on virtual time, asked below its boundary: no sockets; hours cost nothing."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fake_ec2 import FakeWorld
from google.protobuf.duration_pb2 import Duration
from virtual import VirtualClock, run

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.assembly import Gateway, assemble
from imagetasks_server.config import Settings
from imagetasks_server.errors import Error
from imagetasks_server.service import Call

AMPLE = {"capacity": 1e6, "refill": 1e6, "initial": 1e6}
REGIONS = ("eu-central-1", "us-east-1")


class Stage:
    """A gateway over two Regions, on virtual time."""

    def __init__(self, clock: VirtualClock, **settings: Any) -> None:
        self.clock = clock
        self.world = FakeWorld(clock, {"main": REGIONS})
        settings = {"accounts": [{"name": "main"}], "budget": AMPLE, **settings}
        self.gateway: Gateway = assemble(Settings(**settings), self.world.accounts, clock)

    async def describe(
        self, *, deadline: float = 60.0, max_age: float | None = None, caller: str = "", **fields: Any
    ) -> pb.DescribeStoreImageTasksResponse:
        request = pb.DescribeStoreImageTasksRequest(**fields)
        if max_age is not None:
            request.max_age.CopyFrom(Duration(nanos=round(max_age * 1e9)))
        call = Call(self.clock() + deadline, caller)
        answer = await self.gateway.service.describe_store_image_tasks(request, call)
        return pb.DescribeStoreImageTasksResponse.FromString(answer)

    async def one(self, **fields: Any) -> pb.TargetOutcome:
        """The outcome of the first Region alone."""
        (outcome,) = (await self.describe(regions=[REGIONS[0]], **fields)).target_outcomes
        return outcome

    async def error(self, **fields: Any) -> Error:
        with pytest.raises(Error) as caught:
            await self.one(**fields)
        return caught.value


def staged(scenario: Callable[[Stage], Awaitable[None]], **settings: Any) -> None:
    async def with_stage(clock: VirtualClock) -> None:
        stage = Stage(clock, **settings)
        await scenario(stage)
        await stage.gateway.close()

    run(with_stage)
