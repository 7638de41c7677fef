"""`--until-done`: whether all that is watched has ended, and if not, why.

A watch begins with what the gateway knows, which may be some seconds old: a task that was created just
before may be lacking. So when all seems to have ended, the tasks are asked for once more, as they were read
after the command began. Where they have been read since, as in a long watch, that costs no call to EC2.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from imagetasks.backoff import is_passing
from imagetasks.cli.text import place_name, printable, target_name
from imagetasks.errors import Error, from_status
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watch import Held
from imagetasks.watching import Change, has_ended

GATEWAY = "the gateway"
_UNREAD = "it has not been read yet"
_MAY_NOT_ASK = "METHOD_NOT_PERMITTED"

Events = Iterable[pb.StreamStoreImageTasksResponse]


class Goal:
    """That all tasks have ended.

    Args:
        image_ids: Each of these AMIs must have had a task, however long that takes to appear.
        ask: Asks for all tasks that are watched, as read after the command began.

    Attributes:
        hindrances: What it waits for although no task is known to be in progress, and why.
        refused: Targets that cannot be read until somebody changes something, and why.
    """

    def __init__(self, image_ids: Iterable[str], ask: Callable[[], AbstractContextManager[Events]]) -> None:
        self._lacking = set(image_ids)
        self._ask = ask
        self._may_not_ask = False
        self.hindrances: dict[str, str] = {}
        self.refused: dict[str, str] = {}

    @property
    def reason(self) -> str:
        """Why it is not reached."""
        news = [f"no news of {subject} ({why})" for subject, why in self.hindrances.items()]
        return ", ".join(news) or "tasks are still in progress"

    def is_reached(self, watch: Held, changes: Iterable[Change]) -> bool:
        """Whether it is, as of what the watch holds after these changes.

        Raises:
            Error: The tasks cannot be asked for, and that does not pass.
        """
        self._lacking.difference_update(change.task.ami_id for change in changes)
        self.hindrances, self.refused = {}, {}
        if not all(map(has_ended, watch.tasks.values())):
            return False
        if not watch.is_live:
            self.hindrances = {GATEWAY: f"the connection is lost: {watch.last_error or 'it was closed'}"}
            return False
        self._look(watch)
        return not self.hindrances and self._is_confirmed(watch)

    def _look(self, watch: Held) -> None:
        """Takes what the watch itself says."""
        unread = sorted(watch.targets - watch.covered - watch.stale.keys())
        passing, self.refused = _parted(
            (place_name(place), stale.error) for place, stale in watch.stale.items()
        )
        self.hindrances = {
            **dict.fromkeys(map(place_name, unread), _UNREAD),
            **passing,
            **dict.fromkeys(sorted(self._lacking), "it has no store task yet"),
        }

    def _is_confirmed(self, watch: Held) -> bool:
        """Whether the tasks, as they were read after the command began, have ended and been shown."""
        shown = watch.tasks.keys()
        there_is_more = False
        outcomes: list[pb.TargetOutcome] = []
        try:
            with self._ask() as events:
                for event in events:
                    there_is_more |= any(
                        not has_ended(task) or task.task_id not in shown
                        for task in event.page.store_image_task_results
                    )
                    outcomes.append(event.outcome)
        except Error as error:
            if error.reason == _MAY_NOT_ASK:
                # The caller may watch, and no more: what is stale the watch says after it has shown it, so
                # one message later.
                before, self._may_not_ask = self._may_not_ask, True
                return before
            if not is_passing(error):
                raise
            self.hindrances = {GATEWAY: printable(str(error))}
            return False
        self.hindrances, self.refused = _parted(
            (target_name(each.target), from_status(each.status))
            for each in outcomes
            if each.HasField("status")
        )
        # What the watch was refused may have been permitted just now: it is shown before the end.
        unread = {*map(place_name, watch.targets - watch.covered)} - self.refused.keys()
        self.hindrances |= dict.fromkeys(unread, _UNREAD)
        return not there_is_more and not self.hindrances


def _parted(errors: Iterable[tuple[str, Error]]) -> tuple[dict[str, str], dict[str, str]]:
    """Errors that pass, and others, each by whose it is, as texts."""
    passing: dict[str, str] = {}
    staying: dict[str, str] = {}
    for name, error in errors:
        (passing if is_passing(error) else staying)[name] = printable(str(error))
    return passing, staying
