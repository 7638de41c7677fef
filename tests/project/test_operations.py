"""What operators are given, compared with what the gateway declares."""

import json
import re
from typing import Any

import pytest
import yaml

from imagetasks_server.errors import REASONS
from imagetasks_server.gauges import STATES
from imagetasks_server.metrics import DECLARED, Declared
from imagetasks_server.tally import How, Kind
from imagetasks_server.telemetry import Event
from processes import ROOT

OPERATIONS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
RULES = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8"))["groups"][0][
    "rules"
]
DASHBOARD = json.loads((ROOT / "deploy/grafana/imagetasks.json").read_text(encoding="utf-8"))

BY_NAME = {each.name: each for each in DECLARED}
# What Prometheus itself or prometheus_client's collectors add.
FOREIGN = {"up", "process_resident_memory_bytes", "process_cpu_seconds_total"}
ADDED_LABELS = {"instance", "job", "le"}
VALUES: dict[str, set[str]] = {"how": set(How), "kind": set(Kind), "state": set(STATES.values())}

FUNCTIONS = set(
    "sum rate increase histogram_quantile max min count time topk bottomk by on and or".split()  # noqa: SIM905
)
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")


def expressions() -> list[str]:
    return [rule["expr"] for rule in RULES] + [
        target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
    ]


def declared(name: str) -> Declared | None:
    """The metric of a series."""
    if name in BY_NAME:
        assert BY_NAME[name].kind != "histogram", f"{name} has no series of this name"
        return BY_NAME[name]
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    return BY_NAME[base] if base != name and base in BY_NAME and BY_NAME[base].kind == "histogram" else None


def metrics_of(expression: str) -> set[str]:
    """The series that an expression names."""
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|on)\s*\([^)]*\)|\"[^\"]*\"", " ", expression)
    return {name for name in _NAME.findall(rest) if name not in FUNCTIONS}


def labels_of(expression: str) -> set[str]:
    """The labels that an expression selects or groups by."""
    found: set[str] = set()
    for inner in re.findall(r"\{([^}]*)\}", expression):
        found.update(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inner))
    for inner in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        found.update(_NAME.findall(inner))
    return found


def test_the_document_tells_of_every_metric_with_its_labels_and_of_no_other() -> None:
    rows = re.findall(r"^\| `(imagetasks_\w+)` \|(.*?)\| (.+) \|$", OPERATIONS, re.MULTILINE)
    told = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels, _ in rows}
    assert told == {each.name: each.labels for each in DECLARED}
    assert set(re.findall(r"`(imagetasks_\w+)`", OPERATIONS)) == set(BY_NAME)


def test_the_document_tells_of_every_event_and_of_no_other() -> None:
    (table,) = re.findall(r"^\| event \|.*?\n\n", OPERATIONS, re.MULTILINE | re.DOTALL)
    told = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert sorted(told) == sorted(Event)


def test_the_document_explains_every_value_of_its_own_labels() -> None:
    for words in (How, Kind):
        assert {word for word in words if f"`{word}`" not in OPERATIONS} == set()


def test_every_metric_has_a_proper_declaration() -> None:
    for each in DECLARED:
        assert each.help.endswith("."), each
        assert each.name.endswith("_total") is (each.kind == "counter"), each
        assert bool(each.buckets) is (each.kind == "histogram"), each
    assert len(BY_NAME) == len(DECLARED)


@pytest.mark.parametrize("expression", expressions())
def test_every_expression_names_what_is_declared(expression: str) -> None:
    names = metrics_of(expression)
    assert names
    labels = set(ADDED_LABELS)
    for name in names:
        found = declared(name)
        assert found or name in FOREIGN, name
        labels.update(found.labels if found else ())
    assert labels_of(expression) <= labels
    for label, values in VALUES.items():
        for chosen in re.findall(rf'\b{label}=~?"([^"]*)"', expression):
            assert set(chosen.split("|")) <= values


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    shown = {
        found.name
        for panel in DASHBOARD["panels"]
        for target in panel["targets"]
        for name in metrics_of(target["expr"])
        if (found := declared(name))
    }
    assert shown == set(BY_NAME)
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD))) <= variables
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(places) == len(set(places))


def test_legends_and_summaries_use_labels_that_their_expressions_keep() -> None:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            _keeps(target["expr"], set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])))
    for rule in RULES:
        _keeps(rule["expr"], set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])))


def _keeps(expression: str, used: set[str]) -> None:
    """An aggregation keeps what it groups by; without one all labels stay."""
    grouped: list[Any] = re.findall(r"\bby\s*\(([^)]*)\)", expression)
    if grouped:
        kept = set.intersection(*(set(_NAME.findall(inner)) for inner in grouped))
    else:
        kept = {label for name in metrics_of(expression) for label in _labels(name)} | ADDED_LABELS
    assert used <= kept, expression


def _labels(name: str) -> tuple[str, ...]:
    found = declared(name)
    return found.labels if found else ()


def test_every_alert_has_its_paragraph_and_reason() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    assert re.findall(r"^\*\*(Imagetasks\w+)\.\*\* ", OPERATIONS, re.MULTILINE) == names
    text = (ROOT / "deploy/prometheus/alerts.yaml").read_text(encoding="utf-8")
    # A comment beside each tells why this threshold.
    assert all("# " in part for part in text.split("- alert: ")[1:])
    for rule in RULES:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]


def test_the_reasons_that_the_document_names_are_the_contracts() -> None:
    assert set(re.findall(r"\b((?:BUDGET|AWS)_[A-Z_]+)\b", OPERATIONS)) <= REASONS
