"""nvidia-modelopt: `mtq.quantize`, then `export_hf_checkpoint`.

ModelOpt has no reader of its unified form. Stored codes are decoded by its tensor classes, int4 by asking its
packer for the byte of every pair; packing the result with ModelOpt must give the stored bytes again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import modelopt.torch.quantization as mtq
import torch
import transformers
from modelopt.torch.export import export_hf_checkpoint
from modelopt.torch.export.quant_utils import pack_int4_in_uint8, to_quantized_weight
from modelopt.torch.quantization.qtensor import FP8QTensor, INT8QTensor, NVFP4QTensor
from safetensors import safe_open
from torch import Tensor

from peer_checkpoints.source import calibration_tokens

PACKAGES = ("nvidia-modelopt",)
EXPECTED = "float32, codes times scales, times `pre_quant_scale` along the input where there is one."
KINDS = {
    "fp8": "FP8: per-tensor weights and activations",
    "fp8_kv": "FP8 with an FP8 KV cache",
    "fp8_pc_pt": "FP8_PER_CHANNEL_PER_TOKEN: a scale per output channel, dynamic activations",
    "w4a16_awq": "W4A16_AWQ, group 32",
    "w4a8_awq": "W4A8_AWQ, group 32: int4 weights that go through FP8, FP8 activations",
    "int4_wo": "INT4 round to nearest, group 32; exported as W4A16_AWQ",
    "int8_sq": "W8A8_SQ_PER_CHANNEL: SmoothQuant",
    "int8_wo": "W8A16: int8 weights, a scale per output channel",
    "nvfp4": "NVFP4, group 16",
    "mixed": "MIXED_PRECISION: attention FP8, MLP W4A16_AWQ, o_proj unquantized",
    "mixtral_fp8": "FP8 of a Mixtral, four experts",
}
SOURCE_OF = {"mixtral_fp8": "mixtral"}
GROUP = 32

_CONFIGS = {
    "fp8": mtq.FP8_DEFAULT_CFG,
    "fp8_kv": mtq.FP8_DEFAULT_CFG,
    "fp8_pc_pt": mtq.FP8_PER_CHANNEL_PER_TOKEN_CFG,
    "w4a16_awq": mtq.INT4_AWQ_CFG,
    "w4a8_awq": mtq.W4A8_AWQ_BETA_CFG,
    "int4_wo": mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG,
    "int8_sq": mtq.INT8_SMOOTHQUANT_CFG,
    "int8_wo": mtq.INT8_WEIGHT_ONLY_CFG,
    "nvfp4": mtq.NVFP4_DEFAULT_CFG,
    "mixed": mtq.FP8_DEFAULT_CFG,
    "mixtral_fp8": mtq.FP8_DEFAULT_CFG,
}


def write(kind: str, source: Path, out: Path) -> None:
    """Quantize the model in `source` as `kind` says and export it to `out`."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()
    tokens = calibration_tokens()
    model = mtq.quantize(model, _config(kind), lambda module: [module(row[None]) for row in tokens])
    with torch.inference_mode():
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=out)


