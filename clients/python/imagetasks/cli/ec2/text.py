"""Text output: a line per structure, its values between tabs in the order of their names.

Members that are lists or structures come on lines of their own after it, each begun with the member's name in
capitals. The structures of one list have the same columns: all names that any of them has a scalar for.
"""

from typing import Any

from imagetasks.cli.ec2.output import Output


def write(value: Any, output: Output) -> None:
    """Writes a value."""
    _write(value, output, None, None)


def _write(value: Any, output: Output, name: str | None, columns: list[str] | None) -> None:
    if isinstance(value, dict):
        _write_structure(value, output, name, columns)
    elif isinstance(value, list):
        _write_list(value, output, name)
    else:
        output.write(f"{value}\n")


def _write_list(items: list[Any], output: Output, name: str | None) -> None:
    if any(isinstance(item, dict) for item in items):
        columns = sorted(
            {key for item in items for key, value in item.items() if not isinstance(value, dict | list)}
        )
        for item in items:
            _write(item, output, name, columns)
        return
    scalars = [item for item in items if not isinstance(item, list)]
    if scalars and name is not None:
        for scalar in scalars:
            output.write(f"{name.upper()}\t{scalar}\n")
    elif scalars:
        output.write("\t".join(str(scalar) for scalar in scalars) + "\n")
    for item in items:
        if isinstance(item, list):
            _write(item, output, name, None)


def _write_structure(
    members: dict[str, Any], output: Output, name: str | None, columns: list[str] | None
) -> None:
    if columns is None:
        columns = sorted(key for key, value in members.items() if not isinstance(value, dict | list))
    cells = [str(members.get(column, "")) for column in columns]
    if cells:
        if name is not None:
            cells.insert(0, name.upper())
        output.write("\t".join(cells) + "\n")
    for key in sorted(set(members) - set(columns)):
        _write(members[key], output, key, None)
