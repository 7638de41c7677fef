"""Watches as no scenario would think of them: random messages, groups, resets, tokens and interruptions.

Nobody says what is right of them. All thin clients must tell the same of each, and ask the same.
"""

from collections.abc import Iterator
from random import Random
from typing import Any

from scenario_data import NAMES, Scenario, expand

_PLACES = ("central", "east")
_STATES = (
    ("STORE_TASK_STATE_IN_PROGRESS", "InProgress"),
    ("STORE_TASK_STATE_IN_PROGRESS", "InProgress"),
    ("STORE_TASK_STATE_COMPLETED", "Completed"),
    ("STORE_TASK_STATE_FAILED", "Failed"),
    ("STORE_TASK_STATE_UNSPECIFIED", "Paused"),
)
# Each costs the clients a pause.
_INTERRUPTIONS = 2


def random_watch(seed: int) -> Scenario:
    """A watch, the same for each seed. It ends with an error that no client gets over."""
    random = Random(seed)
    calls = [list(_stream(random)) for _ in range(1 + random.randint(0, _INTERRUPTIONS))]
    for steps in calls[:-1]:
        steps.append(_interruption(random))
    calls[-1].append({"fail": NAMES["over"]})
    return Scenario(
        group="random",
        name=f"random-watch-{seed}",
        interop="",
        needs=("thin",),
        tls=False,
        serving=True,
        without=(),
        do={"call": "watch"},
        calls=tuple({"method": "WatchStoreImageTasks", "play": expand(steps)} for steps in calls),
        observe=(),
    )


def _stream(random: Random) -> Iterator[dict[str, Any]]:
    yield {
        "send": {
            "started": {
                "resumed": random.random() < 0.5,
                "heartbeat_interval": "10s",
                "targets": _targets(random),
            }
        }
    }
    for _ in range(random.randint(3, 14)):
        said = _message(random)
        if random.random() < 0.5 and not said.get("changes", {}).get("continued"):
            said["resume_token"] = f"token-{random.randint(0, 99)}"
        yield {"send": said}


def _message(random: Random) -> dict[str, Any]:
    kind = random.choices(
        ("changes", "snapshot_complete", "reset", "heartbeat", "target_status"), (8, 5, 2, 2, 1)
    )[0]
    if kind == "changes":
        changes = [_change(random) for _ in range(random.randint(0, 4))]
        return {"changes": {"changes": changes, "continued": random.random() < 0.6}}
    if kind == "snapshot_complete":
        return {"snapshot_complete": {"targets": _targets(random)}}
    if kind == "reset":
        return {"reset": {"targets": _targets(random) if random.random() < 0.7 else []}}
    if kind == "target_status":
        target = {"$use": random.choice(_PLACES), **({"region": ""} if random.random() < 0.3 else {})}
        fault = {"status": {"code": 14, "message": "away"}} if random.random() < 0.6 else {}
        return {"target_status": {"target": target, **fault}}
    return {"heartbeat": {}}


def _change(random: Random) -> dict[str, Any]:
    place, letter = random.choice(_PLACES), random.choice("ab")
    state, word = random.choice(_STATES)
    task = {
        "$use": "task-a",
        "task_id": f"{place}-{letter}",
        "region": NAMES[place]["region"],
        "store_task_state": state,
        "ec2_store_task_state": word,
        "progress_percentage": random.choice((None, 0, 10, 50, 90)),
        **({"pace": {"stalled": True}} if random.random() < 0.2 else {}),
    }
    if random.random() < 0.3:
        reason = random.choice(("NOT_REPORTED", "AGED_OUT", "NO_MATCH", "ACCESS_ENDED"))
        return {"type": "TYPE_REMOVED", "removal_reason": f"REMOVAL_REASON_{reason}", "task": task}
    return {"type": random.choice(("TYPE_ADDED", "TYPE_MODIFIED")), "task": task}


def _interruption(random: Random) -> dict[str, Any]:
    return random.choice(
        (
            {"fail": {"code": "UNAVAILABLE"}},
            {"fail": {"code": "CANCELLED"}},
            {"send": {"resume_token": "closing", "closing": {"reason": "REASON_DRAINING"}}},
            {"pause": 0},
        )
    )


def _targets(random: Random) -> list[dict[str, Any]]:
    return [{"$use": place} for place in random.choice((_PLACES, _PLACES, _PLACES[:1], _PLACES[1:]))]
