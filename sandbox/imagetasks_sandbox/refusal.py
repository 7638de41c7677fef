"""EC2's refusals: code, text and HTTP status of every error the three actions answer with.

Codes and texts are EC2's where they are known (see each docstring); the errors of CreateStoreImageTask and
CreateRestoreImageTask that concern S3 are not documented, and are EC2's generic ones.
"""

from collections.abc import Sequence


class Refusal(Exception):
    """An error answer of EC2.

    Attributes:
        code: EC2's error code, as ``InvalidAMIID.NotFound``.
        message: The text for people.
        status: The HTTP status.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status


def image_id_malformed(image_id: str) -> Refusal:
    """Not the form of an AMI id."""
    return Refusal("InvalidAMIID.Malformed", f'Invalid id: "{image_id}" (expecting "ami-...")')


def image_not_found(image_ids: Sequence[str]) -> Refusal:
    """No such AMIs in this account and Region; at least one id."""
    noun, verb = ("id", "does") if len(image_ids) == 1 else ("ids", "do")
    return Refusal("InvalidAMIID.NotFound", f"The image {noun} '[{', '.join(image_ids)}]' {verb} not exist")


def image_unavailable(image_id: str) -> Refusal:
    """The AMI exists but cannot be used (yet, or any more)."""
    return Refusal("InvalidAMIID.Unavailable", f"The image ID '{image_id}' is no longer available")


def image_name_taken(name: str, image_id: str) -> Refusal:
    """AMI names are unique per account and Region."""
    return Refusal("InvalidAMIName.Duplicate", f"AMI name {name} is already in use by AMI {image_id}")


def missing(parameter: str) -> Refusal:
    """A required parameter is absent."""
    return Refusal("MissingParameter", f"The request must contain the parameter {parameter}")


def invalid_value(message: str) -> Refusal:
    """A parameter's value is out of its range."""
    return Refusal("InvalidParameterValue", message)


def filter_invalid(name: str | None) -> Refusal:
    """The action has no filter of this name."""
    return invalid_value(f"The filter '{name or 'null'}' is invalid")


def exclusive(one: str, other: str) -> Refusal:
    """Two parameters that EC2 does not take together."""
    return Refusal(
        "InvalidParameterCombination", f"The parameter {one} cannot be used with the parameter {other}"
    )


def token_invalid() -> Refusal:
    """NextToken is not one that this action gave out for this account and Region."""
    return Refusal("InvalidPaginationToken", "The specified pagination token is not valid or is expired.")


def dry_run() -> Refusal:
    """The caller has the permission; nothing was done."""
    return Refusal("DryRunOperation", "Request would have succeeded, but DryRun flag is set.", 412)


def throttled() -> Refusal:
    """The token bucket of the action is empty."""
    return Refusal("RequestLimitExceeded", "Request limit exceeded.", 503)


def region_not_enabled() -> Refusal:
    """What EC2 answers in a Region that the account has not opted in to."""
    return Refusal("AuthFailure", "AWS was not able to validate the provided access credentials", 401)


def unauthorized(encoded: str) -> Refusal:
    """A policy denies the action; ``encoded`` is the blob that DecodeAuthorizationMessage would read."""
    return Refusal(
        "UnauthorizedOperation",
        f"You are not authorized to perform this operation. Encoded authorization failure message: {encoded}",
        403,
    )


def limit_exceeded() -> Refusal:
    """The account stores as much at once as it may."""
    return Refusal(
        "ResourceLimitExceeded", "The total size of the AMIs being stored has reached the limit of 1200 GB"
    )
