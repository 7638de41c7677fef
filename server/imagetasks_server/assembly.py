"""Puts the gateway together between the accounts below and the wire above.

The only place that hands settings to the parts. `main` gives it accounts at AWS, tests give it fakes.
"""

import functools
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from imagetasks_server.answers import Answers
from imagetasks_server.arrivals import Arrivals
from imagetasks_server.boundary import Boundary
from imagetasks_server.budget import Allowance, Budget
from imagetasks_server.clock import Clock
from imagetasks_server.config import Settings
from imagetasks_server.contract import SERVICE
from imagetasks_server.errors import NotFound
from imagetasks_server.followers import Followers
from imagetasks_server.gate import Gate
from imagetasks_server.limits import Limits
from imagetasks_server.lookups import Lookups
from imagetasks_server.metrics import Metrics
from imagetasks_server.poller import Poller, Rhythm
from imagetasks_server.reader import Reader
from imagetasks_server.record import Records
from imagetasks_server.service import Service
from imagetasks_server.targets import Account, Target, Targets
from imagetasks_server.ticks import Ticks
from imagetasks_server.tracked import Registry, Tracked
from imagetasks_server.upstream import Page, Query, ReadPage, Upstream, untold
from imagetasks_server.view import Revisions, View
from imagetasks_server.waiting import Waiting
from imagetasks_server.watching import TICKS, Watching

if TYPE_CHECKING:
    from imagetasks_server.tracing import Tracer


class ReadableAccount(Account, Protocol):
    """An account whose targets can be discovered and read."""

    def read_page(
        self, target: Target, *, pay: Callable[[], Awaitable[None]], throttled: Callable[[], None]
    ) -> ReadPage:
        """The seam to AWS for one of its targets.

        Args:
            target: Whose tasks.
            pay: Waits until one more attempt is paid; the first of each call was paid before it. Raises
                `Exhausted` if that would take too long.
            throttled: Is told each time that EC2 throttles.
        """
        ...


@dataclass(frozen=True, slots=True)
class Gateway:
    """The parts that others must reach."""

    targets: Targets
    registry: Registry
    service: Service
    boundary: Boundary
    followers: Followers
    records: Records
    gate: Gate

    def permit(self, settings: Settings) -> None:
        """From now on these settings say who may see what; calls under way are decided again."""
        self.gate.replace(settings)
        self.records.metrics.callers = _names(settings)

    async def close(self) -> None:
        """End everything that asks AWS, and others."""
        self.records.tell()
        await self.gate.close()
        await self.registry.close()
        await self.targets.close()


def assemble(
    settings: Settings,
    accounts: Mapping[str, ReadableAccount],
    clock: Clock,
    tracer: "Tracer | None" = None,
    *,
    together: float = 0.0,
) -> Gateway:
    """A gateway over these accounts, which may come and go; it asks nothing yet.

    Args:
        settings: All of them.
        accounts: By the gateway's names.
        clock: Unix seconds.
        tracer: Of its calls.
        together: Seconds for which ended calls are collected before they are counted and logged.
    """
    metrics = Metrics(_names(settings))
    targets = Targets(
        accounts,
        {each.name: each.regions for each in settings.accounts},
        clock,
        expiry=settings.region_expiry,
        timeout=settings.discovery_timeout,
        excluded={each.name: each.exclude_regions for each in settings.accounts},
    )
    jitter = random.Random()  # noqa: S311  # spreads retries, guards nothing
    revisions = Revisions()
    rhythm = Rhythm(settings.poll_interval, settings.idle_poll_interval, settings.poll_linger)

    def account_of(target: Target) -> ReadableAccount:
        return _serving(target, accounts, targets)

    def upstream_of(target: Target, budget: Budget) -> Upstream:
        return _upstream(settings, target, budget, account_of, clock, metrics=metrics, tracer=tracer)

    registry = _registry(settings, upstream_of, revisions, rhythm, clock)
    followers = Followers(registry, revisions, Ticks(settings.heartbeat_interval / TICKS))
    service = Service(
        targets=targets,
        registry=registry,
        answers=Answers(registry, clock, cache_bytes=settings.answer_cache_bytes),
        watching=Watching(
            followers,
            targets,
            clock,
            rhythm=rhythm,
            heartbeat=settings.heartbeat_interval,
            # A fleet that came at once must not come back at once.
            lifetime=lambda: settings.limits.max_stream_age * (1 - 0.2 * jitter.random()),
            metrics=metrics,
            tracer=tracer,
        ),
        waiting=Waiting(followers, targets, clock),
        clock=clock,
        default_max_age=settings.default_max_age,
        stale_for=settings.stale_for,
    )
    gate = Gate(settings, clock)
    limits = Limits(
        clock,
        jitter.random,
        max_concurrent_calls=settings.limits.max_concurrent_calls,
        max_open_streams=settings.limits.max_open_streams,
    )
    records = Records(SERVICE.full_name, metrics, tracer, together=together)
    boundary = Boundary(
        clock,
        records,
        gate,
        limits,
        Arrivals(settings.limits.max_arrival_seconds),
        default_deadline=settings.default_deadline,
        longest=settings.limits.max_stream_age,
    )
    return Gateway(targets, registry, service, boundary, followers, records, gate)


