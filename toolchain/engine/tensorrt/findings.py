"""What a checklist finds wrong: one `Finding` each, all of them at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

ERROR, WARNING = "error", "warning"


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


def errors(found: Iterable[Finding]) -> list[Finding]:
    """Those that are no mere warnings."""
    return [finding for finding in found if finding.level == ERROR]
