"""Accounts of organizations: what they are called, how they are found, and how they come and go."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import pytest
from fake_ec2 import FakeAccount, FakeWorld, Hold
from hypothesis import given
from hypothesis import strategies as st
from scripted_aws import ScriptedAws
from virtual import VirtualClock, run

from imagetasks_sandbox.launch import sandbox
from imagetasks_server.account_settings import AccountSettings, OrganizationSettings
from imagetasks_server.accounts import Accounts
from imagetasks_server.assembly import assemble
from imagetasks_server.aws_models import LIST_ACTIONS
from imagetasks_server.aws_organizations import list_members
from imagetasks_server.clock import steady_clock
from imagetasks_server.config import Settings
from imagetasks_server.ec2 import Aws
from imagetasks_server.errors import Error, NotFound, PermissionDenied
from imagetasks_server.members import Member, accounts_of, all_accounts
from imagetasks_server.roster import RETRY_AFTER, Roster
from imagetasks_server.targets import Targets
from imagetasks_server.upstream import Query

PROD = Member("111122223333", "Images Prod")
DEV = Member("444455556666", "dev")
ROOT, UNIT, BELOW = "r-ab12", "ou-ab12-cdef3456", "ou-ab12-cdef9999"


def company(**keys: Any) -> OrganizationSettings:
    return OrganizationSettings(**{"name": "company", "role_name": "imagetasks", **keys})


def names(organization: OrganizationSettings, *members: Member, taken: Sequence[str] = ()) -> list[str]:
    return [each.name for each in accounts_of(organization, members, taken)]


# What they are called.


def test_an_account_has_its_name_and_its_role() -> None:
    organization = company(
        role_name="/path/reader", external_id="x1", regions=["eu-west-1"], exclude_regions=["eu-west-2"]
    )
    (account,) = accounts_of(organization, [PROD], ())
    assert account == AccountSettings(
        name="Images-Prod",
        role_arn="arn:aws:iam::111122223333:role/path/reader",
        external_id="x1",
        regions=("eu-west-1",),
        exclude_regions=("eu-west-2",),
    )
    gov = company(partition="aws-us-gov", use_fips=True, profile="gov", home_region="us-gov-east-1")
    (account,) = accounts_of(gov, [PROD], ())
    assert account.role_arn == "arn:aws-us-gov:iam::111122223333:role/imagetasks"
    assert (account.use_fips, account.profile, account.home_region) == (True, "gov", "us-gov-east-1")


def test_the_template_makes_the_name() -> None:
    assert names(company(name_template="c-{account_id}"), PROD) == ["c-111122223333"]
    assert names(company(name_template="{account_name}.{account_id}"), DEV) == ["dev.444455556666"]


def test_what_a_name_cannot_have_becomes_a_dash_and_what_is_left_empty_the_id() -> None:
    assert names(company(), Member("1" * 12, "-Ümläut & Söhne-")) == ["ml-ut-S-hne"]
    assert names(company(), Member("1" * 12, "日本")) == ["1" * 12]


def test_those_that_would_share_a_name_all_get_their_id() -> None:
    twins = [Member("1" * 12, "same"), Member("2" * 12, "same")]
    assert names(company(), *twins) == ["same-111111111111", "same-222222222222"]
    assert names(company(), *reversed(twins)) == ["same-111111111111", "same-222222222222"]
    assert names(company(), DEV, taken=["dev"]) == ["dev-444455556666"]


def test_excluded_accounts_are_left_out() -> None:
    assert names(company(exclude_accounts=[PROD.account_id]), PROD, DEV) == ["dev"]


def test_configured_accounts_and_organizations_keep_their_names() -> None:
    dev = AccountSettings(name="dev")
    other = company(name="other")
    found = all_accounts([dev], [(company(), [DEV, Member("1" * 12, "other")]), (other, [DEV])])
    assert [each.name for each in found][:2] == ["dev", "other-111111111111"]
    assert len({each.name for each in found}) == len(found) - 1  # the same account, found twice


@given(st.lists(st.tuples(st.integers(0, 99), st.text(max_size=80)), unique_by=lambda each: each[0]))
def test_whatever_accounts_are_called_each_gets_a_name_of_its_own(members: list[tuple[int, str]]) -> None:
    found = accounts_of(company(), [Member(f"{number:012}", name) for number, name in members], ["dev"])
    assert len({each.name for each in found}) == len(members)
    assert "dev" not in {each.name for each in found}


# How they are found.


async def listed(organization: OrganizationSettings) -> Sequence[Member]:
    with ThreadPoolExecutor(1) as builders:
        aws = Aws(Settings(organizations=[organization], attempts=1), builders)
        account = await asyncio.to_thread(aws.open, organization, LIST_ACTIONS)
        try:
            return await list_members(account, organization)
        finally:
            await account.close()


def active(*members: Member, state: str = "ACTIVE") -> list[dict[str, str]]:
    return [{"Id": each.account_id, "Name": each.name, "Status": state} for each in members]


async def test_all_pages_are_read_and_only_active_accounts_count(aws: ScriptedAws) -> None:
    gone = active(Member("9" * 12, "gone"), state="SUSPENDED")
    aws.pages["ListAccounts", ""] = [active(PROD) + gone, [], active(DEV)]
    assert await listed(company()) == [PROD, DEV]
    assert len(aws.asked("ListAccounts")) == 3


async def test_a_state_outweighs_a_status(aws: ScriptedAws) -> None:
    aws.pages["ListAccounts", ""] = [
        [{**active(PROD)[0], "State": "CLOSED"}, {**active(DEV)[0], "State": "ACTIVE"}]
    ]
    assert await listed(company()) == [DEV]


async def test_units_are_read_with_all_units_below_them(aws: ScriptedAws) -> None:
    aws.pages["ListAccountsForParent", UNIT] = [active(PROD)]
    aws.pages["ListAccountsForParent", BELOW] = [[], active(DEV)]
    aws.pages["ListOrganizationalUnitsForParent", UNIT] = [[], [{"Id": BELOW}, {"Id": UNIT}]]
    assert await listed(company(units=[UNIT])) == [PROD, DEV]
    assert not aws.asked("ListAccounts")
    assert len(aws.asked("ListOrganizationalUnitsForParent")) == 3


async def test_a_part_is_no_listing(aws: ScriptedAws) -> None:
    aws.pages["ListAccountsForParent", UNIT] = [active(PROD)]
    aws.refuse("ListOrganizationalUnitsForParent", "AccessDeniedException")
    with pytest.raises(PermissionDenied) as caught:
        await listed(company(units=[UNIT]))
    assert (caught.value.reason, caught.value.account) == ("AWS_UNAUTHORIZED_OPERATION", "company")
    assert "ListOrganizationalUnitsForParent" in caught.value.message


async def test_it_is_listed_with_the_role_that_may(aws: ScriptedAws) -> None:
    await listed(company(role_arn="arn:aws:iam::123456789012:role/lister", external_id="x1"))
    (assumed,) = aws.asked("AssumeRole")
    assert assumed.form["RoleArn"].endswith("role/lister")
    assert aws.asked("ListAccounts")[0].key.startswith("ASIAROLE")


async def test_a_real_organization_is_found_as_moto_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill() -> tuple[str, set[str]]:
        client = boto3.client("organizations")
        client.create_organization(FeatureSet="ALL")
        root = client.list_roots()["Roots"][0]["Id"]
        unit = client.create_organizational_unit(ParentId=root, Name="a")["OrganizationalUnit"]["Id"]
        below = client.create_organizational_unit(ParentId=unit, Name="b")["OrganizationalUnit"]["Id"]
        inside = set()
        for number, parent in enumerate([root, unit, below]):
            status = client.create_account(AccountName=f"account {number}", Email=f"{number}@example.org")
            account_id = status["CreateAccountStatus"]["AccountId"]
            client.move_account(AccountId=account_id, SourceParentId=root, DestinationParentId=parent)
            if parent != root:
                inside.add(account_id)
        client.close()
        return unit, inside

    def start() -> Any:
        context = sandbox("--no-throttle")
        return context, context.__enter__()

    context, running = await asyncio.to_thread(start)
    try:
        for name, value in running.ready["environment"].items():
            monkeypatch.setenv(name, value)
        unit, inside = await asyncio.to_thread(fill)
        everybody = await listed(company())
        assert inside < {each.account_id for each in everybody}
        assert len(everybody) == 4  # and the management account
        assert {each.account_id for each in await listed(company(units=[unit]))} == inside
    finally:
        await asyncio.to_thread(context.__exit__, None, None, None)


# How they come and go.


class Script:
    """What listing an organization says, and what was told of it."""

    def __init__(self) -> None:
        self.members: Sequence[Member] = ()
        self.error: Exception | None = None
        self.listed = 0
        self.told: list[tuple[list[str], dict[str, str]]] = []

    async def list(self) -> Sequence[Member]:
        self.listed += 1
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        return self.members

    async def tell(
        self,
        accounts: Sequence[AccountSettings],
        unlisted: Mapping[str, Error],
        switch: Callable[[], None] = lambda: None,
    ) -> None:
        switch()
        self.told.append(
            ([each.name for each in accounts], {name: error.reason for name, error in unlisted.items()})
        )


def roster(script: Script, **keys: Any) -> Roster:
    return Roster([AccountSettings(name="main")], [(company(**keys), script.list)], script.tell)


DENIED = PermissionDenied("AWS_UNAUTHORIZED_OPERATION", "no")


def test_accounts_are_listed_at_once_and_then_every_refresh() -> None:
    async def scenario(_: VirtualClock) -> None:
        script = Script()
        script.members = [DEV]
        keeper = roster(script, refresh=600)
        await keeper.begin()
        assert script.told == [(["main"], {"company": "AWS_TIMEOUT"})]
        async with keeper.refreshing():
            await keeper.tried()
            assert script.told[1:] == [(["main", "dev"], {})]
            script.members = [PROD]
            await asyncio.sleep(599)
            assert script.listed == 1
            await asyncio.sleep(2)
            assert script.told[2:] == [(["main", "Images-Prod"], {})]
            # Nothing new, nothing told.
            await asyncio.sleep(6000)
            assert script.listed == 12
            assert len(script.told) == 3

    run(scenario)


def test_a_listing_that_fails_keeps_the_accounts_and_is_tried_again_soon() -> None:
    async def scenario(_: VirtualClock) -> None:
        script = Script()
        script.members = [DEV]
        keeper = roster(script, refresh=600)
        async with keeper.refreshing():
            await keeper.tried()
            script.error = DENIED
            await asyncio.sleep(601)
            assert script.told == [(["main", "dev"], {})]
            script.error, script.members = None, [PROD]
            await asyncio.sleep(RETRY_AFTER)
            assert script.told[1:] == [(["main", "Images-Prod"], {})]

    run(scenario)


@pytest.mark.parametrize(
    ("error", "reason"), [(DENIED, "AWS_UNAUTHORIZED_OPERATION"), (ValueError(), "INTERNAL")]
)
def test_an_organization_that_was_never_listed_is_told_as_failed(error: Exception, reason: str) -> None:
    async def scenario(_: VirtualClock) -> None:
        script = Script()
        script.error = error
        keeper = roster(script, refresh=5)
        async with keeper.refreshing():
            await keeper.tried()
            assert script.told == [(["main"], {"company": reason})]
            script.error, script.members = None, [DEV]
            await asyncio.sleep(6)  # a refresh shorter than the retry
            assert script.told[1:] == [(["main", "dev"], {})]

    run(scenario)


def test_other_organizations_take_the_place_of_these() -> None:
    async def scenario(_: VirtualClock) -> None:
        script, other = Script(), Script()
        script.members, other.members = [DEV], [PROD]
        keeper = roster(script, refresh=600)
        async with keeper.refreshing():
            await keeper.tried()
            # As before: it is not listed anew.
            await keeper.replace([AccountSettings(name="second")], [(company(refresh=600), other.list)])
            assert (script.listed, other.listed) == (1, 0)
            assert script.told[-1] == (["second", "dev"], {})
            # Differs: what is known stays until it is listed, which is at once.
            await keeper.replace([AccountSettings(name="second")], [(company(refresh=60), other.list)])
            assert script.told[-1] == (["second", "dev"], {})
            await asyncio.sleep(1)
            assert script.told[-1] == (["second", "Images-Prod"], {})
            await asyncio.sleep(600)
            assert (script.listed, other.listed) == (1, 11)
            await keeper.replace([AccountSettings(name="second")], [])
            assert script.told[-1] == (["second"], {})
            await asyncio.sleep(600)
            assert other.listed == 11

    run(scenario)


def test_where_an_account_cannot_be_opened_the_organizations_stay_too() -> None:
    async def scenario(_: VirtualClock) -> None:
        script, other = Script(), Script()
        script.members = [DEV]
        refuses: list[Error] = []

        async def tell(*told: Any) -> None:
            if refuses:
                raise refuses[0]
            await script.tell(*told)

        keeper = Roster([AccountSettings(name="main")], [(company(refresh=600), script.list)], tell)
        async with keeper.refreshing():
            await keeper.tried()
            refuses.append(DENIED)
            with pytest.raises(PermissionDenied):
                await keeper.replace([], [(company(refresh=60), other.list)])
            refuses.clear()
            script.members = [PROD]
            await asyncio.sleep(601)
            assert script.told[-1] == (["main", "Images-Prod"], {})
            assert other.listed == 0

    run(scenario)


class Opened(FakeAccount):
    """A fake account that knows whether it was closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True


