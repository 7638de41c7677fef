"""`imagetasks ec2 wait store-image-task-complete`: returns when the tasks that were asked for have completed.

Words, texts and exit codes are the AWS CLI's. What it waits for is decided once, by a fresh listing of all
pages: with image ids the newest task of each AMI, else the tasks that are in progress then. These are
watched: nothing is polled, there is no limit of 40 tries, and neither a throttle nor somebody's old failure
ends it.
"""

import argparse
import itertools
import math
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from imagetasks.cli.ec2 import describe, parsers
from imagetasks.cli.ec2.failures import Failure, ServiceError, WaiterError
from imagetasks.cli.ec2.model import INPUT
from imagetasks.cli.ec2.validation import validate
from imagetasks.v1 import store_image_tasks_pb2 as pb

NAME = "store-image-task-complete"
PAGE = "wait"

OK = 0
FAILED = 255

# EC2's and the gateway's codes of what passes.
_PASSING = {
    "RequestLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "EC2ThrottledException",
    "Unavailable",
    "ServiceUnavailable",
    "InternalError",
}
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
# What a watch takes; more of them, and all tasks are watched.
_MAX_IMAGE_IDS = 200

_EXPRESSION = (
    'For expression "StoreImageTaskResults[].StoreTaskState" we matched expected path: "{}" at least once'
)
_HAS_FAILED = f"Waiter encountered a terminal failure state: {_EXPRESSION.format('Failed')}"
_TIME_IS_OVER = f"Max attempts exceeded. Previously accepted state: {_EXPRESSION.format('InProgress')}"


def run(words: list[str], chosen: argparse.Namespace, own: argparse.Namespace) -> int:
    """Runs the command.

    Args:
        words: Behind `wait`.
        chosen: The global options.
        own: The gateway's own options.

    Returns:
        The exit code.

    Raises:
        Failure: It ends with a text on stderr.
    """
    if not words:
        usage = f"usage: {parsers.PROGRAM} [options] <command> <subcommand> [parameters]"
        raise Failure(f"{usage}\n{parsers.PROGRAM}: error: too few arguments")
    name, words = parsers.take_command(words, [NAME, "help"])
    parser = describe.command_parser()
    # The gateway's own: the AWS CLI gives up after 40 tries, 5 seconds apart.
    parser.add_argument("--timeout")
    options, strange = (
        (argparse.Namespace(help="help"), []) if name == "help" else describe.parse(words, parser)
    )
    if options.help == "help":
        from imagetasks.cli.ec2 import manual  # noqa: PLC0415

        return manual.show(PAGE)
    given, _ = describe.read(options, strange, chosen)
    if options.generate_cli_skeleton:
        return describe.write_skeleton(options, given, chosen)
    seconds = _seconds(options.timeout)
    # Pages are no option of a waiter: this says so, as the AWS CLI does.
    validate(given, INPUT)
    try:
        return _wait(given, chosen, own, time.monotonic() + seconds)
    except ServiceError as error:
        raise WaiterError(f"An error occurred ({error.code}): {error.message}") from error


def _wait(given: dict[str, Any], chosen: argparse.Namespace, own: argparse.Namespace, until: float) -> int:
    from imagetasks.cli.ec2 import refusals, scope  # noqa: PLC0415 - gRPC, at last
    from imagetasks.cli.ec2.gateway import Gateway  # noqa: PLC0415

    if refusal := refusals.of_request(given):
        raise ServiceError(*refusal)
    asked = scope.of(chosen, own)
    if asked.max_age is None:
        # A task that was created just before is seen.
        asked = replace(asked, max_age=0.0)
    gateway = Gateway(chosen, own, asked, None)
    try:
        tasks = _meant(gateway, given, until)
        _follow(gateway, {task.task_id: task for task in tasks}, until)
        code = OK
        for text, failed in gateway.troubles():
            sys.stderr.write(f"\n{text}\n" if failed else f"{text}\n")
            code = FAILED if failed else code
        return code
    finally:
        gateway.close()


