"""Offers calls at a fixed rate, whether or not they are answered, and tells how each ended.

`python benchmarks/offering.py ADDRESS PATH RATE SECONDS CONNECTIONS` prints one JSON object. It speaks
HTTP/2 by hand, so that one core can offer several times what a gateway can answer. A call's time counts from
when it was due to be sent.
"""

import json
import selectors
import socket
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from raw_http2 import (
    DATA,
    RST_STREAM,
    WINDOW_UPDATE,
    Frames,
    answer,
    call,
    connect,
    frame,
    grpc_status,
    hello,
    request,
)

TICK = 0.005
# Seconds without an answer after which the rest counts as unanswered.
PATIENCE = 25.0


class Line:
    """One connection: what is to be sent, and when each call that is under way was due."""

    def __init__(self, address: str) -> None:
        self.socket: socket.socket = connect(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.settimeout(0)
        self.frames = Frames()
        self.pending = bytearray(hello())
        self.due: dict[int, float] = {}
        self.next = 1

    def offer(self, headers: bytes, due: float) -> None:
        """One more call."""
        self.pending += call(self.next, headers)
        self.due[self.next] = due
        self.next += 2

    def flush(self) -> None:
        """Send what the other side takes."""
        while self.pending:
            try:
                sent = self.socket.send(self.pending[: 1 << 18])
            except BlockingIOError:
                return
            del self.pending[:sent]


def offer(address: str, path: str, rate: float, seconds: float, connections: int) -> dict[str, Any]:
    """Per status the times in ms of the calls that ended so; how many were left unanswered."""
    lines = [Line(address) for _ in range(connections)]
    found: dict[str, list[float]] = defaultdict(list)
    headers = request(path, ("grpc-timeout", "20S"))
    began = time.monotonic()
    offered = 0
    last_answer = began
    with selectors.DefaultSelector() as selector:
        for line in lines:
            selector.register(line.socket, selectors.EVENT_READ, line)
        while True:
            now = time.monotonic()
            while offered < (min(now, began + seconds) - began) * rate:
                lines[offered % connections].offer(headers, began + offered / rate)
                offered += 1
            for line in lines:
                line.flush()
            if now > began + seconds and (
                not any(line.due for line in lines) or now > last_answer + PATIENCE
            ):
                break
            for key, _ in selector.select(TICK):
                last_answer = time.monotonic()
                _read(key.data, found)
    unanswered = sum(len(line.due) for line in lines)
    return {"offered": offered, "unanswered": unanswered, "ended": found, "seconds": last_answer - began}


def _read(line: Line, found: dict[str, list[float]]) -> None:
    try:
        received = line.socket.recv(1 << 20)
    except OSError:
        received = b""
    if not received:
        found["connection lost"] += [0.0] * len(line.due)
        line.due.clear()
        return
    now = time.monotonic()
    data = 0
    for each in line.frames.of(received):
        status: object = grpc_status(each)
        if each.kind == DATA:
            data += len(each.payload)
        elif each.kind == RST_STREAM:
            status = f"reset {each.payload[3]}"
        line.pending += answer(each)
        if status is not None and (due := line.due.pop(each.stream, None)) is not None:
            found[str(status)].append(round((now - due) * 1000, 3))
    if data:
        line.pending += frame(WINDOW_UPDATE, 0, 0, data.to_bytes(4, "big"))


if __name__ == "__main__":
    address_, path_, rate_, seconds_, connections_ = sys.argv[1:]
    print(json.dumps(offer(address_, path_, float(rate_), float(seconds_), int(connections_))))
