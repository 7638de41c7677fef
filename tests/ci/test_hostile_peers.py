"""What no client in its right mind sends: the gateway survives it, holds little, and goes on serving others.

The gateway is a process of its own, and so is the bystander, who describes all the time. What it cost is
printed (`-s` shows it), and stands in docs/limits.md.
"""

import contextlib
import itertools
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

import raw_http2 as h2
from processes import Gateway, gateway

BYSTANDER = """
import sys, time, json, threading, grpc
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.v1.store_image_tasks_pb2_grpc import StoreImageTaskServiceStub
request = pb.DescribeStoreImageTasksRequest(max_results=1)
request.max_age.FromSeconds(3600)
ended, took = threading.Event(), []
threading.Thread(target=lambda: (sys.stdin.read(), ended.set())).start()
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = StoreImageTaskServiceStub(channel)
    stub.DescribeStoreImageTasks(request, timeout=30)
    print("ready", flush=True)
    while not ended.is_set() or len(took) < 20:
        began = time.monotonic()
        while True:
            try:
                stub.DescribeStoreImageTasks(request, timeout=10)
                break
            except grpc.RpcError as error:
                # Refused by gRPC because too much waits: it is asked again, as every client does.
                assert error.code() == grpc.StatusCode.CANCELLED, error
                ended.wait(0.05)
        took.append((time.monotonic() - began) * 1000)
        ended.wait(0.01)
print(json.dumps(sorted(took)))
"""
SERVICE = "/imagetasks.v1.StoreImageTaskService/"
DESCRIBE = h2.request(SERVICE + "DescribeStoreImageTasks")
WATCH = h2.request(SERVICE + "WatchStoreImageTasks")

# More than it takes to have all places.
HOSTS = itertools.cycle(["127.0.0.2", "127.0.0.3", "127.0.0.4"])

Attack = Callable[[str], None]


@pytest.fixture(scope="module")
def server() -> Iterator[Gateway]:
    """One for all: what an attack leaves behind, the next one finds."""
    with gateway("--sandbox") as served:
        yield served


def connect(address: str) -> socket.socket:
    """From other hosts than the bystander's: each has quotas of its own."""
    return h2.connect(address, next(HOSTS))


