"""The sandbox's actions put into moto: which requests of EC2 and STS are answered here instead of by moto."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from moto.core.exceptions import ServiceException
from moto.ec2.responses import EC2Response
from moto.sts.responses import TokenResponse

from imagetasks_sandbox import access, refusal, regions, wire
from imagetasks_sandbox.refusal import Refusal
from imagetasks_sandbox.service import StoreService
from imagetasks_sandbox.throttle import Throttle

_Reply = tuple[int, dict[str, str], str]
_Members = Mapping[str, Any]


class Actions:
    """EC2's actions as moto calls them: moto's parsed request in, the answer's members by wire name out.

    Args:
        service: Does what the actions ask for.
        throttle: How often DescribeStoreImageTasks may be called; None: without limit.
    """

    def __init__(self, service: StoreService, throttle: Throttle | None) -> None:
        self._service = service
        self._throttle = throttle
        self._throttle_lock = threading.Lock()
        self._answers: dict[str, Callable[[Any], _Members]] = {
            "CreateStoreImageTask": self._create,
            "DescribeStoreImageTasks": self._describe,
            "CreateRestoreImageTask": self._restore,
            "DescribeRegions": self._describe_regions,
        }

    def answer(self, request: Any, moto_answers: Callable[[Any], Any]) -> Any:
        """Answer a request to EC2, or have moto do it; refuse every one in a Region that is not enabled."""
        self._service.agenda.run_due()
        action = _action(request)
        try:
            access.check_region(request.region)
            if action not in self._answers:
                return moto_answers(request)
            return _reply(200, wire.response(action, self._answers[action](request)))
        except Refusal as refused:
            return _reply(refused.status, wire.error(refused))
        except ServiceException as refused:  # moto's own, met by one of our actions
            return _reply(400, wire.error(Refusal(refused.code, refused.message)))

    def _create(self, request: Any) -> _Members:
        access.check_action("CreateStoreImageTask", request.current_account, request.region)
        return {"objectKey": self._service.create(request.current_account, request.region, request.params)}

    def _describe(self, request: Any) -> _Members:
        self._take_token(request.current_account, request.region)
        access.check_action("DescribeStoreImageTasks", request.current_account, request.region)
        with self._service.agenda.lock:  # one moment for the page and its percentages
            page, token = self._service.describe(request.current_account, request.region, request.params)
            now = self._service.agenda.now()
            return {"storeImageTaskResultSet": [wire.task(task, now) for task in page], "nextToken": token}

    def _restore(self, request: Any) -> _Members:
        access.check_action("CreateRestoreImageTask", request.current_account, request.region)
        return {"imageId": self._service.restore(request.current_account, request.region, request.params)}

    def _describe_regions(self, request: Any) -> _Members:
        return {"regionInfo": regions.describe(request.params)}

    def _take_token(self, account_id: str, region: str) -> None:
        if self._throttle is not None:
            with self._throttle_lock:
                granted = self._throttle.take(account_id, region)
            if not granted:
                raise refusal.throttled()


def install(actions: Actions) -> None:
    """Make moto ask ``actions`` first, and assume no roles but those of the sandbox's accounts.

    ``call_action`` is where moto has parsed a request and not yet looked for a method named after its action.
    """
    ec2_by_moto = EC2Response.call_action
    sts_by_moto = TokenResponse.call_action

    def ec2(request: Any) -> Any:
        return actions.answer(request, ec2_by_moto)

    def sts(request: Any) -> Any:
        if _action(request) == "AssumeRole":
            try:
                access.check_role(request.params.get("RoleArn", ""))
            except Refusal as refused:
                return _reply(refused.status, wire.sts_error(refused))
        return sts_by_moto(request)

    EC2Response.call_action = ec2  # type: ignore[method-assign, assignment]
    TokenResponse.call_action = sts  # type: ignore[method-assign, assignment]


def _action(request: Any) -> str:
    return str(request._get_action())  # noqa: SLF001 - moto has no public name for it


def _reply(status: int, body: str) -> _Reply:
    return status, {"Content-Type": "text/xml;charset=UTF-8", "Server": "AmazonEC2"}, body