def dequantize(directory: Path) -> dict[str, Tensor]:
    """The weights of the quantized linears in `directory`, float32 [out, in], by name."""
    algo_of = _algorithms(directory)
    tensors: dict[str, Tensor] = {}
    for file in sorted(directory.glob("model*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    modules = [name.removesuffix(".weight_scale") for name in tensors if name.endswith(".weight_scale")]
    return {f"{module}.weight": _linear(tensors, module, algo_of(module)) for module in modules}


def _config(kind: str) -> dict[str, Any]:
    """ModelOpt's preset, with groups of 32 in place of 128: the tiny model's rows have 32 and 64 columns."""
    config: dict[str, Any] = copy.deepcopy(_CONFIGS[kind])
    for entry in config["quant_cfg"]:
        parts = entry.get("cfg") or {}
        for part in parts if isinstance(parts, list) else [parts]:
            if (part.get("block_sizes") or {}).get(-1) == 128:
                part["block_sizes"][-1] = GROUP
    if kind == "fp8_kv":
        config["quant_cfg"] += mtq.FP8_KV_CFG["quant_cfg"]
    if kind == "mixed":
        int4 = {"num_bits": 4, "block_sizes": {-1: GROUP, "type": "static"}}
        config["quant_cfg"] += [
            {"quantizer_name": "*mlp*weight_quantizer", "cfg": int4},
            {"quantizer_name": "*mlp*input_quantizer", "enable": False},
            {"quantizer_name": "*o_proj*", "enable": False},
        ]
        config["algorithm"] = {"method": "awq_lite", "alpha_step": 0.1}
    return config


def _algorithms(directory: Path) -> Any:
    """A function from a module's name to its algorithm, e.g. "FP8"."""
    described = json.loads((directory / "hf_quant_config.json").read_text())["quantization"]
    if described["quant_algo"] != "MIXED_PRECISION":
        return lambda module: described["quant_algo"]
    layers: Mapping[str, Mapping[str, str]] = described["quantized_layers"]
    return lambda module: layers[module]["quant_algo"]


def _linear(tensors: Mapping[str, Tensor], module: str, algo: str) -> Tensor:
    stored, scale = tensors[f"{module}.weight"], tensors[f"{module}.weight_scale"]
    scale_2 = tensors.get(f"{module}.weight_scale_2") if "NVFP4" in algo else None
    form, block, weight = _decode(stored, scale, scale_2, algo)
    again = to_quantized_weight(weight, scale if scale_2 is not None else scale.float(), form, scale_2, block)
    if not torch.equal(_decode(again, scale, scale_2, algo)[2], weight):
        raise AssertionError(f"{module}: ModelOpt packs the decoded weight to other codes than are stored")
    pre_quant_scale = tensors.get(f"{module}.pre_quant_scale")
    return weight if pre_quant_scale is None else weight * pre_quant_scale.float()


def _decode(
    stored: Tensor, scale: Tensor, scale_2: Tensor | None, algo: str
) -> tuple[str, int | None, Tensor]:
    """ModelOpt's name of the format, its block size, and the weight in float32."""
    exact = torch.float32
    if algo in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        form = "fp8" if algo == "FP8" else "fp8_pc_pt"
        rows = scale if scale.dim() == 0 else scale.reshape(-1, 1)
        return form, None, FP8QTensor(stored.shape, exact, stored).dequantize(exact, scale=rows)
    if algo in ("W8A8_SQ_PER_CHANNEL", "W8A16"):
        rows = scale.reshape(-1, 1)
        return "int8_sq", None, INT8QTensor(stored.shape, exact, stored).dequantize(exact, scale=rows)
    if scale_2 is not None:
        shape = torch.Size((stored.shape[0], 2 * stored.shape[1]))
        block = shape[1] // scale.shape[1]
        decoded = NVFP4QTensor(shape, exact, stored).dequantize(
            exact, scale=scale, double_scale=scale_2, block_sizes={-1: block}
        )
        return "nvfp4", block, decoded
    block = stored.shape[1] // scale.shape[1]
    return "int4_awq", block, _int4(stored) * scale.float().repeat_interleave(block, dim=1)


def _int4(stored_PI: Tensor) -> Tensor:
    """The codes, float32 [out, in], of bytes [out / 2, in] that ModelOpt packed."""
    values = torch.arange(-8, 8, dtype=torch.float32)
    pairs = torch.cartesian_prod(values, values).T  # [2, 256]: every pair of rows, a column each
    packed = pack_int4_in_uint8(pairs, torch.ones(2, 1), pairs.shape[1])[0]
    table = torch.empty(256, 2)
    table[packed.long()] = pairs.T
    return table[stored_PI.long()].permute(0, 2, 1).reshape(2 * stored_PI.shape[0], -1)
