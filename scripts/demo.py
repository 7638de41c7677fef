"""`make run`: the gateway on a sandbox, and what it tells, in one terminal.

Starts `imagetasks-server --sandbox` and watches: prints the tasks of each target as it is covered and the
lines to type in another terminal, then what changes: on a terminal the tasks in progress stand in the table
of `imagetasks watch`, elsewhere each change is a line. Ends by itself after `RUN_SECONDS`, if that is set,
and ends everything that it started.
"""

import asyncio
import collections
import contextlib
import errno
import json
import math
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

import imagetasks
from imagetasks.cli.board import STYLES, Board, summary
from imagetasks.v1 import store_image_tasks_pb2 as pb

PORT = 50051
SPEED = 4  # A store takes half a minute, so that some end while one looks.
START_SECONDS = 60.0
STOP_SECONDS = 20.0  # The gateway gives calls under way 10 s, and the sandbox 5 s.
REDRAWS_PER_SECOND = 4.0
SHOWN_PER_TARGET = 3
LOG_LINES = 20

SERVICE = "imagetasks.v1.StoreImageTaskService"


class _Console(Console):
    """Rich's, but with the gateway still to be stopped it must not end the process by itself."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class DemoError(Exception):
    """What ends the demonstration with exit code 1, in words for the user."""


def main() -> int:
    """The command; returns the exit code."""
    try:
        seconds = _seconds(os.environ.get("RUN_SECONDS") or "inf")
    except ValueError as error:
        sys.stderr.write(f"make run: {error}\n")
        return 2
    try:
        asyncio.run(_run(seconds))
    except (DemoError, imagetasks.Error) as error:
        sys.stderr.write(f"make run: {error}\n")
        return 1
    except OSError as error:
        # The reader left, as `head` does, or the terminal was closed.
        if error.errno not in {errno.EPIPE, errno.EIO}:
            raise
        # Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


async def _run(seconds: float) -> None:
    console = _Console(markup=False, highlight=False, emoji=False)
    asked = _asked_to_end()
    with contextlib.suppress(asyncio.CancelledError):
        starting = asyncio.create_task(_start_and_show(console, seconds))
        ending = asyncio.create_task(asked.wait())
        try:
            await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            starting.cancel()
            await starting
    console.print("Ended; nothing is left running.")


async def _start_and_show(console: Console, seconds: float) -> None:
    console.print("Starting the gateway, and a sandbox in place of AWS ...")
    async with _gateway() as gateway:
        showing = asyncio.create_task(_show(console, gateway.serving.result()))
        try:
            await asyncio.wait(
                {showing, gateway.ended},
                timeout=None if math.isinf(seconds) else seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if showing.done():
                # It ends by an error only, most likely because the gateway has ended.
                await asyncio.wait({gateway.ended}, timeout=1.0)
            if gateway.ended.done():
                raise gateway.failure("ended")
            if showing.done():
                showing.result()
        finally:
            showing.cancel()
            await asyncio.gather(showing, return_exceptions=True)


@dataclass(frozen=True)
class _Gateway:
    """The gateway as a child process.

    Attributes:
        serving: Resolves to the address where it listens.
        ended: Resolves to its exit code.
        log: Its last lines.
    """

    serving: asyncio.Future[str]
    ended: asyncio.Task[int]
    log: collections.deque[str]

    def failure(self, words: str) -> DemoError:
        """What the gateway did, and its last words."""
        return DemoError("\n  ".join([f"the gateway {words}; its last words:", *self.log]))


@contextlib.asynccontextmanager
async def _gateway() -> AsyncIterator[_Gateway]:
    """The gateway, ready; in the end it is stopped, and its sandbox with it.

    Raises:
        DemoError: It does not start.
    """
    listen = f"127.0.0.1:{PORT if _is_free(PORT) else 0}"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "imagetasks_server", "--listen", listen),
        *("--sandbox", "--sandbox-speed", str(SPEED)),
        # It ends with our pipe, so also if we are killed.
        "--exit-with-stdin",
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Settings of another gateway have no place here.
        env={name: value for name, value in os.environ.items() if not name.startswith("IMAGETASKS_")},
        # Ctrl-C on the terminal is for us; the gateway is asked to end once, in order.
        start_new_session=True,
    )
    assert child.stderr is not None
    gateway = _Gateway(
        asyncio.get_running_loop().create_future(),
        asyncio.create_task(child.wait()),
        collections.deque(maxlen=LOG_LINES),
    )
    reading = asyncio.create_task(_read_log(child.stderr, gateway))
    try:
        first: set[asyncio.Future[Any]] = {gateway.serving, gateway.ended}
        await asyncio.wait(first, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if gateway.ended.done():
            await reading
            raise gateway.failure("ended before it was ready")
        if not gateway.serving.done():
            raise gateway.failure(f"was not ready after {START_SECONDS:g} s")
        await _check_health(gateway.serving.result())
        yield gateway
    finally:
        # Before anything is awaited, so that it is asked to end even if we are cancelled again.
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
        await asyncio.wait({gateway.ended}, timeout=STOP_SECONDS)
        if child.returncode is None:
            child.kill()
        await gateway.ended
        await reading


async def _read_log(stderr: asyncio.StreamReader, gateway: _Gateway) -> None:
    """Keeps the last lines, and notices the one that tells the address."""
    async for line in stderr:
        text = line.decode(errors="replace").rstrip()
        gateway.log.append(text)
        if not gateway.serving.done():
            with contextlib.suppress(ValueError):
                entry = json.loads(text)
                if isinstance(entry, dict) and entry.get("event") == "serving":
                    gateway.serving.set_result(entry["address"])


async def _check_health(address: str) -> None:
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=START_SECONDS)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise DemoError("the gateway says that it does not serve")


async def _show(console: Console, address: str) -> None:
    """Watches, until cancelled."""
    async with imagetasks.connect(address) as client:
        known = len((await client.targets()).targets)
        console.print(f"The gateway listens on {address} and asks {known} targets:\n")
        async with client.watch() as watch:
            news = _News(console, watch)
            while not news.is_complete and (changes := await watch.heard()) is not None:
                news.tell(changes)
            with _live(console, watch, _hints(address)) as board:
                while (changes := await watch.heard()) is not None:
                    if board is not None:
                        board.update(watch, changes)
                    news.tell(changes, progress=board is None)


@contextlib.contextmanager
def _live(console: Console, watch: imagetasks.Watch, hints: str) -> Iterator[Board | None]:
    """On a terminal keeps hints and the table below all else; elsewhere prints the hints."""
    if not console.is_terminal:
        console.print(hints, soft_wrap=True)
        yield None
        return
    text = Text(hints)
    # The hints, and a few of the lines above.
    board = Board(console, reserved=len(text.wrap(console, console.width)) + 2)
    board.update(watch, ())
    with Live(
        console=console,
        get_renderable=lambda: Group(text, board.draw()),
        refresh_per_second=REDRAWS_PER_SECOND,
        transient=True,
    ):
        yield board


class _News:
    """A heading for each target when its tasks are known, and then a line for each change."""

    def __init__(self, console: Console, watch: imagetasks.Watch) -> None:
        self._console = console
        self._watch = watch
        self._told: set[tuple[str, str]] = set()

    @property
    def is_complete(self) -> bool:
        """Every target has been told of."""
        return self._watch.is_live and self._watch.targets <= self._told

    def tell(self, changes: Iterable[imagetasks.Change], *, progress: bool = True) -> None:
        """Prints what is new; of a task that only comes along, if asked."""
        for place in sorted((self._watch.covered | self._watch.stale.keys()) - self._told):
            self._told.add(place)
            self._tell_target(place)
        for change in changes:
            if change.is_first:
                continue
            if change.has_ended:
                self._print(_line(change.task, "ended"))
            elif change.before is None:
                self._print(_line(change.task, "new"))
            elif progress and change.task.progress_percentage != change.before.progress_percentage:
                self._print(_line(change.task, f"was {change.before.progress_percentage}%"))

    def _tell_target(self, place: tuple[str, str]) -> None:
        name = "/".join(place)
        stale = self._watch.stale.get(place)
        if stale is not None:
            self._print(Text(f"{name}: {stale.error.message}", "yellow"))
            return
        tasks = [task for task in self._watch.tasks.values() if (task.account, task.region) == place]
        tasks.sort(key=lambda task: task.task_start_time.ToNanoseconds(), reverse=True)
        self._print(Text(f"{name}: {summary(tasks)}", "bold"))
        for task in tasks[:SHOWN_PER_TARGET]:
            self._print(_line(task))

    def _print(self, line: Text) -> None:
        # A line of a terminal each; a file takes lines of any length.
        terminal = self._console.is_terminal
        self._console.print(
            line, no_wrap=terminal, overflow="ellipsis" if terminal else None, soft_wrap=not terminal
        )


def _line(task: pb.StoreImageTaskResult, note: str = "") -> Text:
    state = _state(task)
    text = Text.assemble(
        f"  {task.account:<12}{task.region:<16}{task.ami_id:<23}",
        (f"{state:<11}", STYLES.get(state, "")),
        f"{task.progress_percentage:>4}%  ",
    )
    text.append(f"({note})  " if note else "")
    text.append(task.store_task_failure_reason or f"s3://{task.bucket}/{task.s3_object_key}")
    return text


def _state(task: pb.StoreImageTaskResult) -> str:
    return task.ec2_store_task_state or "-"


def _hints(address: str) -> str:
    command = Path(sys.executable).with_name("imagetasks")
    with contextlib.suppress(ValueError):
        command = command.relative_to(Path.cwd())
    endpoint = "" if address == f"127.0.0.1:{PORT}" else f" --endpoint-url {address}"
    busy = f"Port {PORT} was taken, so this gateway is on another one.\n" if endpoint else ""
    lines = [
        f"{command} stream{endpoint} --filters Name=task-state,Values=InProgress",
        f"{command} watch{endpoint}",
        f"{command} targets{endpoint}",
        f"grpcurl -plaintext {address} list",
        f"grpcurl -plaintext {address} {SERVICE}/ListTargets",
    ]
    missing = "" if shutil.which("grpcurl") else " (grpcurl is not on this machine)"
    text = "".join(f"  {line}\n" for line in lines)
    return f"\n{busy}To type in another terminal, in this directory{missing}:\n\n{text}"


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As the gateway would: a port whose last connections linger is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _asked_to_end() -> asyncio.Event:
    """Set when the user or the system wants us to end; a terminal that closes does too."""
    asked = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # nohup ignores the last one.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise ValueError(f"RUN_SECONDS: {text!r} is not a number of seconds above 0")
    return number


if __name__ == "__main__":
    sys.exit(main())
