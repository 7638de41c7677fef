"""docs/performance.md: what was measured, in the hand-written `performance.template.md` beside this."""

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any, Final

from frame import ROOT, Benchmark, Result, saved

TEMPLATE: Final = Path(__file__).with_name("performance.template.md")
DOCUMENT: Final = ROOT / "docs/performance.md"
PLOTS: Final = ROOT / "docs/performance"
LIBRARIES: Final = ("grpcio", "protobuf", "uvloop", "aioboto3", "boto3")
# By benchmark: the title, and the names of both axes.
PLOTTED: Final[Mapping[str, tuple[str, str, str]]] = {
    "fanout": ("A change to many subscribers", "subscribers", "milliseconds until it is there"),
    "growth": ("A cold sweep of more and more accounts", "targets: accounts x 34 Regions", "seconds"),
}


def write(benchmarks: Sequence[Benchmark]) -> None:
    """Write the document and the plots from the last full run of each."""
    PLOTS.mkdir(parents=True, exist_ok=True)
    parts = []
    for benchmark in benchmarks:
        found = saved(benchmark.name)
        if found is None or found[1]:
            continue
        parts.append(section(benchmark, found[0]))
        if benchmark.name in PLOTTED:
            plot(benchmark.name, found[0].series)
            parts.append(f"![{PLOTTED[benchmark.name][0]}](performance/{benchmark.name}.png)\n")
    text = Template(TEMPLATE.read_text()).substitute(tables="\n".join(parts).rstrip(), machine=machine())
    DOCUMENT.write_text(text)


def section(benchmark: Benchmark, result: Result) -> str:
    """A heading, what is on, the table, and the command that repeats it."""
    lines = [
        f"## {benchmark.title}\n",
        f"{benchmark.on}\n",
        f"Again: `.venv/bin/python benchmarks/run.py {benchmark.name}`\n",
        "| what | beside | median [least to most] | goal | | of |",
        "|---|---|---|---|---|---|",
    ]
    for row in result.rows:
        cells = (row.what, row.beside, row.figure, str(row.goal), row.verdict, row.detail)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(name: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """One picture: a line for each of the series, both axes logarithmic."""
    import matplotlib as mpl  # noqa: PLC0415  # takes a second

    mpl.use("agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    pyplot: Any = plt
    title, across, up = PLOTTED[name]
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for label, points in series.items():
        line = axes.plot(*zip(*points, strict=True), marker="o", label=label)
        if label.startswith("linear"):
            line[0].set(linestyle=":", marker="", color="gray")
    axes.set(title=title, xlabel=across, ylabel=up, xscale="log", yscale="log")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    # Without the version of matplotlib, so that equal figures give equal files.
    figure.savefig(PLOTS / f"{name}.png", dpi=100, metadata={"Software": None})
    pyplot.close(figure)


def machine() -> str:
    """What was measured on."""
    processor = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return (
        f"{cores} cores of {processor[1].strip() if processor else platform.machine()}, {memory:.0f} GiB, "
        f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}, "
        f"Python {platform.python_version()}, " + ", ".join(f"{each} {version(each)}" for each in LIBRARIES)
    )
