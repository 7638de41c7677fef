"""What takes too long for every run of the suite: a frozen peer, and ten thousand watchers at once."""

import asyncio
import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_ec2 import FakeWorld
from gateway_stage import serving
from scrapes import samples

import raw_http2 as h2
from canned.launch import canned
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server.clock import steady_clock
from processes import ROOT, Gateway, becomes, gateway

WATCHER = """
import sys, grpc
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
with grpc.insecure_channel(sys.argv[1]) as channel:
    for event in StoreImageTaskServiceStub(channel).WatchStoreImageTasks(pb.WatchStoreImageTasksRequest()):
        print(event.WhichOneof("event"), flush=True)
"""


@pytest.mark.timeout(120)
async def test_a_frozen_peer_is_noticed_within_half_a_minute() -> None:
    clock = steady_clock()
    async with serving(FakeWorld(clock), clock) as gateway:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WATCHER, gateway.address, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        try:
            while await process.stdout.readline() != b"snapshot_complete\n":
                pass
            process.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            async with asyncio.timeout(60):
                await gateway.boundary.idle()
            assert time.monotonic() - began <= 30
        finally:
            process.send_signal(signal.SIGCONT)
            process.kill()
            await process.communicate()


ACCOUNT, REGION = "000000000001", "eu-one-1"
WATCHES, CONNECTIONS = 10_000, 100
OPENING = h2.request("/imagetasks.v1.StoreImageTaskService/WatchStoreImageTasks")


class Peer:
    """A connection that has asked for so many watches in one breath."""

    def __init__(self, address: str, watches: int) -> None:
        self.socket = h2.connect(address)
        self.watches = watches
        self._frames = h2.Frames()
        self._messages: defaultdict[int, h2.Messages] = defaultdict(h2.Messages)
        self.socket.sendall(h2.hello() + b"".join(h2.call(2 * n + 1, OPENING) for n in range(watches)))

    def heard(self) -> Iterator[tuple[int, pb.WatchStoreImageTasksResponse]]:
        """What has come, each with its watch's number. None may end."""
        received = self.socket.recv(1 << 20)
        assert received, "the connection has ended"
        for frame in self._frames.of(received):
            assert h2.grpc_status(frame) is None, f"{frame.stream} has ended with {h2.grpc_status(frame)}"
            assert frame.kind not in {h2.RST_STREAM, h2.GOAWAY}
            if said := h2.answer(frame):
                self.socket.sendall(said)
            if frame.kind == h2.DATA:
                for message in self._messages[frame.stream].of(frame.payload):
                    yield frame.stream, pb.WatchStoreImageTasksResponse.FromString(message)


def all_hear(peers: list[Peer], what: str) -> None:
    """Waits until each watch of each peer has got an event of this kind."""
    heard: set[tuple[int, int]] = set()
    everybody = sum(peer.watches for peer in peers)
    with selectors.DefaultSelector() as selector:
        for number, peer in enumerate(peers):
            selector.register(peer.socket, selectors.EVENT_READ, number)
        while len(heard) < everybody:
            ready = selector.select(60)
            assert ready, f"silence after {len(heard)} of {everybody} had heard of {what}"
            for key, _ in ready:
                events = peers[key.data].heard()
                heard.update((key.data, watch) for watch, event in events if event.HasField(what))


def running(percentage: int) -> dict[str, object]:
    task = {
        "AmiId": "ami-00000000000000001",
        "TaskStartTime": "2026-01-01T01:01:01.001Z",
        "Bucket": "archive",
        "S3objectKey": "ami-00000000000000001.bin",
        "ProgressPercentage": percentage,
        "StoreTaskState": "InProgress",
    }
    return {"account": ACCOUNT, "region": REGION, "tasks": [task]}


@pytest.mark.timeout(240)
def test_ten_thousand_watches_opened_at_once_are_all_accepted_and_stay_open() -> None:
    with canned() as ec2, contextlib.ExitStack() as stack:
        ec2.post(running(1))
        environment = ec2.environment(ACCOUNT) | {
            "IMAGETASKS_ACCOUNTS": json.dumps([{"name": "main", "regions": [REGION]}]),
            "IMAGETASKS_LOG_LEVEL": "info",
            # All other limits are the default ones. This one says how slow the machine may be.
            "IMAGETASKS_LIMITS__MAX_WAITING_SECONDS": "120",
        }
        address = stack.enter_context(gateway(environment=environment)).address
        began = time.monotonic()
        peers = [Peer(address, WATCHES // CONNECTIONS) for _ in range(CONNECTIONS)]
        for peer in peers:
            stack.enter_context(peer.socket)
        all_hear(peers, "snapshot_complete")
        sys.stdout.write(f"\n{WATCHES} snapshots complete in {time.monotonic() - began:.1f} s\n")
        # Whoever hears of what happens now is still there.
        ec2.post(running(2))
        all_hear(peers, "changes")


def under_way(running: Gateway) -> float:
    """Watches, as the metrics have it."""
    address = next(json.loads(line)["address"] for line in running.log if "metrics are served" in line)
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        told = samples(answer.read().decode())
    return told['imagetasks_calls_in_flight{method="WatchStoreImageTasks"}']


def mebibytes(running: Gateway) -> float:
    """What the gateway holds of memory."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


@pytest.mark.timeout(120)
def test_what_watchers_took_is_there_for_others_when_they_have_left() -> None:
    with canned() as ec2:
        ec2.post(running(1))
        environment = ec2.environment(ACCOUNT) | {
            "IMAGETASKS_ACCOUNTS": json.dumps([{"name": "main", "regions": [REGION]}]),
            "IMAGETASKS_METRICS_LISTEN": "127.0.0.1:0",
            "IMAGETASKS_LOG_LEVEL": "info",
        }
        with gateway(environment=environment) as served:
            held = []
            for number in range(5):
                peers = [Peer(served.address, 500) for _ in range(4)]
                all_hear(peers, "snapshot_complete")
                ec2.post(running(2 + number))
                all_hear(peers, "changes")
                held.append(mebibytes(served))
                # Without a word.
                for peer in peers:
                    peer.socket.close()
                assert becomes(lambda: under_way(served) == 0)
            sys.stdout.write(f"\nMiB with 2,000 watches, again and again: {[round(each) for each in held]}\n")
            assert max(held[1:]) < held[0] + 15


@pytest.mark.timeout(240)
def test_ten_thousand_watchers_hold_little() -> None:
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/fanout.py"), "10000"],
        stdout=subprocess.PIPE,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert json.loads(result.stdout) <= 40