def gateway_over(world: FakeWorld, clock: VirtualClock) -> tuple[Any, Accounts, list[Opened]]:
    opened: list[Opened] = []

    def open_account(settings: AccountSettings) -> Opened:
        if settings.name == "broken":
            raise DENIED
        theirs = world.accounts[settings.name]
        account = Opened(theirs.name, theirs.account_id, theirs.regions, theirs.by_region)
        opened.append(account)
        return account

    accounts = Accounts(open_account)
    return assemble(Settings(accounts=[{"name": "main"}]), accounts, clock), accounts, opened


def configured(*given: str) -> list[AccountSettings]:
    return [AccountSettings(name=each) for each in given]


async def resolved(targets: Targets, *accounts: str) -> tuple[list[str], list[str]]:
    found = await targets.resolve(accounts, [])
    return (
        [f"{each.account}/{each.region}" for each in found.targets],
        [f"{each.account}:{error.reason}" for each, error in found.failed],
    )


async def test_new_accounts_appear_and_those_that_left_go(clock: VirtualClock) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1",), "dev": ("us-east-1",), "prod": ("us-west-2",)})
    gateway, accounts, opened = gateway_over(world, clock)
    await accounts.replace(gateway.targets, configured("main", "dev"))
    assert await resolved(gateway.targets) == (["dev/us-east-1", "main/eu-central-1"], [])
    await accounts.replace(gateway.targets, configured("main", "prod"))
    assert await resolved(gateway.targets) == (["main/eu-central-1", "prod/us-west-2"], [])
    with pytest.raises(NotFound):
        await gateway.targets.resolve(["dev"], [])
    assert [(each.name, each.closed) for each in opened] == [("main", False), ("dev", True), ("prod", False)]
    # Who stayed was not asked again.
    assert opened[0].asked == ["identity", "enabled_regions"]
    await gateway.close()
    await accounts.close()
    assert all(each.closed for each in opened)


