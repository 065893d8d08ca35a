"""`config.json` of a TensorRT-LLM checkpoint: the model, how it is cut into ranks, how it is quantized.

Rank r of a checkpoint with tp tensor-parallel and pp pipeline-parallel parts has the tensor-parallel rank
r mod tp and computes in stage r div tp. Layers are numbered from 0 within a stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from quantize.formats.base import INT8_WO, MIXED, W4A16
from toolchain.errors import ModelError
from toolchain.model.config_json import Fields, read_json_object
from toolchain.model.spec import FAMILIES, ModelSpec

CONFIG_FILE = "config.json"
MIXED_FILE = "quant_cfg.json"

PLAIN_ALGOS = (INT8_WO, W4A16)
"""The algorithms whose weights are stored plain, in `dtype`, and quantized by `trtllm-build`."""

DEFAULT_EXCLUDE = (
    *("*lm_head", "*router", "*vocab_embedding", "*position_embedding", "*block_embedding"),
    *("*shared_expert_gate", "*fused_a"),
)
"""What TensorRT-LLM leaves unquantized where `exclude_modules` is null; any list of its own replaces it."""

_RENORMALIZE = 1  # moe.normalization_mode: the weights of a token's experts are made to sum to 1


@dataclass(frozen=True)
class RankMapping:
    """How a model is cut: `tp` ways within a layer, `pp` stages of layers.

    Args:
        tp, pp, cp: tensor, pipeline and context parallelism; context-parallel ranks share a file.
        moe_tp, moe_ep: how the `tp` ranks of a stage share experts: each expert cut `moe_tp` ways, the
            experts dealt out to `moe_ep` groups.
    """

    tp: int
    pp: int
    cp: int = 1
    moe_tp: int = 1
    moe_ep: int = 1

    @property
    def files(self) -> int:
        """How many rank files there are."""
        return self.tp * self.pp

    def layers(self, stage: int, count: int) -> range:
        """The layers, of `count`, of a stage: the first stages have one more where they do not divide."""
        share, more = divmod(count, self.pp)
        start = stage * share + min(stage, more)
        return range(start, start + share + (stage < more))

    def experts(self, tp_rank: int, count: int) -> range:
        """The experts, of `count`, of which a rank has its part."""
        share = count // self.moe_ep
        start = (tp_rank % self.moe_ep) * share
        return range(start, start + share)


@dataclass(frozen=True)
class RankConfig:
    """What `config.json` says.

    Args:
        directory: of the checkpoint.
        values: the file's content.
        spec: the model, in Hugging Face's words.
        mapping: how it is cut.
        quantization: the object `quantization`; empty for none.
        mixed: for MIXED_PRECISION, module path -> its own quantization, from `quant_cfg.json`.
    """

    directory: Path
    values: Mapping[str, Any]
    spec: ModelSpec
    mapping: RankMapping
    quantization: Mapping[str, Any] = field(default_factory=dict)
    mixed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def quant_algo(self) -> str | None:
        """E.g. "W4A16_AWQ"; "MIXED_PRECISION" where linears differ; None for a plain checkpoint."""
        return self.quantization.get("quant_algo") or None

    @property
    def kv_cache_quant_algo(self) -> str | None:
        """ "FP8", "INT8", or None."""
        return self.quantization.get("kv_cache_quant_algo") or None

    @property
    def embedding_sharding(self) -> int | None:
        """Which dimension of the embedding is cut: 0 vocabulary, 1 hidden; None where ranks have all."""
        if not self.values.get("use_parallel_embedding", False):
            return None
        return int(self.values.get("embedding_sharding_dim", 0))

    def rank_file(self, rank: int) -> Path:
        """The file of a rank."""
        return self.directory / f"rank{rank}.safetensors"

    def excluded(self, module: str) -> bool:
        """Whether `module`, e.g. "transformer.layers.0.mlp.fc" as its stage counts, is left unquantized."""
        patterns = self.quantization.get("exclude_modules") or DEFAULT_EXCLUDE
        return any(fnmatchcase(module, pattern) for pattern in patterns)

    def algo(self, module: str) -> str | None:
        """How `module` is quantized; None where it is not."""
        if self.quant_algo is None or self.excluded(module):
            return None
        if self.quant_algo == MIXED:
            return self._own(module).get("quant_algo") or None
        return self.quant_algo

    def group_size(self, module: str) -> int | None:
        """Input channels of `module` that share a scale, as configured."""
        own = self._own(module) if self.quant_algo == MIXED else self.quantization
        return own.get("group_size")

    def _own(self, module: str) -> Mapping[str, Any]:
        return self.mixed.get(module, {})


def load_rank_config(directory: Path) -> RankConfig:
    """Read `config.json` of a checkpoint, and `quant_cfg.json` where linears differ.

    Raises ModelError: a file is missing or is not JSON; an architecture is unknown; fields are missing or
    wrong, all of them listed.
    """
    path = directory / CONFIG_FILE
    values = read_json_object(path, fix="name the directory with config.json and rank0.safetensors")
    return parse_rank_config(values, directory)


def parse_rank_config(values: Mapping[str, Any], directory: Path) -> RankConfig:
    """As `load_rank_config`, from the parsed file; an engine's `pretrained_config` has the same form."""
    path = directory / CONFIG_FILE
    problems: list[str] = []
    fields = Fields(values, problems)
    mapping = _mapping(Fields(fields.mapping("mapping"), problems, "mapping."))
    quantization = fields.mapping("quantization")
    if problems:
        raise ModelError(
            f"{len(problems)} field{'s are' if len(problems) > 1 else ' is'} missing or wrong",
            where=str(path),
            why="; ".join(problems),
            fix="convert the checkpoint again",
        )
    spec = ModelSpec.from_config(hugging_face_config(values), str(path))
    mixed: Mapping[str, Mapping[str, Any]] = {}
    if quantization.get("quant_algo") == MIXED:
        mixed = read_json_object(directory / MIXED_FILE).get("quantized_layers") or {}
    return RankConfig(directory, values, spec, mapping, quantization, mixed)


