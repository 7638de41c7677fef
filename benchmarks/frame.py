"""What benchmarks are made of: rows of ratios within one run, each beside its peer or limit, with a goal."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / ".build/bench"
# How far beside its goal a ratio may be in a quick run, whose few rounds scatter.
TOLERANCE: Final = 0.3


@dataclass(frozen=True)
class Goal:
    """What a figure should be.

    Attributes:
        least: At least this; None: no bound.
        most: At most this; None: no bound.
        unit: Of the figure: "x" for a ratio, else as "ms".
    """

    least: float | None = None
    most: float | None = None
    unit: str = "x"

    def is_met(self, figure: float, slack: float = 0.0) -> bool:
        """Whether a figure meets it; with slack, whether it misses it by no more than this part."""
        return (self.least is None or figure >= self.least * (1 - slack)) and (
            self.most is None or figure <= self.most * (1 + slack)
        )

    def __str__(self) -> str:
        bounds = [("≥", self.least), ("≤", self.most)]
        return (
            ", ".join(f"{sign} {shown(bound, self.unit)}" for sign, bound in bounds if bound is not None)
            or "none"
        )


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        what: What is measured.
        beside: The peer or limit that it is measured beside, in the same run.
        goal: What it should be.
        figures: One of each round.
        detail: What the figure is made of, in absolute terms: medians, with their units.
        steady: It scatters so little that a quick run may fail for it.
        reached: Where the goal is missed for a reason that the document tells: what a quick run holds it to.
    """

    what: str
    beside: str
    goal: Goal
    figures: Sequence[float]
    detail: str = ""
    steady: bool = True
    reached: Goal | None = None

    @property
    def is_far(self) -> bool:
        """Whether a quick run fails for it."""
        return self.steady and not (self.reached or self.goal).is_met(self.median, TOLERANCE)

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.figures)

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most of all rounds."""
        return min(self.figures), max(self.figures)

    @property
    def figure(self) -> str:
        """Median and spread, to be read."""
        low, high = self.spread
        one = f"{shown(self.median, self.goal.unit)}"
        return one if len(self.figures) == 1 else f"{one} [{shown(low, '')} to {shown(high, '')}]"

    @property
    def verdict(self) -> str:
        """Whether the goal is met."""
        if self.goal.least is None and self.goal.most is None:
            return ""
        return "met" if self.goal.is_met(self.median) else "missed"


@dataclass(frozen=True)
class Result:
    """What one benchmark found.

    Attributes:
        rows: The figures.
        series: For a plot: by the name of a line its points.
    """

    rows: Sequence[Row]
    series: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        name: What `run.py` knows it by.
        title: What it is about.
        on: What is switched on, and how the figures come about.
        measure: Measures; True: quickly, with fewer rounds and smaller sizes.
        needs: Commands that must be there.
    """

    name: str
    title: str
    on: str
    measure: Callable[[bool], Result]
    needs: Sequence[str] = ()


def shown(value: float, unit: str) -> str:
    """A number with three significant digits, and its unit."""
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(digits, 4)}f} {unit}".rstrip()


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Round by round, ours by theirs."""
    return [one / other for one, other in zip(ours, theirs, strict=True)]


def medians(unit: str, **figures: Sequence[float]) -> str:
    """The medians of several figures by their names, as a detail."""
    return "; ".join(
        f"{name.replace('_', ' ')} {shown(statistics.median(values), unit)}"
        for name, values in figures.items()
    )


def save(benchmark: Benchmark, result: Result, *, quick: bool) -> None:
    """Keep what was found, for the table, the plots and whoever wants the rounds."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    told = {"quick": quick, **asdict(result)}
    # The document is of full runs, whatever was run quickly since.
    name = f"{benchmark.name}-quick" if quick else benchmark.name
    (RESULTS / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")


def saved(name: str) -> tuple[Result, bool] | None:
    """What was found last by a benchmark, and whether quickly; None: it never ran."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return None
    told: dict[str, Any] = json.loads(path.read_text())
    return Result([_row(each) for each in told["rows"]], told["series"]), told["quick"]


def _row(told: dict[str, Any]) -> Row:
    reached = told.pop("reached", None)
    return Row(**{**told, "goal": Goal(**told["goal"]), "reached": reached and Goal(**reached)})
