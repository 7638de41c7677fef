"""Following tasks until all have completed: nothing is polled, a watch tells."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from imagetasks.cli.ec2 import meant
from imagetasks.cli.ec2.failures import WaiterError
from imagetasks.cli.ec2.gateway import Gateway, why
from imagetasks.cli.ec2.meant import IN_PROGRESS, Task, has_completed
from imagetasks.cli.hindrances import Hindrances
from imagetasks.cli.terminal import StatusLine
from imagetasks.cli.text import place_name
from imagetasks.errors import Error
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watch import BlockingWatch

# What a watch takes; more of them, and all tasks are watched.
MAX_IMAGE_IDS: Final = 200

_TIME_IS_OVER = (
    "Max attempts exceeded. Previously accepted state: For expression "
    f'"StoreImageTaskResults[].StoreTaskState" we matched expected path: "{IN_PROGRESS}" at least once'
)


def wait(gateway: Gateway, given: Mapping[str, Any], until: float) -> bool:
    """Returns when all have completed; whether every target could be asked.

    Args:
        gateway: Is asked and watched. Its scope may name a `max_age`.
        given: EC2's parameters.
        until: Seconds of the monotonic clock at which to give up.

    Raises:
        Failure: A task has failed, there is none, EC2 refuses, the gateway cannot be asked, or the time is
            over.
    """
    status = StatusLine(sys.stderr)
    hindrances = Hindrances(_tells(status))
    tasks = meant.find(gateway, given, until, hindrances, status)
    told = [text for text, _ in gateway.troubles()]
    for text in told:
        sys.stderr.write(f"\n{text}\n")
    tasks.check()
    _follow(gateway, tasks.tasks, until, hindrances, status)
    return not told


def _tells(status: StatusLine) -> Callable[[str], None]:
    def tell(line: str) -> None:
        status.clear()
        sys.stderr.write(f"imagetasks: {line}\n")
        sys.stderr.flush()

    return tell


def _follow(
    gateway: Gateway, tasks: Mapping[str, Task], until: float, hindrances: Hindrances, status: StatusLine
) -> None:
    running = {key: task for key, task in tasks.items() if not has_completed(task)}
    if not running:
        return
    ids = sorted({task.ami_id for task in running.values()})
    try:
        with (
            gateway.watch(ids if len(ids) <= MAX_IMAGE_IDS else ()) as watch,
            _closed_at(watch, until),
        ):
            status.show(_progress(running, len(tasks)))
            while (changes := watch.heard()) is not None:
                for change in changes:
                    if change.task.task_id in running:
                        running[change.task.task_id] = change.task
                        if has_completed(change.task):
                            del running[change.task.task_id]
                        elif change.type == pb.TaskChange.TYPE_REMOVED:
                            raise WaiterError(f"The store task of {change.task.ami_id} is no longer reported")
                if not running:
                    return
                hindrances.are(dict(_hidden(gateway, watch, running.values())))
                status.show(_progress(running, len(tasks)))
    except Error as error:
        raise WaiterError(str(error)) from error
    finally:
        status.clear()
    raise WaiterError(_TIME_IS_OVER)


def _hidden(gateway: Gateway, watch: BlockingWatch, running: Iterable[Task]) -> Iterator[tuple[str, str]]:
    """What the watch does not hear of the tasks, and why."""
    if not watch.is_live:
        if watch.last_error is not None:
            yield from gateway.hidden_by(watch.last_error)
        else:
            yield "the gateway", "the connection is cut"
        return
    places = {(task.account, task.region) for task in running}
    # Of a whole account, if its Regions cannot be found out.
    places |= {(account, "") for account, _ in places}
    for place in sorted(places & watch.stale.keys()):
        yield place_name(place), why(watch.stale[place].error)


def _progress(running: Mapping[str, Task], total: int) -> str:
    slowest = min(task.progress_percentage for task in running.values())
    return f"waiting for {len(running)} of {total} tasks, the slowest at {slowest}%"


@contextmanager
def _closed_at(watch: BlockingWatch, until: float) -> Iterator[None]:
    if until == math.inf:
        yield
        return
    timer = threading.Timer(min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX), watch.close)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
