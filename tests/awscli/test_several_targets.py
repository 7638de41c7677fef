"""Several accounts and Regions in one command, which the AWS CLI does not have."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from command_lines import Driven, Ending
from gateways import gateway
from worlds import task

from canned.launch import Canned

MAIN, OTHER = "000000000011", "000000000012"
NEAR, FAR, BROKEN = "zz-near-1", "zz-far-1", "zz-broken-1"
DENIED = {"code": "UnauthorizedOperation", "message": "You are not authorized.", "status": 403}
COMMAND = ["ec2", "describe-store-image-tasks"]


class Wide:
    """Two accounts with three Regions each, of which one refuses."""

    def __init__(self, ours: Driven, environment: dict[str, str], address: str) -> None:
        self._ours = ours
        self._environment = environment | {"IMAGETASKS_ENDPOINT": address}

    def run(self, *words: str, **environment: str) -> Ending:
        return self._ours.run([*COMMAND, *words], self._environment | environment)

    def tasks(self, *words: str, **environment: str) -> list[tuple[str, str, str]]:
        """Account, Region and AMI of each task; the command must succeed."""
        ending = self.run("--show-targets", *words, **environment)
        assert (ending.code, ending.stderr) == (0, ""), ending
        return _tasks(ending)


def _tasks(ending: Ending) -> list[tuple[str, str, str]]:
    results: list[dict[str, Any]] = json.loads(ending.stdout)["StoreImageTaskResults"]
    return [(each["Account"], each["Region"], each["AmiId"]) for each in results]


@pytest.fixture(scope="module")
def wide(
    canned_ec2: Canned, drivers: tuple[Driven, Driven], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Wide]:
    # The n-th newest of all is in the n-th of these places.
    places = [(MAIN, NEAR), (OTHER, FAR), (MAIN, FAR), (OTHER, NEAR), (MAIN, NEAR)]
    for account in (MAIN, OTHER):
        for region in (NEAR, FAR):
            own = [task(2 * n) for n, place in enumerate(places) if place == (account, region)]
            canned_ec2.post({"account": account, "region": region, "tasks": own})
        canned_ec2.post({"account": account, "region": BROKEN, "refusal": DENIED})
    regions = [NEAR, FAR, BROKEN]
    accounts: list[dict[str, object]] = [
        {"name": "main", "regions": regions},
        {"name": "other", "regions": regions, "role_arn": f"arn:aws:iam::{OTHER}:role/gateway"},
    ]
    environment = canned_ec2.environment(MAIN)
    with gateway(environment, accounts, tmp_path_factory.mktemp("wide"), home_region="us-east-1") as address:
        yield Wide(drivers[1], environment, address)


def ami(number: int) -> str:
    return str(task(2 * number)["AmiId"])


def test_several_regions_are_listed_newest_first(wide: Wide) -> None:
    assert wide.tasks("--region", f"{NEAR},{FAR}") == [
        ("main", NEAR, ami(0)),
        ("other", FAR, ami(1)),
        ("main", FAR, ami(2)),
        ("other", NEAR, ami(3)),
        ("main", NEAR, ami(4)),
    ]


def test_the_environment_names_regions_but_no_account(wide: Wide) -> None:
    expected = [("main", NEAR, ami(0)), ("other", NEAR, ami(3)), ("main", NEAR, ami(4))]
    assert wide.tasks(AWS_REGION=NEAR, AWS_DEFAULT_REGION=FAR, AWS_PROFILE="other") == expected
    assert wide.tasks(AWS_DEFAULT_REGION=NEAR) == expected


def test_a_profile_is_an_account_of_the_gateway(wide: Wide) -> None:
    assert wide.tasks("--profile", "other", "--region", FAR) == [("other", FAR, ami(1))]
    assert wide.tasks("--profile", "other,main", "--region", FAR) == [
        ("other", FAR, ami(1)),
        ("main", FAR, ami(2)),
    ]


def test_without_show_targets_the_shape_is_the_aws_clis(wide: Wide) -> None:
    ending = wide.run("--region", NEAR)
    members = {name for each in json.loads(ending.stdout)["StoreImageTaskResults"] for name in each}
    assert members <= set(task(1))


@pytest.mark.parametrize("words", [[], ["--region", "all"]], ids=["no-region", "all"])
def test_a_failed_target_is_named_after_the_good_results(wide: Wide, words: list[str]) -> None:
    ending = wide.run("--show-targets", *words)
    assert ending.code == 255
    assert len(_tasks(ending)) == 5
    calling = "when calling the DescribeStoreImageTasks operation in"
    assert ending.stderr == "".join(
        f"\nAn error occurred (UnauthorizedOperation) {calling} {account}/{BROKEN}: You are not authorized.\n"
        for account in ("main", "other")
    )


def test_if_all_targets_fail_nothing_is_printed(wide: Wide) -> None:
    ending = wide.run("--region", BROKEN)
    assert (ending.stdout, ending.code) == ("", 255)
    assert "main/zz-broken-1" in ending.stderr
    assert "other/zz-broken-1" in ending.stderr


def test_a_dry_run_over_several_targets_answers_for_each(wide: Wide) -> None:
    ending = wide.run("--dry-run", "--profile", "main")
    assert (ending.stdout, ending.code) == ("", 255)
    answers = dict(line.split(" in ", 1)[1].split(": ", 1) for line in ending.stderr.splitlines() if line)
    assert answers == {
        "main/zz-broken-1": "You are not authorized.",
        "main/zz-far-1": "Request would have succeeded, but DryRun flag is set.",
        "main/zz-near-1": "Request would have succeeded, but DryRun flag is set.",
    }


def test_a_listing_over_targets_is_resumed_where_it_was_cut_off(wide: Wide) -> None:
    found: list[tuple[str, str, str]] = []
    more: list[str] = []
    for _ in range(5):
        ending = wide.run("--show-targets", "--region", f"{NEAR},{FAR}", "--max-items", "2", *more)
        found += _tasks(ending)
        token = json.loads(ending.stdout).get("NextToken")
        if token is None:
            break
        more = ["--starting-token", token]
    assert found == wide.tasks("--region", f"{NEAR},{FAR}")


def test_an_unknown_id_is_an_error_of_one_target_only(wide: Wide) -> None:
    unknown = ["--image-ids", "ami-0000000f"]
    assert wide.tasks("--region", NEAR, *unknown) == []
    alone = wide.run("--region", NEAR, "--profile", "main", *unknown)
    assert "(InvalidAMIID.NotFound)" in alone.stderr


def test_a_region_that_no_account_has_is_named(wide: Wide) -> None:
    ending = wide.run("--region", "zz-nowhere-1")
    assert ending.code == 255
    assert "zz-nowhere-1" in ending.stderr


def test_global_options_may_stand_before_the_group(wide: Wide) -> None:
    words = ["--region", NEAR, "--output", "text"]
    before = wide._ours.run([*words, *COMMAND], wide._environment)
    assert before == wide.run(*words)
    assert before.code == 0
