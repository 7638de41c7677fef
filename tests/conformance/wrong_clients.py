"""Python clients that are wrong on purpose, each in one way: some scenario has to catch each.

python tests/conformance/wrong_clients.py tells-twice
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import grpc
import python_runner

from imagetasks import aio, backoff, channel, errors, requests, waiting, watching
from imagetasks.v1 import store_image_tasks_pb2 as pb


def takes_absent_for_zero() -> None:
    """A percentage that EC2 did not send is shown as 0."""
    told = python_runner.task_told
    python_runner.task_told = lambda task: {**told(task), "percentage": task.progress_percentage}


def knows_only_its_own_states() -> None:
    """A state of a later version is shown as none."""
    told = python_runner.task_told
    known = set(pb.StoreTaskState.values())
    python_runner.task_told = lambda task: {
        **told(task),
        "state": task.store_task_state if task.store_task_state in known else 0,
    }


def begins_anew() -> None:
    """Its watch never sends a token."""
    watching.Watched.request = property(  # type: ignore[method-assign, assignment]
        lambda self: pb.WatchStoreImageTasksRequest(selector=self._selector)
    )


def retries_what_is_exhausted() -> None:
    """Its retry policy spends EC2's allowance."""
    channel.SERVICE_CONFIG = channel.SERVICE_CONFIG.replace(
        '"UNAVAILABLE", ', '"UNAVAILABLE", "RESOURCE_EXHAUSTED", '
    )


def never_retries() -> None:
    """It has no retry policy."""
    channel.SERVICE_CONFIG = "{}"


def tells_twice() -> None:
    """A snapshot after a reset is news to it."""
    replace = watching.Watched._replace

    def forgetting(
        self: watching.Watched, place: watching.Place, snapshot: Mapping[str, Any]
    ) -> Iterator[watching.Change]:
        self._tasks[place].clear()
        return replace(self, place, snapshot)

    watching.Watched._replace = forgetting  # type: ignore[method-assign]


def applies_half_a_group() -> None:
    """It takes each message for a group."""
    received = watching.Watched.received

    def hasty(self: watching.Watched, message: Any, now: float) -> list[watching.Change]:
        message.changes.continued = message.WhichOneof("event") == "changes" and not self._covered
        return received(self, message, now)

    watching.Watched.received = hasty  # type: ignore[method-assign]


def keeps_a_token_of_half_a_group() -> None:
    """It goes on behind what it has not applied."""
    received = watching.Watched.received

    def trusting(self: watching.Watched, message: Any, now: float) -> list[watching.Change]:
        changes = received(self, message, now)
        self._token = message.resume_token or self._token
        return changes

    watching.Watched.received = trusting  # type: ignore[method-assign]


def believes_a_reset_behind_its_token() -> None:
    """What was reset is not covered to it, though the gateway goes on from before."""
    interrupted = watching.Watched.interrupted

    def believing(self: watching.Watched, error: errors.Error | None, now: float) -> float:
        self._covered_then = frozenset(self._covered)
        return interrupted(self, error, now)

    watching.Watched.interrupted = believing  # type: ignore[method-assign]


def remembers_who_was_stale() -> None:
    """It is told anew, and keeps the old."""
    start = watching.Watched._start

    def remembering(self: watching.Watched, started: Any, now: float) -> None:
        stale = dict(self._stale)
        start(self, started, now)
        self._stale.update(stale)

    watching.Watched._start = remembering  # type: ignore[method-assign]


def goes_backwards() -> None:
    """It believes a replica that has read less recently."""
    watching._goes_back = lambda known, task: False  # noqa: ARG005


def takes_cancelled_for_its_own() -> None:
    """A CANCELLED that it did not cause ends its watch."""
    backoff._PASSING.discard(grpc.StatusCode.CANCELLED)


def keeps_a_refused_token() -> None:
    """OUT_OF_RANGE ends its watch."""
    vars(watching).update(OutOfRangeError=errors.NotFoundError, _TOKEN_REFUSED="")


def waits_for_ever_in_silence() -> None:
    """It never finds a connection dead."""
    watching._MISSED_HEARTBEATS = 10_000  # type: ignore[misc]


def comes_back_at_once() -> None:
    """It makes no pause."""
    backoff.Backoff.pause = lambda self, error=None: 0.0  # type: ignore[method-assign]  # noqa: ARG005


