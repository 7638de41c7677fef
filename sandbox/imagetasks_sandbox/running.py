"""Builds every part of the sandbox once, in order, serves until told to end, and takes it down again.

Imports moto, which reads the environment: to be imported when the environment is clean.
"""

import json
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from imagetasks_sandbox import actions, seed, storage
from imagetasks_sandbox.agenda import Agenda
from imagetasks_sandbox.service import StoreService
from imagetasks_sandbox.serving import Server
from imagetasks_sandbox.throttle import Rate, Throttle
from imagetasks_sandbox.world import ACCOUNTS, DENIED, ENABLED, NOT_OPTED_IN, client_environment


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says; see there.

    Attributes:
        throttle: None: never throttle.
        random_seed: None: begin empty.
    """

    host: str
    port: int
    speed: float
    page_size: int
    throttle: Rate | None
    random_seed: int | None
    ready_json: bool


def run(options: Options, ending: threading.Event) -> None:
    """Serve until ``ending`` is set.

    Raises:
        SystemExit: The address is in use.
    """
    storage.track_few_objects()
    agenda = Agenda(lambda: datetime.now(UTC))
    service = StoreService(agenda, speed=options.speed, page_size=options.page_size)
    throttle = Throttle(options.throttle, time.monotonic) if options.throttle else None
    actions.install(actions.Actions(service, throttle))
    server = Server(options.host, options.port)
    if options.random_seed is not None:
        seed.fill(service, options.random_seed)
    clockwork = threading.Thread(target=agenda.run, name="agenda")
    clockwork.start()
    server.start()
    try:
        host = f"[{options.host}]" if ":" in options.host else options.host
        endpoint = f"http://{host}:{server.port}"
        if options.ready_json:
            _print(json.dumps(_ready(endpoint)))
        else:
            _greet(endpoint, seeded=options.random_seed is not None)
        ending.wait()
    finally:
        server.stop()
        agenda.stop()
        clockwork.join()


def _ready(endpoint: str) -> Mapping[str, object]:
    return {
        "endpoint": endpoint,
        "environment": client_environment(endpoint),
        "accounts": [
            {name: value for name, value in vars(account).items() if value is not None}
            for account in ACCOUNTS
        ],
        "regions": list(ENABLED),
        "not_opted_in": NOT_OPTED_IN,
        "denied": DENIED,
    }


def _greet(endpoint: str, *, seeded: bool) -> None:
    _print(f"EC2 sandbox on {endpoint}; Ctrl-C ends it. In another shell:\n")
    _print("unset AWS_PROFILE AWS_SESSION_TOKEN")
    for name, value in client_environment(endpoint).items():
        _print(f"export {name}={value}")
    _print()
    if seeded:
        _print("aws ec2 describe-store-image-tasks --filters Name=task-state,Values=InProgress")
        _print("aws ec2 describe-images --owners self --query 'Images[].[ImageId, Name]' --output text")
    else:
        _print("aws s3 mb s3://my-archive")
        _print("image=$(aws ec2 register-image --name my-image --query ImageId --output text)")
        _print("aws ec2 create-store-image-task --bucket my-archive --image-id $image")
        _print("aws ec2 describe-store-image-tasks")


def _print(line: str = "") -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
