"""What each rank of a tensor x pipeline split stores, and what its memory holds besides.

The split is TensorRT-LLM's. A stage has consecutive layers, the first `layers mod pipeline` stages one more;
the first stage has the embedding, the last the final norm and the output layer. Within a stage each linear is
divided by output channels, or by input channels where it reads what the others wrote; keys and values go by
whole heads, which are copied where there are more ranks than heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from toolchain.model.families import has_bias, linear_shapes, routers
from toolchain.model.spec import ModelSpec
from toolchain.plan.memory import DTYPE_BYTES, KV_DTYPE_BYTES, linear_bytes
from toolchain.plan.quantization import LayerPattern

_READS_A_SPLIT = frozenset({"o_proj", "down_proj", "w2"})
"""Linears that are divided by input channels, by the last part of their names."""


@dataclass(frozen=True)
class StageWeights:
    """Bytes of weights on each rank of one pipeline stage; its ranks are alike.

    Args:
        begin, end: its layers, from `begin` to before `end`.
        embedding: 0 on all stages but the first.
        layers: the linears, norms, biases and routers of its layers.
        head: final norm and output layer; 0 on all stages but the last.
    """

    begin: int
    end: int
    embedding: int
    layers: int
    head: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.layers + self.head


def stage_layers(layers: int, pipeline: int) -> list[tuple[int, int]]:
    """The layers of each stage, as (begin, end)."""
    each, longer = divmod(layers, pipeline)
    ends = [stage * each + min(stage, longer) for stage in range(pipeline + 1)]
    return list(pairwise(ends))


def stage_weights(
    spec: ModelSpec,
    layers: Sequence[LayerPattern],
    tensor: int,
    pipeline: int,
    *,
    flavour: str,
    scale: float = 1,
    whole_embedding: bool = False,
) -> list[StageWeights]:
    """The weights on the ranks of each stage.

    Args:
        spec: the model.
        layers: how each layer stores its linears.
        tensor, pipeline: the split.
        flavour: TensorRT-LLM's engines hold routers in float32, and the output layer of a tied model beside
            the embedding; the others share that table while one rank has both ends of the model.
        scale: of the linears, where a search keeps to a budget below what `layers` takes.
        whole_embedding: whether each rank of the first stage has the whole embedding table.
    """
    element = DTYPE_BYTES[spec.dtype]
    embedding = spec.vocab_size * spec.hidden_size * element
    table = math.ceil(spec.vocab_size / tensor) * spec.hidden_size * element
    shared = spec.tie_word_embeddings and pipeline == 1 and flavour != "tensorrt"
    head = spec.hidden_size * element + (0 if shared else table)
    router = 4 if flavour == "tensorrt" else element
    sizes: dict[int, int] = {}  # by the identity of the pattern
    for layer, pattern in enumerate(layers):
        if id(pattern) not in sizes:
            linears = sum(
                count * linear_bytes(_share(spec, kind, shape, tensor), element, storage)
                for (kind, shape, storage), count in pattern.linears.items()
            )
            sizes[id(pattern)] = int(scale * linears) + _other_bytes(spec, layer, tensor, router)
    return [
        StageWeights(
            begin,
            end,
            embedding=0 if begin else embedding if whole_embedding else table,
            layers=sum(sizes[id(pattern)] for pattern in layers[begin:end]),
            head=head if end == spec.num_hidden_layers else 0,
        )
        for begin, end in stage_layers(spec.num_hidden_layers, pipeline)
    ]


def _share(spec: ModelSpec, name: str, shape: tuple[int, int], tensor: int) -> tuple[int, int]:
    """The shape [out, in] that a rank holds of a linear."""
    (rows, columns), last = shape, name.rpartition(".")[2]
    if last in _READS_A_SPLIT:
        return rows, math.ceil(columns / tensor)
    if last in ("k_proj", "v_proj"):
        return kv_heads_on_rank(spec, tensor) * spec.head_dim, columns
    return math.ceil(rows / tensor), columns


def _other_bytes(spec: ModelSpec, layer: int, tensor: int, router_bytes: int) -> int:
    """Norms, biases and routers of a layer on a rank. What is added after an all-reduce is there whole."""
    element = DTYPE_BYTES[spec.dtype]
    count = 2 * spec.hidden_size + (2 * spec.head_dim if spec.qk_norm else 0)
    if spec.qkv_bias or spec.o_bias or spec.mlp_bias:
        for name, shape in linear_shapes(spec, layer).items():
            if has_bias(spec, name):
                count += _share(spec, name, shape, tensor)[0]
    gates = sum(math.prod(shape) for shape in routers(spec, layer).values())
    return count * element + gates * router_bytes


def kv_heads_on_rank(spec: ModelSpec, tensor: int) -> int:
    """KV heads of each of `tensor` ranks, at least one: beyond their number they are copied."""
    return max(1, spec.num_key_value_heads // tensor)


@dataclass(frozen=True)
class Cache:
    """How the KV cache is kept.

    Args:
        dtype: a key of `KV_DTYPE_BYTES`.
        block: tokens of a block, which one sequence has to itself.
        windows: for each layer the tokens of a sequence that it keeps at most, None for all; empty where no
            layer has a limit.
    """

    dtype: str
    block: int
    windows: tuple[int | None, ...] = ()


def sequence_bytes(
    spec: ModelSpec, cache: Cache, tokens: int, tensor: int = 1, begin: int = 0, end: int | None = None
) -> int:
    """Cache bytes of one sequence of `tokens` in the layers from `begin` to before `end`, on one rank."""
    vector = kv_heads_on_rank(spec, tensor) * KV_DTYPE_BYTES[cache.dtype](spec.head_dim)
    kept = 0
    for window in (cache.windows or (None,) * spec.num_hidden_layers)[begin:end]:
        held = tokens if window is None else min(tokens, window)
        kept += math.ceil(held / cache.block) * cache.block
    return math.ceil(kept * vector)


def token_bytes(
    spec: ModelSpec, cache: Cache, tensor: int = 1, begin: int = 0, end: int | None = None
) -> float:
    """Cache bytes of one more token within every window, in the same place."""
    layers = len(range(spec.num_hidden_layers)[begin:end])
    return layers * kv_heads_on_rank(spec, tensor) * KV_DTYPE_BYTES[cache.dtype](spec.head_dim)


@dataclass(frozen=True)
class RankMemory:
    """The memory of one rank, in bytes.

    Args:
        rank, stage: its number and that of its pipeline stage; rank = stage x tensor + tensor rank.
        weights: what it stores.
        token: KV cache of one token in its layers.
        activations: of a step.
        runtime: the device's context, libraries, workspace.
        room: what the KV cache could have; 0 where nothing is left, or where the device is not known.
        cache: what it takes.
        capacity: of the device; None where it is not known.
    """

    rank: int
    stage: int
    weights: StageWeights
    token: float
    activations: int
    runtime: int
    room: int
    cache: int
    capacity: int | None

    @property
    def unused(self) -> int:
        """What is left; below 0 where more is wanted than there is."""
        held = self.weights.total + self.activations + self.runtime + self.cache
        return 0 if self.capacity is None else self.capacity - held
