"""Programs as a user starts them, and whether they are gone."""

import contextlib
import json
import os
import random
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Generous: the machine may be busy. Nothing waits this long that goes well.
SECONDS = 30.0


@dataclass(frozen=True)
class Gateway:
    """`imagetasks-server` that serves.

    Attributes:
        process: It.
        address: Where it listens.
        log: What it has logged so far.
    """

    process: subprocess.Popen[bytes]
    address: str
    log: list[str]


@contextlib.contextmanager
def gateway(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    within: Sequence[str] = (),
    once: str = "serving",
) -> Iterator[Gateway]:
    """Runs `imagetasks-server` on a free port as long as the context lasts.

    Args:
        arguments: More of its command line, as `--sandbox`.
        environment: Its own; None: this process's.
        within: A command that becomes the one behind it, as `ip netns exec`.
        once: The event after which it is ready to be asked.
    """
    command = [*within, sys.executable, "-m", "imagetasks_server", "--listen", "127.0.0.1:0", *arguments]
    log: list[str] = []
    addresses: list[str] = []
    known = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line.decode(errors="replace"))
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry["event"] == once:
                    addresses.append(entry["address"])
                    known.set()
        known.set()

    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment) as process:
        reader = threading.Thread(target=read)
        reader.start()
        try:
            assert known.wait(SECONDS), "the gateway is not ready"
            assert addresses, "".join(log)
            yield Gateway(process, addresses[0], log)
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            reader.join(SECONDS)


def aws_cli() -> str:
    """The path of the AWS CLI."""
    path = os.environ.get("IMAGETASKS_AWS_CLI") or str(ROOT / ".venv-awscli/bin/aws")
    assert os.access(path, os.X_OK), (
        f"there is no AWS CLI at {path}: install tests/awscli/requirements.lock into a virtual environment "
        "of its own at .venv-awscli, or name an installed one in IMAGETASKS_AWS_CLI"
    )
    return path


def free_ports(count: int) -> list[int]:
    """Ports that nobody is given for a connection of his own: a gateway comes back to its port."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(15_000, 25_000)
        with socket.socket() as trial:
            if trial.connect_ex(("127.0.0.1", port)) and port not in found:
                found.append(port)
    return found


def without_make() -> dict[str, str]:
    """This process's environment without what a make around it says to its children."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def children(pid: int) -> list[int]:
    """The ids of a process's children."""
    return [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]


def marked(mark: str) -> dict[int, str]:
    """Every process with this text in its environment, whoever is its parent now: id to command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        # Ended meanwhile, or not ours.
        with contextlib.suppress(OSError):
            if mark.encode() in (path / "environ").read_bytes():
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def ends(pid: int) -> bool:
    """Waits until a process that need not be our child has ended; False if it does not."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process, selectors.EVENT_READ)
            return bool(selector.select(SECONDS))
    finally:
        os.close(process)


def becomes(condition: Callable[[], object], seconds: float = SECONDS) -> bool:
    """Waits until a condition holds; False if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
