"""`evaluate_paths`: checkpoints or built artifacts, measured against the model that they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolchain.errors import UsageError
from toolchain.gate.result import Evaluation
from toolchain.pipeline.gates import baseline_stage
from toolchain.pipeline.inspect import artifact_at
from toolchain.pipeline.runner import run_pipeline
from toolchain.pipeline.store import Store
from toolchain.pipeline.texts import require_file
from toolchain.plan.facts import fetch_model
from toolchain.progress import Progress
from toolchain.recipe import load_recipe
from toolchain.text.files import TextFiles


def evaluate_paths(
    paths: Sequence[Path],
    text: TextFiles,
    *,
    source: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    device: str = "auto",
    simulate: bool = True,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Measure what lies at `paths` against the source model; what that makes of the text stays in the store.

    Args:
        paths: checkpoint directories or artifacts, all made from one model.
        text: the held-out text.
        source: a model directory or a hub id; by default the one that the artifacts' recipes name.
        window, stride, limit: as in `load_windows`.
        device: "auto", "cpu" or "cuda".
        simulate: round activations and KV cache as well, where the scheme quantizes them.
        progress: told how far the work is.

    Raises:
        UsageError: the source is not given and not known, or a window or stride cannot be used.
        DataError: the text cannot be used.
        ModelError: a model is damaged, or the two do not belong together.
        GateError: the quantized model computes NaN or infinity.
        StoreError: the store refuses.
    """
    from toolchain.gate.baseline import Baseline
    from toolchain.gate.evaluate import evaluate

    if text.commit is None:
        require_file(text.files[0], "held-out text", "--dataset")
    found = [_find(path) for path in paths]
    model, _commit = fetch_model(*_source([named for _, named in found], source, paths))
    stage = baseline_stage(model, text, windows=limit, window=window, stride=stride, device=device)
    with Store.open() as store:
        kept = run_pipeline([stage], store, progress=progress)[0]
        baseline = Baseline.load(kept.path)
        return [
            evaluate(model, checkpoint, baseline, device=device, simulate=simulate, progress=progress)
            for checkpoint, _ in found
        ]


def _find(path: Path) -> tuple[Path, tuple[str, str] | None]:
    """The checkpoint at `path`, and the source and revision that an artifact's recipe names."""
    found = artifact_at(path)
    if found is None:
        return path, None
    recipe = load_recipe(found.recipe)
    return found.dir("quantize"), (recipe.model.source, recipe.model.revision)


def _source(
    named: Sequence[tuple[str, str] | None], given: str | None, paths: Sequence[Path]
) -> tuple[str, str]:
    """The one source and its revision."""
    if given is not None:
        return given, "main"
    known = list(dict.fromkeys(one for one in named if one is not None))
    if not known:
        raise UsageError(
            "a checkpoint does not say which model it was made from",
            where=str(paths[0]),
            fix="name it: --source MODEL, a directory or a Hugging Face id",
        )
    if len(known) > 1:
        raise UsageError(
            "the artifacts were made from different models",
            why=", ".join(name for name, _ in known),
            fix="measure them one by one",
        )
    return known[0]
