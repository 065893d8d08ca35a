"""The linears of a decoder layer as TensorRT-LLM has them, and which of the checkpoint's they are made of.

`mlp.fc` is the gate of SwiGLU and `mlp.gate` its other half; where the two share one matrix, as they do in
experts, the other half comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

from toolchain.model.families import DENSE_MLP, Mlp, layer_mlps, routers
from toolchain.model.spec import ModelSpec

COLUMN, ROW = "column", "row"
"""How a module is split: its output channels, or its input channels."""

QKV = "attention.qkv"

PLAIN_TENSORS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_layernorm.weight": "post_attention_layernorm.weight",
}
"""What every rank of a layer has whole, by its name in the rank files: its name in the checkpoint."""

QK_NORMS = {
    "attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "attention.k_layernorm.weight": "self_attn.k_norm.weight",
}
"""The same of the families that normalize queries and keys."""


@dataclass(frozen=True)
class Module:
    """A linear of the rank files.

    Args:
        name: within the layer of a rank file.
        members: linears of the checkpoint whose output channels it has, one after the other.
        split: `COLUMN` or `ROW`.
    """

    name: str
    members: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class Block:
    """Modules that read one input, and are best computed together.

    Args:
        modules: its modules; those of one expert are the expert's slice of a stack.
        expert: the routed expert that it is of.
    """

    modules: tuple[Module, ...]
    expert: int | None = None

    @property
    def members(self) -> tuple[str, ...]:
        """The linears of the checkpoint that it is made of."""
        return tuple(name for module in self.modules for name in module.members)


def layer_blocks(spec: ModelSpec, layer: int) -> tuple[Block, ...]:
    """The linears of decoder layer `layer`, experts one after the other."""
    attention = (
        Block((Module(QKV, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), COLUMN),)),
        Block((Module("attention.dense", ("self_attn.o_proj",), ROW),)),
    )
    return attention + tuple(block for mlp in layer_mlps(spec, layer) for block in _mlp_blocks(mlp))


def _mlp_blocks(mlp: Mlp) -> tuple[Block, Block]:
    if mlp == DENSE_MLP:
        entrance = Module("mlp.fc", (mlp.gate,), COLUMN), Module("mlp.gate", (mlp.up,), COLUMN)
        return Block(entrance), Block((Module("mlp.proj", (mlp.down,), ROW),))
    prefix = "mlp.shared_expert" if mlp.expert is None else "mlp"
    return (
        Block((Module(f"{prefix}.fc", (mlp.up, mlp.gate), COLUMN),), mlp.expert),
        Block((Module(f"{prefix}.proj", (mlp.down,), ROW),), mlp.expert),
    )


def router_modules(spec: ModelSpec, layer: int) -> dict[str, str]:
    """The routers of a layer, by their name in the rank files: their name in the checkpoint."""
    return dict(zip(("mlp.router", "mlp.shared_expert_gate"), routers(spec, layer), strict=False))
