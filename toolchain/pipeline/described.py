"""`Described`: what a directory of somebody's is, in values to print."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from toolchain.findings import Finding
from toolchain.plan.runs import Runner

RANKS = "TensorRT-LLM checkpoint"


@dataclass
class Described:
    """A directory at a glance.

    Attributes:
        kind: what it is, in words.
        path: of it.
        facts: name -> value, for people and programs.
        parts: rank files or models: equal keys in each.
        findings: what is wrong with it.
        runners: what runs it.
    """

    kind: str
    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    runners: list[Runner] = field(default_factory=list)

    @property
    def is_ranks(self) -> bool:
        """Whether it is a rank checkpoint, whose weights can be read."""
        return self.kind == RANKS

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": self.kind,
            "path": self.path,
            "facts": self.facts,
            "parts": self.parts,
            "findings": [finding.to_json() for finding in self.findings],
            "runs_on": [asdict(runner) for runner in self.runners],
        }