def _names(settings: Settings) -> frozenset[str]:
    return frozenset({"anonymous", *(each.name for each in settings.callers)})


def _registry(
    settings: Settings,
    upstream_of: Callable[[Target, Budget], Upstream],
    revisions: Revisions,
    rhythm: Rhythm,
    clock: Clock,
) -> Registry:
    jitter = random.Random()  # noqa: S311  # spreads reads, guards nothing
    allowance = Allowance(
        capacity=settings.budget.capacity,
        refill=settings.budget.refill,
        usable=(1 - settings.budget.reserve) * settings.budget.share,
        # All replicas may start at once. But each can make its first call.
        initial=max(settings.budget.initial * settings.budget.share, min(1.0, settings.budget.initial)),
    )

    def make(target: Target, budget: Budget) -> Tracked:
        view = View(
            revisions, confirm_after=settings.confirm_removal_after, stalled_after=settings.stalled_after
        )

        upstream = upstream_of(target, budget)
        reader = Reader(
            view,
            upstream,
            clock,
            full_read_every=settings.full_read_every,
            distrust_for=settings.distrust_for,
            timeout=settings.read_timeout,
        )
        lookups = Lookups(view, upstream, clock, remember_for=settings.remember_lookups_for)
        return Tracked(view, budget, reader, lookups, Poller(reader, clock, rhythm, jitter))

    return Registry(
        make,
        lambda: Budget(allowance, clock),
        clock,
        keep_unused_for=settings.keep_unused_for,
        keep_tasks=settings.keep_tasks,
    )


def _upstream(
    settings: Settings,
    target: Target,
    budget: Budget,
    account_of: Callable[[Target], ReadableAccount],
    clock: Clock,
    *,
    metrics: Metrics,
    tracer: "Tracer | None",
) -> Upstream:
    async def read_page(query: Query, token: str | None) -> Page:
        pay = functools.partial(upstream.pay_again, query.purpose)
        seam = account_of(target).read_page(target, pay=pay, throttled=budget.throttled)
        return await seam(query, token)

    upstream = Upstream(
        read_page,
        budget,
        clock,
        timeout=settings.page_timeout,
        remember_refusals_for=settings.remember_refusals_for,
        metrics=metrics,
        asking=functools.partial(tracer.asking, target.account, target.region) if tracer else untold,
    )
    return upstream


def _serving(target: Target, accounts: Mapping[str, ReadableAccount], targets: Targets) -> ReadableAccount:
    """The account by the target's own name or, when that has gone, by another name of the same account."""
    for name in (target.account, *targets.names(target.key)):
        if name in accounts:
            return accounts[name]
    text = f"There is no account {target.account!r} any more"
    raise NotFound("UNKNOWN_ACCOUNT", text, account=target.account, region=target.region)