def peers(address: str, count: int, said: bytes) -> contextlib.ExitStack:
    """So many connections that have said this, and stay as long as the stack is open."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(connect(address)).sendall(said)
        return stack.pop_all()


def pour(peer: socket.socket, data: bytes, times: int) -> None:
    """Send this again and again, reading nothing, until the other side no longer takes it."""
    peer.settimeout(2)
    with contextlib.suppress(OSError):
        for _ in range(times):
            peer.sendall(data)


def ends(peer: socket.socket) -> None:
    """Wait until the gateway has closed the connection."""
    peer.settimeout(30)
    with contextlib.suppress(ConnectionError):
        while peer.recv(1 << 20):
            pass


def idle_connections(address: str) -> None:
    with peers(address, 9000, h2.hello()):
        pass


def silent_connections(address: str) -> None:
    with connect(address) as last, peers(address, 1000, b""):
        ends(last)


def half_a_block_of_headers(address: str) -> None:
    with peers(address, 1000, h2.hello() + h2.frame(h2.HEADERS, 0, 1, WATCH)):
        pass


def endless_headers(address: str) -> None:
    block = h2.literals(*((f"x-{number}", "y" * 1000) for number in range(15)))
    with connect(address) as peer:
        peer.sendall(h2.hello() + h2.frame(h2.HEADERS, 0, 1, WATCH))
        pour(peer, h2.frame(h2.CONTINUATION, 0, 1, block), 5000)


def rapid_reset(address: str) -> None:
    cancel = h2.CANCEL.to_bytes(4, "big")
    with connect(address) as peer:
        peer.sendall(h2.hello())
        for first in range(1, 100_001, 200):
            streams = range(first, first + 200, 2)
            pour(
                peer,
                b"".join(h2.call(n, DESCRIBE) + h2.frame(h2.RST_STREAM, 0, n, cancel) for n in streams),
                1,
            )


def pings(address: str) -> None:
    with connect(address) as peer:
        peer.sendall(h2.hello())
        pour(peer, h2.frame(h2.PING, 0, 0, bytes(8)) * 1000, 1000)


def settings(address: str) -> None:
    with connect(address) as peer:
        peer.sendall(h2.hello())
        pour(peer, h2.settings(initial_window_size=65535) * 1000, 1000)


def watchers_with_closed_windows(address: str) -> None:
    closed = h2.PREFACE + h2.settings(initial_window_size=0)
    watches = b"".join(h2.call(2 * number + 1, WATCH) for number in range(100))
    with peers(address, 20, closed + watches):
        time.sleep(3)


LEGAL = 200 * 1024


def messages_without_an_end(address: str) -> None:
    # Announces what is legal, sends a byte of it.
    body = b"\0" + LEGAL.to_bytes(4, "big") + b"x"
    calls = b"".join(
        h2.frame(h2.HEADERS, h2.END_HEADERS, 2 * n + 1, DESCRIBE) + h2.frame(h2.DATA, 0, 2 * n + 1, body)
        for n in range(1000)
    )
    with peers(address, 10, h2.hello() + calls):
        time.sleep(2)


def messages_all_but_their_end(address: str) -> None:
    """Of each of 4,000 messages as much as is let in, for five seconds, and never the last byte."""
    body = b"\0" + LEGAL.to_bytes(4, "big")
    streams = range(1, 401, 2)
    begin = b"".join(
        h2.frame(h2.HEADERS, h2.END_HEADERS, n, DESCRIBE) + h2.frame(h2.DATA, 0, n, body) for n in streams
    )
    with contextlib.ExitStack() as stack:
        senders = [_Sender(stack.enter_context(connect(address)), streams) for _ in range(20)]
        for each in senders:
            each.peer.sendall(h2.hello() + begin)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            for each in senders:
                each.send()


class _Sender:
    def __init__(self, peer: socket.socket, streams: Iterable[int]) -> None:
        self.peer = peer
        self._frames, self._windows = h2.Frames(), h2.Windows()
        self._left = dict.fromkeys(streams, LEGAL - 1)
        for each in streams:
            self._windows.take(each, 5)
        peer.settimeout(5)

    def send(self) -> None:
        """As much as may be sent."""
        if select.select([self.peer], [], [], 0.01)[0]:
            for each in self._frames.of(self.peer.recv(1 << 20)):
                self._windows.heard(each)
                self.peer.sendall(h2.answer(each))
                if each.kind in {h2.HEADERS, h2.RST_STREAM}:
                    self._left.pop(each.stream, None)
        for stream in self._left:
            size = self._windows.take(stream, self._left[stream])
            if size:
                self._left[stream] -= size
                self.peer.sendall(h2.frame(h2.DATA, 0, stream, bytes(size)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("attack", "mebibytes"),
    [
        (silent_connections, 100),
        (idle_connections, 500),
        (half_a_block_of_headers, 200),
        (endless_headers, 150),
        (rapid_reset, 200),
        (pings, 50),
        (settings, 50),
        (watchers_with_closed_windows, 200),
        (messages_without_an_end, 400),
        (messages_all_but_their_end, 300),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_it_is_survived_and_others_are_served(server: Gateway, attack: Attack, mebibytes: int) -> None:
    command = [sys.executable, "-c", BYSTANDER, server.address]
    before, processor = memory(server), seconds(server)
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as bystander:
        assert bystander.stdin is not None
        assert bystander.stdout is not None
        assert bystander.stdout.readline() == b"ready\n"
        began = time.monotonic()
        attack(server.address)
        lasted = time.monotonic() - began
        bystander.stdin.close()
        took = json.loads(bystander.stdout.read())
    assert bystander.returncode == 0
    grown = memory(server, "VmHWM") - before
    sys.stdout.write(
        f"\n{attack.__name__}: {lasted:.1f} s, at most {grown:+.0f} MiB, "
        f"{seconds(server) - processor:.1f} s of processor; "
        f"bystander {len(took)} calls, p50 {took[len(took) // 2]:.0f} ms, "
        f"p99 {took[len(took) * 99 // 100]:.0f} ms\n"
    )
    assert server.process.poll() is None
    assert grown < mebibytes


@pytest.mark.parametrize(("message", "metadata"), [(1 << 21, 0), (0, 40_000)], ids=["message", "metadata"])
def test_what_is_too_large_is_refused(server: Gateway, message: int, metadata: int) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary(SERVICE + "DescribeStoreImageTasks")
        with pytest.raises(grpc.RpcError) as refused:
            call(bytes(message), metadata=[("x-large", "y" * metadata)], timeout=30)
        assert cast("grpc.Call", refused.value).code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def memory(server: Gateway, what: str = "VmRSS") -> float:
    """MiB that the gateway holds; `VmHWM`: has held at most since it was asked for `VmRSS`."""
    if what == "VmRSS":
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith(what))) / 1024


def seconds(server: Gateway) -> float:
    """Processor time that the gateway has taken."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
