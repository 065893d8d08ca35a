"""From paths and plain values to an evaluation: reads the text, measures."""

from __future__ import annotations

from pathlib import Path

from toolchain.gate.evaluate import evaluate
from toolchain.gate.result import Evaluation
from toolchain.gate.text import load_windows
from toolchain.model.spec import load_spec
from toolchain.progress import Progress
from toolchain.text.files import TextFiles


def measure(
    source_dir: Path,
    quantized_dir: Path,
    text: TextFiles,
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a checkpoint against its source on held-out text. See `load_windows` and `evaluate`."""
    spec = load_spec(source_dir)
    windows = load_windows(
        text,
        source_dir,
        vocab_size=spec.vocab_size,
        context=spec.max_position_embeddings,
        window=window,
        stride=stride,
        limit=limit,
    )
    return evaluate(source_dir, quantized_dir, windows, progress=progress)