async def test_an_account_that_is_configured_anew_is_opened_anew(clock: VirtualClock) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1", "us-east-1")})
    gateway, accounts, opened = gateway_over(world, clock)
    await accounts.replace(gateway.targets, configured("main"))
    await resolved(gateway.targets)
    narrowed = AccountSettings(name="main", exclude_regions=("us-east-1",))
    await accounts.replace(gateway.targets, [narrowed])
    assert await resolved(gateway.targets) == (["main/eu-central-1"], [])
    assert [each.closed for each in opened] == [True, False]
    await gateway.close()


async def test_what_cannot_be_opened_changes_nothing(clock: VirtualClock) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1",)})
    gateway, accounts, opened = gateway_over(world, clock)
    await accounts.replace(gateway.targets, configured("main"))
    with pytest.raises(PermissionDenied):
        await accounts.replace(gateway.targets, configured("broken"))
    assert list(accounts) == ["main"]
    assert await resolved(gateway.targets) == (["main/eu-central-1"], [])
    assert not opened[0].closed
    await gateway.close()


async def test_an_unlisted_organization_stands_beside_the_answers(clock: VirtualClock) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1",)})
    gateway, accounts, _ = gateway_over(world, clock)
    await accounts.replace(gateway.targets, configured("main"), {"company": DENIED})
    failed = ["company:AWS_UNAUTHORIZED_OPERATION"]
    assert await resolved(gateway.targets) == (["main/eu-central-1"], failed)
    assert await resolved(gateway.targets, "main") == (["main/eu-central-1"], [])
    assert await resolved(gateway.targets, "company") == ([], failed)
    # It may be one of the organization's: nobody knows.
    with pytest.raises(PermissionDenied):
        await gateway.targets.resolve(["dev"], [])
    await accounts.replace(gateway.targets, configured("main"))
    with pytest.raises(NotFound):
        await gateway.targets.resolve(["company"], [])
    await gateway.close()


