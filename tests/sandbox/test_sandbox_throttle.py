from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from sandbox_stage import Stage

from imagetasks_sandbox.throttle import Rate, Throttle


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def taken(throttle: Throttle, tries: int, region: str = "us-east-1") -> int:
    return sum(throttle.take("123456789012", region) for _ in range(tries))


def test_a_full_bucket_gives_50_tokens_and_then_one_every_two_seconds() -> None:
    clock = Clock()
    throttle = Throttle(Rate(), clock)
    assert taken(throttle, 60) == 50
    clock.seconds += 1.9
    assert taken(throttle, 5) == 0
    clock.seconds += 0.2
    assert taken(throttle, 5) == 1
    clock.seconds += 1e6
    assert taken(throttle, 60) == 50


def test_each_account_and_region_has_a_bucket_of_its_own() -> None:
    throttle = Throttle(Rate(2, 0), Clock())
    assert taken(throttle, 3) == 2
    assert taken(throttle, 3, "us-east-2") == 2
    assert throttle.take("111122223333", "us-east-1")


@given(
    capacity=st.integers(1, 20),
    refill=st.sampled_from([0.0, 0.5, 3.0]),
    steps=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 10)), max_size=30),
)
def test_never_more_is_taken_than_the_capacity_and_what_flowed_in(
    capacity: int, refill: float, steps: list[tuple[int, int]]
) -> None:
    clock = Clock()
    throttle = Throttle(Rate(capacity, refill), clock)
    total = 0
    for pause, tries in steps:
        clock.seconds += pause
        total += taken(throttle, tries)
    assert total <= capacity + refill * sum(pause for pause, _ in steps)


def test_the_sandbox_answers_as_many_describes_as_the_bucket_holds_and_throttles_the_rest(
    stages: Callable[..., Stage],
) -> None:
    stage = stages("--throttle", "50:0")

    def describe(region: str) -> dict[str, Any]:
        try:
            stage.client("ec2", region=region).describe_store_image_tasks()
        except ClientError as error:
            return dict(error.response["Error"], status=error.response["ResponseMetadata"]["HTTPStatusCode"])
        return {}

    stage.client("ec2")  # made once, before there are threads
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(describe, ["us-east-1"] * 70))
    throttled = {"Code": "RequestLimitExceeded", "Message": "Request limit exceeded.", "status": 503}
    assert answers.count({}) == 50
    assert answers.count(throttled) == 20
    # Other Regions and other actions are not throttled by it.
    assert describe("us-west-2") == {}
    assert stage.client("ec2").describe_images(Owners=["self"])["Images"] == []


@pytest.mark.parametrize("account", ["main", "images-dev"])
def test_the_throttle_can_be_switched_off(slow: Stage, account: str) -> None:
    client = slow.client("ec2", account=account)
    for _ in range(60):
        client.describe_store_image_tasks()
