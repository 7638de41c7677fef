"""The processes that are measured: gateways as they are run in production, and what a process has taken."""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from canned.launch import Canned

TOKEN: Final = "a-token-of-a-benchmark"
SECONDS: Final = 120.0
LOOK: Final = 0.002
# Callers with tokens and quotas, metrics, a log of JSON lines. What would hold a benchmark up is ample.
EVERYTHING_ON: Final[Mapping[str, Any]] = {
    "listen": "127.0.0.1:0",
    "metrics_listen": "127.0.0.1:0",
    "log_json": True,
    "callers": [
        {
            "name": "benchmark",
            "token_sha256": [hashlib.sha256(TOKEN.encode()).hexdigest()],
            "accounts": ["*"],
            "calls_per_second": 1e6,
            "concurrent_calls": 100_000,
            "open_streams": 100_000,
        }
    ],
    "budget": {"capacity": 1e6, "refill": 1e6, "initial": 1e6},
}
METADATA: Final = (("authorization", f"Bearer {TOKEN}"),)


@dataclass(frozen=True)
class Measured:
    """A process.

    Attributes:
        pid: Its id.
        address: Where it listens.
        seconds: From its launch until it served.
    """

    pid: int
    address: str
    seconds: float = 0.0

    def memory(self, kind: str = "VmRSS") -> float:
        """MiB that it holds, or held at most (VmHWM)."""
        found = re.search(rf"{kind}:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    def processor(self) -> float:
        """Seconds of processor time that it has taken so far."""
        # Nanoseconds of each thread; /proc/PID/stat counts in hundredths of a second.
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(each.read_text().split()[0]) for each in tasks) / 1e9


def itself() -> Measured:
    """This process."""
    return Measured(os.getpid(), "")


@contextlib.contextmanager
def gateway(ec2: Canned, accounts: Sequence[Mapping[str, Any]], **settings: Any) -> Iterator[Measured]:
    """`imagetasks-server` with everything on, over a canned EC2, once it serves.

    Args:
        ec2: What it asks.
        accounts: As in its configuration.
        settings: Over `EVERYTHING_ON`.
    """
    chosen = {**EVERYTHING_ON, "accounts": accounts, **settings}
    environment = ec2.environment("0" * 11 + "1") | {
        f"IMAGETASKS_{key.upper()}": value if isinstance(value, str) else json.dumps(value)
        for key, value in chosen.items()
    }
    with tempfile.NamedTemporaryFile("w+") as log:
        began = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "imagetasks_server"], env=environment, stderr=log
        ) as process:
            try:
                address = _serving(log, process)
                yield Measured(process.pid, address, time.perf_counter() - began)
            finally:
                process.terminate()


def _serving(log: IO[str], process: "subprocess.Popen[bytes]") -> str:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        for line in Path(log.name).read_text().splitlines():
            if '"serving"' in line and (found := json.loads(line))["event"] == "serving":
                return str(found["address"])
        time.sleep(LOOK)
    raise RuntimeError(f"the gateway does not serve:\n{Path(log.name).read_text()}")


@contextlib.contextmanager
def child(
    *command: str, environment: Mapping[str, str] | None = None, stderr: IO[bytes] | None = None
) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """One of our scripts, with the first line that it prints; it ends when its standard input does."""
    with subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=environment,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        first = process.stdout.readline().strip()
        if not first:
            raise RuntimeError(f"{command[0]} ended before it was ready")
        try:
            yield process, first
        finally:
            process.stdin.close()


def told(*command: str, environment: Mapping[str, str] | None = None) -> Any:
    """What one of our scripts prints as JSON, from start to end."""
    done = subprocess.run(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, check=True, timeout=300
    )
    return json.loads(done.stdout)
