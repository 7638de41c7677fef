"""What a check of the doctor is, and what mends AWS's errors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, TypeAlias

from imagetasks_server.errors import Error
from imagetasks_server.targets import Identity

Status: TypeAlias = Literal["ok", "skip", "warn", "fail"]
Task: TypeAlias = Mapping[str, Any]

ACTION: Final = "ec2:DescribeStoreImageTasks"

MAX_SEEN: Final = 200

_LOGIN = "Give the gateway credentials: a role of its own, a profile, or AWS_ACCESS_KEY_ID and its like"
# By the reason of the error.
FIXES: Final = {
    "AWS_CREDENTIALS_UNAVAILABLE": _LOGIN,
    "AWS_CREDENTIALS_REJECTED": "Renew the credentials; look at partition and at this machine's clock, too",
    "AWS_CREDENTIALS_EXPIRED": "Renew the credentials; look at this machine's clock, too",
    "AWS_REGION_NOT_ENABLED": "Enable the Region in the account, or leave it out with exclude_regions",
    "AWS_ACCOUNT_BLOCKED": "Ask AWS Support why the account is blocked",
    "AWS_ACCOUNT_PENDING": "Wait until AWS has verified the account",
    "AWS_THROTTLED": "Somebody else uses the account's allowance: raise budget.reserve, or find them",
    "AWS_TLS_FAILED": "Set ca_bundle to the authorities of the proxy that opens TLS",
    "AWS_UNREACHABLE": "Let this machine reach the endpoint: look at proxy, endpoint_url and the network",
    "AWS_TIMEOUT": "Let this machine reach the endpoint: look at proxy, endpoint_url and the network",
    "AWS_UNAVAILABLE": "AWS has trouble: try again later",
    "AWS_INTERNAL_ERROR": "AWS has trouble: try again later",
    "UPSTREAM_RESPONSE_UNPARSABLE": "Something answers that is not AWS: look at proxy and endpoint_url",
}
_ASSUME: Final = (
    "Let the gateway's identity call sts:AssumeRole on the role, and let the role's trust policy name that "
    "identity and external_id"
)
_ALLOW: Final = (
    "Allow {action} to the account's role; where a service control policy denies the Region, leave it "
    "out with exclude_regions"
)


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked at, and what was seen.

    Attributes:
        name: What was looked at.
        account: The gateway's name.
        region: Empty: the account as a whole.
        status: skip: there was nothing to see it by.
        seen: What was seen.
        fix: What mends it, in a sentence; empty if nothing needs mending.
    """

    name: str
    account: str
    region: str
    status: Status
    seen: str
    fix: str = ""


class Patient(Protocol):
    """An account that can be asked: `ec2.AwsAccount`."""

    home_region: str

    async def identity(self) -> Identity:
        """Which account it is. Raises `Error`."""
        ...

    async def ask(self, service: str, region: str, operation: str, **parameters: Any) -> Any:
        """Any call. Raises `Error`."""
        ...


class Room:
    """Makes the checks of one account or of one target."""

    def __init__(self, account: str, region: str = "") -> None:
        self._account = account
        self._region = region

    def ok(self, name: str, seen: str) -> Check:
        """Nothing to mend."""
        return Check(name, self._account, self._region, "ok", seen)

    def skip(self, name: str, seen: str) -> Check:
        """Nothing to see it by."""
        return Check(name, self._account, self._region, "skip", f"not checked: {seen}")

    def warn(self, name: str, seen: str, fix: str) -> Check:
        """It works, though not as it should."""
        return Check(name, self._account, self._region, "warn", seen, fix)

    def fail(self, name: str, seen: str, fix: str) -> Check:
        """It does not work."""
        return Check(name, self._account, self._region, "fail", seen, fix)

    def failed(self, name: str, error: Error, action: str = ACTION) -> Check:
        """AWS answered with an error."""
        return self.fail(name, seen_of(error), fix_of(error, action))


def seen_of(error: Error) -> str:
    """An error of AWS in one line; a proxy may have answered with a page of HTML."""
    words = " ".join(error.message.split())
    return f"{words[:MAX_SEEN]} [{error.reason}]"


def fix_of(error: Error, action: str = ACTION) -> str:
    """What mends an error of AWS."""
    if error.reason == "AWS_UNAUTHORIZED_OPERATION":
        return _ASSUME if "AssumeRole" in error.message else _ALLOW.format(action=action)
    return FIXES.get(error.reason, "Look up the error code in AWS's documentation, or report it")
