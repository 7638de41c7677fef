"""Builds every part once, in order; serves; drains. The only module that knows all that serves."""

import asyncio
import contextlib
import functools
import gc
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog

from imagetasks_server import collector, event_loop, grpc_server, metrics
from imagetasks_server.account_settings import OrganizationSettings
from imagetasks_server.accounts import Accounts
from imagetasks_server.assembly import Gateway, assemble
from imagetasks_server.aws_models import LIST_ACTIONS, preload
from imagetasks_server.aws_organizations import list_members
from imagetasks_server.clock import steady_clock
from imagetasks_server.config import ConfigError, Settings
from imagetasks_server.ec2 import Aws
from imagetasks_server.errors import Error
from imagetasks_server.health import Credentials
from imagetasks_server.jwks import load_keys
from imagetasks_server.listening import Listening, listen
from imagetasks_server.members import Member
from imagetasks_server.observation import measured, traced
from imagetasks_server.record import TOGETHER
from imagetasks_server.reload import Preparation, Reload
from imagetasks_server.roster import Lister, Roster
from imagetasks_server.sandbox import Adapt, use_sandbox
from imagetasks_server.stopping import Signals
from imagetasks_server.targets import Targets
from imagetasks_server.telemetry import Event, configure_log

if TYPE_CHECKING:
    from imagetasks_server.gauges import Facts
    from imagetasks_server.tls import Certificates

log = structlog.get_logger()


def run(
    settings: Settings,
    read: Callable[[], Settings],
    sandbox_arguments: Sequence[str] | None = None,
    *,
    exit_with_stdin: bool = False,
) -> None:
    """Be a gateway until a signal ends it.

    Args:
        settings: The gateway's.
        read: Reads them anew, when they are to be reloaded.
        sandbox_arguments: A sandbox's, which is used instead of AWS.
        exit_with_stdin: The end of standard input ends it too.

    Raises:
        ConfigError: The settings cannot be used, which was found out before anything listened.
    """
    json_lines = not sys.stderr.isatty() if settings.log_json is None else settings.log_json
    configure_log(settings.log_level, json_lines=json_lines)
    # What is imported by now stays: each time that the collector looked through it, it took 30 ms.
    gc.freeze()
    preload()
    event_loop.run(_serve(settings, read, sandbox_arguments, exit_with_stdin=exit_with_stdin))


async def _serve(
    settings: Settings,
    read: Callable[[], Settings],
    sandbox_arguments: Sequence[str] | None = None,
    *,
    exit_with_stdin: bool = False,
) -> None:
    signals = Signals()
    if exit_with_stdin:
        signals.stop_with_stdin()
    log.info(Event.STARTING, version=importlib.metadata.version("imagetasks"))
    # Before anything listens: what is wrong with them is said at once.
    certificates, keys = _certificates(settings), load_keys(settings.jwt)
    async with contextlib.AsyncExitStack() as stack:
        use: Adapt = _as_it_is
        if sandbox_arguments is not None:
            use, ended = await use_sandbox(sandbox_arguments, stack)
            ended.add_done_callback(lambda _: _sandbox_ended(signals.stop))
        settings = use(settings)
        builders = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="clients"))
        tracer = await stack.enter_async_context(traced(settings))
        aws = Aws(settings, builders, {"before-send": tracer.send_along} if tracer else None)
        accounts = Accounts(aws.open)
        stack.push_async_callback(accounts.close)
        gateway = assemble(settings, accounts, steady_clock(), tracer, together=TOGETHER)
        stack.push_async_callback(gateway.close)
        gateway.gate.take_keys(keys)
        changed = functools.partial(accounts.replace, gateway.targets)
        roster = Roster(settings.accounts, await _organizations(aws, settings), changed)
        with _said_by_key():
            await roster.begin()
        # All ports are taken before one answers, or is told of.
        listening = await listen(settings, gateway, certificates)
        reload = Reload(
            settings,
            lambda: use(read()),
            functools.partial(_replace, aws, roster),
            [*([certificates.prepare] if certificates else []), _permitting(gateway)],
            follows=("callers", "anonymous", "jwt"),
        )
        facts: Facts = {
            metrics.CALLS_ARRIVED: grpc_server.arrived,
            metrics.CALLS_HANDED_OVER: grpc_server.handed_over,
            metrics.SERVING: lambda: listening.health.is_serving,
            metrics.CONFIGURATION_UP: lambda: reload.is_up,
            metrics.KEYS_UP: lambda: gateway.gate.keys_up,
            metrics.CERTIFICATE_UP: lambda: certificates.is_up if certificates else None,
            metrics.CERTIFICATE: lambda: certificates.expires_at if certificates else None,
        }
        await stack.enter_async_context(measured(settings, gateway, lambda: roster.organizations, facts))
        await listening.start()
        stack.push_async_callback(listening.drain, gateway, settings.drain_seconds)
        await stack.enter_async_context(roster.refreshing())
        credentials = Credentials(accounts, roster, every=settings.check_credentials_every)
        if certificates is not None:
            certificates.tell()

        async def warm_and_look_after() -> None:
            serves = functools.partial(_tell_serving, listening, accounts, gateway.targets)
            well = await _warm(roster, gateway.targets, accounts) or await credentials.look()
            if await listening.health.serve(well=well):
                serves()
            await credentials.look_after(listening.health, serves)

        for lasting in (
            warm_and_look_after(),
            reload.heed(signals.reload),
            listening.ended(),
            *([certificates.look_after()] if certificates is not None else []),
        ):
            task = asyncio.create_task(lasting)
            task.add_done_callback(functools.partial(_fallen, signals.stop))
            stack.callback(task.cancel)
        await signals.stop.wait()


