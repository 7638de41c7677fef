"""Both command lines on the sandbox: another EC2, and AWS's own names of Regions."""

from dataclasses import replace

import pytest
from pairs import Pair

from imagetasks_sandbox.world import DENIED

REGIONS = ("us-east-1", "eu-central-1")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--output", "text", "--page-size", "3"],
        ["--output", "table"],
        ["--max-items", "2", "--page-size", "1"],
        ["--filters", "Name=task-state,Values=Completed,Failed"],
        ["--filters", "Name=bucket"],
        ["--filters", "Name=nothing,Values=x"],
        ["--image-ids", "ami-12345678"],
        ["--image-ids", "ami-1"],
        ["--dry-run"],
        ["--page-size", "500"],
        ["--starting-token", "nonsense"],
        ["--query", "StoreImageTaskResults[?StoreTaskState=='Failed'].StoreTaskFailureReason"],
    ],
    ids=" ".join,
)
def test_outputs_are_equal_on_the_sandbox(sandbox_pair: Pair, words: list[str]) -> None:
    for region in REGIONS:
        replace(sandbox_pair, region=region).walk(words, steps=3)


def test_a_region_that_a_policy_denies_reads_the_same(sandbox_pair: Pair) -> None:
    replace(sandbox_pair, region=DENIED).compare([])
