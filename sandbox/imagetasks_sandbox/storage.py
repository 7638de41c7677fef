"""The S3 side of storing and restoring, on moto's buckets."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from moto.core.exceptions import ServiceException
from moto.iam.access_control import PermissionResult
from moto.s3.exceptions import MissingBucket
from moto.s3.models import s3_backends

from imagetasks_sandbox.refusal import Refusal, invalid_value
from imagetasks_sandbox.wire import timestamp

_MAGIC = b"imagetasks-sandbox AMI 1\n"


class Unwritable(Exception):  # noqa: N818 - becomes a task's failure reason
    """An object could not be put; the text is the failure reason of its task."""


@dataclass(frozen=True)
class StoredImage:
    """What an object holds of an AMI; no disk, the sandbox has none."""

    image_id: str
    name: str | None
    description: str | None
    architecture: str | None
    size_gib: int
    tags: dict[str, str]


def split(bucket_and_prefix: str, image_id: str) -> tuple[str, str]:
    """``bucket`` or ``bucket/some/prefix`` as EC2 takes it: the bucket's name and the key of the AMI's object."""
    bucket, _, prefix = bucket_and_prefix.partition("/")
    prefix = prefix.strip("/")
    return bucket, f"{prefix}/{image_id}.bin" if prefix else f"{image_id}.bin"


def create_bucket(account_id: str, region: str, bucket: str) -> None:
    """Make a bucket of an account in a Region."""
    s3_backends[account_id]["aws"].create_bucket(bucket, region)


def check_bucket(account_id: str, region: str, bucket: str) -> None:
    """A task can begin to store into the bucket.

    Raises:
        Refusal: InvalidParameterValue; it does not exist, or is in another Region.
    """
    found = _bucket(account_id, bucket)
    if found is None:
        raise invalid_value(f"The specified bucket does not exist: {bucket}")
    if found.region_name != region:
        raise invalid_value(f"The bucket {bucket} is in {found.region_name}, not in {region}")


def exists(account_id: str, bucket: str, key: str) -> bool:
    """Whether there is such an object."""
    found = _bucket(account_id, bucket)
    return found is not None and key in found.keys


def discard(account_id: str, bucket: str, key: str) -> None:
    """Delete an object if it is there."""
    if exists(account_id, bucket, key):
        s3_backends[account_id]["aws"].delete_object(bucket, key)


def put(
    account_id: str, bucket: str, key: str, image: StoredImage, tags: Mapping[str, str], started: datetime
) -> None:
    """Put an AMI's object, with the S3 metadata that EC2 describes and the caller's object tags.

    Raises:
        Unwritable: The bucket is gone, or its policy denies s3:PutObject to everybody.
    """
    found = _bucket(account_id, bucket)
    if found is None:
        raise Unwritable("NoSuchBucket: The specified bucket does not exist")
    if found.get_permission("s3:PutObject", f"arn:aws:s3:::{bucket}/{key}") is PermissionResult.DENIED:
        raise Unwritable("AccessDenied: Access Denied")
    backend = s3_backends[found.account_id]["aws"]
    try:
        stored = backend.put_object(bucket, key, _MAGIC + json.dumps(asdict(image)).encode())
        if tags:
            backend.put_object_tagging(stored, dict(tags))
    except ServiceException as error:
        raise Unwritable(str(error)) from error
    metadata = {
        "ami-name": image.name,
        "ami-description": image.description,
        "ami-owner-account": account_id,
        "ami-store-date": timestamp(started),
    }
    stored.set_metadata({f"x-amz-meta-{name}": value for name, value in metadata.items() if value})


def read(account_id: str, bucket: str, key: str) -> StoredImage:
    """What an object holds.

    Raises:
        Refusal: InvalidParameterValue; no such bucket or object, or not one that a store task wrote.
    """
    found = _bucket(account_id, bucket)
    if found is None:
        raise invalid_value(f"The specified bucket does not exist: {bucket}")
    if key not in found.keys:
        raise invalid_value(f"The specified object does not exist: {bucket}/{key}")
    content = found.keys[key].value
    if not content.startswith(_MAGIC):
        raise Refusal("InvalidRequest", f"The object {bucket}/{key} is not a stored AMI")
    return StoredImage(**json.loads(content.removeprefix(_MAGIC)))


def _bucket(account_id: str, bucket: str) -> Any:
    try:
        return s3_backends[account_id]["aws"].get_bucket(bucket)
    except MissingBucket:
        return None
