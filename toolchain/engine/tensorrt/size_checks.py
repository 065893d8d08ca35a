"""The part of the checklist about sizes: whether heads, channels, groups, layers and experts divide."""

from __future__ import annotations

from collections.abc import Iterator

from quantize.formats.base import NVFP4, W4A8_AWQ
from toolchain.engine.tensorrt.decode import ROW_PAIRS
from toolchain.engine.tensorrt.rank_config import RankConfig
from toolchain.findings import WARNING, Finding
from toolchain.model.families import layer_examples, linear_shapes

_AGAIN = "convert the model again"


def size_findings(config: RankConfig) -> Iterator[Finding]:
    """Sizes that ranks cannot share, and linears that TensorRT-LLM cannot load in their parts."""
    spec, mapping = config.spec, config.mapping
    tp = mapping.tp
    if spec.num_attention_heads % tp:
        yield _indivisible(config, "num_attention_heads", spec.num_attention_heads, tp)
    kv = spec.num_key_value_heads
    if kv % tp and tp % kv:
        yield _indivisible(config, "num_key_value_heads", kv, tp, "or divide it, when heads are repeated")
    if mapping.pp > spec.num_hidden_layers:
        yield Finding(
            f"{spec.num_hidden_layers} layers do not make {mapping.pp} stages",
            _where(config, "mapping.pp_size"),
            fix="convert with fewer stages",
        )
    if config.embedding_sharding not in (None, 0, 1):
        yield Finding("it is neither 0 nor 1", _where(config, "embedding_sharding_dim"), fix=_AGAIN)
    if config.embedding_sharding == 1 and spec.hidden_size % tp:
        yield _indivisible(config, "hidden_size", spec.hidden_size, tp)
    if spec.moe is not None and spec.moe.num_experts % mapping.moe_ep:
        yield _indivisible(config, "moe.num_experts", spec.moe.num_experts, mapping.moe_ep)
    for layer in layer_examples(spec):
        for module, shape in linear_shapes(spec, layer).items():
            yield from _linear_sizes(config, module, shape)


def _linear_sizes(config: RankConfig, module: str, shape: tuple[int, int]) -> Iterator[Finding]:
    """Of one linear of the model: Hugging Face's name relative to the layer, [out, in]."""
    spec, mapping, algo = config.spec, config.mapping, config.quant_algo
    expert = ".experts." in module
    if expert and ".experts.0." not in module:
        return
    parts = mapping.moe_tp if expert else mapping.tp
    down = module.endswith(("o_proj", "down_proj", "w2"))
    cut = shape[1] if down else shape[0]
    keys = module.endswith(("k_proj", "v_proj"))
    where = f"{config.directory / 'config.json'}: {module}"
    if cut % parts and not keys and not module.endswith(("q_proj", "o_proj")):
        yield Finding(
            f"its {cut} channels do not divide by {parts}",
            where,
            "every rank has an equal part of them",
            "convert with fewer tensor-parallel ranks",
        )
        return
    if algo == NVFP4 and (shape[1] // (parts if down else 1)) % 16:
        yield Finding(f"{shape[1]} input channels are no whole blocks of 16 on each rank", where, fix=_AGAIN)
    group = config.quantization.get("group_size")
    if algo not in ROW_PAIRS or type(group) is not int or group < 1:
        return
    if down and (cut // parts) % group:
        yield Finding(
            f"a rank's {cut // parts} input channels are no whole groups of {group}",
            where,
            "a group whose channels lie on two ranks has no scale of its own",
            "convert with fewer tensor-parallel ranks, or quantize with a smaller group_size",
        )
    rows = (
        (spec.num_attention_heads // parts + 2 * max(1, spec.num_key_value_heads // parts)) * spec.head_dim
        if module.endswith("q_proj")
        else shape[0] // (1 if down else parts)
    )
    if rows % 2 and not keys:
        yield Finding(f"{rows} output channels on a rank are stored in pairs", where, fix=_AGAIN)
    unit = max(128 if algo == W4A8_AWQ else 64, group) * mapping.tp
    fused = (spec.num_attention_heads + 2 * spec.num_key_value_heads) * spec.head_dim
    sizes = () if keys else (fused if module.endswith("q_proj") else shape[0], shape[1])
    for name, size in zip(("output", "input"), sizes, strict=False):
        if size % unit:
            yield Finding(
                f"{size} {name} channels are no multiple of {unit}",
                where,
                f"TensorRT-LLM pads {algo} layers to multiples of {unit // mapping.tp} times tp "
                f"{mapping.tp}, and does not pad what is stored",
                "convert with fewer tensor-parallel ranks, or a smaller group_size",
                WARNING,
            )


def _indivisible(config: RankConfig, key: str, size: int, parts: int, also: str = "") -> Finding:
    return Finding(
        f"{size} does not divide by {parts}",
        _where(config, key),
        f"{parts} ranks share it equally; {parts} must divide it{' ' + also if also else ''}",
        "convert with another number of ranks",
    )


def _where(config: RankConfig, key: str) -> str:
    return f"{config.directory / 'config.json'}: {key}"
