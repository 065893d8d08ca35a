"""One rank file of a TensorRT-LLM checkpoint, read a layer at a time and named as Hugging Face names it.

Shapes are those of the rank: H hidden_size; V rows of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from quantize.linear import QuantizedLinear
from toolchain.engine.tensorrt.decode import SUFFIXES, decode, experts, rows
from toolchain.engine.tensorrt.rank_config import RankConfig
from toolchain.errors import ModelError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import DENSE_MLP, Mlp, layer_mlps, routers
from toolchain.model.safetensors_file import prefetch, read_header

VOCAB_EMBEDDING = "transformer.vocab_embedding.weight"
LN_F = "transformer.ln_f.weight"
HEAD = "lm_head.weight"

NORMS = {
    "input_layernorm.weight": "input_layernorm.weight",
    "post_layernorm.weight": "post_attention_layernorm.weight",
    "attention.q_layernorm.weight": "self_attn.q_norm.weight",
    "attention.k_layernorm.weight": "self_attn.k_norm.weight",
}
"""Tensors of a layer besides linears: TensorRT-LLM's name -> Hugging Face's."""

ROUTERS = ("mlp.router", "mlp.shared_expert_gate")
"""The linears that weigh experts, in the order of `toolchain.model.families.routers`."""


def local_prefix(layer: int) -> str:
    """What the tensor names of a stage's layer `layer`, counted from 0 in the stage, begin with."""
    return f"transformer.layers.{layer}."


def mlp_modules(mlp: Mlp) -> dict[str, tuple[str, ...]]:
    """TensorRT-LLM's names of the linears of an MLP that is not a routed expert -> Hugging Face's.

    A shared expert has its halves in one matrix, as routed ones do: that of `up` comes first.
    """
    if mlp == DENSE_MLP:
        return {"mlp.fc": (mlp.gate,), "mlp.gate": (mlp.up,), "mlp.proj": (mlp.down,)}
    return {"mlp.shared_expert.fc": (mlp.up, mlp.gate), "mlp.shared_expert.proj": (mlp.down,)}


@dataclass
class RankLayer:
    """A rank's part of one decoder layer, by Hugging Face's names relative to the layer.

    Attributes:
        linears: module -> the rank's part of the linear.
        tensors: norms, biases and routers.
        kv_scales: float32 scalars of keys and values; None where the cache is not quantized.
    """

    linears: dict[str, QuantizedLinear | Tensor] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    kv_scales: tuple[Tensor, Tensor] | None = None


