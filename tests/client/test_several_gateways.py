"""One client of several gateways: they take turns, but for those that say that they do not serve."""

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

import imagetasks
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import (
    StoreImageTaskServiceServicer,
    add_StoreImageTaskServiceServicer_to_server,
)
from processes import becomes

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Named(StoreImageTaskServiceServicer):
    """Tells its name as its version."""

    def __init__(self, name: str) -> None:
        self._name = name

    def ListTargets(self, request: Any, context: Any) -> pb.ListTargetsResponse:  # noqa: N802, ARG002
        return pb.ListTargetsResponse(server_version=self._name)


@dataclass(frozen=True)
class Replica:
    """One of them."""

    address: str
    health: Any


@contextlib.contextmanager
def replica(name: str) -> Iterator[Replica]:
    with ThreadPoolExecutor(8) as threads:
        server = grpc.server(threads)
        add_StoreImageTaskServiceServicer_to_server(Named(name), server)
        said = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(said, server)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        try:
            yield Replica(address, said)
        finally:
            server.stop(None).wait()


def test_they_take_turns_but_for_those_that_do_not_serve() -> None:
    with replica("a") as a, replica("b") as b:
        a.health.set("", SERVING)
        b.health.set("", NOT_SERVING)
        with imagetasks.connect_blocking(f"ipv4:{a.address},{b.address}") as client:

            def who() -> set[str]:
                return {client.targets().server_version for _ in range(10)}

            assert who() == {"a"}
            b.health.set("", SERVING)
            assert becomes(lambda: who() == {"a", "b"})
            a.health.set("", NOT_SERVING)
            assert becomes(lambda: who() == {"b"})


def test_one_that_has_gone_is_left_out() -> None:
    with contextlib.ExitStack() as first, replica("b") as b:
        a = first.enter_context(replica("a"))
        for each in (a, b):
            each.health.set("", SERVING)
        with imagetasks.connect_blocking(f"ipv4:{a.address},{b.address}") as client:
            assert becomes(lambda: {client.targets().server_version for _ in range(10)} == {"a", "b"})
            first.close()
            assert {client.targets().server_version for _ in range(20)} == {"b"}
