"""A language's runner as a process: a command in, what the client observed out, one JSON object a line."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Seconds that a scenario may take. None comes near it that goes well, on a busy machine either.
PATIENCE = 30.0
# Bytes in a line at most: a large message in base64.
_LINE = 64 * 1024 * 1024
LAST = frozenset({"end", "error", "cancelled"})


class RunnerError(Exception):
    """The runner does not keep to the protocol."""


class Runner:
    """A runner, started when first asked; after a failure it is started anew.

    Args:
        command: What to run, in the project's root.
        patience: Seconds that a scenario may take.
    """

    def __init__(self, command: Sequence[str], patience: float = PATIENCE) -> None:
        self._command = command
        self._patience = patience
        # Failures are told; a client's log of them, as of a certificate, only makes noise.
        self._environment = {"GRPC_VERBOSITY": "NONE", **os.environ}
        self._process: asyncio.subprocess.Process | None = None

    @property
    def is_running(self) -> bool:
        """Whether the next command goes to a process that has answered one before."""
        return self._process is not None

    async def run(self, command: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the client observes of one call.

        Raises:
            RunnerError: It ends, falls silent, or says what is not JSON.
        """
        try:
            async with asyncio.timeout(self._patience):
                return await self._ask(json.dumps(command))
        except TimeoutError:
            await self.stop(grace=0)
            raise RunnerError(f"the runner says nothing more for {self._patience:g} s") from None
        except RunnerError:
            await self.stop()
            raise

    async def stop(self, grace: float = 5) -> None:
        """Ends the process: it is to leave when its input ends, within so many seconds."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(grace):
                await process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def _ask(self, line: str) -> list[dict[str, Any]]:
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LINE,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(f"{line}\n".encode())
            await process.stdin.drain()
        except ConnectionError:
            raise RunnerError("the runner has ended") from None
        told: list[dict[str, Any]] = []
        while not told or told[-1]["event"] not in LAST:
            answer = await process.stdout.readline()
            if not answer:
                raise RunnerError(f"the runner has ended with {await process.wait()}")
            try:
                said = json.loads(answer)
            except ValueError:
                raise RunnerError(f"not JSON: {answer[:200]!r}") from None
            if not isinstance(said, dict) or "event" not in said:
                raise RunnerError(f"no event: {answer[:200]!r}")
            told.append(said)
        return told


@contextlib.asynccontextmanager
async def running(command: Sequence[str], patience: float = PATIENCE) -> AsyncIterator[Runner]:
    """A runner as long as the context lasts."""
    runner = Runner(command, patience)
    try:
        yield runner
    finally:
        await runner.stop()
