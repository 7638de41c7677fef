"""From the accounts of an organization to the gateway's: what they are called, what role is assumed. Pure."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from imagetasks_server.account_settings import Access, AccountSettings, OrganizationSettings

_MAX_NAME: Final = 63
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_.-]+")


class Member(NamedTuple):
    """An account as AWS Organizations lists it."""

    account_id: str
    name: str


def accounts_of(
    organization: OrganizationSettings, members: Iterable[Member], taken: Collection[str]
) -> list[AccountSettings]:
    """The members as accounts, in order of their ids.

    Args:
        organization: How they are reached, and what is left out.
        members: The active ones.
        taken: Names that others have: no member gets one of these.
    """
    chosen = sorted({each for each in members if each.account_id not in organization.exclude_accounts})
    named = [(member, _name(organization.name_template, member)) for member in chosen]
    count = Counter(name for _, name in named)
    return [
        _account(
            organization,
            member,
            _with_id(name, member) if count[name] > 1 or name in taken else name,
        )
        for member, name in named
    ]


def _name(template: str, member: Member) -> str:
    name = template.format(account_name=member.name, account_id=member.account_id)
    # A name begins with a letter or a digit.
    return _UNFIT.sub("-", name).strip("-_.")[:_MAX_NAME] or member.account_id


def _with_id(name: str, member: Member) -> str:
    # Each of those that would share a name: a rule that does not depend on who came first.
    return f"{name[: _MAX_NAME - len(member.account_id) - 1]}-{member.account_id}"


def _account(organization: OrganizationSettings, member: Member, name: str) -> AccountSettings:
    shared = {key: getattr(organization, key) for key in Access.model_fields}
    role = f"arn:{organization.partition}:iam::{member.account_id}:role/{organization.role_name.lstrip('/')}"
    return AccountSettings(name=name, role_arn=role, **shared)


def all_accounts(
    configured: Sequence[AccountSettings],
    organizations: Iterable[tuple[OrganizationSettings, Sequence[Member]]],
) -> list[AccountSettings]:
    """The configured accounts and those of all organizations, no name twice."""
    organizations = list(organizations)
    accounts = list(configured)
    taken = {each.name for each in configured} | {each.name for each, _ in organizations}
    for organization, members in organizations:
        found = accounts_of(organization, members, taken)
        accounts += found
        taken |= {each.name for each in found}
    return accounts
