"""The live view of a watch: what is in progress and what has ended lately, by account and Region."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from imagetasks.cli.text import explain_stale, printable
from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks.watch import Held
from imagetasks.watching import REMOVED, Change, Place, has_ended

# Seconds that a task stays in view after its end.
ENDED_SECONDS = 180.0
_BAR_WIDTH = 20
# Title, heading, the line of what did not fit, and the line that the cursor stands on.
_OTHER_LINES = 5
_STALE_LINES = 3

STYLES = {"InProgress": "cyan", "Completed": "green", "Failed": "red"}


class Board:
    """A table of at most the terminal's height. May be drawn by another thread than the one that updates it.

    Args:
        console: Where it is drawn.
        title: Its first words.
        reserved: Lines of the terminal that are not for it.
        clock: Unix seconds.
    """

    def __init__(
        self,
        console: Console,
        title: str = "In progress now",
        reserved: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._console = console
        self._title = title
        self._reserved = reserved
        self._clock = clock
        self._lock = threading.Lock()
        self._running: list[pb.StoreImageTaskResult] = []
        # By task id: the task, and when its end was heard of.
        self._ended: dict[str, tuple[pb.StoreImageTaskResult, float]] = {}
        self._stale: list[str] = []
        self._state = "connecting"
        self._is_over = False

    def update(self, watch: Held, changes: Iterable[Change]) -> None:
        """Takes what a watch holds now, and the changes that led there."""
        now = self._clock()
        tasks = watch.tasks
        running = [task for task in tasks.values() if not has_ended(task)]
        running.sort(key=_order)
        covered, targets = len(watch.covered & watch.targets), len(watch.targets)
        if not watch.is_live:
            state = "connecting again"
        elif covered < targets:
            state = f"{covered} of {targets} targets read, {len(tasks)} tasks"
        else:
            state = f"{targets} targets, {len(tasks)} tasks"
        stale = [explain_stale(told) for told in watch.stale.values()]
        with self._lock:
            self._running, self._state, self._stale = running, state, sorted(stale)
            for change in changes:
                if change.has_ended:
                    self._ended[change.task.task_id] = change.task, now
                elif change.type == REMOVED:
                    self._ended.pop(change.task.task_id, None)

    def end(self) -> None:
        """What is drawn from now on stays on the terminal."""
        self._is_over = True

    def draw(self) -> RenderableType:
        """The table as of now."""
        now = self._clock()
        with self._lock:
            self._ended = {key: each for key, each in self._ended.items() if now - each[1] < ENDED_SECONDS}
            ended = sorted((task for task, _ in self._ended.values()), key=_order)
            running, stale, state = self._running, self._stale, self._state
        room = max(
            1, self._console.height - self._reserved - _OTHER_LINES - min(len(stale), _STALE_LINES + 1)
        )
        # A quarter is for those that have ended, however many are in progress.
        shown_ended = ended[: max(room // 4, room - len(running))]
        shown = running[: room - len(shown_ended)]
        title = f"At the end ({state})" if self._is_over else f"{self._title} ({state}; Ctrl-C ends)"
        table = Table(box=None, pad_edge=False)
        for heading in ("ACCOUNT", "REGION", "AMI", "", "PROGRESS", "RATE", "DONE IN"):
            # Where it is too wide, why a task has failed gives way.
            table.add_column(heading, no_wrap=heading != "", justify="left" if heading in _LEFT else "right")
        place = None
        for task in [*shown, *shown_ended]:
            # Of several in one place the names stand in the first line only.
            here = None if place == (task.account, task.region) else (task.account, task.region)
            place = task.account, task.region
            table.add_row(*_names(here), printable(task.ami_id or "-"), *_progress(task, now))
        hidden = len(running) + len(ended) - len(shown) - len(shown_ended)
        lines: list[RenderableType] = [_line(title, "italic")]
        if shown or shown_ended:
            lines.append(table)
        if hidden:
            lines.append(Text(f"and {hidden} more"))
        lines += [_line(each, "yellow") for each in stale[:_STALE_LINES]]
        if len(stale) > _STALE_LINES:
            lines.append(_line(f"and {len(stale) - _STALE_LINES} more that cannot be read", "yellow"))
        return Group(*lines)


_LEFT = ("ACCOUNT", "REGION", "AMI", "")


def _order(task: pb.StoreImageTaskResult) -> tuple[str, str, int, str]:
    return task.account, task.region, task.task_start_time.ToNanoseconds(), task.task_id


def _names(place: Place | None) -> tuple[str, str]:
    return ("", "") if place is None else (printable(place[0]), printable(place[1]))


def _progress(task: pb.StoreImageTaskResult, now: float) -> tuple[RenderableType, ...]:
    """The bar, the percentage, how fast, and when it will be done; of an ended task how it ended."""
    percentage = f"{task.progress_percentage}%" if task.HasField("progress_percentage") else "-"
    if has_ended(task):
        word = task.ec2_store_task_state
        why = printable(task.store_task_failure_reason)
        return _line(f"{word} {why}".strip(), STYLES.get(word, "")), percentage, "", ""
    bar = ProgressBar(total=100, completed=task.progress_percentage, width=_BAR_WIDTH)
    return bar, percentage, rate(task), remaining(task, now)


def rate(task: pb.StoreImageTaskResult) -> str:
    """Percent per minute, as the gateway has seen it."""
    return f"{task.pace.percent_per_second * 60:.1f}%/min" if task.pace.HasField("percent_per_second") else ""


def remaining(task: pb.StoreImageTaskResult, now: float) -> str:
    """Until when it is estimated to be done, or that it does not come along."""
    if task.pace.stalled:
        return "stalled"
    if not task.pace.HasField("estimated_completion_time"):
        return ""
    seconds = max(0.0, task.pace.estimated_completion_time.ToNanoseconds() / 1e9 - now)
    for size, unit in ((3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _line(text: str, style: str) -> Text:
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def summary(tasks: Iterable[pb.StoreImageTaskResult]) -> str:
    """How many are in which state, in EC2's words."""
    counts = Counter(task.ec2_store_task_state or "-" for task in tasks)
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "no tasks"
