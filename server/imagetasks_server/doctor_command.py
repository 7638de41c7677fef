"""The command `imagetasks-server doctor`: looks at AWS, or at a sandbox, and prints what it has seen."""

import contextlib
import sys
from collections.abc import Sequence

from imagetasks_server.config import Settings
from imagetasks_server.doctor import Report, examine
from imagetasks_server.event_loop import run
from imagetasks_server.sandbox import use_sandbox
from imagetasks_server.telemetry import configure_log


def doctor(
    settings: Settings,
    accounts: Sequence[str],
    regions: Sequence[str],
    sandbox_arguments: Sequence[str] | None,
    *,
    as_json: bool,
) -> int:
    """Print what works and what does not.

    Args:
        settings: The gateway's.
        accounts: Only these; none: all.
        regions: The same of Regions.
        sandbox_arguments: A sandbox's, which is looked at instead of AWS.
        as_json: For programs.

    Returns:
        The exit status: 0, or 1 if something fails.
    """

    async def examine_all() -> Report:
        async with contextlib.AsyncExitStack() as stack:
            if sandbox_arguments is None:
                return await examine(settings, accounts, regions)
            use, _ = await use_sandbox(sandbox_arguments, stack)
            return await examine(use(settings), accounts, regions, ask_quotas=False)

    # What went wrong stands in the report.
    configure_log("error", json_lines=not sys.stderr.isatty())
    report = run(examine_all())
    sys.stdout.write(report.json() if as_json else report.text())
    return report.exit_status
