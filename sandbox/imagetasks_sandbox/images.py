"""The AMIs of moto, and where the tasks of an account in a Region are kept: in moto's own EC2 backend.

So moto's reset drops the tasks too. An AMI is a ``moto.ec2.models.amis.Ami``, untyped here.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami

from imagetasks_sandbox import refusal
from imagetasks_sandbox.storage import StoredImage
from imagetasks_sandbox.tasks import Book

_BOOK = "imagetasks_sandbox_book"


def book(account_id: str, region: str) -> Book:
    """The tasks of an account in a Region."""
    return _book(_backend(account_id, region))


def book_of(ami: Any) -> Book:
    """The tasks of the account and Region that an AMI is in."""
    return _book(ami.ec2_backend)


def books(account_id: str) -> list[Book]:
    """The tasks of an account, by Region."""
    return [_book(backend) for backend in list(ec2_backends[account_id].values())]


def ids(account_id: str, region: str) -> set[str]:
    """All AMIs there are in a Region for an account."""
    return set(_backend(account_id, region).amis)


def available(account_id: str, region: str) -> list[Any]:
    """The AMIs that can be stored."""
    return [ami for ami in list(_backend(account_id, region).amis.values()) if ami.state == "available"]


def storable(account_id: str, region: str, image_id: str) -> Any:
    """The AMI of this id, if it can be stored. moto knows no AMIs here but the account's own.

    Raises:
        Refusal: InvalidAMIID.NotFound or InvalidAMIID.Unavailable.
    """
    backend = _backend(account_id, region)
    ami = backend.amis.get(image_id)
    if ami is None:
        if image_id in backend.deleted_amis:
            raise refusal.image_unavailable(image_id)
        raise refusal.image_not_found([image_id])
    if ami.state != "available":
        raise refusal.image_unavailable(image_id)
    return ami


def check_name(account_id: str, region: str, name: str) -> None:
    """No AMI of the account has this name in the Region.

    Raises:
        Refusal: InvalidAMIName.Duplicate.
    """
    for ami in list(_backend(account_id, region).amis.values()):
        if ami.name == name:
            raise refusal.image_name_taken(name, ami.id)


def register(
    account_id: str,
    region: str,
    *,
    image_id: str,
    name: str,
    description: str | None,
    architecture: str | None,
    tags: Mapping[str, str],
) -> Any:
    """Enter an AMI of an account's own into moto, and return it."""
    backend = _backend(account_id, region)
    ami = Ami(
        backend,
        image_id,
        name=name,
        description=description,
        architecture=architecture,
        virtualization_type="hvm",
        root_device_type="ebs",
        root_device_name="/dev/xvda",
        region_name=f"{region}a",
        tags=dict(tags),
    )
    backend.amis[image_id] = ami
    return ami


def make_available(ami: Any) -> None:
    """A pending AMI can be used from now on."""
    if ami.state == "pending":
        ami.state = "available"


def stored(ami: Any) -> StoredImage:
    """What an object is to hold of an AMI."""
    return StoredImage(
        image_id=ami.id,
        name=ami.name,
        description=ami.description,
        architecture=ami.architecture,
        owner=ami.owner_id,
        tags={tag["key"]: tag["value"] for tag in ami.get_tags()},
    )


def size_gib(ami: Any) -> int:
    """The size of an AMI's snapshots."""
    return sum(int(mapping["Ebs"]["VolumeSize"]) for mapping in ami.block_device_mappings)


def tags_of_specifications(specifications: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Tags by resource type, ``image`` and ``snapshot``; both are there, maybe empty.

    Raises:
        Refusal: InvalidParameterValue, for any other type.
    """
    tags: dict[str, dict[str, str]] = {"image": {}, "snapshot": {}}
    for specification in specifications:
        resource_type = specification.get("ResourceType")
        if resource_type not in tags:
            raise refusal.invalid_value(
                f"'{resource_type}' is not a valid taggable resource type for this operation."
            )
        tags[resource_type].update({tag["Key"]: tag["Value"] for tag in specification.get("Tags", ())})
    return tags


def _backend(account_id: str, region: str) -> Any:
    return ec2_backends[account_id][region]


def _book(backend: Any) -> Book:
    found: Book = backend.__dict__.setdefault(_BOOK, Book())
    return found
