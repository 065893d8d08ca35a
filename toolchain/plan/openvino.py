"""What a quantized model comes to on the openvino flavour, which does not run all of it as it is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping

from toolchain.data import load_table
from toolchain.model.families import layer_prefix, linear_shapes
from toolchain.model.spec import ModelSpec
from toolchain.plan.memory import DTYPE_BYTES, WeightBytes, linear_bytes
from toolchain.plan.quantization import Storage

PLAIN = frozenset({"none", "fp8", "fp8_rowwise"})
"""Methods whose weights the CPU plugin computes as plain matrices."""

ROUNDED_INPUTS = PLAIN - {"none"} | {"w4a8_awq", "int8_sq", "nvfp4"}
"""Methods for kernels that round activations."""

LAYOUTS = {"avx2": (2.0, 1.3), "avx512": (2.5, 1.0)}
"""Private bytes in f32 execution, over those of codes and scales and over those of plain f32 matrices, by the
instructions of the CPU: the plugin keeps several layouts of them, for batches of several sizes.

Measured with OpenVINO 2026.4 on random Llamas of 33 M weights and more, with three requests of different
lengths. AVX2: what six more layers take (int4 in groups of 32: 2.0; bf16: 1.3). AVX512: of int4 2.5, all that
three layers take, which is an upper bound; of plain matrices nothing is known.
"""


def private_bytes(
    spec: ModelSpec,
    weights: WeightBytes,
    assigned: Mapping[str, Storage],
    *,
    precision: str,
    bf16_cpu: bool,
    avx512: bool = True,
) -> int:
    """Private memory of the weights in OpenVINO's CPU plugin, which is not what they take on disk.

    The plugin packs plain matrices for its kernels: as bf16 in `fast` on a CPU that has it, else as f32. It
    has no kernels for fp8, so that those weights are plain ones. Other codes stay as narrow as they are. The
    embedding and the originals are read from the mapped file, whose pages the kernel drops when it needs to.

    Args:
        spec: the model.
        weights: its stored bytes; less than `assigned` says where a search keeps to a budget.
        assigned: how each linear is stored, by full name.
        precision: engine.precision.
        bf16_cpu: whether the CPU executes bf16.
        avx512: whether it has AVX512.
    """
    bf16 = precision == "fast" and bf16_cpu
    layouts, copies = (1.0, 1.0) if bf16 else LAYOUTS["avx512" if avx512 else "avx2"]
    plain = 2 if bf16 else 4 * copies
    private = stored = 0.0
    for layer in range(spec.num_hidden_layers):
        for name, shape in linear_shapes(spec, layer).items():
            own, count = assigned[layer_prefix(layer) + name], math.prod(shape)
            stored += linear_bytes(shape, DTYPE_BYTES[spec.dtype], own)
            if own.method in PLAIN:
                private += plain * count
            else:  # scales are f32 in the engine, whatever they were
                codes = count * load_table("formats")[own.method]["bits"] / 8
                scales = 4 * shape[0] * math.ceil(shape[1] / (own.group or shape[1]))
                private += (codes + scales) * layouts
    head = spec.vocab_size * spec.hidden_size  # a tied table is a matrix too
    return int(private * weights.layer_linears / stored + plain * head)


def ir_bytes(spec: ModelSpec, weights: WeightBytes, assigned: Mapping[str, Storage]) -> int:
    """Bytes of the weights in the IR: codes and scales; 16-bit and fp8 weights as f32, but a bf16 embedding.

    Args:
        spec: the model.
        weights: its stored bytes; less than `assigned` says where a search keeps to a budget.
        assigned: how each linear is stored, by full name.
    """
    kept = stored = 0.0
    for layer in range(spec.num_hidden_layers):
        for name, shape in linear_shapes(spec, layer).items():
            own, count = assigned[layer_prefix(layer) + name], math.prod(shape)
            stored += linear_bytes(shape, DTYPE_BYTES[spec.dtype], own)
            if own.method in PLAIN:
                kept += 4 * count
            else:
                groups = shape[0] * math.ceil(shape[1] / (own.group or shape[1]))
                kept += count * load_table("formats")[own.method]["bits"] / 8 + 4 * groups
    table = spec.vocab_size * spec.hidden_size
    embedding = 0 if spec.tie_word_embeddings else table * (2 if spec.dtype == "bfloat16" else 4)
    norms = 4 * (sum(weights.other) + weights.final_norm) // DTYPE_BYTES[spec.dtype]
    return int(kept * weights.layer_linears / stored) + 4 * table + embedding + norms


def notes(assigned: Mapping[str, Storage]) -> list[str]:
    """What a user should know of the methods of `assigned` on this flavour."""
    found, methods = [], {own.method for own in assigned.values()}
    if methods & PLAIN - {"none"}:
        found.append(
            "the CPU has no fp8 kernels: fp8 weights are computed as the plain numbers that they stand for, "
            "and take the memory of those; int8 and 4-bit methods stay narrow"
        )
    if methods & ROUNDED_INPUTS:
        found.append("activations are not rounded on the CPU: only the kernels of GPUs do that")
    return found
