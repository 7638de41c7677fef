"""How long the gateway's loop stands still in a cold sweep: `python blocked.py ENDPOINT` prints milliseconds.

The gateway runs in this process, built by `main`, for nobody else could look at its loop; the caller is
another process. The EC2 must have been filled.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop
from estates import accounts
from measured import EVERYTHING_ON

from canned.launch import Canned
from imagetasks_server import serving as gateway
from imagetasks_server.config import Settings
from imagetasks_server.listening import Listening
from imagetasks_server.telemetry import configure_log

PEERS = str(Path(__file__).with_name("sweep_peers.py"))
RUNS = 5
BEAT = 0.001
PATIENCE = 60.0


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """A gateway in this process, SERVING."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    tell = gateway._tell_serving

    def then_go_on(listening: Listening, *more: Any) -> None:
        tell(listening, *more)
        ready.set_result(listening.address)

    gateway._tell_serving = then_go_on  # type: ignore[assignment]
    task = asyncio.create_task(gateway._serve(settings, lambda: settings))
    try:
        async with asyncio.timeout(PATIENCE):
            address = await ready
        yield address
    finally:
        gateway._tell_serving = tell
        os.kill(os.getpid(), 15)
        await task


async def longest_turns(endpoint: str) -> list[float]:
    """Milliseconds, of each of several cold sweeps."""
    fields = {**EVERYTHING_ON, "accounts": accounts(1, Canned(endpoint))}
    found = []
    for _ in range(RUNS):
        async with serving(Settings(**fields)) as address:
            worst = 0.0

            async def beat() -> None:
                nonlocal worst
                while True:
                    before = time.perf_counter()
                    await asyncio.sleep(BEAT)
                    worst = max(worst, time.perf_counter() - before - BEAT)

            beating = asyncio.create_task(beat())
            caller = await asyncio.create_subprocess_exec(
                sys.executable, PEERS, "gateway", address, stdout=asyncio.subprocess.DEVNULL
            )
            assert await caller.wait() == 0
            beating.cancel()
            found.append(worst * 1000)
    return found


if __name__ == "__main__":
    configure_log("info", json_lines=True)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
        turns = uvloop.run(longest_turns(sys.argv[1]))
    print(json.dumps(turns))
