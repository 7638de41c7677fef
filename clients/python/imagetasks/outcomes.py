"""How the targets of a listing ended, over all its pages."""

from collections.abc import Iterable

from imagetasks import errors
from imagetasks.v1 import store_image_tasks_pb2 as pb

# ErrorReason of the error that means yes.
DRY_RUN_REASON = "DRY_RUN_OPERATION"


class Outcomes:
    """Keeps, per target, the outcome that tells most.

    The gateway repeats every outcome on every page, and of a target that has failed it only says, from then
    on, that it is left out of the listing: so the first failure is kept.
    """

    def __init__(self) -> None:
        self._by_target: dict[tuple[str, str], pb.TargetOutcome] = {}

    def add(self, outcomes: Iterable[pb.TargetOutcome]) -> None:
        """Takes a page's outcomes."""
        for outcome in outcomes:
            key = (outcome.target.account, outcome.target.region)
            known = self._by_target.get(key)
            if known is None or known.source != pb.SOURCE_NONE:
                self._by_target[key] = outcome

    def all(self) -> tuple[pb.TargetOutcome, ...]:
        """One outcome for each target seen so far."""
        return tuple(self._by_target.values())


def of_dry_run(error: errors.Error) -> tuple[pb.TargetOutcome, ...]:
    """The outcome of the single target whose permission EC2 confirmed by the error DryRunOperation.

    Raises:
        Error: It is another error.
    """
    if error.reason != DRY_RUN_REASON:
        raise error
    target = pb.Target(account=error.account, region=error.region)
    return (pb.TargetOutcome(target=target, source=pb.SOURCE_LIVE),)
