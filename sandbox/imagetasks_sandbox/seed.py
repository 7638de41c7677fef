"""A world to look at: AMIs, buckets and tasks in every account and Region, and new tasks from time to time.

One random seed gives one world: the same AMIs, buckets and tasks, at the same distances from the start of the sandbox.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from random import Random

from moto.ec2.models.amis import Ami

from imagetasks_sandbox import storage
from imagetasks_sandbox.service import StoreService, book_of, images_of, register, stored_image
from imagetasks_sandbox.tasks import VISIBLE_FOR, Trouble
from imagetasks_sandbox.world import ACCOUNTS, DENIED, ENABLED, HOME_REGION, Account

BUSY_TASKS = 450
"""Tasks of the main account in its home Region: more than two of EC2's pages."""

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


def fill(service: StoreService, random_seed: int) -> None:
    """Fill every enabled Region of every account but the denied one, and start tasks from now on."""
    random = Random(random_seed)  # noqa: S311 - a scenery, not a secret
    now = service.agenda.now()
    for account in ACCOUNTS:
        for region in ENABLED:
            if region != DENIED:
                busy = account is ACCOUNTS[0] and region == HOME_REGION
                _furnish(service, random, account, region, BUSY_TASKS if busy else random.randint(3, 14), now)
    _start_later(service, random)


def _furnish(
    service: StoreService, random: Random, account: Account, region: str, count: int, now: datetime
) -> None:
    buckets = _buckets(account, region)
    for bucket in buckets:
        storage.create_bucket(account.account_id, region, bucket)
    ages = sorted((_age(random) for _ in range(count)), reverse=True)
    images: list[Ami] = []
    for number, age in enumerate(ages):
        # Mostly a new AMI, sometimes one that was stored before, to the other bucket.
        if not images or random.random() < 0.7:
            images.append(_image(random, account, region, now - age, number))
        _past(service, random, random.choice(images[-3:]), buckets, now - age)
    running = random.sample(images, k=min(len(images), random.randint(0, 2)))
    for ami in running:
        bucket = random.choice(buckets)
        key = f"{ami.id}.bin"
        storage.discard(account.account_id, bucket, key)
        lasts = service.duration(ami)
        service.begin(ami, bucket, key, started=now - lasts * random.uniform(0.05, 0.8))


def _past(service: StoreService, random: Random, ami: Ami, buckets: Sequence[str], started: datetime) -> None:
    bucket = random.choice(buckets)
    key = f"{ami.id}.bin"
    task = service.enter(ami, bucket, key, started=started)
    if random.random() < 0.08:
        task.trouble = Trouble(random.uniform(0.02, 0.97), random.choice(_REASONS))
        task.fail(task.trouble.reason, task.due)
        return
    storage.put(ami.owner_id, bucket, key, stored_image(ami), {}, task.started)
    task.complete()


def _start_later(service: StoreService, random: Random) -> None:
    pause = max(START_AT_MOST_EVERY, START_EVERY / service.speed) * random.uniform(0.5, 1.5)

    def start() -> None:
        _start(service, random)
        _start_later(service, random)

    service.agenda.at(service.agenda.now() + pause, start)


def _start(service: StoreService, random: Random) -> None:
    account = random.choice(ACCOUNTS)
    region = random.choice([region for region in ENABLED if region != DENIED])
    storing = {task.ami_id for task in book_of(account.account_id, region).in_progress()}
    images = [ami for ami in images_of(account.account_id, region) if ami.id not in storing]
    if not images:
        return  # moto was reset, or all are being stored
    ami = random.choice(images)
    bucket = random.choice(_buckets(account, region))
    key = f"{ami.id}.bin"
    storage.discard(
        account.account_id, bucket, key
    )  # one copy per bucket, and a number of objects that stays
    trouble = Trouble(random.uniform(0.05, 0.95), random.choice(_REASONS)) if random.random() < 0.1 else None
    service.begin(ami, bucket, key, started=service.agenda.now(), trouble=trouble)


def _buckets(account: Account, region: str) -> tuple[str, str]:
    return f"{account.name}-ami-archive-{region}", f"{account.name}-ami-vault-{region}"


def _image(random: Random, account: Account, region: str, made: datetime, number: int) -> Ami:
    role, architecture = random.choice(_ROLES), random.choice(_ARCHITECTURES)
    return register(
        account.account_id,
        region,
        f"ami-{random.getrandbits(68):017x}",
        name=f"{role}-{made:%Y%m%d}-{architecture}-{number}",
        description=f"Base image for {role}",
        architecture=architecture,
        tags={"role": role},
    )


def _age(random: Random) -> timedelta:
    # More of the recent past than of the far: the square of a uniform share.
    return timedelta(minutes=5) + (VISIBLE_FOR - timedelta(minutes=10)) * random.random() ** 2
