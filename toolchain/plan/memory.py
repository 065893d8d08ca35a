"""Bytes: weights by format, KV cache by element type, and what quantizing takes.

Pure arithmetic on a `ModelSpec` and a few plain values; nothing here reads weights or devices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType

from toolchain.data import load_table
from toolchain.model.families import (
    layer_examples,
    layer_prefix,
    layer_tensors,
    linear_shapes,
    mlp_widths,
)
from toolchain.model.spec import ModelSpec
from toolchain.plan.quantization import Storage

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


def weight_bytes(
    spec: ModelSpec,
    method: str = "none",
    group_size: int = 128,
    others: Mapping[str, Storage] = MappingProxyType({}),
) -> WeightBytes:
    """Bytes of `spec`'s weights stored by quantization `method` (a row of `data/formats.yaml`).

    Embedding, lm_head and routers stay in the model's dtype, as every export of ours leaves them; a tied
    model counts the shared table once, as embedding.

    Args:
        spec: the model.
        method, group_size: how linears are stored for which `others` does not say otherwise.
        others: full name of a linear -> how it is stored.
    """
    element, default = DTYPE_BYTES[spec.dtype], Storage(method, group_size)
    linears, other = [], []
    kinds = {spec.is_sparse(layer): _layer_shapes(spec, layer) for layer in layer_examples(spec)}
    for layer in range(spec.num_hidden_layers):
        (shapes, unquantized), prefix = kinds[spec.is_sparse(layer)], layer_prefix(layer)
        linears.append(
            sum(
                linear_bytes(shape, element, others.get(prefix + name, default))
                for name, shape in shapes.items()
            )
        )
        other.append(element * unquantized)
    table = spec.vocab_size * spec.hidden_size * element
    return WeightBytes(
        embedding=table,
        head=0 if spec.tie_word_embeddings else table,
        linears=tuple(linears),
        other=tuple(other),
        final_norm=spec.hidden_size * element,
    )


def _layer_shapes(spec: ModelSpec, layer: int) -> tuple[dict[str, tuple[int, int]], int]:
    """The shapes of a layer's linears, and the elements of everything else in it."""
    shapes = linear_shapes(spec, layer)
    whole = sum(math.prod(shape) for shape in layer_tensors(spec, layer).values())
    return shapes, whole - sum(math.prod(shape) for shape in shapes.values())


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


def bytes_by_method(spec: ModelSpec, assigned: Mapping[str, Storage]) -> dict[str, MethodBytes]:
    """What each method has of the linears that `assigned` names in full."""
    element = DTYPE_BYTES[spec.dtype]
    kinds = {spec.is_sparse(layer): linear_shapes(spec, layer) for layer in layer_examples(spec)}
    alike: Counter[tuple[tuple[int, int], Storage]] = Counter()
    for layer in range(spec.num_hidden_layers):
        prefix = layer_prefix(layer)
        for name, shape in kinds[spec.is_sparse(layer)].items():
            alike[shape, assigned[prefix + name]] += 1
    found: dict[str, MethodBytes] = {}
    for (shape, own), count in alike.items():
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
