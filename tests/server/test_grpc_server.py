"""The server itself: whatever is asked for, it goes on, and it says so if it does not."""

import asyncio
import gc
from typing import Any

import grpc
import pytest
from gateway_stage import Describe, Serve, eventually
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import raw_http2 as http2
from imagetasks_server import grpc_server

METHOD = b"/imagetasks.v1.StoreImageTaskService/ListTargets"
UNIMPLEMENTED = grpc.StatusCode.UNIMPLEMENTED.value[0]


@pytest.mark.parametrize("port", ["address", "health_address"])
async def test_a_path_that_is_no_text_is_refused_and_ends_nothing(serve: Serve, port: str) -> None:
    gateway = await serve(health_listen="127.0.0.1:0")
    address = getattr(gateway.listening, port)
    for path in (METHOD + b"\xff", b"\xff", b"/\xc3\x28/x", METHOD + b"X"):
        (status,) = await asyncio.to_thread(http2.statuses, address, http2.request(path), 1)
        assert status == UNIMPLEMENTED
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status
    assert await gateway.describe()


async def test_any_path_is_refused_and_ends_nothing(serve: Serve) -> None:
    gateway = await serve()

    @settings(max_examples=50, database=None, suppress_health_check=list(HealthCheck))
    @given(
        st.one_of(
            st.binary(min_size=1, max_size=300), st.binary(max_size=5).map(lambda end: METHOD + b"/" + end)
        )
    )
    @example(b"*")
    def refused(path: bytes) -> None:
        # C-core itself may refuse what is no path at all.
        assert set(http2.statuses(gateway.address, http2.request(path), 1)) <= {UNIMPLEMENTED, 13}

    await asyncio.to_thread(refused)
    assert await gateway.describe()


async def test_of_many_at_once_each_is_refused_and_none_stays(serve: Serve) -> None:
    gateway = await serve()
    gc.disable()
    try:
        found = await asyncio.to_thread(http2.statuses, gateway.address, http2.request(b"/\xff"), 500)
        assert set(found) == {UNIMPLEMENTED}
        # The server waits with some for what comes next.
        await eventually(lambda: len([each for each in gc.get_objects() if is_call(each)]) < 50)
    finally:
        gc.enable()
    assert await gateway.describe()


def is_call(thing: object) -> bool:
    return type(thing).__name__ == "RPCState"


async def test_who_leaves_before_he_is_refused_ends_nothing(serve: Serve) -> None:
    gateway = await serve()

    def leave() -> None:
        for _ in range(50):
            with http2.connect(gateway.address) as peer:
                calls = b"".join(http2.call(2 * n + 1, http2.request(b"/\xff")) for n in range(20))
                peer.sendall(http2.hello() + calls)

    await asyncio.to_thread(leave)
    assert await gateway.stub.DescribeStoreImageTasks(Describe())


async def test_a_server_that_has_ended_is_noticed(serve: Serve) -> None:
    gateway = await serve(health_listen="127.0.0.1:0")
    noticed = asyncio.create_task(gateway.listening.ended())
    # Whoever gives up noticing leaves the servers alone.
    given_up = asyncio.create_task(gateway.listening.ended())
    await asyncio.sleep(0)
    given_up.cancel()
    assert await gateway.describe()
    assert not noticed.done()
    assert gateway.listening.health_server is not None
    await gateway.listening.health_server.stop(0)
    await noticed


async def test_what_arrives_is_counted_whatever_becomes_of_it(serve: Serve) -> None:
    gateway = await serve(metrics_listen="127.0.0.1:0", limits={"max_waiting_calls": 5})
    arrived, handed_over = grpc_server.arrived(), grpc_server.handed_over()
    found = await asyncio.to_thread(http2.statuses, gateway.address, http2.request(METHOD), 300)
    await asyncio.to_thread(http2.statuses, gateway.address, http2.request(METHOD + b"X"), 1)
    refused = found.count(grpc.StatusCode.CANCELLED.value[0])
    assert refused
    assert grpc_server.arrived() - arrived == 301
    assert grpc_server.handed_over() - handed_over == 301 - refused
