"""Which tensors a rank file must hold, with their shapes and dtypes, derived from `config.json` alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from quantize.formats.base import FP8, FP8_ROWWISE, INT8_SQ, NVFP4, W4A8_AWQ, Part
from quantize.simulate import FP4_BLOCK
from toolchain.engine.tensorrt.decode import DECODED, ROW_PAIRS, SQ_PLUGINS
from toolchain.engine.tensorrt.rank import (
    HEAD,
    LN_F,
    NORMS,
    ROUTERS,
    VOCAB_EMBEDDING,
    local_prefix,
    mlp_modules,
)
from toolchain.engine.tensorrt.rank_config import PLAIN_ALGOS, RankConfig
from toolchain.model.families import has_bias, layer_mlps, linear_shapes, routers

DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
"""A dtype of `config.json` -> its safetensors name."""

SCALAR = Part((1,), ("F32",))


@dataclass(frozen=True)
class Expected:
    """What a rank file holds, by full name: what it must, and what it may besides.

    Of the linears `unknown` nothing is known: their algorithm's tensors are not described here.
    """

    required: dict[str, Part] = field(default_factory=dict)
    optional: dict[str, Part] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)


def expected_tensors(config: RankConfig, rank: int) -> Expected:
    """The tensors of `rank`. Sizes must divide as the checklist demands."""
    spec, mapping = config.spec, config.mapping
    tp_rank, stage = rank % mapping.tp, rank // mapping.tp
    found = Expected()
    plain = (DTYPES[spec.dtype],)
    rows = math.ceil(spec.vocab_size / mapping.tp)
    if stage == 0:
        shape = {
            None: (spec.vocab_size, spec.hidden_size),
            0: (rows, spec.hidden_size),
            1: (spec.vocab_size, spec.hidden_size // mapping.tp),
        }[config.embedding_sharding]
        found.required[VOCAB_EMBEDDING] = Part(shape, plain)
    for number, layer in enumerate(mapping.layers(stage, spec.num_hidden_layers)):
        _layer(config, tp_rank, layer, local_prefix(number), found)
    if stage == mapping.pp - 1:
        found.required[LN_F] = Part((spec.hidden_size,), plain)
        found.required[HEAD] = Part((rows, spec.hidden_size), plain)
    return found


def _layer(config: RankConfig, tp_rank: int, layer: int, prefix: str, found: Expected) -> None:
    spec, mapping, plain = config.spec, config.mapping, (DTYPES[config.spec.dtype],)
    tp, hidden, head = mapping.tp, spec.hidden_size, spec.head_dim
    for name in NORMS:
        if name.startswith("attention."):
            if spec.qk_norm:
                found.required[prefix + name] = Part((head,), plain)
        else:
            found.required[prefix + name] = Part((hidden,), plain)
    queries = spec.num_attention_heads // tp * head
    keys = max(1, spec.num_key_value_heads // tp) * head
    shapes = linear_shapes(spec, layer)
    linear(config, f"{prefix}attention.qkv", (queries + 2 * keys, hidden), found)
    linear(config, f"{prefix}attention.dense", (hidden, queries), found)
    if spec.qkv_bias:
        found.required[f"{prefix}attention.qkv.bias"] = Part((queries + 2 * keys,), plain)
    if spec.o_bias:
        found.required[f"{prefix}attention.dense.bias"] = Part((hidden,), plain)
    mlps = layer_mlps(spec, layer)
    for mlp in mlps:
        if mlp.expert is not None:
            continue
        for theirs, ours in mlp_modules(mlp).items():
            rows, columns = shapes[ours[0]]
            down = mlp.down in ours
            shape = (rows, columns // tp) if down else (len(ours) * rows // tp, columns)
            linear(config, prefix + theirs, shape, found)
            if has_bias(spec, ours[0]):
                found.required[f"{prefix}{theirs}.bias"] = Part(shape[:1], plain)
    for theirs, shape in zip(ROUTERS, routers(spec, layer).values(), strict=False):
        dtypes = ("F32",) if theirs == "mlp.router" else plain
        found.required[f"{prefix}{theirs}.weight"] = Part(shape, dtypes)
    if spec.moe is not None and spec.is_sparse(layer):
        count = len(mapping.experts(tp_rank, spec.moe.num_experts))
        width = spec.moe.moe_intermediate_size // mapping.moe_tp
        linear(config, f"{prefix}mlp.fc", (2 * width, hidden), found, count)
        linear(config, f"{prefix}mlp.proj", (hidden, width), found, count)
    if config.kv_cache_quant_algo is not None:
        found.required[f"{prefix}attention.kv_cache_scaling_factor"] = SCALAR
        for which in ("k", "v"):
            found.optional[f"{prefix}attention.{which}_cache_scaling_factor"] = SCALAR
        found.optional[f"{prefix}attention.kv_cache_rcp_scaling_factor"] = SCALAR


def linear(
    config: RankConfig, module: str, shape: tuple[int, int], found: Expected, experts: int | None = None
) -> None:
    """Add the tensors of a linear whose weight is of `shape` on the rank, of `experts` if it is of those."""
    algo, dtype = config.algo(module), DTYPES[config.spec.dtype]
    if algo not in (None, *PLAIN_ALGOS, *DECODED):
        found.unknown.add(module)
        return
    rows, columns = shape
    front = () if experts is None else (experts,)
    one = SCALAR if experts is None else Part((experts, 1), ("F32",))
    parts: dict[str, Part] = {}
    group = FP4_BLOCK if algo == NVFP4 else config.group_size(module) or columns
    groups = columns // group
    if algo in ROW_PAIRS:
        parts["weight"] = Part((*front, rows // 2, columns), ("I8",))
        parts["weights_scaling_factor"] = Part((*front, rows, groups), ("F32",))
        if config.quantization.get("pre_quant_scale", True):
            parts["prequant_scaling_factor"] = Part((*front, columns), (dtype,))
        if config.quantization.get("has_zero_point"):
            parts["zero"] = Part((*front, groups, rows), (dtype,))
        if algo == W4A8_AWQ:
            parts |= {"activation_scaling_factor": SCALAR, "weights_scaling_factor_2": one}
    elif algo == NVFP4:
        parts["weight"] = Part((*front, rows, columns // 2), ("U8",))
        parts["weights_scaling_factor"] = Part((*front, rows, groups), ("F8_E4M3",))
        # Stacked without a dimension of its own, unlike FP8's: so ModelOpt writes it.
        second = SCALAR if experts is None else Part((experts,), ("F32",))
        parts |= {"weights_scaling_factor_2": second, "activation_scaling_factor": SCALAR}
    elif algo == FP8:
        parts["weight"] = Part((*front, rows, columns), ("F8_E4M3", "I8"))
        parts |= {"weights_scaling_factor": one, "activation_scaling_factor": SCALAR}
    elif algo == FP8_ROWWISE:
        parts["weight"] = Part((*front, rows, columns), ("F8_E4M3", "I8"))
        parts["per_channel_scale"] = Part((*front, rows), ("F32",))
    elif algo == INT8_SQ:
        parts["weight"] = Part((*front, rows, columns), ("I8",))
        parts["weights_scaling_factor"] = Part((*front, rows), ("F32",))
        parts["prequant_scaling_factor"] = Part((*front, columns), (dtype,))
        parts["activation_scaling_factor"] = SCALAR
    elif algo in SQ_PLUGINS:
        per_tensor = algo.startswith("W8A8_SQ_PER_TENSOR")
        parts["weight"] = Part((*front, rows, columns), ("I8",))
        parts["per_channel_scale"] = Part((1, 1 if per_tensor else rows), ("F32",))
        found.optional[f"{module}.act_scale"] = Part((1, 1), ("F32",))
        found.optional[f"{module}.smoother"] = Part((1, columns), ("F32",))
    else:
        parts["weight"] = Part((*front, rows, columns), (dtype,))
    found.required.update({f"{module}.{suffix}": part for suffix, part in parts.items()})
