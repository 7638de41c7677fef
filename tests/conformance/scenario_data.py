"""The scenarios as they stand in `scenarios/*.yaml`, with names, rows and repetitions written out.

What a file may say is in docs/adding-a-language.md.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

PLACE = Path(__file__).parent
SCENARIOS = PLACE / "scenarios"
NAMES: Mapping[str, Any] = yaml.safe_load((PLACE / "names.yaml").read_text())
LANGUAGES: Mapping[str, Mapping[str, Any]] = yaml.safe_load((PLACE / "languages.yaml").read_text())


@dataclass(frozen=True, slots=True)
class Scenario:
    """One conversation: what is called, what the gateway plays, what must be observed.

    Attributes:
        group: The file it stands in.
        name: Unique over all files.
        interop: gRPC's name of the same test, or empty.
        needs: What a language must have for it, as "thin".
        tls: The gateway speaks TLS; "untrusted": with a certificate that the client does not trust; "mutual":
            it wants the client's.
        serving: What the gateway says of its health.
        without: Methods that the gateway does not have.
        do: The call.
        calls: The calls that the gateway expects, in order, and what it plays.
        observe: What the client tells, in order.
    """

    group: str
    name: str
    interop: str
    needs: tuple[str, ...]
    tls: bool | str
    serving: bool
    without: tuple[str, ...]
    do: Mapping[str, Any]
    calls: tuple[Mapping[str, Any], ...]
    observe: tuple[Mapping[str, Any], ...]


def load() -> list[Scenario]:
    """All scenarios, by group and in the order of their files."""
    found = [scenario for path in sorted(SCENARIOS.glob("*.yaml")) for scenario in _of(path)]
    names = [scenario.name for scenario in found]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"two scenarios of one name: {twice}"
    return found


def _of(path: Path) -> Iterator[Scenario]:
    for written in yaml.safe_load(path.read_text())["scenarios"]:
        defaults = written.pop("defaults", {})
        rows = written.pop("with", [{}])
        for row in rows:
            one = expand(_filled(written, defaults | row))
            calls = one.pop("calls", [])
            yield Scenario(
                group=path.stem,
                name=one.pop("name"),
                interop=one.pop("interop", ""),
                needs=tuple(one.pop("needs", ())),
                tls=one.pop("tls", False),
                serving=one.pop("serving", True),
                without=tuple(one.pop("without", ())),
                do=one.pop("do"),
                calls=tuple(call for call in calls for _ in range(call.get("times", 1))),
                observe=tuple({each: None} if isinstance(each, str) else each for each in one.pop("observe")),
            )
            assert not one, f"{path.name} says {list(one)}, which nobody reads"


def expand(value: Any) -> Any:
    """Writes out `$use`, `$times` and `$text`."""
    if isinstance(value, list):
        return [item for each in value for item in _repeated(each)]
    if not isinstance(value, dict):
        return value
    if "$text" in value:
        return value["$text"] * value["times"]
    whole = {}
    if "$use" in value:
        whole = dict(expand(NAMES[value["$use"]]))
    whole |= {key: expand(each) for key, each in value.items() if key != "$use"}
    # A member written as null is taken out of what is used; a null of its own stays, as "no value expected".
    return {key: each for key, each in whole.items() if each is not None or "$use" not in value}


def _repeated(each: Any) -> Iterator[Any]:
    if isinstance(each, dict) and "$times" in each:
        for number in range(each["$times"]):
            yield expand(_filled(each["of"], {"n": number}))
    else:
        yield expand(each)


def _filled(value: Any, row: Mapping[str, Any]) -> Any:
    """Puts a row's values where `<name>` stands; alone in a string it keeps its type."""
    if isinstance(value, list):
        return [_filled(each, row) for each in value]
    if isinstance(value, dict):
        return {key: _filled(each, row) for key, each in value.items()}
    if not isinstance(value, str):
        return value
    alone = re.fullmatch(r"<(\w+)>", value)
    if alone and alone[1] in row:
        return row[alone[1]]
    return re.sub(r"<(\w+)>", lambda m: str(row[m[1]]) if m[1] in row else m[0], value)
