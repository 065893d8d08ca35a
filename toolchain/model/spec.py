"""`ModelSpec`: what the rest of the toolchain needs to know of a model, read from `config.json` alone."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolchain.errors import ModelError
from toolchain.model.config_json import REQUIRED, Fields, read_json_object
from toolchain.model.moe import MoeSpec, parse_moe
from toolchain.model.rope import RopeSpec, parse_rope

FAMILIES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "MixtralForCausalLM": "mixtral",
    "Qwen2MoeForCausalLM": "qwen2_moe",
    "Qwen3MoeForCausalLM": "qwen3_moe",
}
"""Supported architectures (the class name in `config.json`) and the family of each."""

DTYPES = ("bfloat16", "float16", "float32")
"""Weight dtypes that a model may declare."""


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer in Hugging Face's words.

    Every field carries its `config.json` meaning; nothing is derived twice elsewhere. In particular
    `head_dim` need not be `hidden_size / num_attention_heads` (Qwen3, Mistral-Nemo). Where a config is
    silent, the default is that of the family's transformers class.
    """

    architecture: str  # the class name in config.json, e.g. "LlamaForCausalLM"
    family: str  # a value of FAMILIES
    dtype: str  # "bfloat16" | "float16" | "float32": what the config declares; float32 where it is silent
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeSpec
    tie_word_embeddings: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    # One entry a layer: the window in tokens, None where the layer attends to everything.
    sliding_windows: tuple[int | None, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    # config.json's `quantization_config`, verbatim; None for a plain model.
    quantization: Mapping[str, Any] | None = field(default=None, hash=False)
    moe: MoeSpec | None = None  # None where every layer has one dense MLP

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> ModelSpec:
        """Read a parsed `config.json`; `where` names it in errors.

        Raises ModelError for an unknown architecture, and one that lists every field that is missing,
        ill-typed or beyond what the family can mean.
        """
        architecture = _architecture(config, where)
        family = FAMILIES[architecture]
        problems: list[str] = []
        fields = Fields(config, problems)

        heads = fields.integer("num_attention_heads")
        # Only Llama's class reads "absent" as multi-head; the others have a number of their own there.
        absent_is_mha = family == "llama" or "num_key_value_heads" in config
        kv_heads = fields.integer("num_key_value_heads", heads if absent_is_mha else REQUIRED)
        if not problems and heads % kv_heads:
            fields.problem("num_key_value_heads", f"({kv_heads}) must divide num_attention_heads ({heads})")
        hidden_size, intermediate_size = fields.integer("hidden_size"), fields.integer("intermediate_size")
        layers = fields.integer("num_hidden_layers", maximum=10_000)
        max_positions = fields.integer("max_position_embeddings")
        head_dim = _head_dim(fields, family, hidden_size, heads)
        # transformers chooses the class by model_type; where the two differ nobody knows which is meant.
        if fields.text("model_type", family) != family:
            fields.problem("model_type", f"must be {family!r} beside {architecture}")
        attention_bias = family in ("llama", "qwen3", "qwen3_moe") and fields.flag("attention_bias", False)
        qkv_bias = attention_bias or family == "qwen2"
        if family == "qwen2_moe":
            qkv_bias = fields.flag("qkv_bias", True)
        activation = fields.text("hidden_act", "silu")
        if activation not in ("silu", "swish"):
            fields.problem("hidden_act", f"must be silu (the gate of SwiGLU), not {activation!r}")
        default_theta = 1e6 if family == "mixtral" else 1e4
        rope = parse_rope(config, head_dim, max_positions, problems, default_theta=default_theta)
        if rope.rotary_dim != head_dim:
            fields.problem("partial_rotary_factor", f"must be 1: {architecture} rotates whole heads")

        spec = cls(
            architecture=architecture,
            family=family,
            dtype=_dtype(fields),
            vocab_size=fields.integer("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=fields.number("rms_norm_eps"),
            max_position_embeddings=max_positions,
            rope=rope,
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
            qkv_bias=qkv_bias,
            o_bias=attention_bias,
            mlp_bias=family == "llama" and fields.flag("mlp_bias", False),
            qk_norm=family in ("qwen3", "qwen3_moe"),
            sliding_windows=_sliding_windows(fields, family, layers),
            bos_token_id=_bos_token_id(fields, family),
            eos_token_ids=_eos_token_ids(fields, family),
            pad_token_id=_pad_token_id(fields),
            quantization=fields.mapping("quantization_config") or None,
            moe=parse_moe(fields, family, layers, intermediate_size),
        )
        if problems:
            count = len(problems)
            raise ModelError(
                f"{count} field{'s are' if count > 1 else ' is'} missing or wrong",
                where=where,
                why="; ".join(problems),
                fix="correct the file, or download the model again if it was edited",
            )
        return spec

    def is_sparse(self, layer: int) -> bool:
        """Whether decoder layer `layer` has experts in place of a dense MLP."""
        return self.moe is not None and self.moe.sparse_layers[layer]


def load_spec(model_dir: Path) -> ModelSpec:
    """The `ModelSpec` of a model directory.

    `config.json` suffices. When there is a `generation_config.json`, the end-of-sequence tokens that it
    adds (chat models end a turn with a token of their own) come after those of `config.json`.
    """
    if not model_dir.is_dir():
        raise ModelError("there is no such model directory", where=str(model_dir))
    path = model_dir / "config.json"
    config = read_json_object(
        path, fix="a model directory holds config.json, a tokenizer and safetensors files"
    )
    spec = ModelSpec.from_config(config, str(path))
    generation_path = model_dir / "generation_config.json"
    if not generation_path.exists():
        return spec
    problems: list[str] = []
    added = _token_ids(Fields(read_json_object(generation_path), problems), "eos_token_id", ())
    if problems:
        raise ModelError("1 field is wrong", where=str(generation_path), why=problems[0])
    merged = tuple(dict.fromkeys(spec.eos_token_ids + added))
    return replace(spec, eos_token_ids=merged)


def _architecture(config: Mapping[str, Any], where: str) -> str:
    named = config.get("architectures")
    if not (isinstance(named, list) and named and all(isinstance(name, str) for name in named)):
        raise ModelError(
            "no model architecture is named",
            where=where,
            why=f'`architectures` must be a list such as ["LlamaForCausalLM"], not {named!r}',
            fix=f"set `architectures` to one of: {', '.join(FAMILIES)}",
        )
    architecture: str = named[0]
    if architecture not in FAMILIES:
        near = difflib.get_close_matches(architecture, FAMILIES, n=1, cutoff=0.0)[0]
        raise ModelError(
            f"the architecture {architecture} is not supported",
            where=where,
            why=f"supported are {', '.join(FAMILIES)}; the nearest by name is {near}",
            fix="choose a model of a supported architecture",
        )
    return architecture


def _head_dim(fields: Fields, family: str, hidden_size: int, heads: int) -> int:
    if fields.values.get("head_dim") is not None:
        return fields.integer("head_dim", minimum=2)
    if family == "qwen3":
        return 128
    if fields.problems:  # perhaps with these very fields: do not blame what follows from them
        return 128
    if hidden_size % heads:
        fields.problem("head_dim", f"is missing, and {heads} heads do not divide hidden_size {hidden_size}")
        return 2
    return hidden_size // heads


def _dtype(fields: Fields) -> str:
    # transformers 5 writes `dtype`, transformers 4 `torch_dtype`; hand-made files say "torch.bfloat16".
    name = "dtype" if fields.values.get("dtype") is not None else "torch_dtype"
    dtype = fields.text(name, "float32").removeprefix("torch.")
    if dtype and dtype not in DTYPES:
        fields.problem(name, f"must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return dtype


def _sliding_windows(fields: Fields, family: str, layers: int) -> tuple[int | None, ...]:
    if family == "llama":  # its attention has no window, whatever the config says
        return (None,) * layers
    if family in ("mistral", "mixtral"):
        silent = "sliding_window" not in fields.values and family == "mistral"
        window = 4096 if silent else fields.optional_integer("sliding_window")
        return (window,) * layers

    used = fields.flag("use_sliding_window", False)
    # transformers writes a Qwen2-MoE window that is not used as 0.
    window = fields.optional_integer("sliding_window", minimum=1 if used else 0)
    if not used:
        window = None
    elif window is None and "sliding_window" not in fields.values:
        window = 4096
    if family == "qwen3_moe":  # its class knows no kinds of layers
        return (window,) * layers
    kinds = fields.values.get("layer_types")
    if kinds is None:
        bound = fields.integer("max_window_layers", 28, minimum=0)
        if family == "qwen2_moe":
            return tuple(window if layer < bound and layer % 2 == 0 else None for layer in range(layers))
        return tuple(window if layer >= bound else None for layer in range(layers))
    if not isinstance(kinds, list) or len(kinds) != layers:
        found = f"{len(kinds)} entries" if isinstance(kinds, list) else repr(kinds)
        fields.problem("layer_types", f"must be a list of {layers} entries, one a layer, not {found}")
        return (None,) * layers
    for kind in kinds:
        if kind not in ("full_attention", "sliding_attention"):
            fields.problem("layer_types", f"may hold full_attention and sliding_attention, not {kind!r}")
            return (None,) * layers
    if "sliding_attention" in kinds and window is None:
        fields.problem(
            "sliding_window", "must be set and switched on: layer_types has sliding_attention layers"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _bos_token_id(fields: Fields, family: str) -> int | None:
    if "bos_token_id" not in fields.values:
        return 1 if family in ("llama", "mistral", "mixtral") else None
    return fields.optional_integer("bos_token_id", minimum=0)


def _eos_token_ids(fields: Fields, family: str) -> tuple[int, ...]:
    absent = (2,) if family in ("llama", "mistral", "mixtral") else ()
    return _token_ids(fields, "eos_token_id", absent)


def _token_ids(fields: Fields, name: str, absent: tuple[int, ...]) -> tuple[int, ...]:
    """One token id or a list of them, without repetitions."""
    if name not in fields.values:
        return absent
    value = fields.values[name]
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(token, bool) or not isinstance(token, int) or token < 0 for token in ids):
        fields.problem(name, f"must be a token id or a list of them, not {value!r}")
        return ()
    return tuple(dict.fromkeys(ids))


def _pad_token_id(fields: Fields) -> int | None:
    pad = fields.optional_integer("pad_token_id", minimum=-1)
    return None if pad == -1 else pad  # the first Llama configs write "none" as -1
