"""What each rank file holds: every tensor with dtype and shape, known before a weight is read."""

from __future__ import annotations

from quantize.formats.base import NVFP4, LinearScheme
from quantize.formats.tensorfile import TensorType
from toolchain.engine.tensorrt.convert.encode import ACTIVATION, BIAS, SCALE_2, Kind, kinds
from toolchain.engine.tensorrt.convert.layout import RankLayout
from toolchain.engine.tensorrt.convert.modules import (
    PLAIN_TENSORS,
    QK_NORMS,
    ROW,
    Block,
    Module,
    layer_blocks,
    router_modules,
)
from toolchain.engine.tensorrt.convert.scheme import EngineScheme
from toolchain.engine.tensorrt.convert.slices import attention_rows, block, padded, width
from toolchain.model.families import has_bias, layer_tensors, linear_shapes
from toolchain.model.spec import ModelSpec

VOCAB_EMBEDDING = "transformer.vocab_embedding.weight"
LN_F = "transformer.ln_f.weight"
LM_HEAD = "lm_head.weight"

KV_SCALES = ("attention.kv_cache_scaling_factor",)
KV_PARTS = ("attention.k_cache_scaling_factor", "attention.v_cache_scaling_factor")
"""The scale that an engine uses, the larger of the two that are told beside it."""


class Contents:
    """The tensors of the rank files of a model.

    Args:
        spec: the model.
        layout: how it is cut.
        scheme: how it is quantized.
        dtype: of what is not quantized, as safetensors names it.
    """

    def __init__(self, spec: ModelSpec, layout: RankLayout, scheme: EngineScheme, dtype: str) -> None:
        self.spec, self.layout, self.scheme, self.dtype = spec, layout, scheme, dtype

    def ranks(self) -> list[dict[str, TensorType]]:
        """Every tensor of every rank file."""
        stages = self.layout.stages(self.spec.num_hidden_layers)
        found = []
        for number, layers in enumerate(stages):
            for tp_rank in range(self.layout.tensor):
                tensors = self.embedding() if number == 0 else {}
                for layer in layers:
                    prefix = layer_path(layer - layers.start)
                    own = self.layer(layer, tp_rank)
                    tensors |= {prefix + name: kind for name, kind in own.items()}
                found.append(tensors | (self.head() if number == len(stages) - 1 else {}))
        return found

    def embedding(self) -> dict[str, TensorType]:
        """The table of the first stage; each rank's is of one shape."""
        rows, columns, parts = self.spec.vocab_size, self.spec.hidden_size, self.layout.tensor
        if self.layout.use_parallel_embedding and self.layout.embedding_sharding_dim == 0:
            rows = padded(rows, parts) // parts
        elif self.layout.use_parallel_embedding:
            columns //= parts
        return {VOCAB_EMBEDDING: TensorType(self.dtype, (rows, columns))}

    def head(self) -> dict[str, TensorType]:
        """The norm and the output layer of the last stage."""
        rows = padded(self.spec.vocab_size, self.layout.tensor) // self.layout.tensor
        return {
            LN_F: TensorType(self.dtype, (self.spec.hidden_size,)),
            LM_HEAD: TensorType(self.dtype, (rows, self.spec.hidden_size)),
        }

    def layer(self, layer: int, tp_rank: int) -> dict[str, TensorType]:
        """The tensors of decoder layer `layer` on a rank, by name within the layer."""
        plain = layer_tensors(self.spec, layer)
        names = PLAIN_TENSORS | (QK_NORMS if self.spec.qk_norm else {})
        found = {own: TensorType(self.dtype, plain[name]) for own, name in names.items()}
        for part in layer_blocks(self.spec, layer):
            if not part.expert:  # the first expert tells of all
                for module in part.modules:
                    found |= self._module(layer, part, module, tp_rank)
        for own, name in router_modules(self.spec, layer).items():
            dtype = "F32" if own == "mlp.router" else self.dtype
            found[f"{own}.weight"] = TensorType(dtype, plain[f"{name}.weight"])
        if self.scheme.kv_cache_quant_algo:
            found |= dict.fromkeys((*KV_SCALES, *KV_PARTS), TensorType("F32", (1,)))
        return found

    def _module(self, layer: int, part: Block, module: Module, tp_rank: int) -> dict[str, TensorType]:
        own = self.scheme.modules[layer].get(module.name)
        rows = sum(width(self.rows(layer, part, module, member, tp_rank)) for member in module.members)
        columns = width(self.columns(layer, part, module, tp_rank))
        found = kinds(own, rows, columns)
        if has_bias(self.spec, module.members[0]):
            found[BIAS] = Kind(None, (rows,), by_rows=True)
        return {
            f"{module.name}.{name}": TensorType(
                kind.dtype or self.dtype, self._stacked(name, kind.shape, own, part, tp_rank)
            )
            for name, kind in found.items()
        }

    def _stacked(
        self, name: str, shape: tuple[int, ...], own: LinearScheme | None, part: Block, tp_rank: int
    ) -> tuple[int, ...]:
        """The shape of the tensor of all experts of a rank, from that of one."""
        if part.expert is None or name in SHARED_BY_EXPERTS:
            return shape
        assert self.spec.moe is not None
        experts = len(self.layout.experts(self.spec.moe.num_experts, tp_rank))
        # The one scalar that TensorRT-LLM stacks without a dimension of its own.
        if own is not None and own.quant_algo == NVFP4 and name == SCALE_2:
            return (experts,)
        return (experts, *shape)

    def rows(self, layer: int, part: Block, module: Module, member: str, tp_rank: int) -> slice:
        """The output channels of a linear of the checkpoint that a rank has."""
        count = linear_shapes(self.spec, layer)[member][0]
        if module.split == ROW:
            return slice(0, count)
        if member.startswith("self_attn."):
            return attention_rows(self.spec, member, self.layout.tensor, tp_rank)
        return block(count, *self.share(part, tp_rank))

    def columns(self, layer: int, part: Block, module: Module, tp_rank: int) -> slice:
        """The input channels of a module that a rank has."""
        count = linear_shapes(self.spec, layer)[module.members[0]][1]
        return block(count, *self.share(part, tp_rank)) if module.split == ROW else slice(0, count)

    def share(self, part: Block, tp_rank: int) -> tuple[int, int]:
        """Into how many parts a block's linears are cut, and which of them a rank has."""
        if part.expert is None:
            return self.layout.tensor, tp_rank
        return self.layout.moe_sizes[0], self.layout.moe_ranks(tp_rank)[0]


SHARED_BY_EXPERTS = (ACTIVATION,)
"""What a stack of experts has once."""


def layer_path(local: int) -> str:
    """What the names of a layer's tensors begin with; `local` is its number within the stage."""
    return f"transformer.layers.{local}."
