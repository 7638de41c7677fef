"""The three actions on moto's AMIs and buckets: what they check, what they change, what they answer.

A task is ended by the agenda: by its thread when the task is due, or by the next request to EC2 if that
comes first. So an object is in its bucket before any answer calls the task completed, and it gets there also
when nobody asks EC2.
"""

import zlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from moto.ec2.utils import random_ami_id

from imagetasks_sandbox import images, listing, refusal, storage
from imagetasks_sandbox.agenda import Agenda
from imagetasks_sandbox.storage import Place, Unwritable
from imagetasks_sandbox.tasks import Book, Task, Trouble

STORE_TIME = timedelta(seconds=120)
"""How long the storing of an AMI takes at speed 1, give or take a quarter."""

MAX_STORING_GIB = 1200
"""EC2 refuses further stores of an account while so much is in progress."""

MAX_TASKS = 1000
"""Most tasks kept per account and Region: a sandbox may run for weeks."""

MAX_OBJECT_TAGS = 10
"""S3's limit."""


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
        _require(parameters, "ImageId", "Bucket")
        image_id = listing.check_image_id(parameters["ImageId"])
        tags = _object_tags(parameters)
        _end_if_dry(parameters)
        at = storage.place(account_id, parameters["Bucket"], image_id)
        with self.agenda.lock:
            ami = images.storable(account_id, region, image_id)
            storage.check_bucket(account_id, region, at.bucket)
            if any(task.ami_id == image_id for task in images.book(account_id, region).in_progress()):
                raise refusal.Refusal("InvalidRequest", f"A store task is already in progress for {image_id}")
            if storage.exists(at):
                raise refusal.Refusal(
                    "InvalidRequest", f"The object {at.key} already exists in bucket {at.bucket}"
                )
            storing = (task for book in images.books(account_id) for task in book.in_progress())
            if sum(task.size_gib for task in storing) >= MAX_STORING_GIB:
                raise refusal.limit_exceeded()
            self.begin(ami, at, started=self.agenda.now(), tags=tags)
        return at.key

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
            book, now = images.book(account_id, region), self.agenda.now()
            if question.image_ids:
                # A deregistered AMI keeps its tasks, and can be asked for by id as long as it has any.
                known = images.ids(account_id, region) | {task.ami_id for _, task in book.newest_first(now)}
                unknown = [image_id for image_id in question.image_ids if image_id not in known]
                if unknown:
                    raise refusal.image_not_found(unknown)
            return listing.answer(question, book, now, scope)

    def restore(self, account_id: str, region: str, parameters: Mapping[str, Any]) -> str:
        """CreateRestoreImageTask: begin to make an AMI of an object, and return the new AMI's id.

        Without a Name the AMI gets the name it was stored with. It is pending for half the time that storing
        it takes, then available.

        Raises:
            Refusal: As EC2 does, see ``refusal``.
        """
        _require(parameters, "Bucket", "ObjectKey")
        tags = images.tags_of_specifications(parameters.get("TagSpecifications", ()))
        _end_if_dry(parameters)
        with self.agenda.lock:
            storage.check_bucket(account_id, region, parameters["Bucket"])
            stored = storage.read(Place(account_id, parameters["Bucket"], parameters["ObjectKey"]))
            name = parameters.get("Name") or stored.name or stored.image_id
            images.check_name(account_id, region, name)
            ami = images.register(
                account_id,
                region,
                image_id=random_ami_id(),
                name=name,
                description=stored.description,
                architecture=stored.architecture,
                tags=stored.tags | tags["image"],
            )
            ami.ebs_snapshot.add_tags(tags["snapshot"])
            ami.state = "pending"
            self.agenda.at(self.agenda.now() + self.duration(ami) / 2, lambda: images.make_available(ami))
            return str(ami.id)

    def begin(
        self,
        ami: Any,
        at: Place,
        *,
        started: datetime,
        tags: Mapping[str, str] | None = None,
        trouble: Trouble | None = None,
    ) -> None:
        """Enter a task that began at ``started``, and have it ended in time. Checks nothing."""
        with self.agenda.lock:
            task = self.enter(ami, at, started=started, trouble=trouble)
            book = images.book_of(ami)
            book.forget(self.agenda.now(), MAX_TASKS)
            self.agenda.at(task.due, lambda: _end(ami, at, task, tags=tags or {}, book=book))

    def enter(self, ami: Any, at: Place, *, started: datetime, trouble: Trouble | None = None) -> Task:
        """Enter a task that the caller is going to end. Checks nothing."""
        task = Task(
            ami_id=ami.id,
            bucket=at.bucket,
            key=at.key,
            size_gib=images.size_gib(ami),
            started=started.replace(microsecond=started.microsecond // 1000 * 1000),
            lasts=self.duration(ami),
            trouble=trouble,
        )
        with self.agenda.lock:
            images.book_of(ami).add(task)
        return task

    def duration(self, ami: Any) -> timedelta:
        """How long this AMI takes: its own, the same each time."""
        variation = zlib.crc32(ami.id.encode()) % 1000 / 1000  # 0 to 1
        return max(STORE_TIME * (0.75 + variation / 2) / self.speed, timedelta(milliseconds=1))


def _end(ami: Any, at: Place, task: Task, *, tags: Mapping[str, str], book: Book) -> None:
    if book is not images.book_of(ami):
        return  # moto was reset: neither task nor bucket are of this world any more
    if task.trouble:
        task.fail(task.trouble.reason, task.due)
        return
    try:
        storage.put(at, images.stored(ami), tags=tags, started=task.started)
    except Unwritable as failure:
        task.fail(str(failure), task.due)
    else:
        task.complete()


def _require(parameters: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if not parameters.get(name):
            raise refusal.missing(name)


def _end_if_dry(parameters: Mapping[str, Any]) -> None:
    if parameters.get("DryRun"):
        raise refusal.dry_run()


def _object_tags(parameters: Mapping[str, Any]) -> dict[str, str]:
    tags = {each.get("Key", ""): each.get("Value", "") for each in parameters.get("S3ObjectTags", ())}
    if len(tags) > MAX_OBJECT_TAGS or any(not key or key.startswith("aws:") for key in tags):
        raise refusal.invalid_value(
            f"An object has at most {MAX_OBJECT_TAGS} tags, and no key begins with 'aws:'"
        )
    return tags
