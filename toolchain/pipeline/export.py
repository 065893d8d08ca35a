"""`export_checkpoint`: a quantized checkpoint in another file form, for other tools to read."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from quantize.formats.checkpoint import FORMATS
from quantize.formats.convert import convert_checkpoint
from toolchain.errors import UsageError
from toolchain.pipeline.files import remove_tree, storing
from toolchain.pipeline.inspect import CheckpointFacts, artifact_at, inspect_checkpoint
from toolchain.progress import Progress


@dataclass(frozen=True)
class Exported:
    """What was written where."""

    path: Path
    form: str
    facts: CheckpointFacts


def export_checkpoint(path: Path, form: str, out: Path, *, progress: Progress | None = None) -> Exported:
    """Write the checkpoint at `path` to the new directory `out` in the file form `form`.

    The directory appears under its name when it is whole.

    Args:
        path: a quantized checkpoint of any form, or an artifact that has one.
        form: a name of `FORMATS`.
        out: does not exist, or is an empty directory.
        progress: is told of each layer.

    Raises:
        UsageError: there is no such form, nothing to export at `path`, or something at `out`.
        ModelError: the checkpoint is damaged, or its form cannot be read.
        QuantizeError: it is not quantized, or `form` cannot hold it.
        StoreError: the file system refuses.
    """
    if form not in FORMATS:
        raise UsageError(f"there is no form {form!r}", where="--format", fix=f"use {', '.join(FORMATS)}")
    found = artifact_at(path)
    if found is not None:
        if "quantize" not in found.manifest.stages:
            raise UsageError(
                "the artifact has no checkpoint", where=str(path), fix="build it --until quantize"
            )
        path = found.dir("quantize")
    with storing("write the checkpoint", out):
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UsageError("there is something at the place of the output", where=str(out))
        out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        convert_checkpoint(path, partial, form, progress=progress)
        with storing("write the checkpoint", out):
            partial.replace(out)  # over an empty directory, too
    finally:
        if partial.exists():
            remove_tree(partial)
    return Exported(out, form, inspect_checkpoint(out))
