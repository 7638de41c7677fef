"""Asks AWS Organizations which accounts there are."""

from collections.abc import Sequence
from typing import Any, Protocol

from imagetasks_server.account_settings import OrganizationSettings
from imagetasks_server.members import Member


class Asks(Protocol):
    """An account at AWS that can be asked."""

    home_region: str

    async def ask(self, service: str, region: str, operation: str, **parameters: Any) -> Any:
        """Any call, as botocore names it. Raises `Error`."""
        ...


async def list_members(account: Asks, settings: OrganizationSettings) -> Sequence[Member]:
    """The active accounts of the organization, or of its named units with all units below them.

    Raises:
        Error: AWS does not tell; nothing is known then, for a part would look like the whole.
    """
    units = list(settings.units)
    accounts = [] if units else await _all(account, "list_accounts", "Accounts")
    seen = set(units)
    for unit in units:  # which grows meanwhile
        accounts += await _all(account, "list_accounts_for_parent", "Accounts", unit)
        below = await _all(account, "list_organizational_units_for_parent", "OrganizationalUnits", unit)
        units += [each["Id"] for each in below if each["Id"] not in seen]
        seen.update(units)
    # State came later than Status, which says the same of an active account.
    active = [each for each in accounts if each.get("State", each.get("Status")) == "ACTIVE"]
    return sorted({Member(each["Id"], each.get("Name", "")) for each in active})


async def _all(account: Asks, operation: str, member: str, parent: str | None = None) -> list[dict[str, Any]]:
    """What all pages of a listing have together."""
    parameters = {"ParentId": parent} if parent else {}
    found: list[dict[str, Any]] = []
    while True:
        # The partition's one endpoint is found from any of its Regions.
        answer = await account.ask("organizations", account.home_region, operation, **parameters)
        found += answer.get(member, ())
        if not answer.get("NextToken"):
            return found
        parameters["NextToken"] = answer["NextToken"]
