"""Start a sandbox as a child process and stop it: for tests. Blocking; imports neither moto nor boto."""

import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

START_SECONDS = 30.0
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class RunningSandbox:
    """A sandbox that listens.

    Attributes:
        process: The child.
        ready: The line it printed, see ``main``.
    """

    process: subprocess.Popen[bytes]
    ready: Mapping[str, Any]

    @property
    def endpoint(self) -> str:
        """Its address, as ``http://127.0.0.1:40000``."""
        return str(self.ready["endpoint"])

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """An environment for an AWS client: ``base`` (None: this process's) with our AWS variables only."""
        ours: dict[str, str] = self.ready["environment"]
        kept = os.environ if base is None else base
        return {name: value for name, value in kept.items() if not name.startswith("AWS_")} | ours


@contextmanager
def sandbox(*arguments: str) -> Iterator[RunningSandbox]:
    """Run a sandbox on a free port as long as the context lasts.

    Args:
        arguments: More of its command line, as ``--speed``, ``100``.

    Raises:
        RuntimeError: It ended, or was not ready in time.
    """
    command = [sys.executable, "-m", "imagetasks_sandbox", "--port", "0", "--ready-json", "--exit-with-stdin"]
    with subprocess.Popen(  # noqa: S603 - our own module, by this interpreter
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            yield RunningSandbox(process, json.loads(_first_line(process.stdout, START_SECONDS)))
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _first_line(pipe: IO[bytes], seconds: float) -> bytes:
    deadline = time.monotonic() + seconds
    line = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise RuntimeError(f"the sandbox was not ready after {seconds:g} s")
            chunk = os.read(pipe.fileno(), 65536)
            if not chunk:
                raise RuntimeError("the sandbox ended before it was ready; its stderr says why")
            line += chunk
    return line
