"""Every metric, declared once, and those of them that are counted as things happen.

What merely is, as budgets and tasks, is read by `gauges` when somebody looks. Labels are few and bounded:
names of the configuration and of the contract, never what a caller sends.
"""

import bisect
import functools
import itertools
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

T = TypeVar("T")

_CALL_SECONDS: Final = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
)
_EC2_SECONDS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)
_LAG_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


@dataclass(frozen=True, slots=True)
class Declared:
    """One metric.

    Attributes:
        name: In full, as it is queried; a histogram's without `_bucket`, `_sum` and `_count`.
        kind: counter, gauge or histogram.
        help: What it tells.
        labels: Their names.
        buckets: A histogram's.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_TARGET: Final = ("account", "region")

# Counted as things happen.
CALLS: Final = Declared("imagetasks_calls_total", "counter", "Calls that have ended.", ("method", "code"))
CALL_SECONDS: Final = Declared(
    "imagetasks_call_seconds", "histogram", "Seconds that calls took.", ("method",), _CALL_SECONDS
)
MESSAGES: Final = Declared(
    "imagetasks_messages_total", "counter", "Messages handed to gRPC by streams.", ("method",)
)
ANSWERS: Final = Declared(
    "imagetasks_answers_total",
    "counter",
    "Targets' parts of answers, by caller and by how they came about; all but own cost no call to EC2.",
    ("caller", "how"),
)
WATCH_LAG: Final = Declared(
    "imagetasks_watch_lag_seconds",
    "histogram",
    "Seconds from the start of the read that saw a change to the moment when gRPC took its message.",
    (),
    _LAG_SECONDS,
)
WATCH_CHANGES: Final = Declared("imagetasks_watch_changes_total", "counter", "Changes told to watchers.")
EC2_CALLS: Final = Declared(
    "imagetasks_ec2_calls_total",
    "counter",
    "Attempts of calls to EC2, each worth one token, by what was asked and by whose call began it.",
    ("kind", "caller"),
)
EC2_SECONDS: Final = Declared(
    "imagetasks_ec2_call_seconds",
    "histogram",
    "Seconds that calls to EC2 took, with all their attempts.",
    ("kind",),
    _EC2_SECONDS,
)
EC2_ERRORS: Final = Declared(
    "imagetasks_ec2_errors_total",
    "counter",
    "Calls to EC2 that failed, by the contract's ErrorReason.",
    ("kind", "reason"),
)

# Read when somebody looks.
IN_FLIGHT: Final = Declared("imagetasks_calls_in_flight", "gauge", "Calls under way.", ("method",))
BUDGET_TOKENS: Final = Declared(
    "imagetasks_budget_tokens", "gauge", "Calls that a target could be asked now.", _TARGET
)
BUDGET_CAPACITY: Final = Declared(
    "imagetasks_budget_capacity", "gauge", "Calls at most that each target's budget can save up."
)
BUDGET_WAITED: Final = Declared(
    "imagetasks_budget_waited_seconds_total",
    "counter",
    "Seconds that calls to EC2 waited for the target's budget.",
    _TARGET,
)
THROTTLES: Final = Declared(
    "imagetasks_ec2_throttles_total",
    "counter",
    "Times that EC2 throttled although the budget had paid.",
    _TARGET,
)
TASKS: Final = Declared(
    "imagetasks_tasks", "gauge", "Tasks known of a target, by state.", (*_TARGET, "state")
)
READ_TIME: Final = Declared(
    "imagetasks_target_read_timestamp_seconds",
    "gauge",
    "Unix time at which the newest complete read of the target began.",
    _TARGET,
)
TARGET_FAILING: Final = Declared(
    "imagetasks_target_failing", "gauge", "1 while the newest read of the target failed, else 0.", _TARGET
)
POLL_INTERVAL: Final = Declared(
    "imagetasks_target_poll_interval_seconds",
    "gauge",
    "Seconds between reads of a target while somebody follows it.",
    _TARGET,
)
ACCOUNT_TARGETS: Final = Declared(
    "imagetasks_account_targets",
    "gauge",
    "Targets of an account, by where its list of Regions came from.",
    ("account", "region_source"),
)
ACCOUNT_UP: Final = Declared(
    "imagetasks_account_up",
    "gauge",
    "1 if the newest attempt to find out an account's identity and Regions succeeded, else 0.",
    ("account",),
)
ORGANIZATION_UP: Final = Declared(
    "imagetasks_organization_up",
    "gauge",
    "1 if the newest listing of an organization's accounts succeeded, else 0.",
    ("organization",),
)
ORGANIZATION_ACCOUNTS: Final = Declared(
    "imagetasks_organization_accounts", "gauge", "Accounts of an organization as known.", ("organization",)
)
CERTIFICATE: Final = Declared(
    "imagetasks_certificate_expiry_timestamp_seconds",
    "gauge",
    "Unix time at which the server's certificate expires; absent without TLS.",
)
CERTIFICATE_UP: Final = Declared(
    "imagetasks_certificate_up",
    "gauge",
    "1 if the newest look at the certificate's files found what can be used, else 0; absent without TLS.",
)
KEYS_UP: Final = Declared(
    "imagetasks_keys_up",
    "gauge",
    "1 if the newest fetch of the token issuer's keys succeeded, else 0; absent until the first, or without.",
)
CONFIGURATION_UP: Final = Declared(
    "imagetasks_configuration_up",
    "gauge",
    "1 if the configuration as it was last read is in force, else 0.",
)
CALLS_ARRIVED: Final = Declared(
    "imagetasks_calls_arrived_total",
    "counter",
    "Calls that have come to gRPC, health checks and unknown methods among them.",
)
CALLS_HANDED_OVER: Final = Declared(
    "imagetasks_calls_handed_over_total",
    "counter",
    "Those that gRPC has handed over. The others wait, or it has refused them.",
)
SERVING: Final = Declared("imagetasks_serving", "gauge", "1 while the health service says SERVING, else 0.")
BUILD_INFO: Final = Declared(
    "imagetasks_build_info", "gauge", "1, for its labels.", ("version", "python", "grpc")
)

DECLARED: Final = tuple(each for each in globals().values() if isinstance(each, Declared))


# Who is known, but not by configuration.
OTHER: Final = "other"


class Metrics:
    """What is counted as things happen.

    Args:
        callers: The callers that are told by their names, so that labels stay few. They may be replaced.

    Attributes:
        callers: As given.
        registry: prometheus_client's, of this gateway alone.
    """

    def __init__(self, callers: Collection[str] = ()) -> None:
        self.callers = frozenset(callers)
        self.registry = CollectorRegistry()
        self._counted = _Counted()
        self.registry.register(self._counted)
        # Each child is bound once: finding it again by its labels would cost more than counting.
        self.call_ended = self._counter(CALLS)
        self.call_seconds = self._histogram(CALL_SECONDS)
        self.message_sent = self._counter(MESSAGES)
        self.answered = self._counter(ANSWERS)
        self.watch_lag = self._histogram(WATCH_LAG)()
        self.changes_told = self._counter(WATCH_CHANGES)()
        self.ec2_called = self._counter(EC2_CALLS)
        self.ec2_seconds = self._histogram(EC2_SECONDS)
        self.ec2_failed = self._counter(EC2_ERRORS)

    def _counter(self, declared: Declared) -> Callable[..., Callable[..., None]]:
        return functools.cache(lambda *labels: self._counted.child(declared, labels, _Count).add)

    def _histogram(self, declared: Declared) -> Callable[..., Callable[[float], None]]:
        make = functools.partial(_Spread, declared.buckets)
        return functools.cache(lambda *labels: self._counted.child(declared, labels, make).add)


class _Count:
    """What a counter has come to."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def add(self, amount: float = 1.0) -> None:
        self.value += amount


