from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sandbox_stage import Stage, eventually


def tasks(stage: Stage, region: str, account: str = "main") -> list[dict[str, Any]]:
    pages = stage.client("ec2", region=region, account=account).get_paginator("describe_store_image_tasks")
    return [task for page in pages.paginate() for task in page["StoreImageTaskResults"]]


@pytest.fixture(scope="module")
def world(seeded: Stage) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """All tasks by account and Region."""
    ready = seeded.sandbox.ready
    return {
        (account["name"], region): tasks(seeded, region, account["name"])
        for account in ready["accounts"]
        for region in ready["regions"]
        if region != ready["denied"]
    }


def test_every_account_has_tasks_in_every_region(
    world: dict[tuple[str, str], list[dict[str, Any]]],
) -> None:
    assert len(world) == 36
    assert all(world.values())


def test_one_region_holds_more_than_one_page(seeded: Stage) -> None:
    first = seeded.client("ec2").describe_store_image_tasks()
    assert len(first["StoreImageTaskResults"]) == 200
    assert first["NextToken"]
    walked = tasks(seeded, "us-east-1")
    assert len(walked) >= 450
    starts = [task["TaskStartTime"] for task in walked]
    assert starts == sorted(starts, reverse=True)
    assert min(starts) > datetime.now(UTC) - timedelta(days=31)
    assert max(starts) - min(starts) > timedelta(days=25)


def test_there_are_finished_failed_and_running_tasks_and_amis_stored_to_several_buckets(
    world: dict[tuple[str, str], list[dict[str, Any]]],
) -> None:
    every = [task for listed in world.values() for task in listed]
    states = Counter(task["StoreTaskState"] for task in every)
    assert states["Completed"] > states["Failed"] > 10
    assert states["InProgress"] > 5
    assert all(task["StoreTaskFailureReason"] for task in every if task["StoreTaskState"] == "Failed")
    buckets: dict[str, set[str]] = {}
    for task in every:
        buckets.setdefault(task["AmiId"], set()).add(task["Bucket"])
    assert sum(len(of_ami) > 1 for of_ami in buckets.values()) > 10


def test_a_finished_task_of_the_seed_has_its_object_and_can_be_restored(seeded: Stage) -> None:
    task = next(each for each in tasks(seeded, "eu-west-1") if each["StoreTaskState"] == "Completed")
    where = {"Bucket": task["Bucket"], "ObjectKey": task["S3objectKey"]}
    restored = seeded.client("ec2", region="eu-west-1").create_restore_image_task(Name="again", **where)
    assert restored["ImageId"].startswith("ami-")


def test_progress_rises_and_new_tasks_start(
    seeded: Stage, world: dict[tuple[str, str], list[dict[str, Any]]]
) -> None:
    def identity(task: dict[str, Any]) -> tuple[Any, ...]:
        return task["AmiId"], task["Bucket"], task["TaskStartTime"]

    before = {identity(task): task for listed in world.values() for task in listed}
    running = [key for key, task in before.items() if task["StoreTaskState"] == "InProgress"]

    def changed() -> bool:
        now = {
            identity(task): task
            for account, region in world
            for task in seeded.client("ec2", region=region, account=account).describe_store_image_tasks()[
                "StoreImageTaskResults"
            ]
        }
        risen = [now[key]["ProgressPercentage"] - before[key]["ProgressPercentage"] for key in running]
        assert min(risen) >= 0
        return max(risen) > 0 and not now.keys() <= before.keys()

    eventually(changed)


def test_a_random_seed_gives_the_same_world_again(stages: Callable[..., Stage], seeded: Stage) -> None:
    def images(stage: Stage) -> list[str]:
        return [
            image["ImageId"]
            for account in ("main", "images-prod")
            for image in stage.client("ec2", account=account).describe_images(Owners=["self"])["Images"]
        ]

    world = images(seeded)
    again, other = stages("--seed"), stages("--seed", "--random-seed", "2")
    assert set(images(again)) <= set(world)  # another test has restored one
    assert not set(images(other)) & set(world)
