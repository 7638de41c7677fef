"""A client in a network of its own whose packets are no longer delivered.

Nothing tells the gateway, as when a cable is pulled or a machine loses power. It finds out by itself, and
others notice nothing.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import imagetasks
from processes import SECONDS, Gateway, becomes, gateway

# Of a link that nobody else has: RFC 5737 keeps these for examples.
OURS, THEIRS, PREFIX = "192.0.2.1", "192.0.2.2", 30
# Seconds within which a peer that has gone is noticed.
NOTICED = 30.0
WATCHES = 100

WATCHER = """
import asyncio, sys, imagetasks
async def hold(watch):
    await watch.heard()
    while not watch.is_caught_up:
        await watch.heard()
async def main():
    # It does not look after the connection itself: that is not what is asked. A proxy is none of its network.
    options = [("grpc.enable_http_proxy", 0)]
    async with imagetasks.connect(sys.argv[1], keepalive=0, options=options) as client:
        watches = [client.watch() for _ in range(int(sys.argv[2]))]
        await asyncio.gather(*map(hold, watches))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)
asyncio.run(main())
"""


@dataclass(frozen=True)
class Link:
    """A network with one host, and the way there.

    Attributes:
        namespace: Its name.
        device: Its end of the link.
    """

    namespace: str
    device: str

    def run(self, *command: str) -> list[str]:
        """What runs a command there."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def pull(self) -> None:
        """From now on nothing arrives any more, either way."""
        ip("-n", self.namespace, "link", "set", self.device, "down")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@pytest.fixture
def link() -> Iterator[Link]:
    number = os.getpid()
    ours, theirs, namespace = f"it{number}a", f"it{number}b", f"imagetasks-{number}"
    ip("netns", "add", namespace)
    try:
        ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", namespace)
        ip("address", "add", f"{OURS}/{PREFIX}", "dev", ours)
        ip("link", "set", ours, "up")
        ip("-n", namespace, "address", "add", f"{THEIRS}/{PREFIX}", "dev", theirs)
        ip("-n", namespace, "link", "set", theirs, "up")
        yield Link(namespace, theirs)
    finally:
        # Both ends of the link go with it.
        ip("netns", "delete", namespace)


@pytest.fixture
def running() -> Iterator[Gateway]:
    settings = {
        "IMAGETASKS_LOG_LEVEL": "info",
        "IMAGETASKS_INSECURE": "1",
        "IMAGETASKS_METRICS_LISTEN": "127.0.0.1:0",
    }
    with gateway(
        *("--listen", "0.0.0.0:0", "--sandbox", "--sandbox-speed", "20"), environment=os.environ | settings
    ) as running:
        yield running


def metrics(running: Gateway) -> str:
    """Where its metrics are."""
    entries = [json.loads(line) for line in running.log if line.startswith("{")]
    return next(str(entry["address"]) for entry in entries if entry["event"] == "metrics are served")


def calls(running: Gateway) -> list[dict[str, Any]]:
    """What it has logged of calls that have ended."""
    entries = [json.loads(line) for line in running.log if line.startswith("{")]
    return [entry for entry in entries if entry["event"] == "call"]


def watching(metrics: str) -> float:
    """How many watches are under way, as Prometheus sees it."""
    with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "imagetasks_calls_in_flight" and sample.labels["method"] == "WatchStoreImageTasks"
    )


@pytest.mark.timeout(90)
def test_a_client_that_nothing_reaches_any_more_is_noticed_and_others_go_on(
    link: Link, running: Gateway
) -> None:
    scraped, port = metrics(running), running.address.rpartition(":")[2]
    command = link.run(sys.executable, "-c", WATCHER, f"{OURS}:{port}", str(WATCHES))
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as far,
        imagetasks.connect_blocking(f"127.0.0.1:{port}") as near,
        near.watch() as watch,
        ThreadPoolExecutor(1) as threads,
    ):
        try:
            assert far.stdout is not None
            assert far.stdout.readline() == b"ready\n"
            reading = threads.submit(lambda: all(change.task.task_id for change in watch))
            assert becomes(lambda: watching(scraped) == WATCHES + 1)
            link.pull()
            began = time.monotonic()
            described = 0
            while watching(scraped) > 1 and time.monotonic() < began + 2 * NOTICED:
                assert next(iter(near.describe(page_size=1)))
                described += 1
                time.sleep(0.1)
            took = time.monotonic() - began
            sys.stdout.write(f"\nnoticed after {took:.1f} s; {described} describes meanwhile\n")
            assert took <= NOTICED
            # The other watch has gone on.
            assert watching(scraped) == 1
            assert watch.is_live
            assert watch.last_error is None
            watch.close()
            assert reading.result(SECONDS)
        finally:
            far.kill()
    # Each has ended as a call, and was told in the log.
    gone = [entry for entry in calls(running) if entry["peer"].startswith(f"ipv4:{THEIRS}")]
    assert Counter(entry["method"] for entry in gone) == {"WatchStoreImageTasks": WATCHES}
