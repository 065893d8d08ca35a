"""llm-compressor: `oneshot` with a recipe, then `save_pretrained` in one of the compressed-tensors formats.

compressed-tensors reads them back: through transformers, decompressed while loading.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.utils.quantization_config import CompressedTensorsConfig

from peer_checkpoints.source import calibration_tokens, tokenizer

PACKAGES = ("llmcompressor", "compressed-tensors")
EXPECTED = "bfloat16, as compressed-tensors computes: codes times scales, rounded once."
KINDS = {
    "w4a16": "pack-quantized: int4 symmetric, group 32",
    "w4a16_asym": "pack-quantized: int4 with zero points, group 32",
    "w4a16_gptq": "pack-quantized: GPTQ in the order of activations, whose groups stay in place",
    "w4a16_channel": "pack-quantized: int4 symmetric, a scale per output channel",
    "w8a16": "pack-quantized: int8 symmetric, a scale per output channel",
    "fp8": "float-quantized: per-tensor weights and static activations",
    "fp8_kv": "float-quantized, and the KV cache in FP8",
    "fp8_dynamic": "float-quantized: a scale per output channel, dynamic activations per token",
    "fp8_block": "float-quantized: weights in blocks of 32 x 32, dynamic activations in groups",
    "w8a8": "int-quantized: a scale per output channel, dynamic activations per token",
    "w8a8_static": "int-quantized: a scale per output channel, static activations per tensor",
    "nvfp4": "nvfp4-pack-quantized: group 16, weights and activations",
    "nvfp4a16": "nvfp4-pack-quantized: group 16, weights only",
}
SOURCE_OF: dict[str, str] = {}
GROUP = 32

_TOKEN = QuantizationArgs(num_bits=8, type="int", strategy="token", dynamic=True, symmetric=True)
_TENSOR = QuantizationArgs(num_bits=8, type="int", strategy="tensor", dynamic=False, symmetric=True)


def write(kind: str, source: Path, out: Path) -> None:
    """Quantize the model in `source` as `kind` says and save it, compressed, to `out`."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
    rows = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in calibration_tokens()]
    oneshot(
        model=model,
        processor=tokenizer(),  # it insists on one, though the data are token ids already
        dataset=DataLoader(rows, batch_size=1),  # type: ignore[arg-type]
        recipe=_recipe(kind),
        num_calibration_samples=len(rows),
    )
    model.save_pretrained(out, save_compressed=True)


def dequantize(directory: Path) -> dict[str, Tensor]:
    """The weights of the quantized linears in `directory`, [out, in] in the scales' dtype, by name.

    Left to itself, transformers loads scales in the model's dtype: float32 ones would lose sixteen bits.
    """
    dtype = "float32" if torch.float32 in _scale_dtypes(directory) else "auto"
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, quantization_config=CompressedTensorsConfig(run_compressed=False)
    )
    return {
        f"{name}.weight": module.weight.detach().clone()
        for name, module in model.named_modules()
        if getattr(module, "quantization_scheme", None) is not None and hasattr(module, "weight")
    }


def _scale_dtypes(directory: Path) -> set[torch.dtype]:
    found = set()
    for file in directory.glob("model*.safetensors"):
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if name.endswith(".weight_scale")]  # noqa: SIM118
            found |= {opened.get_tensor(name).dtype for name in names}
    return found


def _recipe(kind: str) -> Any:
    common: dict[str, Any] = {"ignore": ["lm_head"]}
    presets = {
        "fp8": "FP8",
        "fp8_dynamic": "FP8_DYNAMIC",
        "nvfp4": "NVFP4",
        "nvfp4a16": "NVFP4A16",
        "w8a8": "W8A8",
    }
    if kind in presets:
        return QuantizationModifier(targets="Linear", scheme=presets[kind], **common)
    if kind == "fp8_kv":
        cache = QuantizationArgs(num_bits=8, type="float", strategy="tensor", dynamic=False, symmetric=True)
        return QuantizationModifier(targets="Linear", scheme="FP8", kv_cache_scheme=cache, **common)
    if kind == "w4a16_gptq":
        return GPTQModifier(config_groups=_groups(_weights(4, GROUP)), actorder="static", **common)
    if kind == "fp8_block":
        block = QuantizationArgs(
            num_bits=8, type="float", strategy="block", block_structure=[32, 32], symmetric=True
        )
        inputs = QuantizationArgs(
            num_bits=8, type="float", strategy="group", group_size=GROUP, dynamic=True, symmetric=True
        )
        return QuantizationModifier(config_groups=_groups(block, inputs), **common)
    groups = {
        "w4a16": _groups(_weights(4, GROUP)),
        "w4a16_asym": _groups(_weights(4, GROUP, symmetric=False)),
        "w4a16_channel": _groups(_weights(4, None)),
        "w8a16": _groups(_weights(8, None)),
        "w8a8_static": _groups(_weights(8, None), _TENSOR),
    }
    return QuantizationModifier(config_groups=groups[kind], **common)


def _weights(bits: int, group: int | None, *, symmetric: bool = True) -> QuantizationArgs:
    strategy = "channel" if group is None else "group"
    return QuantizationArgs(
        num_bits=bits, type="int", strategy=strategy, group_size=group, symmetric=symmetric
    )


def _groups(
    weights: QuantizationArgs, inputs: QuantizationArgs | None = None
) -> dict[str, QuantizationScheme]:
    return {"group_0": QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)}