async def test_two_names_share_a_view_that_outlives_the_first(clock: VirtualClock) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1",), "again": ("eu-central-1",)})
    ec2 = world.ec2("main")
    ec2.add()
    world.accounts["again"].account_id = world.accounts["main"].account_id
    world.accounts["again"].by_region = world.accounts["main"].by_region
    gateway, accounts, _ = gateway_over(world, clock)
    await accounts.replace(gateway.targets, configured("main", "again"))
    again, main = (await gateway.targets.resolve([], [])).targets
    tracked = gateway.registry.of(main)
    assert gateway.registry.of(again) is tracked
    await tracked.reader.upstream.ask(Query())
    await accounts.replace(gateway.targets, configured("again"))
    await resolved(gateway.targets)
    assert len((await tracked.reader.upstream.ask(Query())).tasks) == 1
    await accounts.replace(gateway.targets, [])
    with pytest.raises(NotFound):
        await tracked.reader.upstream.ask(Query())
    await gateway.close()


async def test_an_account_without_targets_has_not_failed(clock: VirtualClock) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1",)})
    gateway, accounts, _ = gateway_over(world, clock)
    only = AccountSettings(name="main", exclude_regions=("eu-central-1",))
    await accounts.replace(gateway.targets, [only])
    assert await resolved(gateway.targets) == ([], [])
    await gateway.close()


