"""A change told to many subscribers, and what idle ones cost, beside a bare grpc.aio fan-out.

`python benchmarks/fanout.py 10000` prints the KiB that a gateway holds for each of so many.
"""

import json
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from frame import Benchmark, Goal, Result, Row, medians, ratios
from h2load import COMMAND, streams
from measured import Measured

HERE = Path(__file__).parent
METHOD = "WatchStoreImageTasks"
KINDS = ("gateway", "bare")
CONNECTIONS, GROUPS = 20, 10
# One in ten measures, and a hundred at most.
SAMPLES = 100
SECONDS = 120.0
# The default.
HEARTBEAT = 25.0
BESIDE = "a bare grpc.aio fan-out, as many bytes"


class Served:
    """A server with its subscribers."""

    def __init__(self, kind: str, count: int, stack: ExitStack, heartbeat: float = HEARTBEAT) -> None:
        self.server = self._start(
            "watch_server.py", kind, str(heartbeat), stack=stack, errors=subprocess.DEVNULL
        )
        self.address = self._line(self.server)
        self.measured = Measured(self.server.pid, self.address)
        before = self.measured.memory()
        self._changes = 0
        self.samples = self._start("watch_samples.py", self.address, stack=stack)
        samples = max(1, min(SAMPLES, count // 10))
        self._open(samples, count - samples, stack)
        self.memory = (self.measured.memory() - before) / count * 1024

    def _open(self, samples: int, others: int, stack: ExitStack) -> None:
        """In groups, each with its share of samples: who came when says who is told first."""
        groups = min(GROUPS, samples)
        here = 0
        for group in range(groups):
            for count, are_samples in ((others, False), (samples, True)):
                more = count * (group + 1) // groups - count * group // groups
                here += more
                if are_samples:
                    self._write(self.samples, str(more))
                    self._line(self.samples)
                elif more:
                    connections = min(CONNECTIONS // groups, more)
                    stack.enter_context(streams(self.address, METHOD, more, connections))
                deadline = time.monotonic() + SECONDS
                while (found := int(self._ask("open"))) < here:
                    assert time.monotonic() < deadline, f"{found} of {here} subscribers"
                    time.sleep(0.01)

    def change(self) -> list[float]:
        """Change something; milliseconds to each of those who measure."""
        self._changes += 1
        self._tell(f"change {self._changes}")
        found: list[float] = json.loads(self._line(self.samples))
        # As long again: by then those are told who do not measure. Else the next change would find them still
        # waiting for this one, and they would be told both at once.
        time.sleep(max(found) / 1000)
        return found

    def _ask(self, line: str) -> str:
        self._tell(line)
        return self._line(self.server)

    def _tell(self, line: str) -> None:
        self._write(self.server, line)

    @staticmethod
    def _write(process: "subprocess.Popen[str]", line: str) -> None:
        assert process.stdin is not None
        process.stdin.write(f"{line}\n")
        process.stdin.flush()

    @staticmethod
    def _line(process: "subprocess.Popen[str]") -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, "a process of the benchmark has ended"
        return line.strip()

    @staticmethod
    def _start(
        script: str, *arguments: str, stack: ExitStack, errors: int | None = None
    ) -> "subprocess.Popen[str]":
        command: list[Any] = [sys.executable, HERE / script, *arguments]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        stack.callback(process.wait)
        stack.callback(process.kill)
        return process


def measure(quick: bool) -> Result:
    """For each number of subscribers."""
    rows: list[Row] = []
    series: dict[str, list[tuple[float, float]]] = {f"{kind}, {part}": [] for kind in KINDS for part in PARTS}
    for count in (1000,) if quick else (1, 100, 1000, 10_000):
        rows += of_count(count, (3, 10) if quick else (5, 20 if count < 1000 else 5), series)
    rows += idle(2000, 1) if quick else idle(10_000, 2)
    return Result(rows, series)


PARTS = {"p50": 0.5, "p99": 0.99}


def of_count(count: int, rounds: tuple[int, int], series: dict[str, list[tuple[float, float]]]) -> list[Row]:
    """Both take turns: a round is a number of changes to one, then to the other."""
    found: dict[str, dict[str, list[float]]] = {part: {kind: [] for kind in KINDS} for part in PARTS}
    with ExitStack() as stack:
        served = {kind: Served(kind, count, stack) for kind in KINDS}
        for each in served.values():
            for _ in range(rounds[1]):
                each.change()
        for _ in range(rounds[0]):
            for kind, each in served.items():
                late = sorted(value for _ in range(rounds[1]) for value in each.change())
                for part, place in PARTS.items():
                    found[part][kind].append(late[min(len(late) - 1, int(len(late) * place))])
    for part in PARTS:
        for kind in KINDS:
            values = sorted(found[part][kind])
            series[f"{kind}, {part}"].append((count, values[len(values) // 2]))
    subscribers = f"{count:,} subscriber{'s' * (count > 1)}"
    return [
        Row(
            f"a change to {subscribers}, {part}",
            BESIDE,
            Goal(most=1.3),
            ratios(of["gateway"], of["bare"]),
            medians("ms", **of),
            steady=count >= 1000 and part == "p50",
        )
        for part, of in found.items()
    ]


def idle(count: int, beats: int) -> list[Row]:
    """Memory of each, and the processor that all take who only hear that the gateway lives.

    Measured over so many whole heartbeat intervals, at all servers at once: whatever else the machine does is
    the same for each. Fewer hear it more often, so that the servers say it as often.
    """
    heartbeat = HEARTBEAT * count / 10_000
    seconds = beats * heartbeat
    silent = "bare without heartbeats"
    heartbeats = dict.fromkeys(KINDS, heartbeat) | {silent: 0.0}
    with ExitStack() as stack:
        served = {
            kind: Served("bare" if kind == silent else kind, count, stack, seconds_between)
            for kind, seconds_between in heartbeats.items()
        }
        # Until each has told its snapshot, and heartbeats have found their places.
        time.sleep(heartbeat)
        before = {kind: each.measured.processor() for kind, each in served.items()}
        time.sleep(seconds)
        part = 100 / seconds
        processor = {
            kind: [(each.measured.processor() - before[kind]) * part] for kind, each in served.items()
        }
        memory = {kind: [served[kind].memory] for kind in KINDS}
    scaled = "" if count == 10_000 else f", by {count:,} with as many heartbeats"
    every = f"; a heartbeat every {heartbeat:g} s"
    return [
        Row(
            f"{count:,} idle subscribers: memory of each",
            "bare grpc.aio streams",
            Goal(most=1.5),
            ratios(memory["gateway"], memory["bare"]),
            medians("KiB", **memory),
        ),
        Row(
            f"10,000 idle subscribers: processor{scaled}",
            "one core",
            Goal(most=5, unit="%"),
            processor["gateway"],
            medians("%", **processor) + every,
        ),
        Row(
            f"10,000 idle subscribers: processor{scaled}",
            "bare grpc.aio streams, as many heartbeats of as many bytes",
            Goal(),
            ratios(processor["gateway"], processor["bare"]),
            medians("%", **processor) + every,
        ),
    ]


BENCHMARK = Benchmark(
    "fanout",
    "Subscribers",
    "The gateway's parts behind `listen`, as the process assembles them, with callers, quotas, metrics, log "
    "and heartbeats on, over an EC2 in its memory: a change counts from when it is known. Most subscribers "
    "are streams of h2load; one in ten, at most a hundred, is a Python client that measures.",
    measure,
    (COMMAND,),
)

if __name__ == "__main__":
    with ExitStack() as subscribers:
        print(json.dumps(Served("gateway", int(sys.argv[1]), subscribers).memory))
