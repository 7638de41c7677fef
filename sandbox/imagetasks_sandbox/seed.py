"""A world to look at: AMIs, buckets and tasks in every account and Region, and new tasks from time to time.

One random seed gives one world: the same AMIs, buckets and tasks, at the same distances from the start.
"""

from datetime import datetime, timedelta
from random import Random
from typing import Any

from imagetasks_sandbox import images, storage
from imagetasks_sandbox.service import StoreService
from imagetasks_sandbox.storage import Place
from imagetasks_sandbox.tasks import VISIBLE_FOR, Trouble
from imagetasks_sandbox.world import ACCOUNTS, DENIED, ENABLED, HOME_REGION, Account

BUSY_TASKS = 450
"""Tasks of the main account in its home Region: more than two of EC2's pages."""

FAILING_SHARE = 0.08
"""So many of the tasks fail."""

NEW_IMAGE_SHARE = 0.7
"""So many of the past tasks store an AMI for the first time; the others one of the last few again."""

START_EVERY = timedelta(seconds=15)
"""Mean time between two new tasks at speed 1, over all accounts and Regions."""

START_AT_MOST_EVERY = timedelta(seconds=0.5)
"""However high the speed: a sandbox must not keep a machine busy."""

_REASONS = (
    "AccessDenied: Access Denied",
    "InternalError: An internal error has occurred",
    "NoSuchBucket: The specified bucket does not exist",
    "SlowDown: Please reduce your request rate",
    "Client.InvalidKmsKey.InvalidState: The KMS key of a snapshot is not enabled",
)
_ROLES = ("api", "bastion", "batch", "build-agent", "database", "ingress", "web", "worker")
_ARCHITECTURES = ("x86_64", "x86_64", "arm64")
_REGIONS = [region for region in ENABLED if region != DENIED]


def fill(service: StoreService, random_seed: int) -> None:
    """Fill every enabled Region of every account but the denied one, and start tasks from now on."""
    random = Random(random_seed)  # noqa: S311 - a scenery, not a secret
    for account in ACCOUNTS:
        for region in _REGIONS:
            busy = account is ACCOUNTS[0] and region == HOME_REGION
            count = BUSY_TASKS if busy else random.randint(3, 14)
            _Site(service, random, account, region).furnish(count)
    _start_later(service, random)


class _Site:
    """One account in one Region."""

    def __init__(self, service: StoreService, random: Random, account: Account, region: str) -> None:
        self._service = service
        self._random = random
        self._account_id = account.account_id
        self._region = region
        self._buckets = (f"{account.name}-ami-archive-{region}", f"{account.name}-ami-vault-{region}")

    def furnish(self, count: int) -> None:
        """Make the buckets, ``count`` ended tasks of the past with their AMIs, and up to two in progress."""
        now = self._service.agenda.now()
        for bucket in self._buckets:
            storage.create_bucket(self._account_id, self._region, bucket)
        amis: list[Any] = []
        ages = sorted((_age(self._random) for _ in range(count)), reverse=True)
        for number, age in enumerate(ages):
            if not amis or self._random.random() < NEW_IMAGE_SHARE:
                amis.append(self._register(number, now - age))
            self._past(self._random.choice(amis[-3:]), now - age)
        for ami in self._random.sample(amis, k=min(len(amis), self._random.randint(0, 2))):
            elapsed = self._service.duration(ami) * self._random.uniform(0.05, 0.8)
            self._service.begin(ami, self._free_place(ami), started=now - elapsed)

    def start(self) -> None:
        """Start a task, if there is an AMI for it; after moto's reset there is none."""
        storing = {task.ami_id for task in images.book(self._account_id, self._region).in_progress()}
        amis = [ami for ami in images.available(self._account_id, self._region) if ami.id not in storing]
        if amis:
            ami = self._random.choice(amis)
            self._service.begin(
                ami, self._free_place(ami), started=self._service.agenda.now(), trouble=self._trouble()
            )

    def _register(self, number: int, made: datetime) -> Any:
        role, architecture = self._random.choice(_ROLES), self._random.choice(_ARCHITECTURES)
        return images.register(
            self._account_id,
            self._region,
            image_id=f"ami-{self._random.getrandbits(68):017x}",
            name=f"{role}-{made:%Y%m%d}-{architecture}-{number}",
            description=f"Base image for {role}",
            architecture=architecture,
            tags={"role": role},
        )

    def _past(self, ami: Any, started: datetime) -> None:
        at = self._free_place(ami)
        trouble = self._trouble()
        task = self._service.enter(ami, at, started=started, trouble=trouble)
        if trouble:
            task.fail(trouble.reason, task.due)
        else:
            storage.put(at, images.stored(ami), tags={}, started=task.started)
            task.complete()

    def _free_place(self, ami: Any) -> Place:
        # One copy of an AMI per bucket; and deleting the old one keeps the number of objects where it is.
        at = storage.place(self._account_id, self._random.choice(self._buckets), ami.id)
        storage.discard(at)
        return at

    def _trouble(self) -> Trouble | None:
        if self._random.random() >= FAILING_SHARE:
            return None
        return Trouble(self._random.uniform(0.02, 0.97), self._random.choice(_REASONS))


def _start_later(service: StoreService, random: Random) -> None:
    pause = max(START_AT_MOST_EVERY, START_EVERY / service.speed) * random.uniform(0.5, 1.5)

    def start() -> None:
        _Site(service, random, random.choice(ACCOUNTS), random.choice(_REGIONS)).start()
        _start_later(service, random)

    service.agenda.at(service.agenda.now() + pause, start)


def _age(random: Random) -> timedelta:
    # More of the recent past than of the far: the square of a uniform share.
    return timedelta(minutes=5) + (VISIBLE_FOR - timedelta(minutes=10)) * random.random() ** 2
