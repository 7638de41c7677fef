"""What the boundary costs a cached describe, beside bare grpc.aio handlers that give the same bytes.

    python benchmarks/bench_boundary.py

Needs h2load (Debian: nghttp2-client), for a client in Python would take as much processor as the server. The
kinds take turns, each a server process of its own; the figure of a kind is the median of its rounds, and the
processor's microseconds are the server's own. Compare within one run.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from describing import KINDS, PATH, Served, served

CALLS = 20_000
CONNECTIONS, AT_ONCE = 4, 8
GOAL = 0.15


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how many of each kind (5)")
    rounds = parser.parse_args().rounds
    if shutil.which("h2load") is None:
        print("needs h2load (Debian: nghttp2-client)")
        return
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind in KINDS:
            with served(kind) as server:
                load(server, CALLS // 4)
                before = server.processor()
                rate = load(server, CALLS)
                found[kind].append((rate, (server.processor() - before) / CALLS * 1e6))
    rates = {kind: statistics.median(rate for rate, _ in each) for kind, each in found.items()}
    print(f"{'kind':<16} {'calls/s':>8} {'processor':>12} {'beside bare':>12}")
    for kind, rate in rates.items():
        cost = statistics.median(cost for _, cost in found[kind])
        print(f"{kind:<16} {rate:>8.0f} {cost:>9.0f} µs {rate / rates['bare'] - 1:>12.1%}")
    cost = 1 - rates["everything on"] / rates["no boundary"]
    print(f"the boundary with everything on costs {cost:.1%} of the throughput; goal {GOAL:.0%}")


def load(server: Served, calls: int) -> float:
    """Calls per second, as many as the server can, of an empty request."""
    with tempfile.NamedTemporaryFile() as body:
        body.write(bytes(5))
        body.flush()
        command = ["h2load", "-n", str(calls), "-c", str(CONNECTIONS), "-m", str(AT_ONCE), "-d", body.name]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        result = subprocess.run(
            [*command, f"http://{server.address}{PATH}"], capture_output=True, text=True, check=True
        )
    assert f"{calls} succeeded" in result.stdout, result.stdout
    match = re.search(r"([\d.]+) req/s", result.stdout)
    assert match is not None
    return float(match[1])


if __name__ == "__main__":
    main()
