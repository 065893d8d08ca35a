"""`evaluate_path`: a checkpoint or a built artifact, measured against the model that it was made from."""

from __future__ import annotations

from pathlib import Path

from toolchain.errors import UsageError
from toolchain.gate.result import Evaluation
from toolchain.pipeline.artifact import Artifact
from toolchain.pipeline.inspect import inspect_path
from toolchain.plan.facts import fetch_model
from toolchain.progress import Progress
from toolchain.recipe import load_recipe
from toolchain.text.files import TextFiles


def evaluate_path(
    path: Path,
    text: TextFiles,
    *,
    source: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure what lies at `path` against its source model.

    Args:
        path: a checkpoint directory, or an artifact.
        text: the held-out text.
        source: a model directory or a hub id; by default the one that an artifact's recipe names.
        window, stride, limit: as in `load_windows`.
        progress: told how far the work is.

    Raises:
        UsageError: the source is not given and not known, or a window or stride cannot be used.
        DataError: the text cannot be used.
        ModelError: a model is damaged, or the two do not belong together.
        GateError: the quantized model computes NaN or infinity.
    """
    from toolchain.gate.run import measure

    found = inspect_path(path)
    revision = "main"
    if isinstance(found, Artifact):
        recipe = load_recipe(found.recipe)
        path = found.dir("quantize")
        if source is None:
            source, revision = recipe.model.source, recipe.model.revision
    if source is None:
        raise UsageError(
            "a checkpoint does not say which model it was made from",
            where=str(path),
            fix="name it: --source MODEL, a directory or a Hugging Face id",
        )
    model, _commit = fetch_model(source, revision)
    return measure(model, path, text, window=window, stride=stride, limit=limit, progress=progress)
