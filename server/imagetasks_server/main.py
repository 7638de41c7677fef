"""Builds every part once, in order; serves; drains. The only module that knows all the others."""

import argparse
import asyncio
import contextlib
import functools
import gc
import importlib.metadata
import signal
import sys
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from imagetasks_server.account_settings import Access, OrganizationSettings
from imagetasks_server.accounts import Accounts
from imagetasks_server.assembly import Gateway, assemble
from imagetasks_server.aws_models import LIST_ACTIONS
from imagetasks_server.aws_organizations import list_members
from imagetasks_server.boundary import SERVICE
from imagetasks_server.caller_settings import Granted
from imagetasks_server.clock import steady_clock
from imagetasks_server.config import ConfigError, Settings, load
from imagetasks_server.doctor import Report, examine
from imagetasks_server.ec2 import Aws
from imagetasks_server.errors import Error
from imagetasks_server.roster import Lister, Roster
from imagetasks_server.sandbox import sandbox
from imagetasks_server.targets import Targets
from imagetasks_server.telemetry import Event, configure_log
from imagetasks_server.token_command import hash_token

log = structlog.get_logger()
T = TypeVar("T")

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING

SERVER_OPTIONS: Final = (
    # Two gateways on one port: the second must fail instead of taking every other call.
    ("grpc.so_reuseport", 0),
    # A burst of new calls above C-core's default of about 1,000 is refused at random.
    ("grpc.server.max_pending_requests", 100_000),
    ("grpc.server.max_pending_requests_hard_limit", 100_000),
    ("grpc.max_concurrent_streams", 100_000),
    # The largest legal request is far smaller.
    ("grpc.max_receive_message_length", 1024 * 1024),
    # A frozen peer is noticed within half a minute; keepalive alone takes a minute.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
)


def main(argv: Sequence[str] | None = None) -> int:
    """The command `imagetasks-server`. Returns the exit status: 0, or 2 for a bad configuration."""
    arguments = _parser().parse_args(argv)
    if arguments.command == "hash-token":
        return hash_token(sys.stdin)
    try:
        settings = load(
            arguments.config,
            listen=arguments.listen,
            insecure=arguments.insecure or None,
            log_level=arguments.log_level,
        )
    except ConfigError as error:
        return _refuse(error)
    if arguments.check_config:
        _say_settings(settings)
        return 0
    sandbox_arguments = ["--speed", str(arguments.sandbox_speed)] if arguments.sandbox else None
    if arguments.command == "doctor":
        return _doctor(settings, arguments, sandbox_arguments)
    json_lines = not sys.stderr.isatty() if settings.log_json is None else settings.log_json
    configure_log(settings.log_level, json_lines=json_lines)
    try:
        _run(_serve(settings, sandbox_arguments))
    except ConfigError as error:
        return _refuse(error)
    return 0


def _doctor(
    settings: Settings, arguments: argparse.Namespace, sandbox_arguments: Sequence[str] | None
) -> int:
    """Returns the exit status: 0, 1 if something fails, or 2 for a bad configuration."""

    async def examine_all() -> Report:
        async with contextlib.AsyncExitStack() as stack:
            if sandbox_arguments is None:
                return await examine(settings, arguments.account, arguments.region)
            used, _ = await _use_sandbox(settings, sandbox_arguments, stack)
            return await examine(used, arguments.account, arguments.region, ask_quotas=False)

    # What went wrong stands in the report.
    configure_log("error", json_lines=not sys.stderr.isatty())
    try:
        report = _run(examine_all())
    except ConfigError as error:
        return _refuse(error)
    sys.stdout.write(report.json() if arguments.output == "json" else report.text())
    return report.exit_status


