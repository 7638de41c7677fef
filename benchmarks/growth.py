"""From one account to twenty: time, processor and memory of a cold sweep over all of them."""

from pathlib import Path

from estates import REGIONS, accounts, fill
from frame import Benchmark, Goal, Result, Row, medians
from measured import gateway, told

from canned.launch import canned

PEERS = str(Path(__file__).with_name("sweep_peers.py"))
COUNTS = (1, 2, 5, 10, 20)
TASKS = 200


def measure(quick: bool) -> Result:
    """Each number of accounts some times; the figure is the most against the least, as if linear."""
    counts, rounds = ((1, 4), 1) if quick else (COUNTS, 3)
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    spent: dict[int, list[float]] = {count: [] for count in counts}
    memory: dict[int, list[float]] = {count: [] for count in counts}
    with canned() as ec2:
        fill(ec2, TASKS, numbers=max(counts))
        for _ in range(rounds):
            for count in counts:
                with gateway(ec2, accounts(count, ec2)) as ours:
                    before = ours.processor()
                    found = told(PEERS, "gateway", ours.address)
                    assert found["tasks"] == count * len(REGIONS) * TASKS
                    seconds[count].append(found["seconds"])
                    spent[count].append(ours.processor() - before)
                    memory[count].append(ours.memory())
    least, most = counts[0], counts[-1]
    rows = []
    for name, unit, of in (("time", "s", seconds), ("processor", "s", spent), ("memory", "MiB", memory)):
        figures = [more / one / (most / least) for one, more in zip(of[least], of[most], strict=True)]
        detail = medians(
            unit, **{f"{least}_account{'s' * (least > 1)}": of[least], f"{most}_accounts": of[most]}
        )
        rows.append(
            Row(
                f"{least} → {most} accounts x {len(REGIONS)} Regions of {TASKS} tasks: {name}",
                "linear growth",
                Goal(most=1.0),
                figures,
                detail,
            )
        )
    middle = {
        "until all is there": [
            (count * len(REGIONS), sorted(of)[len(of) // 2]) for count, of in seconds.items()
        ],
        "processor of the gateway": [
            (count * len(REGIONS), sorted(of)[len(of) // 2]) for count, of in spent.items()
        ],
    }
    (across, up), *_ = middle["until all is there"]
    middle["linear"] = [(across, up), (most * len(REGIONS), up * most / least)]
    return Result(rows, middle)


BENCHMARK = Benchmark(
    "growth",
    "Growth",
    "A new gateway process each time, with callers, quotas, metrics and log on, its accounts but the "
    "first by roles; EC2 without latency; one stream of everything.",
    measure,
)