def _mapping(fields: Fields) -> RankMapping:
    tp, pp, cp = (fields.integer(f"{name}_size", 1) for name in ("tp", "pp", "cp"))
    ep = fields.integer("moe_ep_size", -1, minimum=-1)
    moe_tp = fields.integer("moe_tp_size", -1, minimum=-1)
    ep = max(ep, 1) if ep > 0 or moe_tp < 1 else tp // moe_tp
    return RankMapping(tp, pp, cp, moe_tp if moe_tp > 0 else max(1, tp // ep), ep)


def hugging_face_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` that Hugging Face would have for the model, without tokens and quantization."""
    architecture = values.get("architecture")
    family = FAMILIES.get(str(architecture))
    hidden, heads = values.get("hidden_size"), values.get("num_attention_heads")
    head_size = values.get("head_size")
    if head_size is None and isinstance(hidden, int) and isinstance(heads, int) and heads:
        head_size = hidden // heads
    activation = values.get("hidden_act", "silu")
    config = {
        "architectures": [architecture],
        "dtype": values.get("dtype"),
        "hidden_size": hidden,
        "intermediate_size": values.get("intermediate_size")
        or (hidden * 4 if isinstance(hidden, int) else 0),
        "num_hidden_layers": values.get("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": values.get("num_key_value_heads", heads),
        "head_dim": head_size,
        "vocab_size": values.get("vocab_size"),
        "rms_norm_eps": values.get("norm_epsilon", 1e-5),
        "max_position_embeddings": values.get("max_position_embeddings"),
        "hidden_act": "silu" if activation == "swiglu" else activation,
        "rope_theta": values.get("rotary_base", 10000.0),
        "rope_scaling": values.get("rotary_scaling"),
        "sliding_window": values.get("sliding_window"),
        "use_sliding_window": values.get("sliding_window") is not None,
        "attention_bias": bool(values.get("attn_bias", values.get("bias", False))),
        "mlp_bias": bool(values.get("mlp_bias", values.get("bias", False))),
    }
    if family == "qwen2_moe":
        config["qkv_bias"] = bool(values.get("attn_bias", True))
    return config | _experts(values)


def _experts(values: Mapping[str, Any]) -> dict[str, Any]:
    """The experts in Hugging Face's words, from `moe` or the flat keys that came before it."""
    moe = values.get("moe")
    if not isinstance(moe, dict):
        moe = {}

    def number(name: str, default: int = 0) -> Any:
        return moe.get(name, values.get(f"moe_{name}", default))

    count, chosen = number("num_experts"), number("top_k")
    if not count:
        return {}
    width = values.get("moe_intermediate_size") or values.get("intermediate_size")
    shared = values.get("moe_shared_expert_intermediate_size") or number("shared_expert_intermediate_size")
    return {
        "num_local_experts": count,
        "num_experts": count,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": shared or None,
        "norm_topk_prob": number("normalization_mode") == _RENORMALIZE,
    }
