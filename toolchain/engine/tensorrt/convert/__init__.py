"""From a quantized Hugging Face checkpoint to what `trtllm-build` reads: config.json and a file a rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolchain.engine.tensorrt.convert.layout import RankLayout
from toolchain.progress import Progress

__all__ = ["RankLayout", "convert"]


def convert(
    checkpoint: Path,
    out_dir: Path,
    work_dir: Path,
    *,
    layout: RankLayout,
    progress: Progress,
    kv_cache: str | None = None,
) -> dict[str, Any]:
    """Write the rank checkpoint of `checkpoint` to `out_dir`; see `toolchain.engine.tensorrt.convert.run`."""
    from toolchain.engine.tensorrt.convert import run  # which needs torch; the layout does not

    return run.convert(checkpoint, out_dir, work_dir, layout=layout, progress=progress, kv_cache=kv_cache)
