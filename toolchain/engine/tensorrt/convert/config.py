"""`config.json` and `quant_cfg.json` of a rank checkpoint: TensorRT-LLM's PretrainedConfig."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from quantize.formats.base import FP8_ROWWISE, INT8_WO, MIXED, W4A8_AWQ, W4A16_AWQ, LinearScheme
from toolchain.engine.tensorrt.convert.layout import RankLayout
from toolchain.engine.tensorrt.convert.scheme import EngineScheme
from toolchain.model.spec import ModelSpec

CONFIG_FILE, QUANT_FILE = "config.json", "quant_cfg.json"

_DEFAULT_EXCLUDED = (
    *("*lm_head", "*router", "*vocab_embedding", "*position_embedding", "*block_embedding"),
    "*shared_expert_gate",
)
"""What TensorRT-LLM leaves alone where exclude_modules is null; a list of ours takes its place."""

_ROWWISE_EXCLUDED = ("*ln_f", "*ln_embed")
"""FP8_PER_CHANNEL_PER_TOKEN replaces norms as well; these are its defaults."""

_RENORMALIZE, _NO_NORMALIZATION = 1, 0


def rank_config(
    spec: ModelSpec, source: Mapping[str, Any], layout: RankLayout, scheme: EngineScheme, dtype: str
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        spec: the model.
        source: the `config.json` of the checkpoint.
        layout: how it is cut.
        scheme: how it is quantized.
        dtype: of everything that is not: "bfloat16", "float16" or "float32".
    """
    moe = spec.moe is not None
    config: dict[str, Any] = {
        "producer": {"name": "llmbuild"},
        "architecture": spec.architecture,
        "dtype": dtype,
        "logits_dtype": "float32",
        "num_hidden_layers": spec.num_hidden_layers,
        "num_attention_heads": spec.num_attention_heads,
        "num_key_value_heads": spec.num_key_value_heads,
        "hidden_size": spec.hidden_size,
        "head_size": spec.head_dim,
        "intermediate_size": spec.intermediate_size,
        "norm_epsilon": spec.rms_norm_eps,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_position_embeddings,
        "hidden_act": "swiglu" if moe else "silu",
        "qk_layernorm": spec.qk_norm,
        "position_embedding_type": "rope_gpt_neox",
        "rotary_base": spec.rope.theta,
        "rotary_scaling": _rotary_scaling(spec, source),
        "attn_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
        "tie_word_embeddings": spec.tie_word_embeddings,
        "use_parallel_embedding": layout.use_parallel_embedding,
        "embedding_sharding_dim": layout.embedding_sharding_dim,
        "share_embedding_table": False,
        "mapping": layout.mapping(moe=moe),
        "quantization": _quantization(scheme, layout, moe),
    }
    return config | _family(spec)


def quant_config(scheme: EngineScheme, layout: RankLayout) -> dict[str, Any]:
    """The content of quant_cfg.json, which tells of each module where they differ."""
    layers = {}
    if scheme.quant_algo == MIXED:
        layers = {path: _facts(own) for path, own in scheme.local(layout).items() if own is not None}
    return {
        "quant_algo": scheme.quant_algo,
        "kv_cache_quant_algo": scheme.kv_cache_quant_algo,
        "quantized_layers": layers,
    }


def _family(spec: ModelSpec) -> dict[str, Any]:
    """The keys that only some families have."""
    found: dict[str, Any] = {}
    if spec.family.startswith("qwen"):
        found["qwen_type"] = spec.family
        found["moe_intermediate_size"] = 0 if spec.moe is None else spec.moe.moe_intermediate_size
        shared = 0 if spec.moe is None else spec.moe.shared_expert_intermediate_size
        found["moe_shared_expert_intermediate_size"] = shared
    if spec.moe is not None:
        found["moe"] = {
            "num_experts": spec.moe.num_experts,
            "top_k": spec.moe.num_experts_per_tok,
            "normalization_mode": _RENORMALIZE if spec.moe.norm_topk_prob else _NO_NORMALIZATION,
            "shared_expert_intermediate_size": spec.moe.shared_expert_intermediate_size,
        }
    return found


def _quantization(scheme: EngineScheme, layout: RankLayout, moe: bool) -> dict[str, Any]:
    algo = scheme.quant_algo
    found: dict[str, Any] = {"quant_algo": algo, "kv_cache_quant_algo": scheme.kv_cache_quant_algo}
    if algo is None or algo == MIXED:
        return found
    found |= {name: value for name, value in _facts(scheme.distinct[0]).items() if name != "quant_algo"}
    plain = _plain_modules(scheme.local(layout))
    if algo == INT8_WO:
        found["exclude_modules"] = [*_DEFAULT_EXCLUDED, *plain] if plain else None
        return found
    excluded = ["lm_head", *plain]
    if moe:
        excluded += ["*router", "*shared_expert_gate"]
    if algo == FP8_ROWWISE:
        excluded += _ROWWISE_EXCLUDED
    found["exclude_modules"] = excluded
    return found


def _plain_modules(local: Mapping[str, LinearScheme | None]) -> list[str]:
    """Patterns for the modules that are not quantized; what is so in every layer is named once.

    The experts of a layer are one module to TensorRT-LLM, `mlp`.
    """
    layers, found = set(), dict[str, dict[str, None]]()
    for path, own in local.items():
        name = path.split(".", 3)[3]
        layer = path.removesuffix(f".{name}")
        layers.add(layer)
        if name in ("mlp.fc", "mlp.proj") and f"{layer}.mlp.gate" not in local:
            name = "mlp"
        if own is None:
            found.setdefault(name, {})[layer] = None
    patterns = []
    for name, places in found.items():
        everywhere = places.keys() == layers
        patterns += [f"{place}.{name}" for place in (["transformer.layers.*"] if everywhere else places)]
    return patterns


def _facts(linear: LinearScheme) -> dict[str, Any]:
    """What is said of how a module, or all of them, are quantized."""
    facts: dict[str, Any] = {"quant_algo": linear.quant_algo}
    if linear.group_size is not None:
        facts["group_size"] = linear.group_size
    if linear.quant_algo in (W4A16_AWQ, W4A8_AWQ):
        facts |= {"has_zero_point": False, "pre_quant_scale": True}
    return facts


def _rotary_scaling(spec: ModelSpec, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """The source's rope_scaling; its kind under both names, as versions differ in which they read."""
    if spec.rope.kind == "default":
        return None
    given = dict(source.get("rope_scaling") or source["rope_parameters"])
    given.pop("rope_theta", None)
    # Where it is not said, TensorRT-LLM takes 4096 or 8192 for it.
    if spec.rope.kind in ("yarn", "longrope", "llama3"):
        given["original_max_position_embeddings"] = spec.rope.original_max_position_embeddings
    return given | {"type": spec.rope.kind, "rope_type": spec.rope.kind}
