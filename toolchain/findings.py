"""What a checklist finds wrong: one `Finding` each, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

ERROR, WARNING = "error", "warning"

_PLACES = 2  # that are named for one finding


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that a careful reader would ask about.

    Args:
        what, where, why, fix: as in `LlmbuildError`.
        level: "error" where TensorRT-LLM refuses it or computes something else, "warning" where some
            version might.
    """

    what: str
    where: str
    why: str = ""
    fix: str = ""
    level: str = ERROR

    def __str__(self) -> str:
        lines = [f"{self.level}: {self.where}: {self.what}"]
        lines += [f"  {word}: {text}" for word, text in (("why", self.why), ("fix", self.fix)) if text]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The fields that say something."""
        return {name: value for name, value in asdict(self).items() if value}


def grouped(found: Iterable[Finding]) -> list[Finding]:
    """One for all places at which the same is wrong, in the order of the first; it names some of them."""
    places: dict[tuple[str, ...], list[str]] = {}
    for finding in found:
        key = (finding.what, finding.why, finding.fix, finding.level)
        places.setdefault(key, []).append(finding.where)
    return [
        Finding(what, _places(where), why, fix, level) for (what, why, fix, level), where in places.items()
    ]


def _places(where: Sequence[str]) -> str:
    more = len(where) - _PLACES
    return ", ".join(where[:_PLACES]) + (f" and {more} more places" if more > 0 else "")


def errors(found: Iterable[Finding]) -> list[Finding]:
    """Those that are no mere warnings."""
    return [finding for finding in found if finding.level == ERROR]
