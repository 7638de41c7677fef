"""What ends a command, each with the text that the AWS CLI would print."""

from imagetasks.cli.ec2.model import OPERATION, WAITER


class Failure(Exception):
    """The text is printed to stderr, and the exit code is 255."""


class UnknownOptions(Failure):
    """Words that no parser knows; the usage is printed before the text."""


class ParameterError(Failure):
    """An option's value cannot be read."""

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"Error parsing parameter '{option}': {problem}")


class ServiceError(Failure):
    """EC2 refused, or the gateway did in its place; where several targets were asked, in this one."""

    def __init__(self, code: str, message: str, place: str = "") -> None:
        where = f" in {place}" if place else ""
        super().__init__(
            f"An error occurred ({code}) when calling the {OPERATION} operation{where}: {message}"
        )
        self.code = code
        self.message = message


class PagingError(Failure):
    """The paging options contradict each other, or pages repeat."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"Error during pagination: {problem}")


class WaiterError(Failure):
    """A wait ends without what was waited for."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Waiter {WAITER} failed: {reason}")
