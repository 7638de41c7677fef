"""Runs the canned EC2 as a child process. Blocking; needs nothing but the standard library."""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from canned.faults import FAULTS_PATH
from canned.throttle import CALLS_PATH, LIMITS_PATH, Call
from canned.world import WORLD_PATH

STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Canned:
    """A running canned EC2.

    Attributes:
        endpoint: Its address, as "http://127.0.0.1:40000".
    """

    endpoint: str

    def post(self, *targets: Mapping[str, Any]) -> None:
        """Replaces these targets of its world; see `canned.world`."""
        self._ask("POST", WORLD_PATH, {"targets": targets})

    def fail(self, *faults: Mapping[str, Any]) -> None:
        """Adds these faults; see `canned.faults`."""
        self._ask("POST", FAULTS_PATH, {"faults": faults})

    def recover(self) -> None:
        """Takes all faults away."""
        self._ask("DELETE", FAULTS_PATH)

    def limit(self, **limits: float) -> None:
        """From now on it throttles, and forgets its calls so far; see `canned.throttle`. None: no more."""
        self._ask("POST", LIMITS_PATH, limits)

    def calls(self) -> dict[tuple[str, str], list[Call]]:
        """Every DescribeStoreImageTasks since the limits were set, by account id and Region."""
        told = json.loads(self._ask("GET", CALLS_PATH))
        return {
            (each["account"], each["region"]): [Call(*call) for call in each["calls"]]
            for each in told["targets"]
        }

    def _ask(self, method: str, path: str, body: object = None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.endpoint}{path}", data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request) as answer:
            read: bytes = answer.read()
            return read

    def environment(self, account: str) -> dict[str, str]:
        """What makes an AWS program use it as this account; nothing of ours is in it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return kept | {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": f"AKIA{account}",
            "AWS_SECRET_ACCESS_KEY": "canned",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


@contextmanager
def canned(arguments: Sequence[str] = ()) -> Iterator[Canned]:
    """Runs it on a free port as long as the context lasts.

    Raises:
        RuntimeError: It did not start.
    """
    package = Path(__file__).parent
    path = os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        [sys.executable, "-m", package.name, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            endpoint = process.stdout.readline().strip()
            if not endpoint:
                raise RuntimeError("the canned EC2 ended before it was ready; its stderr says why")
            yield Canned(endpoint)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
