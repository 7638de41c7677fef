"""Whether parameters have the types that EC2's model gives them: checked before anything is sent."""

from collections.abc import Iterator
from typing import Any

from imagetasks.cli.ec2.failures import Failure
from imagetasks.cli.ec2.model import Shape

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "list": (list, tuple),
    "structure": (dict,),
}


def validate(parameters: dict[str, Any], shape: Shape) -> None:
    """Passes what fits the shape.

    Raises:
        Failure: Some of it does not; a line for each fault.
    """
    faults = list(_faults(parameters, shape, "input"))
    if faults:
        raise Failure("\n".join(["Parameter validation failed:", *faults]))


def _faults(value: Any, shape: Shape, name: str) -> Iterator[str]:
    allowed = _TYPES[shape.kind]
    fits = isinstance(value, allowed)
    if not fits:
        types = ", ".join(str(each) for each in allowed)
        yield f"Invalid type for parameter {name}, value: {value}, type: {type(value)}, valid types: {types}"
    elif shape.kind == "structure":
        yield from _member_faults(value, shape, name)
    elif shape.kind == "list":
        assert shape.member is not None
        for place, each in enumerate(value):
            yield from _faults(each, shape.member, f"{name}[{place}]")
    elif shape.least is not None and value < shape.least:
        yield f"Invalid value for parameter {name}, value: {value}, valid min value: {shape.least}"


def _member_faults(value: dict[str, Any], shape: Shape, name: str) -> Iterator[str]:
    for member in value:
        if member not in shape.members:
            yield f'Unknown parameter in {name}: "{member}", must be one of: {", ".join(shape.members)}'
    prefix = "" if name == "input" else f"{name}."
    for member, each in value.items():
        if member in shape.members:
            yield from _faults(each, shape.members[member], f"{prefix}{member}")
