"""What every tool is given: the same models, the same calibration tokens, the same held-out text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.model import DEMO as DEMO_DIR
from benchmarks.model import random_llama
from benchmarks.quantization.cases import DEEP, DEMO, JUDGED, OUTLIERS, WIDE
from benchmarks.quantization.outliers import with_outliers

LAYERS = {WIDE: 4, DEEP: 8}
LLAMA_8B = {"hidden": 4096, "heads": 32, "kv_heads": 8, "intermediate": 14336}
# Small enough for the tools' forward passes to go by on two cores.
SMALL = {"hidden": 512, "heads": 8, "kv_heads": 2, "intermediate": 1536}
HELDOUT = DEMO_DIR / "heldout.txt"


@dataclass(frozen=True)
class Sizes:
    """How much there is to do.

    Args:
        demo: samples and length of the demo model's calibration.
        wide: the same of the random models.
        small: wide models of a seventieth of the size, one and two layers: to try the benchmark itself.
        heldout: windows of the held-out text that quality is judged on; None for all.
    """

    demo: tuple[int, int] = (32, 256)
    wide: tuple[int, int] = (2, 128)
    small: bool = False
    heldout: int | None = 12


def model_dir(name: str, sizes: Sizes, cache: Path) -> Path:
    """The directory of a model, made in `cache` if it is a random one that is not there."""
    if name == DEMO:
        return DEMO_DIR
    if name == OUTLIERS:
        with_outliers(DEMO_DIR, cache / "demo-outliers")
        return cache / "demo-outliers"
    shape, layers = (SMALL, LAYERS[name] // 4) if sizes.small else (LLAMA_8B, LAYERS[name])
    directory = cache / f"llama-{shape['hidden']}-{layers}"
    if not (directory / "model.safetensors.index.json").is_file():
        random_llama(directory, layers=layers, **shape)
    return directory


def calibration_file(name: str, sizes: Sizes, cache: Path) -> Path:
    """The calibration tokens for a model, int64 [samples, length], as .npy."""
    from quantize.calibration import load_calibration
    from toolchain.model.spec import load_spec
    from toolchain.text.files import TextFiles

    samples, length = sizes.demo if name in JUDGED else sizes.wide
    file = cache / f"tokens-{'demo' if name in JUDGED else 'random'}-{samples}x{length}.npy"
    vocabulary = load_spec(DEMO_DIR).vocab_size
    if name in JUDGED:
        tokens = load_calibration(
            TextFiles.local(DEMO_DIR / "calibration.jsonl"),
            DEMO_DIR,
            vocab_size=vocabulary,
            samples=samples,
            seq_len=length,
            seed=0,
        ).tokens
    else:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(vocabulary, (samples, length), generator=generator)
    np.save(file, tokens.numpy())
    return file
