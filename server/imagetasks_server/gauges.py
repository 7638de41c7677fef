"""What merely is, read when somebody looks: calls under way, budgets, tasks, accounts, health.

A family of many samples comes in parts, so that whoever collects can pause between two.
"""

import importlib.metadata
import itertools
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import grpc
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from imagetasks.v1 import store_image_tasks_pb2 as pb
from imagetasks_server import metrics
from imagetasks_server.metrics import Declared
from imagetasks_server.record import Records
from imagetasks_server.roster import OrganizationState
from imagetasks_server.targets import Target, Targets
from imagetasks_server.tracked import Registry, Tracked

Samples: TypeAlias = Iterable[tuple[tuple[str, ...], float]]
# What else is, without labels; None where there is none.
Facts: TypeAlias = Mapping[Declared, Callable[[], float | None]]

# About a millisecond's worth.
SAMPLES: Final = 100

STATES: Final = {
    pb.STORE_TASK_STATE_IN_PROGRESS: "in_progress",
    pb.STORE_TASK_STATE_COMPLETED: "completed",
    pb.STORE_TASK_STATE_FAILED: "failed",
    pb.STORE_TASK_STATE_UNSPECIFIED: "unspecified",
}

# Once: it is read from the disk.
_BUILD: Final = (importlib.metadata.version("imagetasks"), platform.python_version(), grpc.__version__)


class Gauges(Collector):
    """Reads the gateway.

    Args:
        records: The calls under way.
        targets: Which targets there are.
        registry: What is kept of each.
        organizations: How it stands with each.
        facts: What the parts around the gateway tell of themselves.
    """

    def __init__(
        self,
        records: Records,
        targets: Targets,
        registry: Registry,
        organizations: Callable[[], Iterable[OrganizationState]],
        facts: Facts,
    ) -> None:
        self._records = records
        self._targets = targets
        self._registry = registry
        self._organizations = organizations
        self._facts = facts

    def describe(self) -> Iterable[Metric]:
        """Nothing: asking is cheap only when somebody wants to know."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One family after the other, each in parts of `SAMPLES` at most."""
        yield from families(metrics.IN_FLIGHT, [((name,), n) for name, n in self._records.under_way.items()])
        # Two names of one account share everything: the first stands for both.
        targets = list({each.key: each for each in reversed(self._targets.known())}.values())
        yield from self._budgets(targets)
        yield from self._states(targets)
        yield from self._accounts()
        for declared, ask in self._facts.items():
            value = ask()
            if value is not None:
                yield from families(declared, [((), value)])
        yield from families(metrics.BUILD_INFO, [(_BUILD, 1)])

    def _budgets(self, targets: Iterable[Target]) -> Iterator[Metric]:
        budgets = [((each.account, each.region), self._registry.budget_of(each)) for each in targets]
        yield from families(metrics.BUDGET_TOKENS, ((names, budget.available()) for names, budget in budgets))
        if budgets:
            yield from families(metrics.BUDGET_CAPACITY, [((), budgets[0][1].capacity)])
        yield from families(metrics.BUDGET_WAITED, ((names, budget.waited) for names, budget in budgets))
        yield from families(metrics.THROTTLES, ((names, budget.throttles) for names, budget in budgets))

    def _states(self, targets: Iterable[Target]) -> Iterator[Metric]:
        tracked: list[tuple[tuple[str, str], Tracked]] = [
            ((each.account, each.region), found) for each in targets if (found := self._registry.peek(each))
        ]
        yield from families(
            metrics.TASKS,
            (
                ((*names, word), each.view.states[state])
                for names, each in tracked
                for state, word in STATES.items()
                # One that EC2 has never been in is told of no target.
                if word != "unspecified" or each.view.states[state]
            ),
        )
        yield from families(
            metrics.READ_TIME,
            ((names, each.view.read_time) for names, each in tracked if each.view.read_time is not None),
        )
        yield from families(
            metrics.TARGET_FAILING, ((names, each.reader.last_error is not None) for names, each in tracked)
        )
        yield from families(
            metrics.POLL_INTERVAL,
            ((names, interval) for names, each in tracked if (interval := each.poller.interval) is not None),
        )

    def _accounts(self) -> Iterator[Metric]:
        accounts = self._targets.accounts()
        yield from families(
            metrics.ACCOUNT_TARGETS,
            (
                (
                    (each.name, pb.RegionSource.Name(each.source).removeprefix("REGION_SOURCE_").lower()),
                    each.targets,
                )
                for each in accounts
            ),
        )
        yield from families(metrics.ACCOUNT_UP, (((each.name,), each.up) for each in accounts))
        organizations = list(self._organizations())
        yield from families(metrics.ORGANIZATION_UP, (((each.name,), each.up) for each in organizations))
        yield from families(
            metrics.ORGANIZATION_ACCOUNTS, (((each.name,), each.accounts) for each in organizations)
        )


def families(declared: Declared, samples: Samples) -> Iterator[Metric]:
    """A declared metric with its samples, in parts."""
    kind: Any = CounterMetricFamily if declared.kind == "counter" else GaugeMetricFamily
    left = iter(samples)
    while batch := list(itertools.islice(left, SAMPLES)):
        part: Metric = kind(declared.name, declared.help, labels=declared.labels)
        for labels, value in batch:
            part.add_metric(labels, float(value))  # type: ignore[attr-defined]
        yield part
