"""Calls that gRPC holds when the signal comes: it hands them over one at a time, and all are answered."""

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
from virtual import VirtualClock, run

from imagetasks_sandbox.launch import sandbox
from imagetasks_server.contract import SERVICE
from imagetasks_server.listening import QUIET_SECONDS, _taken
from imagetasks_server.metrics import Metrics
from imagetasks_server.record import Records
from processes import SECONDS, gateway
from raw_http2 import Frames, call, connect, grpc_status, hello, request

AT_MOST = 2.0
# Some tenths of a second's worth: when the first is answered, gRPC holds nearly all others.
CALLS = 600


def plain() -> dict[str, str]:
    return {name: each for name, each in os.environ.items() if not name.startswith(("AWS_", "IMAGETASKS_"))}


def test_calls_that_had_arrived_before_the_signal_are_all_answered(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('log_level = "info"\n[[accounts]]\nname = "main"\nregions = ["us-east-1"]\n')
    headers = request(f"/{SERVICE.full_name}/ListTargets")
    told: Counter[int] = Counter()
    answered_before = 0
    with (
        sandbox("--no-throttle") as aws,
        gateway("--config", str(config), environment=aws.environment(plain())) as running,
        connect(running.address) as peer,
    ):
        frames = Frames()
        peer.sendall(hello() + b"".join(call(2 * number + 1, headers) for number in range(CALLS)))
        while told.total() < CALLS:
            received = peer.recv(1 << 20)
            assert received, f"the connection ended after {told}"
            told.update(status for each in frames.of(received) if (status := grpc_status(each)) is not None)
            if told and not answered_before:
                answered_before = told.total()
                running.process.send_signal(signal.SIGTERM)
        peer.close()
        assert running.process.wait(SECONDS) == 0
    assert told == {0: CALLS}
    events = [json.loads(line)["event"] for line in running.log if line.startswith("{")]
    # Most came to the gateway only when it was draining already.
    late = events[events.index("draining") :].count("call")
    assert late > CALLS / 10, f"{answered_before} answered before the signal, {late} after it"


@pytest.mark.parametrize(
    ("calls", "takes"),
    [
        # The moments at which one is handed over, and when it is over.
        ([], QUIET_SECONDS),
        ([0.05], 2 * QUIET_SECONDS),
        ([0.05, 0.15, 0.25], 4 * QUIET_SECONDS),
        # There was a pause: what comes after it had not been waiting.
        ([0.05, 0.25], 2 * QUIET_SECONDS),
        # One after the other without an end: that is not waited for.
        ([each / 100 for each in range(1000)], AT_MOST),
    ],
)
def test_it_takes_calls_until_no_more_come_and_not_forever(calls: list[float], takes: float) -> None:
    async def scenario(clock: VirtualClock) -> None:
        records = Records("service", Metrics())
        began = clock()

        def comes() -> None:
            records.begun += 1

        for each in calls:
            asyncio.get_running_loop().call_later(each, comes)
        await _taken(records, AT_MOST)
        assert clock() - began == pytest.approx(takes)

    run(scenario)