def takes_draining_for_an_answer() -> None:
    """Its wait ends when the gateway stops."""
    waiting.Wait.answered = lambda self, response, now: None  # type: ignore[method-assign]  # noqa: ARG005


def ends_at_the_first_page() -> None:
    """It does not know next_token."""
    describe = aio.Client._describe

    async def once(self: aio.Client, *arguments: Any) -> pb.DescribeStoreImageTasksResponse:
        page = await describe(self, *arguments)
        page.ClearField("next_token")
        return page

    aio.Client._describe = once  # type: ignore[method-assign, assignment]


def sends_what_is_absent() -> None:
    """It asks for its first page with an empty token."""
    describe = aio.Client._describe

    async def filled(
        self: aio.Client, request: pb.DescribeStoreImageTasksRequest, *rest: Any
    ) -> pb.DescribeStoreImageTasksResponse:
        request.next_token = request.next_token
        return await describe(self, request, *rest)

    aio.Client._describe = filled  # type: ignore[method-assign, assignment]


def sends_no_deadline() -> None:
    """It keeps its timeouts to itself."""
    requests.deadline = lambda timeout, default: None  # noqa: ARG005


def believes_any_domain() -> None:
    """A proxy's reason is the gateway's to it."""
    errors.DOMAIN = "proxy.example"


def hides_the_delay() -> None:
    """It does not say when to come back."""
    told = python_runner.error_told
    python_runner.error_told = lambda error: {**told(error), "retry_delay": None}


def forgets_the_token() -> None:
    """It sends its bearer token with no call."""
    channel.metadata = lambda token: ()  # noqa: ARG005


# Each with the scenario that has to catch it.
WRONG: Mapping[str, tuple[Callable[[], None], str]] = {
    "takes-absent-for-zero": (takes_absent_for_zero, "percentage-absent-zero-and-some"),
    "knows-only-its-own-states": (knows_only_its_own_states, "state-of-a-later-version"),
    "begins-anew": (begins_anew, "watch-goes-on-after-UNAVAILABLE"),
    "retries-what-is-exhausted": (retries_what_is_exhausted, "exhausted-is-not-tried-again"),
    "never-retries": (never_retries, "unavailable-is-tried-again"),
    "tells-twice": (tells_twice, "watch-tells-nothing-after-a-reset-without-differences"),
    "applies-half-a-group": (applies_half_a_group, "watch-forgets-half-a-group"),
    "keeps-a-token-of-half-a-group": (keeps_a_token_of_half_a_group, "watch-keeps-no-token-of-half-a-group"),
    "believes-a-reset-behind-its-token": (
        believes_a_reset_behind_its_token,
        "watch-takes-a-reset-behind-its-token-for-none",
    ),
    "remembers-who-was-stale": (
        remembers_who_was_stale,
        "watch-forgets-who-was-stale-when-it-starts-again",
    ),
    "goes-backwards": (goes_backwards, "watch-never-goes-backwards"),
    "takes-cancelled-for-its-own": (
        takes_cancelled_for_its_own,
        "watch-goes-on-after-CANCELLED-it-did-not-cause",
    ),
    "keeps-a-refused-token": (
        keeps_a_refused_token,
        "watch-begins-anew-when-its-token-is-refused-with-OUT_OF_RANGE",
    ),
    "waits-for-ever-in-silence": (waits_for_ever_in_silence, "watch-hangs-up-after-three-silent-heartbeats"),
    "comes-back-at-once": (comes_back_at_once, "watch-waits-as-long-as-it-is-told"),
    "takes-draining-for-an-answer": (takes_draining_for_an_answer, "wait-asks-again-after-REASON_DRAINING"),
    "ends-at-the-first-page": (ends_at_the_first_page, "list-follows-next-tokens"),
    "sends-what-is-absent": (sends_what_is_absent, "list-follows-next-tokens"),
    "sends-no-deadline": (sends_no_deadline, "deadline-of-a-listing-is-each-pages"),
    "believes-any-domain": (believes_any_domain, "error-of-somebody-else"),
    "hides-the-delay": (hides_the_delay, "error-BUDGET_EXHAUSTED"),
    "forgets-the-token": (forgets_the_token, "token-with-every-call"),
}

if __name__ == "__main__":
    WRONG[sys.argv[1]][0]()
    python_runner.main(sys.stdin)
