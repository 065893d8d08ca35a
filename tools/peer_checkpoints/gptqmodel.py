"""GPTQModel: GPTQ in its two file formats, and AutoAWQ's format, which it can write without AWQ's search.

(Its AWQ search insists on CUDA; AutoAWQ itself does not run on a CPU.)
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Its default on a machine of two cores is one worker, with which its loader refuses to start.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.nn_modules.qlinear import AWQuantLinear, BaseQuantLinear
from gptqmodel.quantization import FORMAT, GPTQConfig, RTNConfig
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from torch import Tensor

from peer_checkpoints.source import calibration_tokens, tokenizer

PACKAGES = ("GPTQModel",)
EXPECTED = "float16, as GPTQModel computes: codes less zeros times scales, rounded once."
KINDS = {
    "gptq": "GPTQ v1, int4 symmetric, group 32, `desc_act: false`",
    "gptq_desc_act": "GPTQ v1, int4 symmetric, group 32, `desc_act: true`: `g_idx` in no order",
    "gptq_asym": "GPTQ v1, int4 with zero points, group 32",
    "gptq_v2": "GPTQ v2 (zero points as they are, not less one), int4 with zero points, group 32",
    "gptq_8bit": "GPTQ v1, int8 symmetric, one group a row (`group_size: -1`)",
    "awq_gemm": "AutoAWQ's GEMM format, int4 with zero points, group 32, round to nearest; "
    "the script wrote its `quantization_config`, in AutoAWQ's words",
}
SOURCE_OF: dict[str, str] = {}
GROUP = 32


def write(kind: str, source: Path, out: Path) -> None:
    """Quantize the model in `source` as `kind` says and save it to `out`."""
    torch.manual_seed(0)
    rows = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in calibration_tokens()
    ]
    with _with_tokenizer(source) as copy:
        model = GPTQModel.load(copy, _config(kind))
        model.quantize(rows, batch_size=1)
        model.save(str(out))
    if kind == "awq_gemm":
        _describe_as_autoawq(out)


def dequantize(directory: Path) -> dict[str, Tensor]:
    """The weights of the quantized linears in `directory`, [out, in], by name."""
    described = json.loads((directory / "config.json").read_text())["quantization_config"]
    backend = BACKEND.AWQ_TORCH if described["quant_method"] == "awq" else BACKEND.GPTQ_TORCH
    with _with_tokenizer(directory) as copy:
        model = GPTQModel.load(copy, device="cpu", backend=backend, dtype=torch.float16)
    return {
        f"{name}.weight": _weight(module).T.contiguous()
        for name, module in model.model.named_modules()
        if isinstance(module, BaseQuantLinear)
    }


@contextmanager
def _with_tokenizer(directory: Path) -> Iterator[str]:
    """A copy of a checkpoint with a tokenizer beside it, without which GPTQModel loads nothing."""
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(directory, copy, dirs_exist_ok=True)
        if not (directory / "tokenizer.json").is_file():
            tokenizer().save_pretrained(copy)
        yield copy


def _config(kind: str) -> Any:
    common: dict[str, Any] = {"bits": 4, "group_size": GROUP, "device": "cpu", "offload_to_disk": False}
    if kind == "awq_gemm":
        return RTNConfig(format=FORMAT.GEMM, sym=False, **common)
    choices: dict[str, dict[str, Any]] = {
        "gptq": {"desc_act": False, "act_group_aware": False},
        "gptq_desc_act": {"desc_act": True, "act_group_aware": False},
        "gptq_asym": {"sym": False, "act_group_aware": False},
        "gptq_v2": {"sym": False, "act_group_aware": False, "format": FORMAT.GPTQ_V2},
        "gptq_8bit": {"bits": 8, "group_size": -1, "act_group_aware": False},
    }
    return GPTQConfig(**(common | choices[kind]))


def _describe_as_autoawq(directory: Path) -> None:
    """The tensors are AutoAWQ's, the description is not: GPTQModel calls it "gptq" without AWQ's search."""
    (directory / "quantize_config.json").unlink()
    file = directory / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] = {
        "bits": 4,
        "group_size": GROUP,
        "modules_to_not_convert": None,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    }
    file.write_text(json.dumps(config, indent=2) + "\n")


def _weight(module: Any) -> Tensor:
    """[in, out], as GPTQModel keeps it."""
    with torch.inference_mode():
        if isinstance(module, AWQuantLinear):
            weight: Tensor = dequantize_gemm(
                qweight=module.qweight,
                qzeros=module.qzeros,
                scales=module.scales,
                bits=module.bits,
                group_size=module.group_size,
            )
        else:
            weight = module.dequantize_weight()
    return weight.clone()
