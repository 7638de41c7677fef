"""A cached describe by a gateway process, beside a bare grpc.aio handler that gives the same bytes."""

import tempfile
from pathlib import Path
from typing import Any

import grpc
from estates import accounts, fill
from frame import Benchmark, Goal, Result, Row, medians, ratios
from h2load import COMMAND, SERVICE, calls_per_second
from measured import METADATA, Measured, child, gateway

from canned.launch import canned

SIZES = (1, 50, 200)
METHOD = "DescribeStoreImageTasks"
REGION = "eu-central-1"


def measure(quick: bool) -> Result:
    """For each size of the answer, and for the processor that a call takes."""
    rounds, calls = (3, 3000) if quick else (5, 8000)
    rows = [row for tasks in (SIZES[1:2] if quick else SIZES) for row in of_size(tasks, rounds, calls)]
    return Result([*rows, boundary(SIZES[1], rounds, calls)])


def of_size(tasks: int, rounds: int, calls: int) -> list[Row]:
    """Both take turns, so that what slows the machine slows both."""
    rates: dict[str, list[float]] = {"gateway": [], "bare": []}
    costs: dict[str, list[float]] = {"gateway": [], "bare": []}
    with canned() as ec2, tempfile.NamedTemporaryFile() as answer:
        fill(ec2, tasks, regions=[REGION])
        with gateway(ec2, accounts(1, ec2, [REGION]), default_max_age=1e6) as ours:
            answer.write(described(ours.address))
            answer.flush()
            with child(str(Path(__file__).with_name("bare.py")), answer.name) as (process, address):
                servers = {"gateway": ours, "bare": Measured(process.pid, address)}
                for server in servers.values():
                    calls_per_second(server.address, METHOD, calls // 2)
                for _ in range(rounds):
                    for name, server in servers.items():
                        before = server.processor()
                        rates[name].append(calls_per_second(server.address, METHOD, calls))
                        costs[name].append((server.processor() - before) / calls * 1e6)
    of = f"cached describe, {tasks} task{'s' * (tasks > 1)}"
    beside = "a bare grpc.aio handler, same bytes"
    return [
        Row(f"{of}: calls/s", beside, Goal(least=0.85), ratios(**_sides(rates)), medians("calls/s", **rates)),
        Row(f"{of}: processor a call", beside, Goal(), ratios(**_sides(costs)), medians("µs", **costs)),
    ]


def boundary(tasks: int, rounds: int, calls: int) -> Row:
    """What it costs to ask who calls, to limit, to count and to log."""
    rates: dict[str, list[float]] = {"with": [], "without": []}
    script = str(Path(__file__).with_name("describe_server.py"))
    with (
        tempfile.TemporaryFile() as log,
        child(script, "gateway", str(tasks), stderr=log) as (_, guarded),
        child(script, "service", str(tasks), stderr=log) as (_, alone),
    ):
        addresses = {"with": guarded, "without": alone}
        for address in addresses.values():
            calls_per_second(address, METHOD, calls // 2)
        for _ in range(rounds):
            for name, address in addresses.items():
                rates[name].append(calls_per_second(address, METHOD, calls))
    return Row(
        f"cached describe, {tasks} tasks, behind the boundary: calls/s",
        "the same service without it",
        Goal(least=0.85),
        ratios(ours=rates["with"], theirs=rates["without"]),
        medians("calls/s", **rates),
    )


def _sides(figures: dict[str, list[float]]) -> dict[str, list[float]]:
    return {"ours": figures["gateway"], "theirs": figures["bare"]}


def described(address: str) -> bytes:
    """The bytes of an answer, which is cached then."""
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary(f"{SERVICE}/{METHOD}")
        call(b"", metadata=METADATA)
        answer: bytes = call(b"", metadata=METADATA)
        return answer


BENCHMARK = Benchmark(
    "describe",
    "A cached describe",
    "A gateway process with callers, quotas, metrics and its log on; load by h2load, 32 calls under way. The "
    "bare server has the gateway's gRPC options and uvloop.",
    measure,
    (COMMAND,),
)
