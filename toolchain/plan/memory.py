"""Bytes: weights by format, KV cache by element type, and what quantizing takes.

Pure arithmetic on a `ModelSpec` and a few plain values; nothing here reads weights or devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cache

from toolchain.data import load_table
from toolchain.model.families import (
    layer_examples,
    layer_tensors,
    linear_shapes,
    mlp_widths,
)
from toolchain.model.spec import ModelSpec
from toolchain.plan.quantization import LayerPattern, Storage, uniform_patterns

DTYPE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
KV_DTYPE_BYTES: dict[str, Callable[[int], float]] = {
    # Bytes of one key plus one value vector of `head_dim` elements.
    "f32": lambda head_dim: 8 * head_dim,
    "f16": lambda head_dim: 4 * head_dim,
    "bf16": lambda head_dim: 4 * head_dim,
    "fp8": lambda head_dim: 2 * head_dim,
    "int8": lambda head_dim: 2 * head_dim,
    # OpenVINO's u8 cache: keys are quantized by channel over blocks of 32 tokens (8 rows of scale and
    # zero point beside them), values by token (8 bytes beside each vector).
    "u8": lambda head_dim: head_dim * 40 / 32 + head_dim + 8,
}

QUANTIZE_BATCH_BYTES = 96 * 2**20
"""Activations of the tokens that the quantizer's driver computes at a time, and what the allocator keeps."""


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's weights after quantization, split by what is and is not quantized."""

    embedding: int
    head: int
    linears: tuple[int, ...]  # of each decoder layer
    other: tuple[int, ...]  # of each decoder layer: norms, biases, routers
    final_norm: int

    @property
    def layer_linears(self) -> int:
        """The linears of all decoder layers together."""
        return sum(self.linears)

    @property
    def total(self) -> int:
        """Everything that is loaded."""
        return self.embedding + self.head + self.final_norm + self.layer_linears + sum(self.other)


def weight_bytes(spec: ModelSpec, method: str = "none", group_size: int = 128) -> WeightBytes:
    """Bytes of `spec`'s weights with every linear stored by `method`, a row of `data/formats.yaml`."""
    return stored_bytes(spec, uniform_patterns(spec, Storage(method, group_size)))


def stored_bytes(spec: ModelSpec, layers: Sequence[LayerPattern]) -> WeightBytes:
    """Bytes of `spec`'s weights with the linears stored as `layers` say.

    Embedding, lm_head and routers stay in the model's dtype, as every export of ours leaves them; a tied
    model counts the shared table once, as embedding.
    """
    element = DTYPE_BYTES[spec.dtype]
    linears: dict[int, int] = {}  # by the identity of the pattern
    for pattern in layers:
        if id(pattern) not in linears:
            linears[id(pattern)] = sum(
                count * linear_bytes(shape, element, own)
                for (_, shape, own), count in pattern.linears.items()
            )
    other = {spec.is_sparse(layer): element * _unquantized(spec, layer) for layer in layer_examples(spec)}
    table = spec.vocab_size * spec.hidden_size * element
    return WeightBytes(
        embedding=table,
        head=0 if spec.tie_word_embeddings else table,
        linears=tuple(linears[id(pattern)] for pattern in layers),
        other=tuple(other[spec.is_sparse(layer)] for layer in range(spec.num_hidden_layers)),
        final_norm=spec.hidden_size * element,
    )


def _unquantized(spec: ModelSpec, layer: int) -> int:
    """Elements of a layer that are no linear's weights: norms, biases, routers."""
    whole = sum(math.prod(shape) for shape in layer_tensors(spec, layer).values())
    return whole - sum(math.prod(shape) for shape in linear_shapes(spec, layer).values())


@cache
def linear_bytes(shape: tuple[int, int], element: int, storage: Storage) -> int:
    """Bytes of one linear [out, in]: its codes and scales, or plain with `element` bytes a weight."""
    count = math.prod(shape)
    if storage.method == "none":
        return count * element
    stored = load_table("formats")[storage.method]
    whole = {"row": shape[1], "tensor": count}
    group: int = storage.group or whole[stored["group"]]
    bits: int = count * stored["bits"] + math.ceil(count / group) * stored["scale_bits"]
    return bits // 8


