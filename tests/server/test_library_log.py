"""What libraries log of what they were sent: that it happened, and neither what it was nor each time."""

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from callers_stage import TOKEN, entry, sha256
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import raw_http2 as http2
from imagetasks_server.library_log import QUIET_SECONDS, Discretion
from processes import SECONDS, Gateway, gateway

# In all that is sent. No request id has a tilde: one that is sane is logged, as it should be.
SECRET = "swordfish~8dK2mQ5tW9xB4nZ7cR1vF6hJ3pL0sYg"
METHOD = "/imagetasks.v1.StoreImageTaskService/ListTargets"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

names = st.one_of(
    st.sampled_from(
        [b"authorization", b"x-request-id", b"tracestate", b"traceparent", b"user-agent", b"x-bin", b"cookie"]
    ),
    st.binary(min_size=1, max_size=8),
)
# Around the secret what is no text, what separates, what ends.
edges = st.one_of(
    st.binary(max_size=4), st.sampled_from([b"Bearer ", b"a=", b"a=b,", b"\xff", b"\r\n", b"\0", b""])
)
headers = st.lists(
    st.tuples(names, st.builds(lambda a, b: a + SECRET.encode() + b, edges, edges)), min_size=1, max_size=4
)


@contextlib.contextmanager
def knows_callers() -> Iterator[Gateway]:
    """A gateway that nobody can say anything to without being known, which is scraped and traced."""
    kept = {name: each for name, each in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}
    environment = kept | {
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "IMAGETASKS_CALLERS": json.dumps([entry("one", token_sha256=sha256(TOKEN))]),
        "IMAGETASKS_METRICS_LISTEN": "127.0.0.1:0",
        "IMAGETASKS_TRACING": "true",
        "OTEL_TRACES_SAMPLER": "always_off",
        "OTEL_EXPORTER_OTLP_HEADERS": f"Bearer {SECRET}",
    }
    with gateway("--log-level", "debug", environment=environment, once="listening") as running:
        yield running


def lines(running: Gateway) -> list[dict[str, Any]]:
    # Whatever is written is one of our lines, or looks like one.
    return [json.loads(line) for line in running.log]


def from_libraries(running: Gateway) -> dict[str, dict[str, Any]]:
    """By its logger what each has said, which it has once."""
    said = [line for line in lines(running) if "logger" in line]
    assert len({line["logger"] for line in said}) == len(said)
    return {line["logger"]: line for line in said}


def answered(address: str, headers: bytes) -> int | None:
    """How a call ends, by gRPC's status; None if its stream or the connection is cut."""
    frames = http2.Frames()
    with http2.connect(address) as peer, contextlib.suppress(ConnectionError):
        peer.sendall(http2.hello() + http2.call(1, headers))
        while received := peer.recv(1 << 16):
            for frame in frames.of(received):
                if frame.kind in {http2.RST_STREAM, http2.GOAWAY}:
                    return None
                if (status := http2.grpc_status(frame)) is not None:
                    return status
    return None


def test_whatever_metadata_anybody_sends_none_of_it_is_logged() -> None:
    ends: list[int | None] = []
    with knows_callers() as running:

        @settings(max_examples=100, database=None, suppress_health_check=list(HealthCheck))
        @given(headers)
        def sent(headers: list[tuple[bytes, bytes]]) -> None:
            ends.append(answered(running.address, http2.request(METHOD, *headers)))

        sent()
        # What each of them is known for.
        for name, value in (
            (b"authorization", f"Bearer {SECRET}".encode() + b"\xff\xfe"),
            (b"tracestate", f"{SECRET}".encode()),
        ):
            traced = http2.request(METHOD, ("traceparent", TRACE), (name, value))
            assert answered(running.address, traced) == 16
        assert answered(running.address, http2.request(METHOD.encode() + SECRET.encode() + b"\xff")) == 12
        many = [(b"a", b"\xff" * 20)] * 200
        assert answered(running.address, http2.request(METHOD, *many)) == 16
    # UNAUTHENTICATED, or what C-core itself says of what is no header.
    assert set(ends) <= {16, 13, None}
    assert 16 in ends
    assert "call failed inside the gateway" not in {line["event"] for line in lines(running)}
    said = from_libraries(running)
    assert set(said) == {"grpc._cython.cygrpc", "opentelemetry.trace.span", "opentelemetry.util.re"}
    assert {line["level"] for line in said.values()} == {"warning"}
    assert SECRET not in "".join(running.log)


def test_whatever_a_scraper_sends_none_of_it_is_logged() -> None:
    with knows_callers() as running:
        (metrics,) = [line["address"] for line in lines(running) if line["event"] == "metrics are served"]
        host, _, port = metrics.rpartition(":")
        for request in (
            f"GET /{SECRET}\0 HTTP/1.1\r\n\r\n",
            f"GET /metrics HTTP/1.1\r\nauthorization: Bearer {SECRET}\1\r\n\r\n",
            f"GET /metrics HTTP/1.1\r\nauthorization Bearer {SECRET}\r\n\r\n",
            f"POST /metrics HTTP/1.1\r\ncontent-length: {SECRET}\r\n\r\n",
            f"{SECRET} / HTTP/1.1\r\n\r\n",
        ):
            with socket.create_connection((host, int(port)), SECONDS) as peer:
                peer.sendall(request.encode())
                assert b" 40" in peer.recv(100)
    assert set(from_libraries(running)) == {"aiohttp.server", "opentelemetry.util.re"}
    assert SECRET not in "".join(running.log)


class TestDiscretion:
    """One filter, of one logger."""

    @pytest.fixture
    def told(self) -> Iterator[list[logging.LogRecord]]:
        """What is told of `logging.getLogger("indiscreet")`."""
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[method-assign]
        logger = logging.getLogger("indiscreet")
        logger.propagate = False
        logger.addHandler(handler)
        logger.setLevel("WARNING")
        self.now = 0.0
        discretion = Discretion(lambda: self.now)
        logger.addFilter(discretion)
        yield records
        logger.removeHandler(handler)
        logger.removeFilter(discretion)

    def test_what_could_not_be_read_is_told_now_and_then_with_how_often(
        self, told: list[logging.LogRecord]
    ) -> None:
        logger = logging.getLogger("indiscreet")
        for _ in range(5):
            try:
                b"\xff".decode()
            except UnicodeDecodeError:
                logger.exception("Invalid encoding on %s, %-5.2f", SECRET, 1.0)
        self.now += QUIET_SECONDS
        logger.warning("no member: %r", SECRET)
        logger.warning("no member: %r", SECRET)
        assert [(each.getMessage(), each.levelname, each.times) for each in told] == [  # type: ignore[attr-defined]
            ("Invalid encoding on ..., ...", "WARNING", 1),
            ("no member: ...", "WARNING", 5),
        ]
        assert [each.exc_info for each in told] == [None, None]

    def test_what_goes_wrong_inside_is_told_in_full_each_time(self, told: list[logging.LogRecord]) -> None:
        for _ in range(2):
            logging.getLogger("indiscreet").error("Unexpected %s", "fault", exc_info=RuntimeError("inside"))
        assert [each.getMessage() for each in told] == ["Unexpected fault"] * 2
        assert all(each.exc_info and each.levelname == "ERROR" for each in told)

    def test_where_warnings_are_not_logged_neither_is_this(self, told: list[logging.LogRecord]) -> None:
        logging.getLogger("indiscreet").setLevel("ERROR")
        try:
            b"\xff".decode()
        except UnicodeDecodeError:
            logging.getLogger("indiscreet").exception("Invalid encoding on %s", SECRET)
        assert told == []
