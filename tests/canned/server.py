"""The canned EC2 over HTTP.

The account is the access key's last 12 characters, the Region that of the signature's scope; the signature
itself is not checked. Worlds are posted to `WORLD_PATH`.
"""

import asyncio
import re
from collections.abc import Mapping

from aiohttp import web

from canned import rules, wire
from canned.world import WORLD_PATH, Refusal, World

_SCOPE = re.compile(r"Credential=(?P<key>[^/,]+)/[0-9]{8}/(?P<region>[^/,]+)/")
_ROLE = re.compile(r"arn:aws:iam::(?P<account>[0-9]{12}):role/.+")


def application(world: World, page_size: int) -> web.Application:
    """The server, answering from the world."""
    made = web.Application(client_max_size=256 * 1024 * 1024)
    server = _Server(world, page_size)
    made.router.add_post("/", server.aws)
    made.router.add_post(WORLD_PATH, server.post)
    return made


class _Server:
    def __init__(self, world: World, page_size: int) -> None:
        self._world = world
        self._page_size = page_size

    async def post(self, request: web.Request) -> web.Response:
        try:
            self._world.post(await request.json())
        except (ValueError, KeyError, TypeError) as error:
            return web.Response(status=400, text=f"{error!r}\n")
        return web.Response(status=204)

    async def aws(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        try:
            text = await self._answer(form, request.headers.get("Authorization", ""))
        except Refusal as refused:
            return _xml(refused.status, wire.refusal(refused))
        return _xml(200, text)

    async def _answer(self, form: Mapping[str, str], authorization: str) -> str:
        scope = _SCOPE.search(authorization)
        if scope is None:
            raise Refusal("MissingAuthenticationToken", "Request is missing Authentication Token", 403)
        account, region = scope["key"][-12:], scope["region"]
        action = form.get("Action", "")
        if action == "DescribeStoreImageTasks":
            target = self._world.target(account, region)
            if target.seconds:
                await asyncio.sleep(target.seconds)
            return wire.tasks(
                *rules.answer(wire.parameters(form), target, f"{account}/{region}", self._page_size)
            )
        if action == "DescribeRegions":
            return wire.regions(self._world.regions(account))
        if action == "GetCallerIdentity":
            return wire.identity(account)
        if action == "AssumeRole" and (role := _ROLE.fullmatch(form.get("RoleArn", ""))):
            return wire.role(role["account"], f"ASIA{role['account']}")
        raise Refusal("InvalidAction", f"The action {action} is not valid for this web service.")


def _xml(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=text, content_type="text/xml", charset="UTF-8")
