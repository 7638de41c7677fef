"""HTTP/2 by hand: what no well-behaved gRPC client would send, and load that costs its sender little.

Only what is needed to speak as a client: frames are built and taken apart here, headers are sent as plain
literals, and the server is told to keep no table of headers, so that its status stands in its frames as text.
"""

import re
import socket
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
CANCEL: Final = 8
LARGEST_WINDOW: Final = 2**31 - 1

_HEAD: Final = struct.Struct(">HBBBI")
# Of a gRPC message.
_PREFIX: Final = struct.Struct(">BI")
_STATUS: Final = re.compile(rb"grpc-status[\x01\x02](\d{1,2})")


class Frame(NamedTuple):
    """One frame."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A frame as sent."""
    size = len(payload)
    return _HEAD.pack(size >> 8, size & 255, kind, flags, stream) + payload


def settings(**values: int) -> bytes:
    """A SETTINGS frame, by the names that HTTP/2 gives the values, in lower case."""
    names = {"header_table_size": 1, "enable_push": 2, "max_concurrent_streams": 3, "initial_window_size": 4}
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", names[k], v) for k, v in values.items()))


def hello() -> bytes:
    """What a client begins with: no table of headers, and windows that never fill."""
    update = frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", LARGEST_WINDOW - 65535))
    return PREFACE + settings(header_table_size=0, enable_push=0, initial_window_size=2**24) + update


Text: TypeAlias = str | bytes


def literals(*fields: tuple[Text, Text]) -> bytes:
    """A block of headers, none of which is to be remembered. Bytes are sent as they are."""
    return b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)


def request(path: Text, *more: tuple[Text, Text]) -> bytes:
    """The headers of a gRPC call."""
    return literals(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *more,
    )


def call(stream: int, headers: bytes, message: bytes = b"") -> bytes:
    """A whole unary call, or the opening of a server's stream."""
    body = _PREFIX.pack(0, len(message)) + message
    return frame(HEADERS, END_HEADERS, stream, headers) + frame(DATA, END_STREAM, stream, body)


def answer(found: Frame) -> bytes:
    """What must be said to a frame, or the server gives its peer up for dead."""
    if found.kind in {PING, SETTINGS} and not found.flags & ACK:
        return frame(found.kind, ACK, 0, found.payload if found.kind == PING else b"")
    return b""


def grpc_status(found: Frame) -> int | None:
    """The status of a call, from the headers that end it."""
    match = _STATUS.search(found.payload) if found.kind == HEADERS else None
    return int(match[1]) if match else None


class Windows:
    """How much may be sent: on the connection, and on each stream."""

    def __init__(self) -> None:
        self._initial = 65535
        self._connection = 65535
        self._streams: dict[int, int] = {}

    def heard(self, found: Frame) -> None:
        """What the server says of it."""
        if found.kind == WINDOW_UPDATE:
            (more,) = struct.unpack(">I", found.payload)
            if found.stream:
                self._streams[found.stream] = self._streams.get(found.stream, self._initial) + more
            else:
                self._connection += more
        elif found.kind == SETTINGS:
            values = dict(struct.iter_unpack(">HI", found.payload))
            initial = values.get(4, self._initial)
            for stream in self._streams:
                self._streams[stream] += initial - self._initial
            self._initial = initial

    def take(self, stream: int, wanted: int) -> int:
        """How many bytes of so many may be sent now, in one frame; they count as sent."""
        stream_left = self._streams.setdefault(stream, self._initial)
        taken = max(0, min(wanted, stream_left, self._connection, 16384))
        self._streams[stream] -= taken
        self._connection -= taken
        return taken


class Messages:
    """Puts together what comes of one call."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, payload: bytes) -> Iterator[bytes]:
        """The messages that are complete with these bytes."""
        self._rest += payload
        while len(self._rest) >= _PREFIX.size:
            _, size = _PREFIX.unpack_from(self._rest)
            if len(self._rest) < _PREFIX.size + size:
                break
            yield self._rest[_PREFIX.size : _PREFIX.size + size]
            self._rest = self._rest[_PREFIX.size + size :]


class Frames:
    """Takes apart what comes."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, received: bytes) -> Iterator[Frame]:
        """The frames that are complete with these bytes."""
        buffer = self._rest + received
        at = 0
        while len(buffer) - at >= _HEAD.size:
            high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
            end = at + _HEAD.size + (high << 8 | low)
            if end > len(buffer):
                break
            yield Frame(kind, flags, stream, buffer[at + _HEAD.size : end])
            at = end
        self._rest = buffer[at:]


def statuses(address: str, headers: bytes, count: int) -> list[int]:
    """How so many empty calls end that are sent all at once."""
    found: list[int] = []
    frames = Frames()
    with connect(address) as peer:
        peer.sendall(hello() + b"".join(call(2 * n + 1, headers) for n in range(count)))
        while len(found) < count:
            received = peer.recv(1 << 20)
            assert received, f"the connection ended after {len(found)} answers"
            found += [status for each in frames.of(received) if (status := grpc_status(each)) is not None]
    return found


def connect(address: str, source: str = "") -> socket.socket:
    """A TCP connection, nothing said yet; from this address of the machine's."""
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=30, source_address=(source, 0))


def _text(text: Text) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    size = len(raw)
    if size < 127:  # what seven bits hold
        return bytes([size]) + raw
    head = bytearray([127])
    size -= 127
    while size >= 128:
        head.append(size % 128 | 128)
        size //= 128
    head.append(size)
    return bytes(head) + raw
