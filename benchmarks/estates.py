"""Worlds for the canned EC2: accounts, Regions, tasks and latencies."""

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from canned.launch import Canned

REGIONS: Final = tuple(f"eu-bench{chr(97 + number // 9)}-{number % 9 + 1}" for number in range(34))
FASTEST, SLOWEST = 0.030, 0.130
LATENCIES: Final = {
    region: FASTEST + (SLOWEST - FASTEST) * number / (len(REGIONS) - 1)
    for number, region in enumerate(REGIONS)
}


def account_id(number: int) -> str:
    """The id of the account with this number, from 1."""
    return f"{number:012}"


def accounts(count: int, ec2: Canned, regions: Sequence[str] = REGIONS) -> list[dict[str, Any]]:
    """A gateway's accounts: the first with the ambient credentials, the others each with a role."""
    return [
        {"name": f"a{number}", "regions": list(regions)}
        | ({} if number == 1 else {"role_arn": f"arn:aws:iam::{account_id(number)}:role/reader"})
        | {"endpoint_url": ec2.endpoint, "sts_endpoint_url": ec2.endpoint}
        for number in range(1, count + 1)
    ]


def tasks(count: int) -> list[dict[str, Any]]:
    """Finished tasks, one a minute."""
    now = datetime.now(UTC)
    return [
        {
            "AmiId": f"ami-{number:017x}",
            "TaskStartTime": (now - timedelta(minutes=number)).isoformat(timespec="milliseconds")[:23] + "Z",
            "Bucket": "archive-of-golden-images",
            "S3objectKey": f"ami-{number:017x}.bin",
            "ProgressPercentage": 100,
            "StoreTaskState": "Completed",
            "StoreTaskFailureReason": "",
        }
        for number in range(count)
    ]


def fill(
    ec2: Canned,
    count: int,
    *,
    numbers: int = 1,
    regions: Sequence[str] = REGIONS,
    seconds: Mapping[str, float] | None = None,
) -> None:
    """Give every target so many finished tasks, and each Region its latency."""
    found = tasks(count)
    for number in range(1, numbers + 1):
        ec2.post(
            *(
                {
                    "account": account_id(number),
                    "region": region,
                    "tasks": found,
                    "seconds": (seconds or {}).get(region, 0.0),
                }
                for region in regions
            )
        )
