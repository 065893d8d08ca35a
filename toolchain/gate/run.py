"""From paths and plain values to figures: reads the text, measures."""

from __future__ import annotations

from pathlib import Path

from toolchain.gate.baseline import Baseline, make_baseline
from toolchain.gate.text import load_windows
from toolchain.model.spec import load_spec
from toolchain.progress import Progress
from toolchain.text.files import TextFiles


def baseline_of(
    source_dir: Path,
    text: TextFiles,
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Baseline:
    """What the source model makes of held-out text. See `load_windows` and `make_baseline`."""
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
    return make_baseline(source_dir, windows, device=device, progress=progress)
