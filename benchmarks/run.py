"""Runs the benchmarks, prints their table, and writes docs/performance.md with its plots.

    python benchmarks/run.py                     # all of them
    python benchmarks/run.py describe fanout     # these
    python benchmarks/run.py --quick             # fewer rounds, smaller sizes; exit 1 if far from a goal

A full run writes the document; rows of benchmarks that did not run now are those of the last full run.
"""

import argparse
import sys
import time
from compileall import compile_dir
from importlib import import_module
from pathlib import Path
from shutil import which
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

from document import write
from frame import ROOT, Benchmark, Result, Row, save
from rich.console import Console
from rich.table import Table

MODULES: Final = (
    "describe",
    "fanout",
    "sweep",
    "latency",
    "start",
    "command_lines",
    "freshness",
    "growth",
    "overload",
)


def main() -> int:
    """Exit status: 0; 1: a quick run is far from a goal, or a benchmark could not run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)}")
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds and smaller sizes; writes no document"
    )
    parser.add_argument(
        "--document", action="store_true", help="measures nothing; writes the document from the last full run"
    )
    arguments = parser.parse_args()
    if arguments.document:
        write([import_module(name).BENCHMARK for name in MODULES])
        return 0
    if unknown := set(arguments.names) - set(MODULES):
        parser.error(f"there is no benchmark {min(unknown)}")
    # A pipe has no width; a table of eighty columns is mostly line breaks.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for installed in ("server", "clients/python"):
        # As where it is installed: no process that is measured compiles it.
        compile_dir(ROOT / installed, quiet=1)
    # Overload takes minutes by its nature: it must have lasted for a while.
    usual = [name for name in MODULES if not (arguments.quick and name == "overload")]
    chosen = [import_module(name).BENCHMARK for name in arguments.names or usual]
    missing, far = [], []
    for benchmark in chosen:
        if lacking := [command for command in benchmark.needs if which(command) is None]:
            console.print(f"{benchmark.name}: needs {', '.join(lacking)}")
            missing.append(benchmark.name)
            continue
        try:
            result = run(benchmark, console, quick=arguments.quick)
        except Exception:  # noqa: BLE001  # whatever it is, the others are worth measuring
            console.print_exception(max_frames=10)
            missing.append(benchmark.name)
            continue
        far += [row for row in result.rows if row.is_far]
    if not arguments.quick:
        write([import_module(name).BENCHMARK for name in MODULES])
        return bool(missing)
    for row in far:
        goal = row.reached or row.goal
        console.print(f"far from its goal: {row.what}: {row.figure}, goal {goal}", style="bold red")
    return bool(missing or far)


def run(benchmark: Benchmark, console: Console, *, quick: bool) -> Result:
    """Measure, keep and print."""
    began = time.perf_counter()
    with console.status(f"{benchmark.title} ..."):
        result = benchmark.measure(quick)
    save(benchmark, result, quick=quick)
    table = Table(title=f"{benchmark.title} ({time.perf_counter() - began:.0f} s)", title_justify="left")
    for heading in ("what", "beside", "figure", "goal", "", "of"):
        table.add_column(heading, overflow="fold")
    for row in result.rows:
        table.add_row(row.what, row.beside, row.figure, str(row.goal), coloured(row), row.detail)
    console.print(table)
    return result


def coloured(row: Row) -> str:
    """Its verdict, for a terminal."""
    colour = {"met": "green", "missed": "red"}.get(row.verdict)
    return f"[{colour}]{row.verdict}[/]" if colour else row.verdict


if __name__ == "__main__":
    sys.exit(main())
