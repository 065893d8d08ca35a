"""`Stage`: one pure step of a build, and what it is given while it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from toolchain.pipeline.files import canonical_json
from toolchain.progress import Progress

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
"""What a model is; other files beside it (cards, texts, original checkpoints) may change freely."""


@dataclass(frozen=True)
class Source:
    """Files outside the store that a stage reads: a model's directory, a calibration text.

    Args:
        path: a file, or a directory.
        patterns: which files of a directory, as globs relative to it; `("**/*",)` also reads below
            sub-directories. Names that begin with a dot are never part of it. Links are followed.
    """

    path: Path
    patterns: tuple[str, ...] = ("*",)


@dataclass(frozen=True)
class StageContext:
    """What a running stage may read and where it may write.

    Args:
        config: the stage's part of the recipe, the very value that is in its key.
        inputs: by name, the directory of an earlier stage's output (read-only), or the path of a source.
        out_dir: empty at first; what is in it when `run` returns is the output. Files and directories
            only. A file may be hard-linked in from `work_dir` or from an earlier stage's output (same file
            system), never from a source: sealing makes it read-only.
        work_dir: scratch that survives a crash, for the same key only; removed once the output is stored.
            What is found here was written by an interrupted run, so rename complete files into place.
        progress: told how far the work is.
        facts: whatever the manifest should say about this stage, JSON; kept with the output.
    """

    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    out_dir: Path
    work_dir: Path
    progress: Progress
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A pure function from (inputs, config, tools, arch) to one directory.

    Args:
        name: of the stage, and of its directory in the artifact.
        version: of the stage's code; raise it when the same inputs would give other bytes.
        run: writes the output; reads nothing but its context.
        inputs: names of the earlier stages whose outputs it reads.
        sources: files outside the store that it reads, by name.
        config: the values of the recipe that the output depends on, JSON.
        tools: name to version of every tool that the output depends on.
        arch: the accelerator architecture, if and only if the output depends on it.
        intermediates: by the name under which `run` finds its output, a stage whose output only this one's
            run reads. It is brought up to date when this one has to run, stands in the key with its own key,
            and is no part of the artifact, so that `store gc` may take it.
        check: looks at the output directory, new or stored, and raises to stop the build there. What it
            holds against the output is no part of the key.
    """

    name: str
    version: int
    run: Callable[[StageContext], None]
    inputs: tuple[str, ...] = ()
    sources: Mapping[str, Source] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    tools: Mapping[str, str] = field(default_factory=dict)
    arch: str | None = None
    intermediates: Mapping[str, Stage] = field(default_factory=dict)
    check: Callable[[Path], None] | None = None

    def key(self, digests: Mapping[str, str]) -> str:
        """The sha256 of everything that the output depends on.

        Args:
            digests: the content digest of each of `inputs` and `sources`, by name, and the key of each of
                `intermediates`. As it is the content that counts, a stage that comes out the same from other
                inputs leaves later stages cached.
        """
        identity = {
            "stage": self.name,
            "version": self.version,
            "inputs": dict(digests),
            "config": dict(self.config),
            "tools": dict(self.tools),
            "arch": self.arch,
        }
        return hashlib.sha256(canonical_json(identity)).hexdigest()


def versions(*packages: str) -> Mapping[str, str]:
    """The installed version of each package, without importing it; "absent" if it is not there."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
