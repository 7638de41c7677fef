"""What a wait waits for: decided by a listing, all pages of it, that is read after the command began.

A target that cannot be read may hold a task that runs. So the listing is made again for as long as an error
that passes hides a part of it; a target that has answered is not read again for that.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

from imagetasks.backoff import Backoff, is_passing
from imagetasks.cli.ec2.failures import Failure, WaiterError
from imagetasks.cli.ec2.gateway import Gateway, cause_of
from imagetasks.cli.hindrances import Hindrances
from imagetasks.cli.terminal import StatusLine
from imagetasks.v1 import store_image_tasks_pb2 as pb

Task = pb.StoreImageTaskResult

IN_PROGRESS: Final = "InProgress"
_HAS_FAILED = (
    'Waiter encountered a terminal failure state: For expression "StoreImageTaskResults[].StoreTaskState" '
    'we matched expected path: "Failed" at least once'
)


def has_completed(task: Task) -> bool:
    """Whether a task that is waited for has completed.

    Raises:
        Failure: It has failed.
    """
    if task.ec2_store_task_state == "Failed":
        raise WaiterError(_HAS_FAILED)
    return task.ec2_store_task_state == "Completed"


class Meant:
    """The tasks that are waited for, collected from listings.

    Args:
        image_ids: Of each of these AMIs the newest task; without them those that are in progress.

    Attributes:
        tasks: By task_id, each as it was listed last.
    """

    def __init__(self, image_ids: Iterable[str]) -> None:
        self._image_ids = list(dict.fromkeys(image_ids))
        self._answered: set[tuple[str, str]] = set()
        self._anything = False
        self.tasks: dict[str, Task] = {}

    def take(self, listed: Iterable[Task], outcomes: Iterable[pb.TargetOutcome]) -> None:
        """Takes a listing. What begins in a target after its first answer is not meant.

        Raises:
            Failure: A task that is waited for has failed.
        """
        for task in listed:
            self._anything = True
            is_first = (task.account, task.region) not in self._answered
            is_meant = bool(self._image_ids) or task.ec2_store_task_state == IN_PROGRESS
            if task.task_id in self.tasks or (is_first and is_meant):
                self.tasks[task.task_id] = task
        self._answered.update(
            (each.target.account, each.target.region) for each in outcomes if not each.HasField("status")
        )
        for task in self.tasks.values():
            has_completed(task)

    def check(self) -> None:
        """Says so if there is nothing to wait for.

        Raises:
            Failure: No task matches, or an AMI has none.
        """
        known = {task.ami_id for task in self.tasks.values()}
        if lacking := [image_id for image_id in self._image_ids if image_id not in known]:
            raise WaiterError(f"There is no store task of {', '.join(lacking)}")
        if not self._anything:
            raise WaiterError("There is no store task that matches")


def find(
    gateway: Gateway, given: Mapping[str, Any], until: float, hindrances: Hindrances, status: StatusLine
) -> Meant:
    """Lists until no error that passes hides a part.

    Args:
        gateway: Is asked. Its scope may name a `max_age`; if not, nothing that was read before now counts.
        given: EC2's parameters.
        until: Seconds of the monotonic clock at which to give up.
        hindrances: Are told what is in the way.
        status: Shows what is waited for.

    Raises:
        Failure: A task has failed, EC2 refuses, the gateway cannot be asked, or the time is over.
    """
    # All pages count, however they are cut.
    parameters = {name: value for name, value in given.items() if name != "MaxResults"}
    began = time.monotonic()
    scope = replace(gateway.scope, forbid_stale=True)
    meant = Meant(given.get("ImageIds", ()))
    backoff = Backoff()
    has_answered = False
    while True:
        age = scope.max_age if scope.max_age is not None else time.monotonic() - began
        gateway.scope = replace(scope, max_age=age)
        failure = None
        try:
            listed = _listed(gateway, parameters)
        except Failure as refused:
            failure, error = refused, cause_of(refused)
            # Whether there is a gateway at all is said at once. One that was there, and is away, comes back.
            is_known = has_answered or gateway.outcomes
            if error is None or not is_passing(error) or not (error.reason or is_known):
                raise
            passing = [error]
        else:
            meant.take(listed, gateway.outcomes)
            passing = [error for error in gateway.errors() if is_passing(error)]
        has_answered = True
        hidden = dict(each for error in passing for each in gateway.hidden_by(error))
        hindrances.are(hidden)
        if not passing:
            return meant
        # All are needed: before the last can be asked it is no use to ask.
        pause = backoff.pause(max(passing, key=lambda error: error.retry_after or timedelta()))
        if time.monotonic() + pause >= until:
            raise failure or WaiterError(f"Max attempts exceeded; {_joined(hidden)}")
        try:
            status.show(f"no news of {_joined(hidden)}")
            time.sleep(pause)
        finally:
            status.clear()


def _joined(hidden: Mapping[str, str]) -> str:
    return "; ".join(f"{subject}: {why}" for subject, why in hidden.items())


def _listed(gateway: Gateway, parameters: Mapping[str, Any]) -> list[Task]:
    gateway.start_over()
    page = gateway.page(dict(parameters))
    tasks = list(page.store_image_task_results)
    while page.next_token:
        page = gateway.page({**parameters, "NextToken": page.next_token})
        tasks += page.store_image_task_results
    return tasks
