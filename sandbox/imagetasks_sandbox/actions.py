"""The sandbox's actions put into moto: which request of EC2 and STS is answered by us instead of by moto."""

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

_Members = Mapping[str, Any]
_Reply = tuple[int, dict[str, str], str]
_XML = "text/xml;charset=UTF-8"


def install(service: StoreService, throttle: Throttle | None) -> None:
    """Teach moto the store and restore actions, DescribeRegions, Regions that are not enabled, and closed roles.

    Args:
        service: Does what the actions ask for.
        throttle: What DescribeStoreImageTasks may be called; None: without limit.
    """
    throttle_lock = threading.Lock()

    def create(response: Any) -> _Members:
        access.check_action("CreateStoreImageTask", response.current_account, response.region)
        return {"objectKey": service.create(response.current_account, response.region, response.params)}

    def describe(response: Any) -> _Members:
        if throttle is not None:
            with throttle_lock:
                granted = throttle.take(response.current_account, response.region)
            if not granted:
                raise refusal.throttled()
        access.check_action("DescribeStoreImageTasks", response.current_account, response.region)
        with service.agenda.lock:  # one moment for the page and for its percentages
            page, token = service.describe(response.current_account, response.region, response.params)
            now = service.agenda.now()
            return {"storeImageTaskResultSet": [wire.task(task, now) for task in page], "nextToken": token}

    def restore(response: Any) -> _Members:
        access.check_action("CreateRestoreImageTask", response.current_account, response.region)
        return {"imageId": service.restore(response.current_account, response.region, response.params)}

    def describe_regions(response: Any) -> _Members:
        return {"regionInfo": regions.describe(response.params)}

    ours: dict[str, Callable[[Any], _Members]] = {
        "CreateStoreImageTask": create,
        "DescribeStoreImageTasks": describe,
        "CreateRestoreImageTask": restore,
        "DescribeRegions": describe_regions,
    }
    moto_answers = EC2Response.call_action

    def call_action(response: Any) -> Any:
        service.agenda.run_due()
        action = response._get_action()  # noqa: SLF001 - moto's own name for it; there is no other
        try:
            access.check_region(response.region)
            if action not in ours:
                return moto_answers(response)
            return _reply(200, wire.response(action, ours[action](response)))
        except Refusal as refused:
            return _reply(refused.status, wire.error(refused))
        except ServiceException as refused:  # moto's, met by one of our actions
            return _reply(400, wire.error(Refusal(refused.code, refused.message)))

    EC2Response.call_action = call_action
    _close_roles()


def _close_roles() -> None:
    moto_answers = TokenResponse.call_action

    def call_action(response: Any) -> Any:
        if response._get_action() == "AssumeRole":  # noqa: SLF001 - as above
            try:
                access.check_role(response.params.get("RoleArn", ""))
            except Refusal as refused:
                return _reply(refused.status, wire.sts_error(refused))
        return moto_answers(response)

    TokenResponse.call_action = call_action


def _reply(status: int, body: str) -> _Reply:
    return status, {"Content-Type": _XML, "Server": "AmazonEC2"}, body
