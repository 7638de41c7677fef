"""EC2's rules, asked through botocore of a running sandbox."""

import re
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sandbox_stage import Stage, eventually

UNKNOWN = "ami-0123456789abcdef0"
UNKNOWN_TOO = "ami-0fedcba9876543210"


def refused(call: Callable[..., Any], **parameters: Any) -> tuple[str, str, int]:
    """Code, text and HTTP status of the error that a call ends with."""
    with pytest.raises(ClientError) as error:
        call(**parameters)
    response = error.value.response
    assert re.fullmatch(r"[0-9a-f-]{36}", response["ResponseMetadata"]["RequestId"])
    return (
        response["Error"]["Code"],
        response["Error"]["Message"],
        response["ResponseMetadata"]["HTTPStatusCode"],
    )


def store(stage: Stage, **more: Any) -> tuple[str, str]:
    """A new AMI that is being stored into a new bucket: their names."""
    image_id, bucket = stage.image(), stage.bucket()
    stage.client("ec2").create_store_image_task(ImageId=image_id, Bucket=bucket, **more)
    return image_id, bucket


def test_a_new_task_is_described_as_in_progress_with_a_start_in_milliseconds(slow: Stage) -> None:
    image_id, bucket = slow.image(), slow.bucket()
    created = slow.client("ec2").create_store_image_task(ImageId=image_id, Bucket=bucket)
    assert created["ObjectKey"] == f"{image_id}.bin"
    task = slow.task(image_id)
    started = task.pop("TaskStartTime")
    assert started.microsecond % 1000 == 0
    assert task.pop("ProgressPercentage") < 50
    assert task == {
        "AmiId": image_id,
        "Bucket": bucket,
        "S3objectKey": f"{image_id}.bin",
        "StoreTaskState": "InProgress",
    }


def test_a_prefix_behind_the_bucket_goes_into_the_key(slow: Stage) -> None:
    image_id, bucket = slow.image(), slow.bucket()
    created = slow.client("ec2").create_store_image_task(ImageId=image_id, Bucket=f"{bucket}/a/b/")
    assert created["ObjectKey"] == f"a/b/{image_id}.bin"
    task = slow.task(image_id)
    assert (task["Bucket"], task["S3objectKey"]) == (bucket, f"a/b/{image_id}.bin")


def test_an_ami_has_one_running_store_task(slow: Stage) -> None:
    image_id, _ = store(slow)
    code, message, status = refused(
        slow.client("ec2").create_store_image_task, ImageId=image_id, Bucket=slow.bucket()
    )
    assert (code, status) == ("InvalidRequest", 400)
    assert image_id in message


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"ImageId": "ami-nothex", "Bucket": "any"}, "InvalidAMIID.Malformed"),
        ({"ImageId": UNKNOWN, "Bucket": "any"}, "InvalidAMIID.NotFound"),
        ({"Bucket": "any"}, "MissingParameter"),
        ({"ImageId": UNKNOWN}, "MissingParameter"),
        (
            {"ImageId": UNKNOWN, "Bucket": "any", "S3ObjectTags": [{"Key": "aws:x", "Value": "y"}]},
            "InvalidParameterValue",
        ),
    ],
)
def test_a_store_task_that_cannot_be_is_refused(slow: Stage, parameters: dict[str, Any], code: str) -> None:
    assert refused(slow.client("ec2").create_store_image_task, **parameters)[0] == code


def test_a_bucket_has_to_exist_in_the_region_of_the_call(slow: Stage) -> None:
    image_id = slow.image()
    create = slow.client("ec2").create_store_image_task
    assert refused(create, ImageId=image_id, Bucket=f"none-{uuid.uuid4()}")[0] == "InvalidParameterValue"
    assert refused(create, ImageId=image_id, Bucket=slow.bucket("eu-west-1"))[0] == "InvalidParameterValue"


def test_a_deregistered_ami_cannot_be_stored(slow: Stage) -> None:
    image_id = slow.image()
    slow.client("ec2").deregister_image(ImageId=image_id)
    code, _, _ = refused(slow.client("ec2").create_store_image_task, ImageId=image_id, Bucket=slow.bucket())
    assert code == "InvalidAMIID.Unavailable"


