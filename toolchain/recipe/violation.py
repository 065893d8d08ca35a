"""What a rule says of a recipe that breaks it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """Fields that cannot stand together.

    Args:
        path: dotted path of the field at fault.
        others: the fields it clashes with.
        what, why, fix: as in `LlmbuildError`.
    """

    path: str
    others: tuple[str, ...]
    what: str
    why: str
    fix: str
