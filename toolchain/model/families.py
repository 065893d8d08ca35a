"""Which tensors a model of each family has, and which linears of a layer see the same input."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from toolchain.model.spec import ModelSpec

EMBEDDING = "model.embed_tokens.weight"
FINAL_NORM = "model.norm.weight"
LM_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Mlp:
    """A SwiGLU of a decoder layer, down(silu(gate(x)) * up(x)), by the names of its linears in the layer.

    Args:
        gate, up, down: the linears.
        expert: the number of a routed expert; None for an MLP that every token goes through, which is the
            only one of a dense layer and the shared expert of a sparse one.
    """

    gate: str
    up: str
    down: str
    expert: int | None = None


@dataclass(frozen=True)
class LinearGroup:
    """Linears of one decoder layer that read one and the same activation.

    Names are module names relative to the layer. A per-channel scale on the shared input can be folded
    into `source`: divide the output channels of `source` (its bias too, if it is a linear), multiply the
    input channels of every member. From v_proj to o_proj this is exact only under grouped-query
    attention's repetition: input channel `head * head_dim + d` of o_proj is output channel
    `(head // (num_attention_heads // num_key_value_heads)) * head_dim + d` of v_proj. From up_proj to
    down_proj it is exact, since silu(gate) * up is linear in up. In a sparse layer every "gate_up" group
    has the same norm as its source, and the layer's `routers` read it too: one scale serves them all.

    Args:
        kind: "qkv", "o", "gate_up" or "down".
        members: the linears.
        source: the norm or linear whose output channels are the members' input channels.
        mlp: the MLP that a "gate_up" or "down" group is part of.
    """

    kind: str
    members: tuple[str, ...]
    source: str
    mlp: Mlp | None = None

    @property
    def expert(self) -> int | None:
        """The routed expert whose tokens alone the members read; None where they read every token."""
        return None if self.mlp is None else self.mlp.expert


DENSE_MLP = Mlp("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_SHARED_EXPERT = Mlp(
    "mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj", "mlp.shared_expert.down_proj"
)
ATTENTION_GROUPS = (
    LinearGroup("qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "input_layernorm"),
    LinearGroup("o", ("self_attn.o_proj",), "self_attn.v_proj"),
)
_EXPERT_NUMBER = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


def layer_prefix(layer: int) -> str:
    """What the tensor names of decoder layer `layer` begin with."""
    return f"model.layers.{layer}."


def layer_mlps(spec: ModelSpec, layer: int) -> tuple[Mlp, ...]:
    """The MLPs of decoder layer `layer`: one, or the shared expert, if there is one, and the routed ones."""
    if spec.moe is None or not spec.is_sparse(layer):
        return (DENSE_MLP,)
    if spec.family == "mixtral":
        prefix, (gate, up, down) = "block_sparse_moe.experts", ("w1", "w3", "w2")
    else:
        prefix, (gate, up, down) = "mlp.experts", ("gate_proj", "up_proj", "down_proj")
    routed = tuple(
        Mlp(f"{prefix}.{expert}.{gate}", f"{prefix}.{expert}.{up}", f"{prefix}.{expert}.{down}", expert)
        for expert in range(spec.moe.num_experts)
    )
    return (_SHARED_EXPERT, *routed) if spec.moe.shared_expert_intermediate_size else routed


def routers(spec: ModelSpec, layer: int) -> dict[str, tuple[int, int]]:
    """The linears that weigh the experts of decoder layer `layer`, with their shapes; none in a dense layer.

    The first is the router proper; the second, where there is one, gates the shared expert. They are small,
    read what the experts read, and are never quantized.
    """
    if spec.moe is None or not spec.is_sparse(layer):
        return {}
    if spec.family == "mixtral":
        return {"block_sparse_moe.gate": (spec.moe.num_experts, spec.hidden_size)}
    found = {"mlp.gate": (spec.moe.num_experts, spec.hidden_size)}
    if spec.moe.shared_expert_intermediate_size:
        found["mlp.shared_expert_gate"] = (1, spec.hidden_size)
    return found


def linear_groups(spec: ModelSpec, layer: int) -> tuple[LinearGroup, ...]:
    """The groups of decoder layer `layer`, in the order in which it computes them.

    All supported families share the Llama layout; what differs (biases, q_norm and k_norm) leaves the
    groups as they are.
    """
    mlps = layer_mlps(spec, layer)
    return (*ATTENTION_GROUPS, *(group for mlp in mlps for group in mlp_groups(mlp)))


def mlp_groups(mlp: Mlp) -> tuple[LinearGroup, LinearGroup]:
    """The two groups of an MLP: "gate_up" and "down"."""
    return (
        LinearGroup("gate_up", (mlp.gate, mlp.up), "post_attention_layernorm", mlp),
        LinearGroup("down", (mlp.down,), mlp.up, mlp),
    )


def linear_shapes(spec: ModelSpec, layer: int) -> dict[str, tuple[int, int]]:
    """The weight shape [out, in] of each linear of decoder layer `layer` that a quantizer may change.

    Keys are module names relative to the layer; `routers` are not among them.
    """
    hidden = spec.hidden_size
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    shapes = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
    }
    for mlp in layer_mlps(spec, layer):
        inner = mlp_width(spec, mlp)
        shapes |= {mlp.gate: (inner, hidden), mlp.up: (inner, hidden), mlp.down: (hidden, inner)}
    return shapes


def mlp_width(spec: ModelSpec, mlp: Mlp) -> int:
    """The inner width of an MLP."""
    if spec.moe is None or mlp == DENSE_MLP:
        return spec.intermediate_size
    return spec.moe.shared_expert_intermediate_size if mlp.expert is None else spec.moe.moe_intermediate_size


def mlp_widths(spec: ModelSpec) -> dict[str, int]:
    """The inner width of each kind of MLP that the model has, by the field of the config that says it."""
    moe = spec.moe
    if moe is None or not any(moe.sparse_layers):
        return {"intermediate_size": spec.intermediate_size}
    widths = {} if all(moe.sparse_layers) else {"intermediate_size": spec.intermediate_size}
    field = "intermediate_size" if spec.family == "mixtral" else "moe_intermediate_size"
    widths[field] = moe.moe_intermediate_size
    if moe.shared_expert_intermediate_size:
        widths["shared_expert_intermediate_size"] = moe.shared_expert_intermediate_size
    return widths


def active_width(spec: ModelSpec) -> int:
    """Inner MLP channels that one token goes through in the widest layer."""
    moe = spec.moe
    if moe is None or not any(moe.sparse_layers):
        return spec.intermediate_size
    sparse = moe.num_experts_per_tok * moe.moe_intermediate_size + moe.shared_expert_intermediate_size
    return sparse if all(moe.sparse_layers) else max(sparse, spec.intermediate_size)


@lru_cache(maxsize=4096)
def linear_kind(module: str) -> str:
    """The name of a linear or of its tensor, with * for the number of an expert."""
    return _EXPERT_NUMBER.sub("*", module)


def linear_kinds(spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """The weight shape [out, in] of each kind of linear of the model, by `linear_kind`."""
    return {
        linear_kind(module): shape
        for layer in layer_examples(spec)
        for module, shape in linear_shapes(spec, layer).items()
    }


def layer_examples(spec: ModelSpec) -> tuple[int, ...]:
    """One decoder layer of each kind, dense or sparse, that the model has."""
    kinds = {spec.is_sparse(layer): layer for layer in reversed(range(spec.num_hidden_layers))}
    return tuple(sorted(kinds.values()))


def has_bias(spec: ModelSpec, module: str) -> bool:
    """Whether linear `module` (relative to its layer) has a bias."""
    if not module.startswith("self_attn."):
        return spec.mlp_bias
    return spec.o_bias if module == "self_attn.o_proj" else spec.qkv_bias


def layer_tensors(spec: ModelSpec, layer: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of decoder layer `layer`, by name relative to the layer, with its shape."""
    tensors: dict[str, tuple[int, ...]] = {"input_layernorm.weight": (spec.hidden_size,)}
    for module, shape in linear_shapes(spec, layer).items():
        tensors[f"{module}.weight"] = shape
        if has_bias(spec, module):
            tensors[f"{module}.bias"] = shape[:1]
    if spec.qk_norm:
        tensors["self_attn.q_norm.weight"] = tensors["self_attn.k_norm.weight"] = (spec.head_dim,)
    tensors |= {f"{module}.weight": shape for module, shape in routers(spec, layer).items()}
    tensors["post_attention_layernorm.weight"] = (spec.hidden_size,)
    return tensors


def expected_tensors(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that a plain checkpoint of the model may hold, with its shape.

    All of them are required but those that `optional_tensors` names.
    """
    tensors: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, spec.hidden_size)}
    for layer in range(spec.num_hidden_layers):
        prefix = layer_prefix(layer)
        tensors |= {prefix + name: shape for name, shape in layer_tensors(spec, layer).items()}
    tensors[FINAL_NORM] = (spec.hidden_size,)
    tensors[LM_HEAD] = (spec.vocab_size, spec.hidden_size)
    return tensors


def optional_tensors(spec: ModelSpec) -> frozenset[str]:
    """The expected tensors that a checkpoint need not store: lm_head where it is the embedding again."""
    return frozenset({LM_HEAD}) if spec.tie_word_embeddings else frozenset()