def _meant(gateway: Any, given: dict[str, Any], until: float) -> list[pb.StoreImageTaskResult]:
    """The tasks that are waited for.

    Raises:
        Failure: There are none, or EC2 refuses.
    """
    # All pages count, however they are cut.
    parameters = {name: value for name, value in given.items() if name != "MaxResults"}
    tasks: list[pb.StoreImageTaskResult] = []
    while True:
        page = _page(gateway, parameters, until)
        tasks += page.store_image_task_results
        if not page.next_token:
            break
        parameters["NextToken"] = page.next_token
    if ids := list(dict.fromkeys(given.get("ImageIds", ()))):
        known = {task.ami_id for task in tasks}
        if lacking := [image_id for image_id in ids if image_id not in known]:
            raise WaiterError(f"There is no store task of {', '.join(lacking)}")
        return tasks
    if not tasks:
        raise WaiterError("There is no store task that matches")
    # What has ended before was not waited for.
    return [task for task in tasks if task.ec2_store_task_state == "InProgress"]


def _page(gateway: Any, parameters: dict[str, Any], until: float) -> pb.DescribeStoreImageTasksResponse:
    for attempt in itertools.count():
        try:
            page: pb.DescribeStoreImageTasksResponse = gateway.page(parameters)
        except ServiceError as error:
            longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** min(attempt, 32))
            pause = random.uniform(longest / 2, longest)  # noqa: S311 - not for secrets
            if error.code not in _PASSING or time.monotonic() + pause >= until:
                raise
            time.sleep(pause)
        else:
            return page
    raise AssertionError


def _follow(gateway: Any, tasks: dict[str, pb.StoreImageTaskResult], until: float) -> None:
    """Returns when all have completed.

    Raises:
        Failure: One has failed, or the time is over.
    """
    from imagetasks.cli.terminal import StatusLine  # noqa: PLC0415
    from imagetasks.errors import Error  # noqa: PLC0415

    running = {key: task for key, task in tasks.items() if not _has_completed(task)}
    if not running:
        return
    ids = sorted({task.ami_id for task in running.values()})
    status = StatusLine(sys.stderr)
    try:
        with gateway.watch(ids if len(ids) <= _MAX_IMAGE_IDS else ()) as watch, _closed_at(watch, until):
            status.show(_progress(running, len(tasks)))
            while (changes := watch.heard()) is not None:
                for change in changes:
                    if change.task.task_id in running:
                        running[change.task.task_id] = change.task
                        if _has_completed(change.task):
                            del running[change.task.task_id]
                        elif change.type == pb.TaskChange.TYPE_REMOVED:
                            raise WaiterError(f"The store task of {change.task.ami_id} is no longer reported")
                if not running:
                    return
                status.show(_progress(running, len(tasks)))
    except Error as error:
        raise WaiterError(str(error)) from error
    finally:
        status.clear()
    raise WaiterError(_TIME_IS_OVER)


def _has_completed(task: pb.StoreImageTaskResult) -> bool:
    if task.ec2_store_task_state == "Failed":
        raise WaiterError(_HAS_FAILED)
    return task.ec2_store_task_state == "Completed"


def _progress(running: dict[str, pb.StoreImageTaskResult], total: int) -> str:
    slowest = min(task.progress_percentage for task in running.values())
    return f"waiting for {len(running)} of {total} tasks, the slowest at {slowest}%"


@contextmanager
def _closed_at(watch: Any, until: float) -> Iterator[None]:
    timer = threading.Timer(max(0.0, until - time.monotonic()) if until < math.inf else 0.0, watch.close)
    timer.daemon = True
    if until < math.inf:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _seconds(text: str | None) -> float:
    try:
        seconds = math.inf if text is None else float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise Failure(f"Bad value for --timeout {text}: not a number of seconds above 0")
    return seconds
