"""Random watches: whatever a gateway sends, every thin client tells the same of it."""

import asyncio
import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from processes import ROOT

sys.path.insert(0, str(ROOT / "tests/conformance"))

from random_watches import random_watch
from run import command_of, is_built
from runner_process import Runner, running
from scenario_data import LANGUAGES
from scripted_conversation import conversation

THIN = [language for language, of in LANGUAGES.items() if "thin" not in of.get("lacks", {})]
HISTORIES = 300
# Side by side: most of the time a client pauses.
LANES = 6

Said = tuple[Mapping[str, list[Any]], list[str], Mapping[str, Any]]


async def told(runner: Runner, seed: int) -> Said:
    """What a client tells of a history: changes by target, what it asked, its last words.

    Targets have no order between them.
    """
    scenario = random_watch(seed)
    async with conversation(scenario) as served:
        said = await runner.run(
            {
                "scenario": scenario.name,
                "endpoint": served.endpoint,
                "ca": None,
                "certificate": None,
                "key": None,
                "call": "watch",
                "request": "",
            }
        )
        asked = [getattr(call.request, "resume_token", "") for call in served.arrived]
        assert served.faults == []
    by_target: dict[str, list[Any]] = {}
    for change in said[:-1]:
        by_target.setdefault(change["task"]["task_id"].partition("-")[0], []).append(change)
    return by_target, asked, said[-1]


@pytest.mark.timeout(300)
async def test_all_clients_tell_the_same_of_a_random_watch() -> None:
    assert len(THIN) > 1
    assert all(map(is_built, THIN)), "make clients builds them"
    seeds = iter(range(HISTORIES))

    async def lane() -> int:
        count = 0
        async with contextlib.AsyncExitStack() as stack:
            runners = [await stack.enter_async_context(running(command_of(each))) for each in THIN]
            for seed in seeds:
                first, *others = await asyncio.gather(*(told(runner, seed) for runner in runners))
                for language, other in zip(THIN[1:], others, strict=True):
                    assert other == first, f"seed {seed}: {language} is not as {THIN[0]}"
                count += sum(map(len, first[0].values()))
        return count

    async with asyncio.TaskGroup() as lanes:
        done = [lanes.create_task(lane()) for _ in range(LANES)]
    # They are not about nothing.
    assert sum(each.result() for each in done) > HISTORIES
