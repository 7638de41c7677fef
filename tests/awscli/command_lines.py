"""The two command lines, each as a long-lived driver or as a process of its own, and what both print."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from processes import aws_cli

DRIVER = Path(__file__).with_name("driver.py")
SECONDS = 60.0


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    stdout: str
    stderr: str
    code: int

    @property
    def last_line(self) -> str:
        """Of stderr."""
        lines = self.stderr.splitlines()
        return lines[-1] if lines else ""


class Driven:
    """A command line in a long-lived process."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._number = 0

    def run(self, words: Sequence[str], environment: Mapping[str, str], columns: int | None = None) -> Ending:
        """One run."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._number += 1
        request = {"words": list(words), "environment": dict(environment), "columns": columns}
        self._process.stdin.write(json.dumps(request | {"number": self._number}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            answer = json.loads(line)
            # A test that was cut off by its time limit has left an earlier answer unread.
            if answer.pop("number") == self._number:
                return Ending(**answer)
        raise AssertionError(f"the driver ended on {list(words)}")


@contextmanager
def driven(python: str, name: str) -> Iterator[Driven]:
    """A driver, as long as the context lasts."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("AWS_")}
    with subprocess.Popen(
        [python, str(DRIVER), name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment | {"AWS_EC2_METADATA_DISABLED": "true"},
    ) as process:
        try:
            yield Driven(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


@dataclass(frozen=True)
class Process:
    """A command line as a process of its own each time."""

    command: Sequence[str]

    def run(self, words: Sequence[str], environment: Mapping[str, str], columns: int | None = None) -> Ending:
        """One run; with columns, stdout is a terminal of that width."""
        if columns is None:
            ended = subprocess.run(
                [*self.command, *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
            return Ending(ended.stdout.decode(), ended.stderr.decode(), ended.returncode)
        ours, theirs = pty.openpty()
        attributes = termios.tcgetattr(theirs)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(theirs, termios.TCSANOW, attributes)
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with subprocess.Popen(
            [*self.command, *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=subprocess.PIPE,
        ) as process:
            os.close(theirs)
            read = bytearray()
            while chunk := _read(ours):
                read += chunk
            os.close(ours)
            assert process.stderr is not None
            stderr = process.stderr.read().decode()
        return Ending(read.decode(), stderr, process.returncode)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # all writers have gone
        return b""


def our_process() -> Process:
    """`imagetasks`, as its users start it."""
    return Process([str(Path(sys.executable).with_name("imagetasks"))])


def aws_process() -> Process:
    """`aws`, as its users start it."""
    return Process([aws_cli()])
