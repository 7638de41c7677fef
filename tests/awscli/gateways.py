"""Gateways as child processes, on an EC2 of ours."""

import json
import string
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path
from typing import IO

STOP_SECONDS = 20.0

# A test asks more often than EC2 would allow, and always anew.
UNHURRIED = {
    "IMAGETASKS_DEFAULT_MAX_AGE": "0",
    "IMAGETASKS_BUDGET__CAPACITY": "1000000",
    "IMAGETASKS_BUDGET__REFILL": "1000000",
    "IMAGETASKS_BUDGET__INITIAL": "1000000",
    "IMAGETASKS_ATTEMPTS": "1",
}


def region_names(count: int) -> list[str]:
    """Names that look like Regions and are none."""
    letters = product(string.ascii_lowercase, repeat=3)
    return [f"zz-{''.join(three)}-1" for three in islice(letters, count)]


@contextmanager
def gateway(
    environment: Mapping[str, str],
    accounts: Sequence[Mapping[str, object]],
    directory: Path,
    *,
    home_region: str,
) -> Iterator[str]:
    """A gateway's address, as long as the context lasts.

    Args:
        environment: What leads it to its EC2.
        accounts: As in its configuration file.
        directory: For the configuration file.
        home_region: Where STS is asked.

    Raises:
        RuntimeError: It did not start.
    """
    configuration = directory / "gateway.toml"
    configuration.write_text("\n".join(_table(account) for account in accounts), encoding="utf-8")
    with subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("imagetasks-server")), "--config", str(configuration)),
            *("--listen", "127.0.0.1:0", "--log-level", "info"),
        ],
        env=dict(environment) | UNHURRIED | {"AWS_REGION": home_region, "IMAGETASKS_LOG_JSON": "true"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        reader = None
        try:
            address = _address(process.stderr)
            # Its log must not fill the pipe.
            reader = threading.Thread(target=process.stderr.read)
            reader.start()
            yield address
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
            if reader is not None:
                reader.join()


def _table(account: Mapping[str, object]) -> str:
    # JSON's strings and lists of strings are TOML's too.
    return "\n".join(["[[accounts]]", *(f"{key} = {json.dumps(value)}" for key, value in account.items())])


def _address(log: IO[str]) -> str:
    told = []
    for line in log:
        told.append(line)
        if '"serving"' in line:
            return str(json.loads(line)["address"])
    raise RuntimeError(f"the gateway ended before it served: {''.join(told)}")
