"""Which tensors a model of each family has, and which linears of a layer see the same input."""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.model.spec import ModelSpec

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class LinearGroup:
    """Linears of one decoder layer that read one and the same activation.

    Names are module names relative to the layer. A per-channel scale on the shared input can be folded
    into `source`: divide the output channels of `source` (its bias too, if it is a linear), multiply the
    input channels of every member. From v_proj to o_proj this is exact only under grouped-query
    attention's repetition: input channel `head * head_dim + d` of o_proj is output channel
    `(head // (num_attention_heads // num_key_value_heads)) * head_dim + d` of v_proj. From up_proj to
    down_proj it is exact, since silu(gate) * up is linear in up.

    Args:
        kind: "qkv", "o", "gate_up" or "down".
        members: the linears.
        source: the norm or linear whose output channels are the members' input channels.
    """

    kind: str
    members: tuple[str, ...]
    source: str


_GROUPS = (
    LinearGroup("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    LinearGroup("o", ("self_attn.o_proj",), "self_attn.v_proj"),
    LinearGroup("gate_up", ("mlp.gate_proj", "mlp.up_proj"), "post_attention_layernorm"),
    LinearGroup("down", ("mlp.down_proj",), "mlp.up_proj"),
)


def layer_prefix(layer: int) -> str:
    """What the tensor names of decoder layer `layer` begin with."""
    return f"model.layers.{layer}."


def linear_groups(spec: ModelSpec) -> tuple[LinearGroup, ...]:
    """The groups of one decoder layer, in the order in which the layer computes them.

    All supported families share the Llama layout; what differs (biases, q_norm and k_norm) leaves the
    groups as they are.
    """
    return _GROUPS


def linear_shapes(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """The weight shape [out, in] of each linear of a decoder layer, by module name relative to the layer."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    return {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }


def has_bias(spec: ModelSpec, module: str) -> bool:
    """Whether linear `module` (relative to its layer) has a bias."""
    if module.startswith("mlp."):
        return spec.mlp_bias
    return spec.o_bias if module == "self_attn.o_proj" else spec.qkv_bias


def layer_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor of one decoder layer, by name relative to the layer, with its shape."""
    tensors: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (spec.hidden_size,)}
    for module, shape in linear_shapes(spec).items():
        tensors[f"{module}.weight"] = shape
        if has_bias(spec, module):
            tensors[f"{module}.bias"] = shape[:1]
    if spec.qk_norm:
        tensors["self_attn.q_norm.weight"] = tensors["self_attn.k_norm.weight"] = (spec.head_dim,)
    tensors["post_attention_layernorm.weight"] = (spec.hidden_size,)
    return tensors


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that a plain checkpoint of the model may hold, with its shape.

    All of them are required but those that `optional_tensors` names.
    """
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, spec.hidden_size)}
    for layer in range(spec.num_hidden_layers):
        prefix = layer_prefix(layer)
        tensors |= {prefix + name: shape for name, shape in layer_tensors(spec).items()}
    tensors[FINAL_NORM] = (spec.hidden_size,)
    tensors[LM_HEAD] = (spec.vocab_size, spec.hidden_size)
    return tensors


def optional_tensors(spec: ModelSpec) -> frozenset[str]:
    """The expected tensors that a checkpoint need not store: lm_head where it is the embedding again."""
    return frozenset({LM_HEAD}) if spec.tie_word_embeddings else frozenset()