class _Spread:
    """What a histogram has seen."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, amount: float) -> None:
        self._counts[bisect.bisect_left(self._bounds, amount)] += 1
        self._sum += amount

    def told(self) -> tuple[list[tuple[str, float]], float]:
        """How many were at most each bound, and the sum of all."""
        bounds = [floatToGoString(bound) for bound in (*self._bounds, math.inf)]  # type: ignore[no-untyped-call]
        return list(zip(bounds, itertools.accumulate(self._counts), strict=True)), self._sum


class _Counted(Collector):
    """Hands out what was counted.

    Everything is counted on the event loop. The library's own counters are for threads, and take a lock each
    time: telling a change to a thousand watchers is to cost less than that.
    """

    def __init__(self) -> None:
        self._children: dict[Declared, dict[tuple[str, ...], Any]] = {}

    def child(self, declared: Declared, labels: tuple[str, ...], make: Callable[[], T]) -> T:
        """One metric's part of these labels."""
        if len(labels) != len(declared.labels):
            raise ValueError(f"{declared.name} has the labels {declared.labels}, not {labels}")
        child: T = self._children.setdefault(declared, {}).setdefault(labels, make())
        return child

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client's Collector."""
        for declared, children in self._children.items():
            if declared.kind == "histogram":
                spread = HistogramMetricFamily(declared.name, declared.help, labels=declared.labels)
                for labels, child in children.items():
                    buckets, total = child.told()
                    spread.add_metric(labels, buckets, total)
                yield spread
            else:
                counter = CounterMetricFamily(declared.name, declared.help, labels=declared.labels)
                for labels, child in children.items():
                    counter.add_metric(labels, child.value)
                yield counter
