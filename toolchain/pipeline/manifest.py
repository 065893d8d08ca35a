"""`Manifest`: the file in an artifact that says what it is, how it was made and what it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolchain.errors import StoreError, UsageError
from toolchain.pipeline.files import FileEntry
from toolchain.pipeline.record import Record

SCHEMA = 1


@dataclass(frozen=True)
class StageEntry:
    """One stage of the build that made the artifact."""

    outcome: str  # "run" by this build, or "cached" from an earlier one
    record: Record


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` says. Paths are relative to the artifact."""

    name: str
    llmbuild: str  # version that published it
    created: str  # ISO 8601, UTC
    recipe_sha256: str
    stages: Mapping[str, StageEntry]  # by name, in the order of the build
    files: Mapping[str, FileEntry]  # every file but the manifest itself
    gates: Mapping[str, Any]

    def says_the_same(self, other: Manifest) -> bool:
        """Whether both stand for the same content, whenever and by whichever build it was published."""

        def essence(manifest: Manifest) -> tuple[Any, ...]:
            keys = [(name, entry.record.key) for name, entry in manifest.stages.items()]
            return manifest.name, manifest.recipe_sha256, keys, manifest.files, manifest.gates

        return essence(self) == essence(other)

    def to_bytes(self) -> bytes:
        """The content of `manifest.json`."""
        stages = [{"outcome": entry.outcome} | entry.record.to_json() for entry in self.stages.values()]
        fields = {
            "schema": SCHEMA,
            "name": self.name,
            "llmbuild": self.llmbuild,
            "created": self.created,
            "recipe_sha256": self.recipe_sha256,
            "gates": self.gates,
            "stages": stages,
            "files": {path: asdict(entry) for path, entry in self.files.items()},
        }
        return (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes, path: Path) -> Manifest:
        """Read `to_bytes()` back; `path` is where `data` was found.

        Raises:
            StoreError: it is damaged.
            UsageError: a newer llmbuild wrote it.
        """
        try:
            fields = json.loads(data)
            if fields["schema"] != SCHEMA:
                raise UsageError(
                    f"the manifest has schema {fields['schema']}, this llmbuild reads {SCHEMA}",
                    where=str(path),
                    fix=f"use llmbuild {fields.get('llmbuild', 'of the version that wrote it')}",
                )
            entries = [
                StageEntry(stage.pop("outcome"), Record.from_json(stage)) for stage in fields["stages"]
            ]
            return cls(
                name=fields["name"],
                llmbuild=fields["llmbuild"],
                created=fields["created"],
                recipe_sha256=fields["recipe_sha256"],
                stages={entry.record.stage: entry for entry in entries},
                files={name: FileEntry(**entry) for name, entry in fields["files"].items()},
                gates=fields["gates"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                "the manifest cannot be read",
                where=str(path),
                why=f"{type(error).__name__}: {error}",
                fix="build the artifact again",
            ) from error