class RankFile:
    """The file of rank `rank` of a checkpoint. Opening reads its header only.

    Attributes:
        tp_rank, stage: where the rank stands.
        layers: the decoder layers of its stage, in the numbers of the model.
        checkpoint: the stored tensors.

    Raises:
        ModelError: the file is missing or damaged.
    """

    def __init__(self, config: RankConfig, rank: int) -> None:
        self.config, self.rank = config, rank
        self.tp_rank, self.stage = rank % config.mapping.tp, rank // config.mapping.tp
        self.layers = config.mapping.layers(self.stage, config.spec.num_hidden_layers)
        self.checkpoint = Checkpoint(config.directory, read_header(config.rank_file(rank)))

    @property
    def is_first(self) -> bool:
        """Whether the rank has the embedding."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether the rank has the final norm and the output embedding."""
        return self.stage == self.config.mapping.pp - 1

    @property
    def experts(self) -> range:
        """The numbers of the routed experts that the rank has a part of; none in a dense model."""
        moe = self.config.spec.moe
        return range(0) if moe is None else self.config.mapping.experts(self.tp_rank, moe.num_experts)

    def read(self, name: str) -> Tensor:
        """A stored tensor. Raises ModelError when the file has none of that name."""
        if name not in self.checkpoint:
            raise ModelError(
                f"there is no tensor {name}",
                where=str(self.config.rank_file(self.rank)),
                fix="convert the model again",
            )
        return self.checkpoint.read(name)

    def layer(self, index: int) -> RankLayer:
        """The rank's part of decoder layer `index`, a number of the model.

        Raises ModelError: tensors are missing, do not fit together, or cannot be decoded.
        """
        spec, prefix = self.config.spec, local_prefix(index - self.layers.start)
        found = RankLayer()
        for theirs, ours in NORMS.items():
            if "self_attn" not in ours or spec.qk_norm:
                found.tensors[ours] = self.read(prefix + theirs)
        self._attention(prefix, found)
        for theirs, ours in zip(ROUTERS, routers(spec, index), strict=False):
            found.tensors[f"{ours}.weight"] = self.read(f"{prefix}{theirs}.weight")
        mlps = layer_mlps(spec, index)
        for mlp in mlps:
            if mlp.expert is None:
                for theirs, members in mlp_modules(mlp).items():
                    if len(members) > 1:
                        both = self._linear(prefix + theirs)
                        found.linears |= dict(zip(members, _halves(both), strict=True))
                    else:
                        self._take(prefix, theirs, members[0], found)
        if spec.is_sparse(index):
            self._experts(prefix, {mlp.expert: mlp for mlp in mlps if mlp.expert is not None}, found)
        found.kv_scales = self._kv_scales(prefix)
        return found

    def prefetch(self, index: int) -> None:
        """Ask the kernel to read a layer, a number of the model, while the one before it is worked on."""
        prefix = local_prefix(index - self.layers.start)
        names = (name for name in self.checkpoint.names if name.startswith(prefix))
        prefetch(self.checkpoint.location(name) for name in names)

    def _attention(self, prefix: str, found: RankLayer) -> None:
        spec, tp = self.config.spec, self.config.mapping.tp
        queries = spec.num_attention_heads // tp * spec.head_dim
        keys = max(1, spec.num_key_value_heads // tp) * spec.head_dim
        fused = self._linear(prefix + "attention.qkv")
        bias = self._optional(f"{prefix}attention.qkv.bias")
        count = fused.shape[0] if isinstance(fused, Tensor) else fused.out_features
        if count != queries + 2 * keys:
            raise ModelError(
                f"attention.qkv has {count} output channels, not {queries + 2 * keys}",
                where=f"{self.config.rank_file(self.rank)}: {prefix}attention.qkv",
                why=f"a rank has {queries // spec.head_dim} query heads and {keys // spec.head_dim} key and "
                f"value heads of {spec.head_dim}",
                fix="convert the model again",
            )
        start = 0
        for which, width in (("q", queries), ("k", keys), ("v", keys)):
            part = slice(start, start + width)
            found.linears[f"self_attn.{which}_proj"] = rows(fused, part)
            if bias is not None:
                found.tensors[f"self_attn.{which}_proj.bias"] = bias[part]
            start += width
        self._take(prefix, "attention.dense", "self_attn.o_proj", found)

    def _experts(self, prefix: str, mlps: Mapping[int, Mlp], found: RankLayer) -> None:
        algo = self.config.algo(f"{prefix}mlp.fc")
        fused, down = (self._stored(f"{prefix}mlp.{name}") for name in ("fc", "proj"))
        where = f"{self.config.rank_file(self.rank)}: {prefix}mlp"
        if not len(fused["weight"]) == len(down["weight"]) == len(self.experts):
            raise ModelError(
                f"there are {len(fused['weight'])} experts, not the {len(self.experts)} of this rank",
                where=where,
                fix="convert the model again",
            )
        for expert, up_gate, own_down in zip(self.experts, experts(fused), experts(down), strict=True):
            mlp = mlps[expert]
            both = decode(up_gate, algo, f"{where}.fc of expert {expert}")
            found.linears[mlp.up], found.linears[mlp.gate] = _halves(both)
            found.linears[mlp.down] = decode(own_down, algo, f"{where}.proj of expert {expert}")

    def _take(self, prefix: str, theirs: str, ours: str, found: RankLayer) -> None:
        found.linears[ours] = self._linear(prefix + theirs)
        bias = self._optional(f"{prefix}{theirs}.bias")
        if bias is not None:
            found.tensors[f"{ours}.bias"] = bias

    def _linear(self, module: str) -> QuantizedLinear | Tensor:
        where = f"{self.config.rank_file(self.rank)}: {module}"
        return decode(self._stored(module), self.config.algo(module), where)

    def _stored(self, module: str) -> dict[str, Tensor]:
        names = {suffix: f"{module}.{suffix}" for suffix in SUFFIXES}
        return {suffix: self.read(name) for suffix, name in names.items() if name in self.checkpoint} or {
            "weight": self.read(names["weight"])
        }

    def _optional(self, name: str) -> Tensor | None:
        return self.checkpoint.read(name) if name in self.checkpoint else None

    def _kv_scales(self, prefix: str) -> tuple[Tensor, Tensor] | None:
        """The loader takes the larger of the scales of keys and values for both."""
        if self.config.kv_cache_quant_algo is None:
            return None
        pair = [self._optional(f"{prefix}attention.{which}_cache_scaling_factor") for which in "kv"]
        if pair[0] is not None and pair[1] is not None:
            larger = pair[0].reshape(()).maximum(pair[1].reshape(()))
            return larger, larger
        both = self.read(f"{prefix}attention.kv_cache_scaling_factor").reshape(())
        return both, both


def _halves(both: QuantizedLinear | Tensor) -> tuple[QuantizedLinear | Tensor, QuantizedLinear | Tensor]:
    half = (both.shape[0] if isinstance(both, Tensor) else both.out_features) // 2
    return rows(both, slice(0, half)), rows(both, slice(half, None))