def test_no_more_is_stored_at_once_than_1200_gib_of_an_account(slow: Stage) -> None:
    account = {"account": "images-prod"}  # no other test stores there
    ec2, s3 = slow.client("ec2", **account), slow.client("s3", **account)
    bucket = f"limit-{uuid.uuid4()}"
    s3.create_bucket(Bucket=bucket)
    gib = 15  # of every AMI of moto's
    for _ in range(1200 // gib):
        ec2.create_store_image_task(ImageId=slow.image(**account), Bucket=bucket)
    code, _, _ = refused(ec2.create_store_image_task, ImageId=slow.image(**account), Bucket=bucket)
    assert code == "ResourceLimitExceeded"
    elsewhere = slow.client("ec2", region="eu-west-1", **account).describe_store_image_tasks()
    assert elsewhere["StoreImageTaskResults"] == []


def test_unknown_ids_are_named_in_the_error(slow: Stage) -> None:
    describe = slow.client("ec2").describe_store_image_tasks
    known = slow.image()
    assert refused(describe, ImageIds=[UNKNOWN, known]) == (
        "InvalidAMIID.NotFound",
        f"The image id '[{UNKNOWN}]' does not exist",
        400,
    )
    assert refused(describe, ImageIds=[UNKNOWN, UNKNOWN_TOO])[1] == (
        f"The image ids '[{UNKNOWN}, {UNKNOWN_TOO}]' do not exist"
    )


def test_an_ami_without_a_task_has_no_result_and_a_deregistered_one_keeps_its_task(slow: Stage) -> None:
    describe = slow.client("ec2").describe_store_image_tasks
    assert describe(ImageIds=[slow.image()])["StoreImageTaskResults"] == []
    image_id, _ = store(slow)
    slow.client("ec2").deregister_image(ImageId=image_id)
    assert [each["AmiId"] for each in describe(ImageIds=[image_id])["StoreImageTaskResults"]] == [image_id]


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ({"ImageIds": ["ami-bad"]}, "InvalidAMIID.Malformed"),
        ({"ImageIds": [UNKNOWN], "MaxResults": 5}, "InvalidParameterCombination"),
        ({"MaxResults": 201}, "InvalidParameterValue"),
        ({"Filters": [{"Name": "state", "Values": ["x"]}]}, "InvalidParameterValue"),
        ({"NextToken": "nonsense"}, "InvalidPaginationToken"),
        ({"ImageIds": ["ami-bad"], "DryRun": True}, "InvalidAMIID.Malformed"),
    ],
)
def test_a_bad_describe_is_refused_over_the_wire_too(
    slow: Stage, parameters: dict[str, Any], code: str
) -> None:
    assert refused(slow.client("ec2").describe_store_image_tasks, **parameters)[0] == code


@pytest.mark.parametrize(
    ("action", "parameters"),
    [
        ("describe_store_image_tasks", {}),
        ("create_store_image_task", {"ImageId": UNKNOWN, "Bucket": "any"}),
        ("create_restore_image_task", {"Bucket": "any", "ObjectKey": "any"}),
        ("describe_regions", {}),
    ],
)
def test_a_dry_run_says_that_it_would_have_succeeded(
    slow: Stage, action: str, parameters: dict[str, Any]
) -> None:
    assert refused(getattr(slow.client("ec2"), action), DryRun=True, **parameters) == (
        "DryRunOperation",
        "Request would have succeeded, but DryRun flag is set.",
        412,
    )


def test_pages_over_the_wire_hold_every_task_newest_first(slow: Stage) -> None:
    region = {"region": "ca-central-1"}
    bucket = slow.bucket(**region)
    images = [slow.image(**region) for _ in range(5)]
    for image_id in images:
        slow.client("ec2", **region).create_store_image_task(ImageId=image_id, Bucket=bucket)
    pages = slow.client("ec2", **region).get_paginator("describe_store_image_tasks")
    walked = [
        [each["AmiId"] for each in page["StoreImageTaskResults"]]
        for page in pages.paginate(PaginationConfig={"PageSize": 2})
    ]
    assert [len(page) for page in walked] == [2, 2, 1]
    assert [image_id for page in walked for image_id in page] == images[::-1]


