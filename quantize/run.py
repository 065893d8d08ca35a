"""From a recipe's plain values to a quantized checkpoint: picks the method, loads the calibration data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.awq_method import Awq
from quantize.calibration import Calibration, load_calibration
from quantize.driver import quantize_model
from quantize.gptq_method import AwqGptq, Gptq
from quantize.method import Method
from toolchain.errors import QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import EMBEDDING
from toolchain.model.spec import load_spec
from toolchain.progress import Progress

_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def make_method(name: str, *, group_size: int = 128) -> Method | None:
    """The method that a recipe calls `name`; None for "none". Raises QuantizeError for an unknown one."""
    if name == "none":
        return None
    if name == "awq":
        return Awq(group_size=group_size)
    if name == "gptq":
        return Gptq(group_size=group_size)
    if name == "awq_gptq":
        return AwqGptq(Gptq(group_size=group_size))
    raise QuantizeError(
        f"the method {name!r} is not available",
        where="quantization.method",
        fix="use awq, gptq, awq_gptq or none",
    )


def quantize_checkpoint(
    model_dir: Path,
    out_dir: Path,
    work_dir: Path,
    *,
    config: Mapping[str, Any],
    calibration_file: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantize the model in `model_dir` as a recipe says. Everything else is as in `quantize_model`.

    Args:
        model_dir: the source model.
        out_dir: where the checkpoint goes.
        work_dir: the state to resume from.
        config: `method`, and as far as the method wants them `group_size`, `exclude`, `dtype` ("auto", or
            the dtype that the source must have) and, with a `calibration_file`, `calibration`: `samples`,
            `seq_len`, `seed`.
        calibration_file: the calibration data; None for a method that needs none.
        progress: is told of each layer.
    """
    spec = load_spec(model_dir)
    stored = _DTYPES.get(Checkpoint.open(model_dir).dtype(EMBEDDING))
    wanted = config.get("dtype", "auto")
    if wanted not in ("auto", stored):
        raise QuantizeError(
            f"the model is stored as {stored}, not as {wanted}",
            where="model.dtype",
            why="weights are taken as they are stored; rounding them to another dtype would go unnoticed",
            fix="set model.dtype: auto",
        )
    method = make_method(config["method"], group_size=config.get("group_size", 128))
    calibration: Calibration | None = None
    if method is not None and calibration_file is not None:
        calibration = load_calibration(
            f"file:{calibration_file}",
            model_dir,
            vocab_size=spec.vocab_size,
            **config["calibration"],
        )
    return quantize_model(
        model_dir,
        out_dir,
        work_dir,
        method=method,
        calibration=calibration,
        exclude=config.get("exclude", ()),
        events=progress,
    )
