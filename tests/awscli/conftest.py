"""Both command lines on the same EC2: a canned one with a gateway in front, and the sandbox with another."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from command_lines import Driven, driven
from gateways import gateway, region_names
from pairs import Pair, Stage

from canned.launch import Canned, canned
from imagetasks_sandbox.launch import sandbox
from processes import aws_cli

ACCOUNT = "000000000001"
# A failing example is looked for again and again, each time in a new one.
REGIONS = 1000


@pytest.fixture(scope="session")
def drivers() -> Iterator[tuple[Driven, Driven]]:
    """The AWS CLI and ours, each in one process."""
    with ExitStack() as stack:
        aws = stack.enter_context(driven(str(Path(aws_cli()).with_name("python")), "aws"))
        ours = stack.enter_context(driven(sys.executable, "imagetasks"))
        yield aws, ours


@pytest.fixture(scope="session")
def canned_ec2() -> Iterator[Canned]:
    with canned() as running:
        yield running


@pytest.fixture(scope="session")
def stage(
    canned_ec2: Canned,
    drivers: tuple[Driven, Driven],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stage]:
    """Worlds of a test's making."""
    regions = region_names(REGIONS)
    environment = canned_ec2.environment(ACCOUNT)
    accounts = [{"name": "canned", "regions": regions}]
    with gateway(
        environment, accounts, tmp_path_factory.mktemp("canned"), home_region="us-east-1"
    ) as address:
        yield Stage(canned_ec2, ACCOUNT, regions, address, drivers)


@pytest.fixture(scope="session")
def sandbox_pair(drivers: tuple[Driven, Driven], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both on a seeded sandbox in which time hardly passes."""
    with sandbox("--seed", "--no-throttle", "--speed", "0.000001") as running:
        accounts = [
            {"name": each["name"]} | ({"role_arn": each["role_arn"]} if each.get("role_arn") else {})
            for each in running.ready["accounts"]
        ]
        environment = running.environment()
        with gateway(
            environment, accounts, tmp_path_factory.mktemp("sandbox"), home_region="us-east-1"
        ) as address:
            yield Pair(*drivers, environment, address, profile=accounts[0]["name"])
