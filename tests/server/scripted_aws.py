"""An AWS of one account at a time that answers by script: EC2, STS and Organizations on one address.

    async with scripted_aws() as aws:
        aws.refuse("DescribeStoreImageTasks", "RequestLimitExceeded", status=503, times=2)
        ...
        aws.asked("AssumeRole")[0].form["ExternalId"]

Every AssumeRole gives another key, so that a test sees whose credentials a request was signed with.
"""

import contextlib
import json
import re
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from canned import wire
from canned.world import Refusal

ACCOUNT = "123456789012"


@dataclass(frozen=True)
class Request:
    """What was asked."""

    action: str
    form: Mapping[str, Any]
    key: str
    region: str
    path: str
    headers: Mapping[str, str]


@dataclass
class ScriptedAws:
    """What was asked so far, and what to answer.

    Attributes:
        url: Its address.
        requests: All, in order.
        regions: What DescribeRegions says.
        expired: Access keys that are no longer taken.
        pages: What Organizations answers, by action and ParentId (else ""), a list of pages each.
    """

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    regions: list[str] = field(default_factory=lambda: ["eu-central-1", "us-east-1"])
    expired: set[str] = field(default_factory=set)
    pages: dict[tuple[str, str], list[list[dict[str, str]]]] = field(default_factory=dict)
    _refusals: defaultdict[str, deque[Refusal]] = field(default_factory=lambda: defaultdict(deque))
    _roles: int = 0

    def asked(self, action: str) -> list[Request]:
        """The requests of one action."""
        return [each for each in self.requests if each.action == action]

    def refuse(self, action: str, code: str, *, status: int = 400, times: int = 1) -> None:
        """Refuse the next requests of an action."""
        self._refusals[action].extend([Refusal(code, f"AWS says {code}", status)] * times)

    async def answer(self, request: web.Request) -> web.Response:
        authorization = request.headers.get("Authorization", "")
        scope = re.search(r"Credential=([^/]+)/[0-9]+/([^/]+)/", authorization)
        key, region = scope.groups() if scope else ("", "")
        target = request.headers.get("X-Amz-Target")
        form = json.loads(await request.text()) if target else dict(await request.post())
        action = target.rpartition(".")[2] if target else str(form["Action"])
        self.requests.append(Request(action, form, key, region, str(request.url), request.headers))
        if key in self.expired:
            self._refusals[action].appendleft(Refusal("ExpiredToken", "The token is expired"))
        if self._refusals[action]:
            refusal = self._refusals[action].popleft()
            if target:
                return web.json_response(
                    {"__type": refusal.code, "message": refusal.message}, status=refusal.status
                )
            return web.Response(status=refusal.status, text=wire.refusal(refusal), content_type="text/xml")
        if target:
            return web.json_response(self._page(action, form))
        return web.Response(text=self._text(action), content_type="text/xml")

    def _text(self, action: str) -> str:
        if action == "AssumeRole":
            self._roles += 1
            return wire.role(ACCOUNT, f"ASIAROLE{self._roles:012}")
        if action == "GetCallerIdentity":
            return wire.identity(ACCOUNT)
        if action == "DescribeRegions":
            return wire.regions(self.regions)
        assert action == "DescribeStoreImageTasks"
        return wire.tasks([], None)

    def _page(self, action: str, form: Mapping[str, Any]) -> dict[str, Any]:
        pages = self.pages.get((action, form.get("ParentId", "")), [[]])
        number = int(form.get("NextToken", 0))
        member = "OrganizationalUnits" if action.startswith("ListOrganizational") else "Accounts"
        more = {"NextToken": str(number + 1)} if number + 1 < len(pages) else {}
        return {member: pages[number], **more}


@contextlib.asynccontextmanager
async def scripted_aws() -> AsyncIterator[ScriptedAws]:
    """Serve one on a free port."""
    aws = ScriptedAws()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", aws.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        aws.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield aws
    finally:
        await runner.cleanup()