async def test_a_discovery_under_way_ends_with_its_account(clock: VirtualClock) -> None:
    world = FakeWorld(clock, {"main": ("eu-central-1",)})
    gateway, accounts, opened = gateway_over(world, clock)
    await accounts.replace(gateway.targets, configured("main"))
    opened[0].hold = hold = Hold()
    asking = asyncio.create_task(resolved(gateway.targets))
    await hold.reached()
    await accounts.replace(gateway.targets, [])
    targets, failed = await asking
    assert (targets, failed) == ([], ["main:AWS_TIMEOUT"])
    await gateway.close()


async def test_what_comes_with_new_accounts_is_in_force_in_the_same_moment() -> None:
    seen: list[list[str]] = []
    closing, told = asyncio.Event(), asyncio.Event()

    def switch() -> None:
        seen.append(list(targets._discoveries))
        told.set()

    class Open:
        async def identity(self) -> Any:
            raise DENIED

        async def close(self) -> None:
            await closing.wait()

    accounts: Any = Accounts(lambda _: Open())  # type: ignore[arg-type,return-value]
    targets = Targets({}, {}, steady_clock(), expiry=60, timeout=5)
    await accounts.replace(targets, configured("old"))
    replacing = asyncio.create_task(accounts.replace(targets, configured("new"), switch=switch))
    async with asyncio.timeout(60):
        await told.wait()
    # Closing the old ones takes its time; nobody waits for that.
    assert seen == [["new"]]
    assert not replacing.done()
    closing.set()
    await replacing
