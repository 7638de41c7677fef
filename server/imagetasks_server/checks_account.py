"""What the doctor looks at in an account: who it is, its Regions, the clock, its quotas."""

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from imagetasks_server.account_settings import AccountSettings
from imagetasks_server.checks import Check, Patient, Room, fix_of, seen_of
from imagetasks_server.errors import Error
from imagetasks_server.targets import Identity

# AWS refuses requests that are signed five minutes off.
SKEW_WARNS: Final = 30.0
SKEW_FAILS: Final = 240.0
QUOTA_PAGES: Final = 5

_OPERATION: Final = "DescribeStoreImageTasks"

_QUOTA_FIX: Final = (
    "Allow servicequotas:ListServiceQuotas to see it, or compare budget.capacity and budget.refill with the "
    "console's Service Quotas by hand"
)


async def check_account(
    patient: Patient, settings: AccountSettings, *, ask_quotas: bool
) -> tuple[list[Check], list[str]]:
    """The checks of an account, and the Regions that are its targets."""
    room = Room(settings.name)
    try:
        identity = await patient.identity()
    except Error as error:
        return [room.failed("credentials", error)], []
    checks = [room.ok("credentials", "found, and STS accepts them"), _identity(room, settings, identity)]
    try:
        answer = await patient.ask("ec2", patient.home_region, "describe_regions")
    except Error as error:
        checks.append(_no_regions(room, settings, error))
        return checks, _targets(settings, settings.regions)
    enabled = [each["RegionName"] for each in answer["Regions"]]
    checks += [_regions(room, settings, enabled), _clock(room, answer)]
    if ask_quotas:
        checks.append(await _quota(room, patient))
    return checks, _targets(settings, settings.regions or enabled)


def _targets(settings: AccountSettings, regions: Sequence[str]) -> list[str]:
    return sorted(set(regions).difference(settings.exclude_regions))


def _identity(room: Room, settings: AccountSettings, identity: Identity) -> Check:
    seen = f"account {identity.account_id}, partition {identity.partition}"
    if identity.partition != settings.partition:
        return room.fail("identity", seen, f'Set partition = "{identity.partition}"')
    return room.ok("identity", seen)


def _no_regions(room: Room, settings: AccountSettings, error: Error) -> Check:
    if settings.regions:
        text = f"the configured ones are used; which are enabled is not known: {seen_of(error)}"
        return room.warn("regions", text, fix_of(error, "ec2:DescribeRegions"))
    return room.failed("regions", error, "ec2:DescribeRegions")


def _regions(room: Room, settings: AccountSettings, enabled: Sequence[str]) -> Check:
    targets = _targets(settings, settings.regions or enabled)
    seen = f"{len(targets)} of {len(enabled)} enabled Regions are targets"
    if settings.exclude_regions:
        seen += f"; excluded: {', '.join(settings.exclude_regions)}"
    if missing := sorted(set(targets).difference(enabled)):
        fix = "Enable these Regions in the account, or take them out of regions"
        return room.fail("regions", f"{seen}; not enabled: {', '.join(missing)}", fix)
    return room.ok("regions", seen)


def _clock(room: Room, answer: Any) -> Check:
    date = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    if not date:
        return room.skip("clock", "the answer has no date")
    skew = (datetime.now(UTC) - parsedate_to_datetime(date)).total_seconds()
    # The header is cut to the second, and the answer took a while.
    seen = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} AWS's"
    fix = "Set this machine's clock, and let NTP or chrony keep it"
    if abs(skew) >= SKEW_FAILS:
        return room.fail("clock", seen, fix)
    return room.warn("clock", seen, fix) if abs(skew) >= SKEW_WARNS else room.ok("clock", seen)


async def _quota(room: Room, patient: Patient) -> Check:
    """The throttle's limits, where Service Quotas lists them. They are per Region: this is one Region's."""
    found: dict[str, float] = {}
    more: dict[str, str] = {}
    for _ in range(QUOTA_PAGES):
        try:
            answer = await patient.ask(
                "service-quotas",
                patient.home_region,
                "list_service_quotas",
                ServiceCode="ec2",
                MaxResults=100,
                **more,
            )
        except Error as error:
            return room.warn("quota", f"Service Quotas cannot be asked: {seen_of(error)}", _QUOTA_FIX)
        ours = [each for each in answer["Quotas"] if _OPERATION in each["QuotaName"]]
        found |= {each["QuotaName"]: each["Value"] for each in ours}
        if not answer.get("NextToken"):
            break
        more = {"NextToken": answer["NextToken"]}
    if not found:
        return room.skip("quota", "Service Quotas lists none of this action; AWS documents 50 and 0.5/s")
    listed = ", ".join(f"{name}: {value:g}" for name, value in sorted(found.items()))
    return room.ok("quota", f"in {patient.home_region} {listed}; compare budget.capacity and budget.refill")
