"""How the canned EC2 fails when told to: faults by name, for some calls of one target. Pure.

Posted as JSON, and then each call of the target meets the first that fits; DELETE takes all away:

    {"faults": [{"account": "000000000001", "region": "eu-central-1",
                 "fault": "reset", "times": 2, "page": 2}]}

`fault` is a name of `FAULTS`, or `refusal` stands in its place as in a world's target. `times` is how many
calls it lasts; absent: until it is taken away. `page`: 1 only first pages, 2 only those behind a token;
absent: both. `action`: of which action; absent: DescribeStoreImageTasks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from canned.world import Refusal

FAULTS_PATH = "/canned/faults"

# What becomes of the bytes of an answer. "reset": the connection is reset instead; "hang": there are none;
# "slow": they come one by one; "garbage": they are no XML; "truncated": half of them, as if that were all;
# "cut": half of them, then the connection is closed. "proxy": a load balancer's own words, with 502.
Wire = Literal["reset", "hang", "slow", "garbage", "truncated", "cut", "proxy"]

_DENIED = "You are not authorized to perform this operation."

FAULTS: Mapping[str, Refusal | Wire] = {
    "throttle": Refusal("RequestLimitExceeded", "Request limit exceeded.", 503),
    "denied": Refusal(
        "UnauthorizedOperation", f"{_DENIED} Encoded authorization failure message: {'blob' * 50}", 403
    ),
    "denied by SCP": Refusal(
        "UnauthorizedOperation",
        f"{_DENIED} User: arn:aws:sts::000000000001:assumed-role/r/s is not authorized to perform: "
        "ec2:DescribeStoreImageTasks with an explicit deny in a service control policy",
        403,
    ),
    "not opted in": Refusal("OptInRequired", "You are not subscribed to this service.", 401),
    "not enabled": Refusal(
        "AuthFailure", "AWS was not able to validate the provided access credentials", 401
    ),
    "500": Refusal("InternalError", "An internal error has occurred", 500),
    "503": Refusal("Unavailable", "The server is overloaded and can't handle the request.", 503),
    "page token expired": Refusal(
        "InvalidPaginationToken", "The specified pagination token is not valid or is expired."
    ),
    "credentials expired": Refusal(
        "ExpiredToken", "The security token included in the request is expired", 400
    ),
    "clock skew": Refusal("RequestExpired", "Request has expired.", 400),
    "reset": "reset",
    "hang": "hang",
    "slow": "slow",
    "garbage": "garbage",
    "truncated": "truncated",
    "cut": "cut",
    "proxy": "proxy",
}


@dataclass
class Fault:
    """One fault of one target.

    Attributes:
        happens: An error answer, or what becomes of the right one.
        times: Calls that it will still meet; None: all.
        page: Which pages: 1 the first, 2 those behind it, None all.
        action: Of which action.
    """

    happens: Refusal | Wire
    times: int | None = None
    page: int | None = None
    action: str = "DescribeStoreImageTasks"


@dataclass
class Faults:
    """All faults, by account and Region."""

    faults: dict[tuple[str, str], list[Fault]] = field(default_factory=dict)

    def post(self, given: Mapping[str, Any]) -> None:
        """Add faults.

        Raises:
            KeyError, TypeError: They are malformed; none was added.
        """
        parsed = [((each["account"], each["region"]), _parse(each)) for each in given["faults"]]
        for target, fault in parsed:
            self.faults.setdefault(target, []).append(fault)

    def clear(self) -> None:
        """Take all away."""
        self.faults.clear()

    def meet(
        self, account: str, region: str, action: str, *, first_page: bool = True
    ) -> Refusal | Wire | None:
        """What happens to a call that comes now."""
        for fault in self.faults.get((account, region), ()):
            fits = fault.page is None or first_page == (fault.page == 1)
            if fits and fault.action == action and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault.happens
        return None


def _parse(given: Mapping[str, Any]) -> Fault:
    happens = Refusal(**given["refusal"]) if "refusal" in given else FAULTS[given["fault"]]
    more = {name: given[name] for name in ("times", "page", "action") if name in given}
    return Fault(happens, **more)
