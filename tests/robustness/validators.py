"""One function per guarantee: from a recorded history to what violates it, in words."""

from collections.abc import Callable
from typing import Final

from history import History
from judging import Violations
from of_changes import atomic, bookmarkable, heartbeats, ordered, reliable, removals, unique
from of_reads import abreast, economical, fresh, isolated, shared, waited
from of_streams import aware, cleanly_ended, required, resumable, walled

VALIDATORS: Final[tuple[Callable[[History], Violations], ...]] = (
    ordered,
    unique,
    atomic,
    bookmarkable,
    heartbeats,
    reliable,
    removals,
    resumable,
    required,
    fresh,
    isolated,
    aware,
    shared,
    abreast,
    economical,
    cleanly_ended,
    walled,
    waited,
)
