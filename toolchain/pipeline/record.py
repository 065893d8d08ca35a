"""`Record`: what is known of one stage that ran, stored under its key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from typing import Any

_SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """How an output came about. The fields of the key first, then what was observed."""

    key: str
    stage: str
    version: int
    inputs: Mapping[str, str]  # content digest of each input, by name
    config: Mapping[str, Any]
    tools: Mapping[str, str]
    arch: str | None
    object: str  # content digest of the output
    seconds: float
    peak_memory: int  # bytes; see toolchain.pipeline.measure
    facts: Mapping[str, Any]
    created: str  # ISO 8601, UTC
    llmbuild: str  # version that ran it

    def to_json(self) -> dict[str, Any]:
        """A JSON object, which `from_json` reads."""
        return {"schema": _SCHEMA} | asdict(self)

    def to_bytes(self) -> bytes:
        """The file form, made to be read by people too."""
        return (json.dumps(self.to_json(), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Record:
        """Read `to_json()` back. Raises ValueError, KeyError or TypeError for anything else."""
        if fields["schema"] != _SCHEMA:
            raise ValueError(f"schema {fields['schema']} is not {_SCHEMA}")
        return cls(**{name: value for name, value in fields.items() if name != "schema"})

    @classmethod
    def from_bytes(cls, data: bytes) -> Record:
        """Read `to_bytes()` back. Raises ValueError, KeyError or TypeError for anything else."""
        return cls.from_json(json.loads(data))


def now() -> str:
    """The present time, ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def llmbuild_version() -> str:
    """The version of llmbuild that is running."""
    return metadata.version("llmbuild")
