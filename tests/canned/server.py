"""The canned EC2 over HTTP.

The account is the access key's last 12 characters, the Region that of the signature's scope; the signature
itself is not checked. Worlds are posted to `WORLD_PATH`, faults to `FAULTS_PATH`, limits to `LIMITS_PATH`;
`CALLS_PATH` tells the calls of DescribeStoreImageTasks.
"""

import asyncio
import re
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from canned import rules, wire
from canned.faults import FAULTS_PATH, Faults, Wire
from canned.throttle import CALLS_PATH, LIMITS_PATH, Throttle
from canned.world import WORLD_PATH, Refusal, World

# Between two bytes of a slow answer: the connection never seems dead, and the whole takes minutes.
_SLOW_SECONDS = 0.05
_THROTTLED = Refusal("RequestLimitExceeded", "Request limit exceeded.", 503)

_SCOPE = re.compile(r"Credential=(?P<key>[^/,]+)/[0-9]{8}/(?P<region>[^/,]+)/")
_ROLE = re.compile(r"arn:aws:iam::(?P<account>[0-9]{12}):role/.+")


def application(world: World, page_size: int) -> web.Application:
    """The server, answering from the world."""
    made = web.Application(client_max_size=256 * 1024 * 1024)
    server = _Server(world, page_size)
    made.router.add_post("/", server.aws)
    for path, post in (
        (WORLD_PATH, world.post),
        (FAULTS_PATH, server.faults.post),
        (LIMITS_PATH, server.throttle.post),
    ):
        made.router.add_post(path, _poster(post))
    made.router.add_delete(FAULTS_PATH, server.clear_faults)
    made.router.add_get(CALLS_PATH, server.calls)
    return made


def _poster(post: Callable[[Any], None]) -> Callable[[web.Request], Any]:
    async def posted(request: web.Request) -> web.Response:
        try:
            post(await request.json())
        except (ValueError, KeyError, TypeError) as error:
            return web.Response(status=400, text=f"{error!r}\n")
        return web.Response(status=204)

    return posted


class _Server:
    def __init__(self, world: World, page_size: int) -> None:
        self.faults = Faults()
        self.throttle = Throttle()
        self._world = world
        self._page_size = page_size

    async def clear_faults(self, _: web.Request) -> web.Response:
        self.faults.clear()
        return web.Response(status=204)

    async def calls(self, _: web.Request) -> web.Response:
        return web.json_response(self.throttle.told())

    async def aws(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        try:
            text, spoiled = await self._answer(form, request.headers.get("Authorization", ""))
        except Refusal as refused:
            return _xml(refused.status, wire.refusal(refused))
        return await _spoil(request, text, spoiled) if spoiled else _xml(200, text)

    async def _answer(self, form: Mapping[str, str], authorization: str) -> tuple[str, Wire | None]:
        scope = _SCOPE.search(authorization)
        if scope is None:
            raise Refusal("MissingAuthenticationToken", "Request is missing Authentication Token", 403)
        account, region = scope["key"][-12:], scope["region"]
        action = form.get("Action", "")
        if action == "DescribeStoreImageTasks":
            return await self._tasks(form, account, region, scope["key"])
        fault = self.faults.meet(account, region, action)
        if isinstance(fault, Refusal):
            raise fault
        if action == "DescribeRegions":
            return wire.regions(self._world.regions(account)), fault
        if action == "GetCallerIdentity":
            return wire.identity(account), fault
        if action == "AssumeRole" and (role := _ROLE.fullmatch(form.get("RoleArn", ""))):
            return wire.role(role["account"], f"ASIA{role['account']}"), fault
        raise Refusal("InvalidAction", f"The action {action} is not valid for this web service.")

    async def _tasks(
        self, form: Mapping[str, str], account: str, region: str, key: str
    ) -> tuple[str, Wire | None]:
        if not self.throttle.take(account, region, key, time.monotonic()):
            raise _THROTTLED
        target = self._world.target(account, region)
        if target.seconds:
            await asyncio.sleep(target.seconds)
        parameters = wire.parameters(form)
        first = "NextToken" not in parameters
        fault = self.faults.meet(account, region, form["Action"], first_page=first)
        if isinstance(fault, Refusal):
            raise fault
        answer = rules.answer(parameters, target, f"{account}/{region}", self._page_size)
        return wire.tasks(*answer), fault


async def _spoil(request: web.Request, text: str, how: Wire) -> web.StreamResponse:
    """What a fault makes of a good answer."""
    body = text.encode()
    if how == "hang":
        # Until the caller leaves, which cancels this.
        await asyncio.Event().wait()
    if how == "garbage":
        return _xml(200, "\x1f\x8bno XML at all")
    if how == "truncated":
        return _xml(200, text[: len(text) // 2])
    if how == "proxy":
        return web.Response(status=502, text="upstream connect error or disconnect/reset before headers")
    if how == "reset":
        _reset(request)
        return web.Response()
    response = web.StreamResponse(headers={"Content-Type": "text/xml;charset=UTF-8"})
    response.content_length = len(body)
    await response.prepare(request)
    if how == "cut":
        await response.write(body[: len(body) // 2])
        _reset(request)
    for place in range(len(body) if how == "slow" else 0):
        await response.write(body[place : place + 1])
        await asyncio.sleep(_SLOW_SECONDS)
    return response


def _reset(request: web.Request) -> None:
    transport = request.transport
    if transport is not None:
        # Without lingering a close is a reset.
        transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        transport.abort()


def _xml(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, content_type="text/xml", charset="UTF-8")
