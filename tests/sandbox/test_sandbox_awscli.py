"""The unmodified AWS CLI against the sandbox: the tool that EC2's users have."""

import json
import subprocess
from typing import Any

import pytest
from sandbox_stage import Stage

from processes import aws_cli

SECONDS = 60.0


@pytest.fixture(scope="module")
def aws() -> str:
    """The AWS CLI's path."""
    return aws_cli()


def run(aws: str, stage: Stage, *arguments: str) -> Any:
    """What a command prints, parsed; None if nothing."""
    ended = subprocess.run(
        [aws, *arguments, "--output", "json"],
        env=stage.sandbox.environment(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout) if ended.stdout else None


def test_the_aws_cli_creates_describes_waits_for_and_restores_a_task(aws: str, fast: Stage) -> None:
    bucket = fast.bucket()
    image_id = run(aws, fast, "ec2", "register-image", "--name", "from-the-cli")["ImageId"]
    created = run(
        aws, fast, "ec2", "create-store-image-task", "--image-id", image_id, "--bucket", f"{bucket}/cli"
    )
    key = f"cli/{image_id}.bin"
    assert created == {"ObjectKey": key}

    described = run(
        aws, fast, "ec2", "describe-store-image-tasks", "--filters", f"Name=bucket,Values={bucket}"
    )
    (task,) = described["StoreImageTaskResults"]
    assert (task["AmiId"], task["Bucket"], task["S3objectKey"]) == (image_id, bucket, key)

    assert run(aws, fast, "ec2", "wait", "store-image-task-complete", "--image-ids", image_id) is None
    (task,) = run(aws, fast, "ec2", "describe-store-image-tasks", "--image-ids", image_id)[
        "StoreImageTaskResults"
    ]
    assert (task["StoreTaskState"], task["ProgressPercentage"]) == ("Completed", 100)
    assert run(aws, fast, "s3api", "head-object", "--bucket", bucket, "--key", key)["ContentLength"] > 0

    restored = run(
        aws,
        fast,
        *("ec2", "create-restore-image-task", "--bucket", bucket, "--object-key", key),
        *("--name", "from-the-cli-again"),
    )["ImageId"]
    images = run(aws, fast, "ec2", "describe-images", "--image-ids", restored)["Images"]
    assert [image["Name"] for image in images] == ["from-the-cli-again"]