def _run(coroutine: Coroutine[None, None, T]) -> T:
    try:
        import uvloop  # noqa: PLC0415  # an extra
    except ImportError:
        return asyncio.run(coroutine)
    return uvloop.run(coroutine)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="imagetasks-server",
        description="The gateway: gRPC in front, Amazon EC2's DescribeStoreImageTasks behind.",
        epilog="Without configuration: the ambient AWS credentials, all enabled Regions, 127.0.0.1:50051. "
        "To try it without AWS: imagetasks-server --sandbox",
    )
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings (else $IMAGETASKS_CONFIG)")
    parser.add_argument("--listen", metavar="ADDRESS", help="address:port or unix:/path (127.0.0.1:50051)")
    parser.add_argument(
        "--insecure", action="store_true", help="allow plaintext on an address that others can reach"
    )
    parser.add_argument(
        "--log-level", choices=["debug", "info", "warning", "error"], help="least level logged (info)"
    )
    parser.add_argument("--sandbox", action="store_true", help="start the sandbox and use it instead of AWS")
    parser.add_argument(
        "--sandbox-speed", metavar="FACTOR", type=float, default=1.0, help="how fast its tasks progress (1)"
    )
    parser.add_argument(
        "--check-config", action="store_true", help="check the settings, say what they are, and end"
    )
    parser.add_argument(
        "--version", action="version", version=f"imagetasks-server {importlib.metadata.version('imagetasks')}"
    )
    _add_doctor(parser)
    return parser


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="instead of serving")
    commands.add_parser(
        "hash-token",
        help="make a bearer token, or read one from stdin, and print what the configuration needs of it",
        description="Prints the token_sha256 of a bearer token: of one read from stdin, or of a new one, "
        "which is printed on stderr.",
        epilog="Exit status: 0, or 2 if what was read is no token, or too short.",
    )
    doctor = commands.add_parser(
        "doctor",
        help="ask AWS a dozen questions and tell what works, what does not, and what mends it",
        description="Asks AWS a dozen questions and tells, target by target, what works, what does not, and "
        "what mends it. Spends at most 5 calls of a target's own small allowance.",
        epilog="Exit status: 0 nothing fails, 1 something fails, 2 the configuration cannot be used.",
        # What is not given here may have been given before the command.
        argument_default=argparse.SUPPRESS,
    )
    doctor.add_argument("--config", metavar="FILE", help="as without the command")
    doctor.add_argument("--sandbox", action="store_true", help="look at a sandbox instead of AWS")
    doctor.add_argument(
        "--account", metavar="NAME", action="append", default=[], help="only this account (repeatable)"
    )
    doctor.add_argument(
        "--region", metavar="REGION", action="append", default=[], help="only this Region (repeatable)"
    )
    doctor.add_argument(
        "--output", choices=["text", "json"], default="text", help="for people or programs (text)"
    )


def _refuse(error: ConfigError) -> int:
    sys.stderr.write(f"imagetasks-server: {error}\n")
    return 2


def _say_settings(settings: Settings) -> None:
    lines = [f"listens on {settings.listen}"]
    lines += [
        f"account {each.name}: {each.role_arn or _credentials(each)}; {_regions(each)}"
        for each in settings.accounts
    ]
    lines += [
        f"organization {each.name}: role {each.role_name} in {', '.join(each.units) or 'all accounts'}, "
        f"listed with {each.role_arn or _credentials(each)}; {_regions(each)}"
        for each in settings.organizations
    ]
    lines += [f"caller {each.name}: {_sees(each)}" for each in settings.callers]
    if settings.anonymous is not None:
        lines.append(f"without a credential: {_sees(settings.anonymous)}")
    if settings.is_open:
        lines.append("no callers: whoever reaches it may ask everything")
    sys.stdout.write("The configuration is good.\n" + "".join(f"  {line}\n" for line in lines))


def _credentials(access: Access) -> str:
    return f"profile {access.profile}" if access.profile else "ambient credentials"


def _sees(granted: Granted) -> str:
    return (
        f"accounts {', '.join(granted.accounts)}; Regions {', '.join(granted.regions)}; "
        f"methods {', '.join(granted.methods)}"
    )


def _regions(access: Access) -> str:
    excluded = f" except {', '.join(access.exclude_regions)}" if access.exclude_regions else ""
    return (", ".join(access.regions) or "all enabled Regions") + excluded


