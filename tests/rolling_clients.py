"""Applications that use several gateways all the time, in one process, by the library alone.

    python rolling_clients.py ipv4:127.0.0.1:20001,127.0.0.1:20002

Prints a line when all watches hold everything. Takes the truth from stdin, one line of JSON ("region ami-id"
to EC2's state, of all tasks), waits until every watch holds it, and prints as JSON what came of everything.
"""

import asyncio
import contextlib
import functools
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import imagetasks
from imagetasks.watch import Watch
from imagetasks.watching import has_ended

CLIENTS, WATCHES, LISTERS, STREAMERS = 10, 500, 5, 3
# Seconds within which every watch must hold the truth, once nothing changes any more.
SECONDS = 20.0

Kept = Mapping[str, str]


def name(task: Any) -> str:
    """What the truth calls it."""
    return f"{task.region} {task.ami_id}"


class Application:
    """One watch, and what it was told.

    Attributes:
        first: The tasks that had ended before it came.
        told: How often it was told that a task has ended.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self.first: set[str] = set()
        self.told: Counter[str] = Counter()
        self._heard = asyncio.Event()

    async def run(self) -> None:
        """Take every change, for ever."""
        async with self._watch as watch:
            while (changes := await watch.heard()) is not None:
                for change in changes:
                    if change.has_ended:
                        self.told[name(change.task)] += 1
                    elif change.is_first and has_ended(change.task):
                        self.first.add(name(change.task))
                self._heard.set()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until this holds of what it holds."""
        while not condition():
            self._heard.clear()
            await self._heard.wait()

    def is_whole(self) -> bool:
        """It knows all that there is."""
        return self._watch.is_caught_up and len(self._watch.covered) > 0

    @property
    def held(self) -> Kept:
        """What it holds: name to EC2's state."""
        return {name(task): task.ec2_store_task_state for task in self._watch.tasks.values()}

    def holds(self, truth: Kept) -> bool:
        """Whether it holds this."""
        return self.held == truth

    def faults(self, truth: Kept) -> list[str]:
        """What is not as it must be, now that nothing changes any more."""
        found = [] if self.held == truth else ["holds something else"]
        found += [f"told {count} times of {task}" for task, count in self.told.items() if count != 1]
        missed = set(truth) - self.first - set(self.told)
        found += [f"never told of {task}" for task in missed]
        return found + [f"told of {task}, which had ended" for task in self.first & set(self.told)]


class Asking:
    """Who asks again and again.

    Attributes:
        told: How often each kind of call went how.
    """

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()
        self._over = asyncio.Event()

    async def again_and_again(self, kind: str, ask: Callable[[], Awaitable[str]]) -> None:
        """Ask until it is over, with short pauses. The last call is waited for."""
        while not self._over.is_set():
            try:
                how = await ask()
            except imagetasks.Error as error:
                how = repr(error)
            self.told[f"{kind}: {how}"] += 1
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._over.wait()

    def end(self) -> None:
        """It is over."""
        self._over.set()


async def list_all(client: Any) -> str:
    """Pages of one listing come from one gateway and the other."""
    listing = client.describe(page_size=20)
    ids = [task.task_id async for task in listing]
    failed = [outcome.status.message for outcome in listing.outcomes if outcome.HasField("status")]
    if failed:
        return f"failed: {failed[0]}"
    return "whole" if len(ids) == len(set(ids)) else "a task twice"


async def stream_all(client: Any) -> str:
    """A stream that has a fresh read of each target."""
    last = None
    async with client.stream(max_age=0.5) as stream:
        async for last in stream:
            if last.HasField("outcome") and last.outcome.HasField("status"):
                return str(last.outcome.status.message)
    return "whole" if last is not None and last.HasField("summary") else "cut"


async def wait_for(client: Any, ami_id: str) -> str:
    """A wait that may last longer than any gateway."""
    answer = await client.wait(image_ids=[ami_id])
    ended = all(has_ended(task) for task in answer.store_image_task_results)
    return "done" if answer.done and ended and answer.store_image_task_results else "not done"


async def main(endpoint: str) -> None:
    """All of it."""
    loop = asyncio.get_running_loop()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(imagetasks.connect(endpoint)) for _ in range(CLIENTS)]
        applications = [Application(clients[number % CLIENTS].watch()) for number in range(WATCHES)]
        watching = [asyncio.create_task(each.run()) for each in applications]
        for each in applications:
            await each.until(each.is_whole)
        unfinished = {task.ami_id async for task in clients[0].describe(max_age=0) if not has_ended(task)}
        asking = Asking()
        busy = [
            asyncio.create_task(asking.again_and_again(kind, functools.partial(ask, clients[n % CLIENTS])))
            for kind, ask, count in (("list", list_all, LISTERS), ("stream", stream_all, STREAMERS))
            for n in range(count)
        ]
        waits = [
            asyncio.create_task(wait_for(clients[number % CLIENTS], ami_id))
            for number, ami_id in enumerate(sorted(unfinished))
        ]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        truth = json.loads(await loop.run_in_executor(None, sys.stdin.readline))
        # Watches that end by an error are seen in what they raise.
        late = 0
        try:
            async with asyncio.timeout(SECONDS):
                for each in applications:
                    await each.until(functools.partial(each.holds, truth))
                waited = Counter(await asyncio.gather(*waits))
        except TimeoutError:
            late = 1
            waited = Counter(wait.result() for wait in waits if wait.done() and not wait.cancelled())
        asking.end()
        await asyncio.gather(*busy)
        for task in watching:
            task.cancel()
        ended = await asyncio.gather(*watching, return_exceptions=True)
    faults = Counter(fault for each in applications for fault in each.faults(truth))
    faults += Counter(repr(how) for how in ended if not isinstance(how, asyncio.CancelledError))
    sys.stdout.write(
        json.dumps(
            {
                "late": late,
                "faults": faults,
                "told": sum(sum(each.told.values()) for each in applications),
                "asked": asking.told,
                "waited": waited,
                "waits": len(waits),
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
