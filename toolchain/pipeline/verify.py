"""`verify_path`: a rank checkpoint, or the one in an artifact, run beside what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolchain.engine.tensorrt.rank_config import CONFIG_FILE
from toolchain.engine.tensorrt.verify.result import Verification
from toolchain.engine.tensorrt.verify.run import verify_ranks
from toolchain.errors import UsageError
from toolchain.pipeline.artifact import Artifact
from toolchain.plan.facts import fetch_model
from toolchain.progress import Progress
from toolchain.recipe import load_recipe


def verify_path(
    path: Path,
    *,
    source: str | None = None,
    prompt: str | None = None,
    tokens: Sequence[int] | None = None,
    backend: str = "auto",
    progress: Progress | None = None,
) -> Verification:
    """Verify the ranks at `path`; see `verify_ranks`.

    Args:
        path: a rank checkpoint, or an artifact that has one.
        source: the checkpoint that it was made from, or a hub id; an artifact holds its own.
        prompt: a text to run, with the source's tokenizer.
        tokens: or the tokens themselves.
        backend, progress: as in `verify_ranks`.

    Raises:
        UsageError: there are no ranks at `path`, or the source is not known.
        ModelError, ToolchainError, BuildError: as in `verify_ranks`.
    """
    checkpoint, recorded = _find(path)
    model = recorded if source is None else fetch_model(source, "main")[0]
    if model is None:
        raise UsageError(
            "a rank checkpoint does not say which model it was made from",
            where=str(path),
            fix="name it: --source DIR, the Hugging Face checkpoint that was converted",
        )
    if prompt is not None:
        from toolchain.model.tokenizer import load_tokenizer

        tokens = load_tokenizer(model).encode(prompt).ids
    return verify_ranks(checkpoint, model, tokens=tokens, backend=backend, progress=progress)


def has_ranks(directory: Path) -> bool:
    """Whether a directory is a rank checkpoint."""
    return (directory / CONFIG_FILE).is_file() and (directory / "rank0.safetensors").exists()


def _find(path: Path) -> tuple[Path, Path | None]:
    """The directory of the ranks at `path`, and what they were made from, where that is recorded."""
    if has_ranks(path):
        return path, None
    if not (path / "manifest.json").is_file():
        raise UsageError(
            "there is no rank checkpoint here" if path.is_dir() else "there is no such directory",
            where=str(path),
            why="it would hold config.json and rank0.safetensors" if path.is_dir() else None,
            fix="name a rank checkpoint, or an artifact of the flavour tensorrt",
        )
    artifact = Artifact.open(path)
    for output in artifact.outputs.values():
        for directory in (output, *(inner for inner in sorted(output.iterdir()) if inner.is_dir())):
            if has_ranks(directory):
                return directory, _source(artifact)
    raise UsageError(
        "the artifact has no rank checkpoint",
        where=str(path),
        why=f"it holds the stages {', '.join(artifact.outputs)}",
        fix="build the flavour tensorrt",
    )


def _source(artifact: Artifact) -> Path:
    """What the artifact's ranks were made from: its quantized checkpoint, or else the recipe's model."""
    if "quantize" in artifact.outputs:
        return artifact.dir("quantize")
    model = load_recipe(artifact.recipe).model
    return fetch_model(model.source, model.revision)[0]
