"""Which targets a permission shows, over any accounts, aliases, faults and organizations."""

from typing import Any

import pytest
from fake_ec2 import FakeAccount, aws_error
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual import VirtualClock, run

from imagetasks_server.errors import Error, NotFound, PermissionDenied, Unavailable
from imagetasks_server.permission import EVERYTHING, Grant, Permission, matches_any
from imagetasks_server.targets import Targets

NAMES = ["a", "ab", "b", "c"]
REGIONS = ["eu-central-1", "eu-west-1", "us-east-1"]
IDS = ["111111111111", "222222222222"]

accounts_of = st.dictionaries(
    st.sampled_from(NAMES),
    st.tuples(st.sampled_from(IDS), st.lists(st.sampled_from(REGIONS), unique=True), st.booleans()),
)
grants = st.lists(
    st.builds(
        lambda accounts, regions: Grant(tuple(accounts), tuple(regions)),
        st.lists(st.sampled_from(["*", "a", "a*", "b", "d"]), min_size=1, max_size=2),
        st.lists(st.sampled_from(["*", "eu-*", "us-east-1", "sa-*"]), min_size=1, max_size=2),
    ),
    min_size=1,
    max_size=3,
)
names = st.lists(st.sampled_from([*NAMES, "d", "e"]), max_size=2)
places = st.lists(st.sampled_from([*REGIONS, "sa-east-1"]), max_size=2)
World = dict[str, tuple[str, list[str], bool]]


def fault() -> Error:
    return aws_error("AuthFailure")


def targets_of(world: World, clock: VirtualClock, unlisted: dict[str, Error] | None = None) -> Targets:
    accounts = {
        name: FakeAccount(name, id_, tuple(regions), discovery_fault=fault() if fails else None)
        for name, (id_, regions, fails) in world.items()
    }
    targets = Targets(accounts, {}, clock, expiry=3600, timeout=5)
    targets.replace(accounts, {}, {}, unlisted)
    return targets


async def answer(targets: Targets, asked: tuple[list[str], list[str]], permission: Permission) -> Any:
    """What is told: names and Regions, or a refusal."""
    try:
        found = await targets.resolve(*asked, permission=permission)
    except Error as error:
        return (type(error).__name__, error.status().SerializeToString())
    finally:
        await targets.close()
    shown = {(each.account, each.region) for each in found.targets}
    return shown, {each.account for each, _ in found.failed}


@settings(max_examples=40)
@given(accounts_of, grants, names, places)
def test_a_permission_shows_what_it_gives_and_what_is_hidden_might_as_well_not_exist(
    world: World, given_: list[Grant], accounts: list[str], regions: list[str]
) -> None:
    permission = Permission("somebody", tuple(given_))

    def may_see(account: str, region: str) -> bool:
        return any(matches_any(g.accounts, account) and matches_any(g.regions, region) for g in given_)

    # The same world without what is hidden. Two names of an account each stand for themselves.
    bare = {
        name: (id_, [region for region in of if may_see(name, region)], fails)
        for name, (id_, of, fails) in world.items()
        if any(matches_any(grant.accounts, name) for grant in given_)
    }

    async def steps(clock: VirtualClock) -> None:
        told = await answer(targets_of(world, clock), (accounts, regions), permission)
        if not isinstance(told[0], str):
            shown, failed = told
            assert all(may_see(*pair) for pair in shown)
            assert failed <= set(bare)
        assert told == await answer(targets_of(bare, clock), (accounts, regions), permission)

    run(steps)


@settings(max_examples=40)
@given(accounts_of, grants, grants)
def test_one_more_grant_hides_nothing(world: World, some: list[Grant], more: list[Grant]) -> None:
    async def steps(clock: VirtualClock) -> None:
        before = await answer(targets_of(world, clock), ([], []), Permission("x", tuple(some)))
        after = await answer(targets_of(world, clock), ([], []), Permission("x", (*some, *more)))
        if not isinstance(before[0], str):
            assert before[0] <= after[0]

    run(steps)


@pytest.mark.parametrize("exists", [True, False])
def test_an_organization_that_is_not_listed_is_named_only_to_who_may_see_it(exists: bool) -> None:
    async def steps(clock: VirtualClock) -> None:
        world: World = {"a": (IDS[0], REGIONS, False)} if exists else {}
        unlisted: dict[str, Error] = {
            "secret-organization": Unavailable("AWS_TIMEOUT", "of secret-organization")
        }
        for grant, asked, expected in (
            (Grant(("b",)), "a", Unavailable),
            (Grant(("b", "a")), "b", Unavailable),
            (Grant(("secret-*",)), "a", NotFound),
        ):
            targets = targets_of(world, clock, unlisted)
            with pytest.raises(expected) as caught:
                await targets.resolve([asked], [], permission=Permission("x", (grant,)))
            assert "secret" not in str(caught.value.status())
            await targets.close()
        targets = targets_of(world, clock, unlisted)
        with pytest.raises(Unavailable) as told:
            await targets.resolve(["b"], [], permission=EVERYTHING)
        assert "secret-organization" in str(told.value.status())
        await targets.close()

    run(steps)


def test_who_may_see_nothing_is_denied() -> None:
    async def steps(clock: VirtualClock) -> None:
        for grant in (Grant(("z",)), Grant(regions=("sa-*",))):
            targets = targets_of({"a": (IDS[0], REGIONS, False)}, clock)
            with pytest.raises(PermissionDenied):
                await targets.resolve([], [], permission=Permission("x", (grant,)))
            await targets.close()

    run(steps)
