"""`make run` as a user sees it, and what is left of it."""

import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from processes import ROOT, SECONDS, becomes, children, ends, gateway, marked, without_make

# The environment is up to date: this test runs in it.
MAKE = ("make", "--no-print-directory", "-o", ".venv/project", "run")

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")


@pytest.fixture
def mark() -> Iterator[str]:
    """What every process of a test has in its environment: none of them may outlive it."""
    mark = f"RUN_OF_A_TEST={uuid.uuid4().hex}"
    yield mark
    assert becomes(lambda: not marked(mark)), f"left running: {marked(mark)}"


def environment(mark: str, seconds: str = "") -> dict[str, str]:
    name, _, value = mark.partition("=")
    screen = {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    return without_make() | screen | {name: value, "RUN_SECONDS": seconds}


def server_of(mark: str) -> int:
    (pid,) = [pid for pid, command in marked(mark).items() if "imagetasks_server" in command]
    return pid


class Terminal:
    """`make run` on a terminal of its own."""

    def __init__(self, mark: str) -> None:
        self.output = ""
        self.master, slave = pty.openpty()
        self.process = subprocess.Popen(
            # A shell, as in life: when the terminal closes, its end is told to what runs in it.
            ["setsid", "--ctty", "sh", "-c", f"{' '.join(MAKE)}; exit $?"],
            cwd=ROOT,
            env=environment(mark),
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)

    def read_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            assert select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0], self.output
            try:
                self.output += os.read(self.master, 65536).decode(errors="replace")
            except OSError:  # nobody is left on the other end
                return

    def close(self) -> None:
        if self.master >= 0:
            os.close(self.master)
        self.master = -1


@pytest.fixture
def terminal(mark: str) -> Iterator[Terminal]:
    terminal = Terminal(mark)
    yield terminal
    terminal.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        terminal.process.wait(SECONDS)
    terminal.process.kill()
    terminal.process.wait()


def test_without_a_terminal_it_prints_plain_lines_and_ends_by_itself(mark: str) -> None:
    done = subprocess.run(
        MAKE,
        cwd=ROOT,
        env=environment(mark, seconds="9"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "\r" not in done.stdout
    # Every target has answered, the denied ones with the reason.
    targets = re.findall(r"^([a-z-]+/[a-z0-9-]+): (.*)$", done.stdout, re.MULTILINE)
    assert len(targets) == len(dict(targets)) == 39
    assert dict(targets)["main/sa-east-1"].startswith("You are not authorized")
    assert re.search(r"InProgress +\d+%  \(was \d+%\)", done.stdout)
    assert "imagetasks stream" in done.stdout
    assert "grpcurl -plaintext 127.0.0.1:" in done.stdout
    assert done.stdout.endswith("Ended; nothing is left running.\n")


def test_ctrl_c_on_a_terminal_ends_everything(mark: str, terminal: Terminal) -> None:
    terminal.read_until(lambda: "In progress now" in terminal.output)
    assert len(marked(mark)) >= 3  # make and the demonstration, the gateway, the sandbox
    os.write(terminal.master, b"\x03")
    terminal.read_until(lambda: False)
    assert terminal.process.wait(SECONDS) in {0, 130, -signal.SIGINT, 2}
    assert "nothing is left running" in terminal.output
    assert "Traceback" not in terminal.output


def test_a_terminal_that_closes_ends_everything(mark: str, terminal: Terminal) -> None:
    terminal.read_until(lambda: "In progress now" in terminal.output)
    pids = list(marked(mark))
    terminal.close()
    for pid in pids:
        assert ends(pid)


def test_ctrl_c_before_the_gateway_serves_ends_everything(terminal: Terminal) -> None:
    terminal.read_until(lambda: "Starting the gateway" in terminal.output)
    os.write(terminal.master, b"\x03")
    terminal.read_until(lambda: False)
    terminal.process.wait(SECONDS)
    assert "Traceback" not in terminal.output


def test_a_gateway_that_dies_is_told_with_its_last_words(mark: str, terminal: Terminal) -> None:
    terminal.read_until(lambda: "In progress now" in terminal.output)
    os.kill(server_of(mark), signal.SIGKILL)
    terminal.read_until(lambda: False)
    assert terminal.process.wait(SECONDS) == 2
    assert "make run: the gateway ended; its last words:" in terminal.output
    assert '"event":"serving"' in terminal.output
    assert "Traceback" not in terminal.output


def test_everything_goes_with_a_demonstration_that_is_killed(mark: str, terminal: Terminal) -> None:
    terminal.read_until(lambda: "In progress now" in terminal.output)
    pids = list(marked(mark))
    (demonstration,) = [pid for pid, command in marked(mark).items() if "scripts/demo.py" in command]
    os.kill(demonstration, signal.SIGKILL)
    for pid in pids:
        assert ends(pid)


def test_a_taken_port_is_said_and_another_one_used(mark: str) -> None:
    with socket.socket() as taken:
        # If somebody else has it, all the better.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            taken.bind(("127.0.0.1", 50051))
            taken.listen()
        done = subprocess.run(
            MAKE, cwd=ROOT, env=environment(mark, seconds="1"), capture_output=True, text=True, check=False
        )
    assert done.returncode == 0
    assert "Port 50051 was taken" in done.stdout
    assert re.search(r"imagetasks targets --endpoint-url 127\.0\.0\.1:\d+", done.stdout)


def test_a_nonsensical_time_is_refused_before_anything_starts(mark: str) -> None:
    done = subprocess.run(
        MAKE, cwd=ROOT, env=environment(mark, seconds="soon"), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "make run: RUN_SECONDS: 'soon' is not a number of seconds above 0" in done.stderr


def test_the_sandbox_goes_with_a_gateway_that_is_killed(mark: str) -> None:
    with gateway("--sandbox", environment=environment(mark)) as running:
        (sandbox,) = children(running.process.pid)
        running.process.kill()
        running.process.wait(SECONDS)
        assert ends(sandbox)
