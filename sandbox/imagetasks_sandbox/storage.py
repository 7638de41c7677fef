"""The S3 side of storing and restoring, on moto's buckets."""

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from moto.core.exceptions import ServiceException
from moto.iam.access_control import PermissionResult
from moto.s3.exceptions import MissingBucket
from moto.s3.models import FakeKey, s3_backends

from imagetasks_sandbox.refusal import Refusal, invalid_value
from imagetasks_sandbox.wire import timestamp

_MAGIC = b"imagetasks-sandbox AMI 1\n"
_PARTITION = "aws"
_TRACKED_OBJECTS = 2000


class Unwritable(Exception):
    """An object could not be put; the text is the failure reason of its task."""


@dataclass(frozen=True)
class Place:
    """Where an AMI's object is, or is to be. The account is who asks; the bucket may be another's."""

    account_id: str
    bucket: str
    key: str


@dataclass(frozen=True)
class StoredImage:
    """What an object holds of an AMI; no disk, the sandbox has none."""

    image_id: str
    name: str | None
    description: str | None
    architecture: str | None
    owner: str
    tags: dict[str, str]


def track_few_objects() -> None:
    """Keep moto from growing: for its dashboard it holds on to every object there ever was."""
    FakeKey.instances_tracked = deque(maxlen=_TRACKED_OBJECTS)  # type: ignore[attr-defined]


def place(account_id: str, bucket_and_prefix: str, image_id: str) -> Place:
    """The place that EC2 gives an AMI's object in ``bucket`` or ``bucket/some/prefix``."""
    bucket, _, prefix = bucket_and_prefix.partition("/")
    prefix = prefix.strip("/")
    return Place(account_id, bucket, f"{prefix}/{image_id}.bin" if prefix else f"{image_id}.bin")


def create_bucket(account_id: str, region: str, bucket: str) -> None:
    """Make a bucket of an account in a Region."""
    s3_backends[account_id][_PARTITION].create_bucket(bucket, region)


def check_bucket(account_id: str, region: str, bucket: str) -> None:
    """EC2 can use the bucket in this Region.

    Raises:
        Refusal: InvalidParameterValue; the bucket does not exist, or is in another Region.
    """
    found = _bucket(account_id, bucket)
    if found is None:
        raise invalid_value(f"The specified bucket does not exist: {bucket}")
    if found.region_name != region:
        raise invalid_value(f"The bucket {bucket} is in {found.region_name}, not in {region}")


def exists(at: Place) -> bool:
    """Whether there is an object."""
    return _object(at) is not None


def discard(at: Place) -> None:
    """Delete the object if there is one."""
    if exists(at):
        s3_backends[at.account_id][_PARTITION].delete_object(at.bucket, at.key)


def put(at: Place, image: StoredImage, *, tags: Mapping[str, str], started: datetime) -> None:
    """Put an AMI's object, with EC2's notes in its metadata and the caller's object tags.

    Raises:
        Unwritable: The bucket is gone, or its policy denies s3:PutObject.
    """
    bucket = _bucket(at.account_id, at.bucket)
    if bucket is None:
        raise Unwritable("NoSuchBucket: The specified bucket does not exist")
    if _denies_put(bucket, f"arn:aws:s3:::{at.bucket}/{at.key}"):
        raise Unwritable("AccessDenied: Access Denied")
    backend = s3_backends[bucket.account_id][_PARTITION]
    try:
        stored = backend.put_object(at.bucket, at.key, _MAGIC + json.dumps(asdict(image)).encode())
        if tags:
            backend.put_object_tagging(stored, dict(tags))
    except ServiceException as error:
        raise Unwritable(str(error)) from error
    metadata = {
        "ami-name": image.name,
        "ami-description": image.description,
        "ami-owner-account": image.owner,
        "ami-store-date": timestamp(started),
    }
    stored.set_metadata({f"x-amz-meta-{name}": value for name, value in metadata.items() if value})


def read(at: Place) -> StoredImage:
    """What an object holds.

    Raises:
        Refusal: InvalidParameterValue, no such object; InvalidRequest, no store task wrote it.
    """
    stored = _object(at)
    if stored is None:
        raise invalid_value(f"The specified object does not exist: {at.bucket}/{at.key}")
    content = stored.value
    if not content.startswith(_MAGIC):
        raise Refusal("InvalidRequest", f"The object {at.bucket}/{at.key} is not a stored AMI")
    return StoredImage(**json.loads(content.removeprefix(_MAGIC)))


def _bucket(account_id: str, bucket: str) -> Any:
    try:
        return s3_backends[account_id][_PARTITION].get_bucket(bucket)
    except MissingBucket:
        return None


def _object(at: Place) -> Any:
    bucket = _bucket(at.account_id, at.bucket)
    return None if bucket is None else s3_backends[at.account_id][_PARTITION].get_object(at.bucket, at.key)


def _denies_put(bucket: Any, resource: str) -> bool:
    try:
        return bool(bucket.get_permission("s3:PutObject", resource) is PermissionResult.DENIED)
    except (ValueError, KeyError):  # moto takes any bytes for a policy; one it cannot read denies nothing
        return False
