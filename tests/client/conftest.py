"""A scripted gateway, and both clients on it."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from either_client import CONNECTS, Connect
from scripted_gateway import ScriptedGateway, serving


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    with serving() as gateway:
        yield gateway


@pytest.fixture(params=sorted(CONNECTS))
def connect(request: pytest.FixtureRequest) -> Connect:
    return CONNECTS[request.param]


@pytest.fixture
async def client(gateway: ScriptedGateway, connect: Connect) -> AsyncIterator[Any]:
    async with connect(gateway.endpoint) as client:
        yield client
