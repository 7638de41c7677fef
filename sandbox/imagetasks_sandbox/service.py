"""The three actions on moto's AMIs and buckets: what they check, what they change, what they answer.

A task is ended by the agenda: by its thread when it is due, or by the next request to EC2 if that comes first. So an
object is in its bucket before any answer calls the task completed, and also when nobody asks EC2.
"""

import zlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from moto.ec2.models import ec2_backends
from moto.ec2.models.amis import Ami
from moto.ec2.utils import random_ami_id

from imagetasks_sandbox import listing, refusal, storage
from imagetasks_sandbox.agenda import Agenda
from imagetasks_sandbox.storage import StoredImage, Unwritable
from imagetasks_sandbox.tasks import Book, Task, Trouble

STORE_TIME = timedelta(seconds=120)
"""How long the storing of an AMI takes at speed 1, give or take a quarter."""

MAX_STORING_GIB = 1200
"""EC2 refuses further stores of an account while so much is in progress."""

MAX_TASKS = 1000
"""Most tasks kept per account and Region: a sandbox may run for weeks."""

_BOOK = "imagetasks_sandbox_book"


class StoreService:
    """Store and restore tasks of all accounts and Regions. Its methods take the agenda's lock.

    Args:
        agenda: Ends the tasks; has the clock and the lock.
        speed: Divides every duration.
        page_size: Tasks of a page where MaxResults is not given.
    """

    def __init__(self, agenda: Agenda, *, speed: float = 1.0, page_size: int = listing.MAX_PAGE) -> None:
        self.agenda = agenda
        self.speed = speed
        self._page_size = page_size

    def create(self, account_id: str, region: str, parameters: Mapping[str, Any]) -> str:
        """CreateStoreImageTask: begin to store an AMI, and return the key its object will have.

        Raises:
            Refusal: As EC2 does, see ``refusal``.
        """
        for name in ("ImageId", "Bucket"):
            if not parameters.get(name):
                raise refusal.missing(name)
        image_id = listing.check_image_id(parameters["ImageId"])
        _end_if_dry(parameters)
        bucket, key = storage.split(parameters["Bucket"], image_id)
        with self.agenda.lock:
            ami = self._image(account_id, region, image_id)
            storage.check_bucket(account_id, region, bucket)
            if any(task.ami_id == image_id for task in book_of(account_id, region).in_progress()):
                raise refusal.Refusal("InvalidRequest", f"A store task is already in progress for {image_id}")
            if storage.exists(account_id, bucket, key):
                raise refusal.Refusal("InvalidRequest", f"The object {key} already exists in bucket {bucket}")
            if self._storing_gib(account_id) >= MAX_STORING_GIB:
                raise refusal.limit_exceeded()
            tags = {each["Key"]: each["Value"] for each in parameters.get("S3ObjectTags", ())}
            self.begin(ami, bucket, key, started=self.agenda.now(), tags=tags)
        return key

    def describe(
        self, account_id: str, region: str, parameters: Mapping[str, Any]
    ) -> tuple[list[Task], str | None]:
        """DescribeStoreImageTasks: a page of tasks, newest first, and the token of the next page.

        Raises:
            Refusal: As EC2 does, see ``listing.ask``; InvalidAMIID.NotFound.
        """
        scope = f"{account_id}/{region}"
        question = listing.ask(parameters, scope=scope, page_size=self._page_size)
        _end_if_dry(parameters)
        with self.agenda.lock:
            book = book_of(account_id, region)
            if question.image_ids:
                # A deregistered AMI keeps its tasks, and can be asked for by id as long as it has any.
                known = {*_backend(account_id, region).amis}
                known.update(task.ami_id for _, task in book.newest_first(self.agenda.now()))
                unknown = [image_id for image_id in question.image_ids if image_id not in known]
                if unknown:
                    raise refusal.image_not_found(unknown)
            return listing.answer(question, book, self.agenda.now(), scope)

    def restore(self, account_id: str, region: str, parameters: Mapping[str, Any]) -> str:
        """CreateRestoreImageTask: begin to make an AMI of an object, and return the new AMI's id.

        The AMI is pending for half the time that storing took it, then available.

        Raises:
            Refusal: As EC2 does, see ``refusal``.
        """
        for name in ("Bucket", "ObjectKey"):
            if not parameters.get(name):
                raise refusal.missing(name)
        _end_if_dry(parameters)
        with self.agenda.lock:
            storage.check_bucket(account_id, region, parameters["Bucket"])
            stored = storage.read(account_id, parameters["Bucket"], parameters["ObjectKey"])
            name = parameters.get("Name") or stored.name
            backend = _backend(account_id, region)
            for ami in backend.amis.values():
                if name and ami.name == name and ami.owner_id == account_id:
                    raise refusal.image_name_taken(name, ami.id)
            tags = dict(stored.tags)
            for specification in parameters.get("TagSpecifications", ()):
                if specification.get("ResourceType") == "image":
                    tags.update({tag["Key"]: tag["Value"] for tag in specification.get("Tags", ())})
            ami = register(
                account_id, region, random_ami_id(), name or "", stored.description, stored.architecture, tags
            )
            ami.state = "pending"
            self.agenda.at(self.agenda.now() + self.duration(ami) / 2, lambda: _make_available(ami))
            return str(ami.id)

    def begin(
        self,
        ami: Ami,
        bucket: str,
        key: str,
        *,
        started: datetime,
        tags: Mapping[str, str] | None = None,
        trouble: Trouble | None = None,
    ) -> Task:
        """Enter a task that began at ``started``, and have it ended in time. Checks nothing."""
        with self.agenda.lock:
            task = self.enter(ami, bucket, key, started=started, trouble=trouble)
            book = book_of(ami.ec2_backend.account_id, ami.ec2_backend.region_name)
            book.forget(self.agenda.now(), MAX_TASKS)
            self.agenda.at(task.due, lambda: _end(ami, book, task, tags or {}))
        return task

    def enter(
        self, ami: Ami, bucket: str, key: str, *, started: datetime, trouble: Trouble | None = None
    ) -> Task:
        """Enter a task that the caller is going to end. Checks nothing."""
        task = Task(
            ami_id=ami.id,
            bucket=bucket,
            key=key,
            size_gib=_size(ami),
            started=started.replace(microsecond=started.microsecond // 1000 * 1000),
            lasts=self.duration(ami),
            trouble=trouble,
        )
        with self.agenda.lock:
            book_of(ami.ec2_backend.account_id, ami.ec2_backend.region_name).add(task)
        return task

    def duration(self, ami: Ami) -> timedelta:
        """How long this AMI takes: its own, the same each time."""
        variation = zlib.crc32(ami.id.encode()) % 1000 / 1000  # 0 to 1
        return STORE_TIME * (0.75 + variation / 2) / self.speed

    def _image(self, account_id: str, region: str, image_id: str) -> Ami:
        backend = _backend(account_id, region)
        ami = backend.amis.get(image_id)
        if ami is None:
            if image_id in backend.deleted_amis:
                raise refusal.image_unavailable(image_id)
            raise refusal.image_not_found([image_id])
        if ami.owner_id != account_id and {"UserId": account_id} not in ami.launch_permissions:
            raise refusal.image_not_ours(image_id)
        if ami.state != "available":
            raise refusal.image_unavailable(image_id)
        return ami

    @staticmethod
    def _storing_gib(account_id: str) -> int:
        books = [_book(backend) for backend in list(ec2_backends[account_id].values())]
        return sum(task.size_gib for book in books for task in book.in_progress())


def register(
    account_id: str,
    region: str,
    image_id: str,
    name: str,
    description: str | None,
    architecture: str | None,
    tags: Mapping[str, str],
) -> Ami:
    """Enter an AMI of an account's own into moto."""
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


def book_of(account_id: str, region: str) -> Book:
    """The tasks of an account in a Region. They live in moto's backend, so moto's reset drops them too."""
    return _book(_backend(account_id, region))


def images_of(account_id: str, region: str) -> list[Ami]:
    """The account's own AMIs that can be stored."""
    return [
        ami
        for ami in list(_backend(account_id, region).amis.values())
        if ami.owner_id == account_id and ami.state == "available"
    ]


def stored_image(ami: Ami) -> StoredImage:
    """What an object is to hold of an AMI."""
    tags = {tag["key"]: tag["value"] for tag in ami.get_tags()}
    return StoredImage(ami.id, ami.name, ami.description, ami.architecture, _size(ami), tags)


def _end(ami: Ami, book: Book, task: Task, tags: Mapping[str, str]) -> None:
    account_id, region = ami.ec2_backend.account_id, ami.ec2_backend.region_name
    if book is not book_of(account_id, region):
        return  # moto was reset: neither task nor bucket are of this world any more
    if task.trouble:
        task.fail(task.trouble.reason, task.due)
        return
    try:
        storage.put(account_id, task.bucket, task.key, stored_image(ami), tags, task.started)
    except Unwritable as failure:
        task.fail(str(failure), task.due)
    else:
        task.complete()


def _book(backend: Any) -> Book:
    book: Book = backend.__dict__.setdefault(_BOOK, Book())
    return book


def _backend(account_id: str, region: str) -> Any:
    return ec2_backends[account_id][region]


def _end_if_dry(parameters: Mapping[str, Any]) -> None:
    if parameters.get("DryRun"):
        raise refusal.dry_run()


def _size(ami: Ami) -> int:
    return sum(int(mapping["Ebs"]["VolumeSize"]) for mapping in ami.block_device_mappings)


def _make_available(ami: Ami) -> None:
    if ami.state == "pending":
        ami.state = "available"
