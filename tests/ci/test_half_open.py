"""A client in a network of its own whose packets are no longer delivered.

Nothing tells the gateway, as when a cable is pulled or a machine loses power. It finds out by itself, and
others notice nothing. Gateway and client have a network each, so that this machine's is left alone.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from processes import SECONDS, Gateway, becomes, gateway

# Of a link between networks that nobody else has: RFC 2544 keeps these for such.
NEAR, FAR, PREFIX = "198.18.0.1", "198.18.0.2", 30
# Seconds within which a peer that has gone is noticed.
NOTICED = 30.0
WATCHES = 100
WATCH = "WatchStoreImageTasks"

CLIENT = """
import asyncio, json, sys, time, imagetasks
address, watches, describes = sys.argv[1], int(sys.argv[2]), len(sys.argv) > 3
async def follow(watch, begun):
    while await watch.heard() is not None:
        if watch.tasks:
            begun.set()
async def main():
    took = []
    # It does not look after the connection itself: that is not what is asked.
    async with imagetasks.connect(address, keepalive=0, options=[("grpc.enable_http_proxy", 0)]) as client:
        held = [(client.watch(), asyncio.Event()) for _ in range(watches)]
        following = [asyncio.create_task(follow(watch, begun)) for watch, begun in held]
        for _, begun in held:
            await begun.wait()
        print("ready", flush=True)
        over = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        while describes and not over.done():
            began = time.monotonic()
            async for _ in client.describe(page_size=1, timeout=10):
                break
            took.append(time.monotonic() - began)
            await asyncio.wait([over], timeout=0.05)
        await over
        live = all(watch.is_live and watch.last_error is None for watch, _ in held)
        for each in following:
            each.cancel()
        print(json.dumps({"took": took, "live": live}))
asyncio.run(main())
"""
SCRAPE = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"


@dataclass(frozen=True)
class Networks:
    """Two networks of one host each, and a link between them.

    Attributes:
        near: The gateway's.
        far: The client's.
    """

    near: str
    far: str

    def pull(self) -> None:
        """From now on nothing arrives any more, either way."""
        ip("-n", self.far, "link", "set", "cable", "down")


def within(network: str) -> tuple[str, ...]:
    """What runs a command in a network."""
    return "ip", "netns", "exec", network


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def networks() -> Iterator[Networks]:
    found = Networks(f"imagetasks-near-{os.getpid()}", f"imagetasks-far-{os.getpid()}")
    made = []
    try:
        for network in (found.near, found.far):
            ip("netns", "add", network)
            made.append(network)
            ip("-n", network, "link", "set", "lo", "up")
        ip(
            *("-n", found.near, "link", "add", "cable", "type", "veth"),
            *("peer", "name", "cable", "netns", found.far),
        )
        for network, address in ((found.near, NEAR), (found.far, FAR)):
            ip("-n", network, "address", "add", f"{address}/{PREFIX}", "dev", "cable")
            ip("-n", network, "link", "set", "cable", "up")
        yield found
    finally:
        # The cable goes with them.
        for network in made:
            ip("netns", "delete", network)


@pytest.fixture
def running(networks: Networks) -> Iterator[Gateway]:
    settings = {
        "IMAGETASKS_LOG_LEVEL": "info",
        "IMAGETASKS_INSECURE": "1",
        "IMAGETASKS_METRICS_LISTEN": "127.0.0.1:0",
    }
    with gateway(
        *("--listen", "0.0.0.0:0", "--sandbox", "--sandbox-speed", "20"),
        environment=os.environ | settings,
        within=within(networks.near),
    ) as running:
        yield running


def logged(running: Gateway, event: str) -> list[dict[str, Any]]:
    """What it has logged of this event."""
    entries = [json.loads(line) for line in [*running.log] if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == event]


def under_way(running: Gateway, networks: Networks) -> float:
    """How many watches are, as Prometheus sees it."""
    (metrics,) = logged(running, "metrics are served")
    command = [*within(networks.near), sys.executable, "-c", SCRAPE, f"http://{metrics['address']}/metrics"]
    text = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    (line,) = (
        line for line in text.splitlines() if line.startswith("imagetasks_calls_in_flight") and WATCH in line
    )
    return float(line.split()[-1])


def client(network: str, address: str, watches: int, *more: str) -> "subprocess.Popen[str]":
    command = [*within(network), sys.executable, "-c", CLIENT, address, str(watches), *more]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def is_ready(process: "subprocess.Popen[str]") -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "ready\n"


@pytest.mark.timeout(90)
def test_a_client_that_nothing_reaches_any_more_is_noticed_and_others_go_on(
    networks: Networks, running: Gateway
) -> None:
    port = running.address.rpartition(":")[2]
    with (
        client(networks.far, f"{NEAR}:{port}", WATCHES) as far,
        client(networks.near, f"127.0.0.1:{port}", 1, "describes") as near,
    ):
        try:
            assert is_ready(far)
            assert is_ready(near)
            assert under_way(running, networks) == WATCHES + 1
            networks.pull()
            began = time.monotonic()
            assert becomes(lambda: len(ended(running)) == WATCHES)
            took = time.monotonic() - began
            assert under_way(running, networks) == 1
            told = json.loads(near.communicate("", SECONDS)[0])
            # It has not heard of it: its end of the connection stands.
            assert far.poll() is None
        finally:
            far.kill()
            near.kill()
    slowest = max(told["took"])
    sys.stdout.write(
        f"\nnoticed after {took:.1f} s: {Counter(each['code'] for each in ended(running))}; "
        f"{len(told['took'])} describes beside it, the slowest {slowest * 1000:.0f} ms\n"
    )
    assert took <= NOTICED
    assert told["live"]
    assert len(told["took"]) > 1


def ended(running: Gateway) -> list[dict[str, Any]]:
    """The far client's watches that the gateway has let go."""
    return [
        call for call in logged(running, "call") if call["method"] == WATCH and call["peer"].find(FAR) >= 0
    ]