def _fallen(stop: asyncio.Event, task: asyncio.Task[None]) -> None:
    """What should last has ended: a new process is better than half a gateway."""
    # At the end it is cancelled. Before that, whatever was cancelled below it has come up here by mistake.
    error = asyncio.CancelledError() if task.cancelled() else task.exception()
    if not (task.cancelled() and stop.is_set()):
        log.critical(Event.FALLEN, exc_info=error)
        stop.set()


def _permitting(gateway: Gateway) -> Preparation:
    def prepare(settings: Settings) -> Callable[[], None]:
        gateway.gate.check(settings)
        keys = load_keys(settings.jwt)

        def use() -> None:
            gateway.permit(settings)
            gateway.gate.take_keys(keys)

        return use

    return prepare


def _certificates(settings: Settings) -> "Certificates | None":
    if settings.tls_certificate is None:
        return None
    from imagetasks_server.tls import Certificates, Files  # noqa: PLC0415  # 9 MiB, of TLS alone

    files = Files.of(settings)
    return None if files is None else Certificates(files, steady_clock())


def _as_it_is(settings: Settings) -> Settings:
    return settings


async def _organizations(aws: Aws, settings: Settings) -> list[tuple[OrganizationSettings, Lister]]:
    """The organizations, each with what lists its accounts. Raises `ConfigError`."""
    for each in settings.organizations:
        # Asks nothing, but finds what is missing in AWS's configuration files.
        try:
            await (await asyncio.to_thread(aws.open, each, LIST_ACTIONS)).close()
        except Error as error:
            raise ConfigError(f"organizations.{error.account}: {error.message}") from error
    return [(each, functools.partial(_list, aws, each)) for each in settings.organizations]


async def _list(aws: Aws, organization: OrganizationSettings) -> Sequence[Member]:
    # Rare enough to keep no connections between.
    account = await asyncio.to_thread(aws.open, organization, LIST_ACTIONS)
    try:
        return await list_members(account, organization)
    finally:
        await account.close()


async def _replace(aws: Aws, roster: Roster, settings: Settings, switch: Callable[[], None]) -> None:
    """From now on the accounts and organizations are those of these settings. Raises `ConfigError`."""
    organizations = await _organizations(aws, settings)
    with _said_by_key():
        await roster.replace(settings.accounts, organizations, switch)


@contextlib.contextmanager
def _said_by_key() -> Iterator[None]:
    """What is wrong with an account is wrong with the configuration."""
    try:
        yield
    except Error as error:
        raise ConfigError(f"accounts.{error.account}: {error.message}") from error


async def _warm(roster: Roster, targets: Targets, accounts: Accounts) -> bool:
    """Find out the targets and build their clients, so that the first call finds everything ready.

    Returns:
        Whether there are any.
    """
    await roster.tried()
    await targets.discover()
    known = targets.known()
    for target in known:
        try:
            await accounts[target.account].warm(target.region)
        except KeyError:  # gone by now
            continue
        except Error as error:
            log.warning(
                Event.ACCOUNT_FAILED, account=target.account, region=target.region, text=error.message
            )
    collector.settle()
    return bool(known)


def _tell_serving(listening: Listening, accounts: Accounts, targets: Targets) -> None:
    log.info(Event.SERVING, address=listening.address, accounts=len(accounts), targets=len(targets.known()))


def _sandbox_ended(stop: asyncio.Event) -> None:
    if not stop.is_set():
        log.error(Event.SANDBOX_ENDED)
        stop.set()