def test_without_max_results_a_page_has_the_size_that_the_sandbox_was_given(
    stages: Callable[..., Stage],
) -> None:
    first = stages("--seed", "--page-size", "3").client("ec2").describe_store_image_tasks()
    assert len(first["StoreImageTaskResults"]) == 3
    assert first["NextToken"]


def test_a_region_that_is_not_opted_in_answers_auth_failure_to_every_action(slow: Stage) -> None:
    client = slow.client("ec2", region=slow.sandbox.ready["not_opted_in"])
    for call in (client.describe_store_image_tasks, client.describe_images, client.describe_regions):
        assert refused(call) == (
            "AuthFailure",
            "AWS was not able to validate the provided access credentials",
            401,
        )


def test_a_policy_denies_the_actions_in_one_enabled_region(slow: Stage) -> None:
    client = slow.client("ec2", region=slow.sandbox.ready["denied"])
    code, message, status = refused(client.describe_store_image_tasks)
    assert (code, status) == ("UnauthorizedOperation", 403)
    assert re.fullmatch(
        r"You are not authorized to perform this operation\. "
        r"Encoded authorization failure message: [\w-]{100,}=*",
        message,
    )
    assert refused(client.describe_store_image_tasks, DryRun=True)[0] == "UnauthorizedOperation"
    assert client.describe_images(Owners=["self"])["Images"] == []


def test_describe_regions_lists_the_enabled_regions_unless_asked_for_all(slow: Stage) -> None:
    ready, describe = slow.sandbox.ready, slow.client("ec2").describe_regions
    enabled = {each["RegionName"]: each["OptInStatus"] for each in describe()["Regions"]}
    assert list(enabled) == ready["regions"]
    assert ready["denied"] in enabled
    assert set(enabled.values()) == {"opt-in-not-required", "opted-in"}
    every = {each["RegionName"]: each["OptInStatus"] for each in describe(AllRegions=True)["Regions"]}
    assert every == enabled | {ready["not_opted_in"]: "not-opted-in"}
    named = describe(RegionNames=[ready["not_opted_in"]])["Regions"]
    assert [each["Endpoint"] for each in named] == [f"ec2.{ready['not_opted_in']}.amazonaws.com"]
    opted = describe(Filters=[{"Name": "opt-in-status", "Values": ["opted-*"]}])["Regions"]
    assert [each["OptInStatus"] for each in opted] == ["opted-in"]
    assert refused(describe, RegionNames=["mars-north-1"])[0] == "InvalidParameterValue"
    assert refused(describe, Filters=[{"Name": "colour", "Values": ["red"]}])[0] == "InvalidParameterValue"


def test_assumed_roles_are_accounts_of_their_own(slow: Stage) -> None:
    for account in slow.sandbox.ready["accounts"]:
        identity = slow.client("sts", account=account["name"]).get_caller_identity()
        assert identity["Account"] == account["account_id"]
    image_id = slow.image()
    theirs = slow.client("ec2", account="images-dev")
    assert refused(theirs.describe_store_image_tasks, ImageIds=[image_id])[0] == "InvalidAMIID.NotFound"


def test_a_role_of_no_account_of_the_sandbox_cannot_be_assumed(slow: Stage) -> None:
    with pytest.raises(ClientError, match="AccessDenied") as error:
        slow.client("sts").assume_role(
            RoleArn="arn:aws:iam::999999999999:role/imagetasks", RoleSessionName="tests"
        )
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_reset_of_moto_drops_the_tasks(stages: Callable[..., Stage]) -> None:
    stage = stages("--seed")
    describe = stage.client("ec2").describe_store_image_tasks
    assert describe()["StoreImageTaskResults"]
    reset = urllib.request.Request(f"{stage.sandbox.endpoint}/moto-api/reset", method="POST")
    with urllib.request.urlopen(reset) as answer:
        assert answer.status == 200
    assert describe()["StoreImageTaskResults"] == []


