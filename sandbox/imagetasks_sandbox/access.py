"""Who may do what where: Regions that are not enabled, a policy that denies, roles that can be assumed."""

import base64
import hashlib

from imagetasks_sandbox import refusal
from imagetasks_sandbox.refusal import Refusal
from imagetasks_sandbox.world import ACCOUNTS, DENIED, ENABLED


def check_region(region: str) -> None:
    """EC2 answers in this Region at all.

    Raises:
        Refusal: AuthFailure, as for every action in a Region that is not enabled.
    """
    if region not in ENABLED:
        raise refusal.region_not_enabled()


def check_action(action: str, account_id: str, region: str) -> None:
    """The account may take a store or restore action in this Region.

    Raises:
        Refusal: UnauthorizedOperation, in the Region that a service control policy denies.
    """
    if region == DENIED:
        # A blob like EC2's: long, and to nobody's use but DecodeAuthorizationMessage's.
        seed = hashlib.shake_256(f"{action} {account_id} {region}".encode()).digest(240)
        raise refusal.unauthorized(base64.urlsafe_b64encode(seed).decode())


def check_role(role_arn: str) -> None:
    """The role can be assumed.

    Raises:
        Refusal: AccessDenied, as STS answers; also for a role that does not exist.
    """
    if role_arn not in {account.role_arn for account in ACCOUNTS}:
        caller = f"arn:aws:sts::{ACCOUNTS[0].account_id}:user/moto"
        raise Refusal(
            "AccessDenied",
            f"User: {caller} is not authorized to perform: sts:AssumeRole on resource: {role_arn}",
            403,
        )
