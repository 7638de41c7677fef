"""A running sandbox, AWS clients for it, and what tests do with them again and again."""

import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.config import Config

from imagetasks_sandbox.launch import RunningSandbox, sandbox

DEADLINE_SECONDS = 30.0
POLL_SECONDS = 0.05

Clients = Callable[..., Any]


def eventually(look: Callable[[], Any]) -> Any:
    """What ``look`` returns once that is true; for what another process does in its own time."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        if seen := look():
            return seen
        time.sleep(POLL_SECONDS)
    pytest.fail(f"not seen within {DEADLINE_SECONDS:g} s")


@dataclass(frozen=True)
class Stage:
    """A running sandbox and clients for it."""

    sandbox: RunningSandbox
    client: Clients

    def image(self, **where: str) -> str:
        return str(self.client("ec2", **where).register_image(Name=f"image-{uuid.uuid4()}")["ImageId"])

    def bucket(self, region: str = "us-east-1") -> str:
        name = f"bucket-{uuid.uuid4()}"
        elsewhere = (
            {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        )
        self.client("s3", region=region).create_bucket(Bucket=name, **elsewhere)
        return name

    def task(self, image_id: str) -> dict[str, Any]:
        """The newest task of an AMI."""
        results = self.client("ec2").describe_store_image_tasks(ImageIds=[image_id])
        return dict(results["StoreImageTaskResults"][0])

    def ended(self, image_id: str) -> dict[str, Any]:
        """The newest task of an AMI, when it has ended."""

        def look() -> dict[str, Any] | None:
            task = self.task(image_id)
            return None if task["StoreTaskState"] == "InProgress" else task

        return dict(eventually(look))


def stage(stack: ExitStack, *arguments: str) -> Stage:
    running = stack.enter_context(sandbox(*arguments))
    environment = running.ready["environment"]
    session = boto3.Session()
    clients: dict[tuple[str, ...], Any] = {}

    def client(service: str, *, region: str = "us-east-1", account: str = "main") -> Any:
        key = (service, region, account)
        if key not in clients:
            credentials = {
                "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
                "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
            }
            roles = {each["name"]: each.get("role_arn") for each in running.ready["accounts"]}
            if roles[account]:
                assumed = client("sts").assume_role(RoleArn=roles[account], RoleSessionName="tests")
                credentials = {
                    "aws_access_key_id": assumed["Credentials"]["AccessKeyId"],
                    "aws_secret_access_key": assumed["Credentials"]["SecretAccessKey"],
                    "aws_session_token": assumed["Credentials"]["SessionToken"],
                }
            clients[key] = session.client(
                service,
                region_name=region,
                endpoint_url=running.endpoint,
                config=Config(retries={"total_max_attempts": 1}, parameter_validation=False),
                **credentials,
            )
            stack.callback(clients[key].close)
        return clients[key]

    return Stage(running, client)