@pytest.fixture(scope="module")
def stored(fast: Stage) -> tuple[str, str]:
    """An AMI and the bucket that holds its object."""
    image_id, bucket = store(fast, S3ObjectTags=[{"Key": "purpose", "Value": "test"}])
    # Seen by a plain S3 client before anybody asks EC2.
    s3 = fast.client("s3")
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    eventually(lambda: s3.list_objects_v2(Bucket=bucket).get("Contents"))
    return image_id, bucket


def test_the_object_of_a_completed_task_is_in_the_bucket_with_its_tags(
    fast: Stage, stored: tuple[str, str]
) -> None:
    image_id, bucket = stored
    task = fast.task(image_id)
    assert (task["StoreTaskState"], task["ProgressPercentage"]) == ("Completed", 100)
    assert task["StoreTaskFailureReason"] == ""
    where = {"Bucket": bucket, "Key": task["S3objectKey"]}
    found = fast.client("s3").head_object(**where)
    assert found["Metadata"]["ami-owner-account"] == "123456789012"
    assert fast.client("s3").get_object_tagging(**where)["TagSet"] == [{"Key": "purpose", "Value": "test"}]


def test_a_bucket_holds_one_copy_of_an_ami(fast: Stage, stored: tuple[str, str]) -> None:
    image_id, bucket = stored
    code, message, _ = refused(fast.client("ec2").create_store_image_task, ImageId=image_id, Bucket=bucket)
    assert code == "InvalidRequest"
    assert f"{image_id}.bin already exists" in message


def test_a_stored_ami_can_be_restored_with_a_new_name_and_tags(fast: Stage, stored: tuple[str, str]) -> None:
    image_id, bucket = stored
    ec2, name = fast.client("ec2"), f"restored-{uuid.uuid4()}"
    restored = ec2.create_restore_image_task(
        Bucket=bucket,
        ObjectKey=f"{image_id}.bin",
        Name=name,
        TagSpecifications=[{"ResourceType": "image", "Tags": [{"Key": "from", "Value": image_id}]}],
    )["ImageId"]
    assert restored != image_id

    def available() -> list[dict[str, Any]]:
        images = ec2.describe_images(ImageIds=[restored])["Images"]
        return [image for image in images if image["State"] == "available"]

    (image,) = eventually(available)
    assert image["Name"] == name
    assert image["Tags"] == [{"Key": "from", "Value": image_id}]
    code, _, _ = refused(ec2.create_restore_image_task, Bucket=bucket, ObjectKey=f"{image_id}.bin", Name=name)
    assert code == "InvalidAMIName.Duplicate"


def test_what_is_no_stored_ami_cannot_be_restored(fast: Stage, stored: tuple[str, str]) -> None:
    _, bucket = stored
    restore = fast.client("ec2").create_restore_image_task
    assert refused(restore, Bucket=bucket, ObjectKey="none.bin", Name="x")[0] == "InvalidParameterValue"
    assert (
        refused(restore, Bucket=f"none-{uuid.uuid4()}", ObjectKey="x", Name="x")[0] == "InvalidParameterValue"
    )
    assert refused(restore, Bucket=bucket, Name="x")[0] == "MissingParameter"
    fast.client("s3").put_object(Bucket=bucket, Key="other", Body=b"no AMI")
    assert refused(restore, Bucket=bucket, ObjectKey="other", Name="x")[0] == "InvalidRequest"


def test_a_task_fails_when_its_bucket_is_deleted_or_closed_meanwhile(fast: Stage) -> None:
    gone_image, gone = store(fast)
    fast.client("s3").delete_bucket(Bucket=gone)
    closed_image, closed = store(fast)
    fast.client("s3").put_bucket_policy(
        Bucket=closed,
        Policy='{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*",'
        f' "Action": "s3:PutObject", "Resource": "arn:aws:s3:::{closed}/*"}}]}}',
    )
    task = fast.ended(gone_image)
    assert task["StoreTaskState"] == "Failed"
    assert task["StoreTaskFailureReason"].startswith("NoSuchBucket")
    assert task["ProgressPercentage"] < 100
    task = fast.ended(closed_image)
    assert task["StoreTaskState"] == "Failed"
    assert task["StoreTaskFailureReason"].startswith("AccessDenied")
    # A failed store can be tried again.
    fast.client("ec2").create_store_image_task(ImageId=gone_image, Bucket=fast.bucket())
