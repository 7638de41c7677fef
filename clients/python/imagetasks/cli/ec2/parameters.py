"""From an option's words to EC2's parameters: lists, JSON, shorthand, files. The rules are the AWS CLI's."""

import json
from collections import OrderedDict
from typing import Any

from imagetasks.cli.ec2 import files
from imagetasks.cli.ec2.failures import ParameterError
from imagetasks.cli.ec2.model import Shape


def resolve(option: str, value: Any) -> Any:
    """An option's value, read from where it is kept if it names a file or an address.

    Raises:
        ParameterError: That cannot be read.
    """
    single = value[0] if isinstance(value, list) and len(value) == 1 else value
    try:
        loaded = files.load(single)
    except files.Unreadable as error:
        raise ParameterError(option, str(error)) from None
    return value if loaded is None else loaded


def unpack(option: str, value: Any, shape: Shape) -> Any:
    """The parameter that an option's value stands for.

    Args:
        option: The option, as "--filters".
        value: A string, or a list of strings.
        shape: What the parameter is. A value of another type is left to the validation.

    Raises:
        ParameterError: The value is neither good JSON nor good shorthand.
    """
    if _is_shorthand(value, shape):
        from imagetasks.cli.ec2 import shorthand  # noqa: PLC0415 - its patterns take long to compile

        try:
            if not isinstance(value, list):
                return shorthand.parse(value)
            return shorthand.coerce([shorthand.parse(each) for each in value], shape)
        except shorthand.SyntaxProblem as problem:
            raise ParameterError(option, str(problem)) from None
    return _unpack(option, value, shape)


def _is_shorthand(value: Any, shape: Shape) -> bool:
    if shape.member is None or shape.member.kind != "structure":
        return False
    first = value[0] if value and isinstance(value, list) else value
    return not (isinstance(first, str) and first.strip().startswith(("[", "{")))


def _unpack(option: str, value: Any, shape: Shape) -> Any:
    if shape.kind == "integer":
        return int(value)
    if shape.kind == "list":
        return _unpack_list(option, value, shape)
    if shape.kind == "structure":
        # [:1] would hide what the AWS CLI says of an empty value.
        if value.lstrip()[0] == "{":
            return _json(option, value)
        raise ParameterError(option, f"Invalid JSON:\n{value}")
    return value


def _unpack_list(option: str, value: Any, shape: Shape) -> Any:
    assert shape.member is not None
    if isinstance(value, str):
        if value.lstrip()[0] == "[":
            return _json(option, value)
    elif isinstance(value, list) and len(value) == 1 and value[0].strip().startswith("["):
        return _json(option, value[0])
    # The text of a file that is no JSON is taken letter by letter: EC2 then refuses the first.
    return [_unpack(option, each, shape.member) for each in value]


def _json(option: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=OrderedDict)
    except ValueError as error:
        raise ParameterError(option, f"Invalid JSON: {error}\nJSON received: {text}") from None


def add_input_json(parameters: dict[str, Any], given: str) -> None:
    """Adds the members of --cli-input-json; those of the command line stay.

    Raises:
        ParameterError: It is not JSON.
        files.Unreadable: Its file cannot be read.
    """
    text = files.load(given, remote=False)
    text = given if text is None else text
    try:
        members = json.loads(text)
    except ValueError as error:
        shown = text if isinstance(text, str) else repr(text)
        raise ParameterError("cli-input-json", f"Invalid JSON: {error}\nJSON received: {shown}") from None
    for name in members.keys():  # noqa: SIM118 - of a list, the AWS CLI says that it has no keys
        parameters.setdefault(name, members[name])