@dataclass(frozen=True)
class MethodBytes:
    """What one method has of a model's linears.

    Args:
        linears: how many.
        weights: elements of them.
        stored: bytes of them, scales included.
    """

    linears: int
    weights: int
    stored: int

    @property
    def bits(self) -> float:
        """Bits that a weight takes on average."""
        return 8 * self.stored / self.weights


def bytes_by_method(spec: ModelSpec, layers: Sequence[LayerPattern]) -> dict[str, MethodBytes]:
    """What each method has of the linears that `layers` store."""
    element = DTYPE_BYTES[spec.dtype]
    found: dict[str, MethodBytes] = {}
    for pattern in layers:
        for (_, shape, own), count in pattern.linears.items():
            sofar = found.get(own.method, MethodBytes(0, 0, 0))
            found[own.method] = MethodBytes(
                sofar.linears + count,
                sofar.weights + count * math.prod(shape),
                sofar.stored + count * linear_bytes(shape, element, own),
            )
    return found


def linear_count(spec: ModelSpec) -> int:
    """Elements of the linears of all decoder layers."""
    kinds = {spec.is_sparse(layer): layer for layer in layer_examples(spec)}
    counts = {
        kind: sum(math.prod(shape) for shape in linear_shapes(spec, layer).values())
        for kind, layer in kinds.items()
    }
    return sum(counts[spec.is_sparse(layer)] for layer in range(spec.num_hidden_layers))


def active_count(spec: ModelSpec) -> int:
    """Elements of the linears that one token goes through: of the experts, those that the router chooses."""
    if spec.moe is None:
        return linear_count(spec)
    moe = spec.moe
    idle = (moe.num_experts - moe.num_experts_per_tok) * 3 * spec.hidden_size * moe.moe_intermediate_size
    return linear_count(spec) - sum(moe.sparse_layers) * idle


def quantize_peak_bytes(
    spec: ModelSpec, methods: Collection[str], samples: int, seq_len: int, hidden_memory: int | None = None
) -> int:
    """Host memory that layer-streaming quantization works in, without the interpreter and libraries.

    One decoder layer in float32 with its statistics (of its experts one, and what the others have become),
    or the embedding table, whichever is larger; the calibration set's hidden states, the layer's output and
    attention context beside them, in the model's dtype; a batch's activations. It does not grow with the
    number of layers. Measured for awq from hidden 512 to 2048: within a fifth of this.

    Args:
        spec: the model.
        methods: those that occur.
        samples, seq_len: of the calibration; 0 where no method looks at activations.
        hidden_memory: bytes of hidden states beyond which they are kept on the disk; None for no limit.
    """
    widest = max(*mlp_widths(spec).values(), spec.num_attention_heads * spec.head_dim, spec.hidden_size)
    grams = 3 if {"gptq", "awq_gptq"} & set(methods) else 1  # the matrix, its reordered copy and its factor
    layer = max(_layer_peak_bytes(spec, methods, index) for index in layer_examples(spec))
    layer += 4 * grams * widest * widest
    embedding = spec.vocab_size * spec.hidden_size * DTYPE_BYTES[spec.dtype]
    hidden_states = samples * seq_len * spec.hidden_size * DTYPE_BYTES[spec.dtype]
    states = 3 * hidden_states if hidden_memory is None else min(3 * hidden_states, hidden_memory)
    return states + max(layer, embedding) + QUANTIZE_BATCH_BYTES


def _layer_peak_bytes(spec: ModelSpec, methods: Collection[str], layer: int) -> int:
    """Weights of a decoder layer while it is quantized: stored and as they compute, and experts when done."""
    held = sum(math.prod(shape) for shape in layer_tensors(spec, layer).values())
    if spec.moe is None or not spec.is_sparse(layer):
        return 4 * 2 * held
    others = (spec.moe.num_experts - 1) * 3 * spec.hidden_size * spec.moe.moe_intermediate_size
    element, shapes = DTYPE_BYTES[spec.dtype], linear_shapes(spec, layer).values()
    done = max(
        sum(linear_bytes(shape, element, Storage(method)) for shape in shapes)
        for method in methods or ("none",)
    )
    return 4 * 2 * (held - others) + done


def parameter_count(spec: ModelSpec) -> int:
    """Parameters, a tied table counted once."""
    return weight_bytes(spec).total // DTYPE_BYTES[spec.dtype]


def human_bytes(count: float) -> str:
    """Bytes as people read them: binary units, three digits."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 100 or units[0] == "B" else f"{value:.3g} {units[0]}"