async def _serve(settings: Settings, sandbox_arguments: Sequence[str] | None) -> None:
    stop = _stop_signals()
    clock = steady_clock()
    log.info(Event.STARTING, version=importlib.metadata.version("imagetasks"))
    async with contextlib.AsyncExitStack() as stack:
        if sandbox_arguments is not None:
            settings, ended = await _use_sandbox(settings, sandbox_arguments, stack)
            ended.add_done_callback(lambda _: _sandbox_ended(stop))
        builders = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="clients"))
        aws = Aws(settings, builders)
        accounts = Accounts(aws.open)
        stack.push_async_callback(accounts.close)
        gateway = assemble(settings, accounts, clock)
        stack.push_async_callback(gateway.close)
        organizations = [(each, await _lister(aws, each, stack)) for each in settings.organizations]
        changed = functools.partial(accounts.replace, gateway.targets)
        roster = Roster(settings.accounts, organizations, changed)
        try:
            await roster.begin()
        except Error as error:
            raise ConfigError(f"accounts.{error.account}: {error.message}") from error
        server, address, servicer = await _listen(settings, gateway)
        stack.push_async_callback(_drain, server, servicer, gateway, settings.drain_seconds)
        await stack.enter_async_context(roster.refreshing())
        warming = asyncio.create_task(_warm(roster, gateway.targets, accounts, servicer, address))
        stack.callback(warming.cancel)
        await stop.wait()


async def _use_sandbox(
    settings: Settings, arguments: Sequence[str], stack: contextlib.AsyncExitStack
) -> tuple[Settings, asyncio.Task[int]]:
    """The settings with the sandbox's accounts, and what resolves if it ends by itself."""
    child = await stack.enter_async_context(sandbox(arguments))
    child.adopt()
    return settings.model_copy(update={"accounts": child.accounts, "organizations": ()}), child.ended


async def _lister(aws: Aws, organization: OrganizationSettings, stack: contextlib.AsyncExitStack) -> Lister:
    try:
        account = await asyncio.to_thread(aws.open, organization, LIST_ACTIONS)
    except Error as error:
        raise ConfigError(f"organizations.{organization.name}: {error.message}") from error
    stack.push_async_callback(account.close)
    return functools.partial(list_members, account, organization)


async def _listen(
    settings: Settings, gateway: Gateway
) -> tuple[grpc.aio.Server, str, health.aio.HealthServicer]:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((gateway.boundary.handler(gateway.service),))
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    names = [SERVICE.full_name, health.SERVICE_NAME]
    if settings.is_local if settings.reflection is None else settings.reflection:
        reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
    await _set_health(servicer, NOT_SERVING)
    try:
        port = server.add_insecure_port(settings.listen)
    except RuntimeError:
        raise ConfigError(f"listen: cannot listen on {settings.listen}; is something else there?") from None
    await server.start()
    unix = settings.listen.startswith("unix:")
    return server, settings.listen if unix else f"{settings.listen.rpartition(':')[0]}:{port}", servicer


async def _warm(
    roster: Roster, targets: Targets, accounts: Accounts, servicer: health.aio.HealthServicer, address: str
) -> None:
    """Find out the targets and build their clients, so that the first call finds everything ready."""
    await roster.tried()
    await targets.discover()
    known = targets.known()
    for target in known:
        try:
            await accounts[target.account].warm(target.region)
        except Error as error:
            log.warning(
                Event.ACCOUNT_FAILED, account=target.account, region=target.region, text=error.message
            )
    # What is there by now stays as long as the process: the collector need not look at it again. Each full
    # look held the loop for 50 ms.
    gc.collect()
    gc.freeze()
    await _set_health(servicer, SERVING)
    log.info(Event.SERVING, address=address, accounts=len(accounts), targets=len(known))


async def _drain(
    server: grpc.aio.Server, servicer: health.aio.HealthServicer, gateway: Gateway, seconds: float
) -> None:
    log.info(Event.DRAINING)
    await servicer.enter_graceful_shutdown()
    # Watches say goodbye with a token, waits answer; whoever else is under way gets its time.
    gateway.followers.drain()
    await server.stop(seconds)
    await gateway.boundary.idle()
    log.info(Event.STOPPED)


async def _set_health(servicer: health.aio.HealthServicer, status: int) -> None:
    for name in ("", SERVICE.full_name):
        await servicer.set(name, status)


def _stop_signals() -> asyncio.Event:
    """Set on the first SIGINT or SIGTERM; a second one ends the process as it would without us."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, first)
    return stop


def _sandbox_ended(stop: asyncio.Event) -> None:
    if not stop.is_set():
        log.error(Event.SANDBOX_ENDED)
        stop.set()
