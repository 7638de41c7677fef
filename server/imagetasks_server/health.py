"""What the health service says, and why.

It says SERVING while calls can be answered at all: from the time when the clients are built, as long as at
least one account has credentials, until the gateway drains. A Region or an account that fails is told in
answers, and overload by refusing calls: taking a whole fleet out of service would mend neither.
"""

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2

from imagetasks_server.arrivals import Arrivals
from imagetasks_server.contract import SERVICE
from imagetasks_server.errors import Error
from imagetasks_server.roster import Roster
from imagetasks_server.targets import Account
from imagetasks_server.telemetry import Event

log = structlog.get_logger()

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING

# What is asked for the whole process, and for the service.
NAMES: Final = ("", SERVICE.full_name)
# What is asked to find out whether the process is alive: it would not be helped by a restart otherwise.
ALIVE: Final = "alive"

# Seconds for which is waited for what is asked.
_ASKED_WITHIN: Final = 5.0
# Who watches health at once; each holds a connection, and nobody is asked who he is.
_WATCHERS: Final = 200
# The longest name that is known is far shorter.
_MAX_NAME_CHARS: Final = 256
# Seconds to tell those who watch. One who does not read holds up the servicer.
_TELL_SECONDS: Final = 1.0
# Seconds until another look while none has any, unless `every` is less.
_RETRY_AFTER: Final = 5.0
# The last one: a role that may not be assumed.
_LACKING: Final = {
    "AWS_CREDENTIALS_UNAVAILABLE",
    "AWS_CREDENTIALS_REJECTED",
    "AWS_CREDENTIALS_EXPIRED",
    "AWS_UNAUTHORIZED_OPERATION",
}
# Accounts whose credentials are looked at together.
_AT_ONCE: Final = 8


class _Servicer(health.aio.HealthServicer):  # type: ignore[misc]  # the library is untyped
    """Answers a check at once, even while somebody who watches and does not read holds up the others.

    Attributes:
        statuses: What is said of each name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.statuses: dict[str, int] = {}
        self._watchers = 0

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802  # gRPC's name
        # A name would be kept as long as the stream lasts.
        if len(request.service) > _MAX_NAME_CHARS:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "there is no service of so long a name")
        if self._watchers >= _WATCHERS:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch the health already")
        self._watchers += 1
        try:
            await super().Watch(request, context)
        finally:
            self._watchers -= 1

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  # gRPC's name
        status = self.statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=status)


class Health:
    """The gateway's health: NOT_SERVING until told otherwise."""

    def __init__(self) -> None:
        self._arrivals = Arrivals(_ASKED_WITHIN)
        self._servicer = _Servicer()
        self._servicer.statuses.update(dict.fromkeys(NAMES, NOT_SERVING))
        self._draining = False

    @property
    def is_serving(self) -> bool:
        """What it says of the whole process."""
        return bool(self._servicer.statuses[NAMES[0]] == SERVING)

    async def add_to(self, server: grpc.aio.Server) -> None:
        """Answer on this server too."""
        named = health.SERVICE_NAME, self._methods()
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(*named),))
        # Those have a queue of their own in gRPC: they are answered while other calls wait.
        server.add_registered_method_handlers(*named)
        await self._set(NOT_SERVING)
        self._servicer.statuses[ALIVE] = SERVING
        await self._servicer.set(ALIVE, SERVING)

    def _methods(self) -> dict[str, "grpc.RpcMethodHandler[Any, Any]"]:
        """As the library's, but that what is asked is not waited for without an end."""
        serializer = health_pb2.HealthCheckResponse.SerializeToString

        async def check(_: object, context: Any) -> Any:
            return await self._servicer.Check(await self._asked(context), context)

        async def watch(_: object, context: Any) -> None:
            await self._servicer.Watch(await self._asked(context), context)

        return {
            "Check": grpc.stream_unary_rpc_method_handler(check, response_serializer=serializer),
            "Watch": grpc.stream_stream_rpc_method_handler(watch, response_serializer=serializer),
        }

    async def _asked(self, context: Any) -> Any:
        try:
            return health_pb2.HealthCheckRequest.FromString(await self._arrivals.message(context))
        except Error as error:
            await context.abort(type(error).code, error.message)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "is not a HealthCheckRequest")

    async def serve(self, *, well: bool) -> bool:
        """From now on it is SERVING, or not. Nothing changes any more once it drains.

        Returns:
            Whether it is SERVING since now.
        """
        if self._draining:
            return False
        begins = well and not self.is_serving
        await self._set(SERVING if well else NOT_SERVING)
        return begins and not self._draining

    async def drain(self) -> None:
        """NOT_SERVING for good."""
        self._draining = True
        await self._set(NOT_SERVING)

    async def _set(self, status: int) -> None:
        self._servicer.statuses.update(dict.fromkeys(NAMES, status))
        for name in NAMES:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TELL_SECONDS):
                    await self._servicer.set(name, status)


class Credentials:
    """Keeps the health at what the accounts' credentials make of it.

    Args:
        accounts: Those there are now, by name.
        roster: Knows of organizations that could not be listed so far.
        every: Seconds between two looks.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        roster: Roster,
        *,
        every: float,
    ) -> None:
        self._accounts = accounts
        self._roster = roster
        self._every = every
        self._are_there = True

    async def look(self) -> bool:
        """Whether any account has credentials. Where AWS does not tell, it is as it was."""
        if self._accounts:
            found = await self._first_answer()
        else:
            found = False if all(map(_lacks, self._roster.unlisted.values())) else None
        if found is not None and found is not self._are_there:
            self._are_there = found
            if found:
                log.info(Event.CREDENTIALS_FOUND)
            else:
                log.error(Event.CREDENTIALS_LACKING)
        return self._are_there

    async def look_after(self, health: Health, serves: Callable[[], None] = lambda: None) -> None:
        """Look again and again, until cancelled. The first look comes after a while.

        Args:
            health: Is told.
            serves: Called each time that it becomes SERVING.
        """
        while True:
            await asyncio.sleep(self._every if self._are_there else min(self._every, _RETRY_AFTER))
            if await health.serve(well=await self.look()):
                serves()

    async def _first_answer(self) -> bool | None:
        """True as soon as an account has credentials; False: none has; None: AWS does not tell of all."""
        waiting = iter([*self._accounts.values()])

        async def ask() -> bool | None:
            answer: bool | None = False
            for account in waiting:
                try:
                    await account.identity()
                except Error as error:
                    answer = answer if _lacks(error) else None
                else:
                    return True
            return answer

        tasks = [asyncio.create_task(ask()) for _ in range(_AT_ONCE)]
        answers: list[bool | None] = []
        try:
            for each in asyncio.as_completed(tasks):
                answers.append(await each)
                if answers[-1]:
                    return True
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        return None if None in answers else False


def _lacks(error: Error) -> bool:
    """Whether it means that there are no credentials. Who one is, STS tells everybody who has any."""
    return error.reason in _LACKING
