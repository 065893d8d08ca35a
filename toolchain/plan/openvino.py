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

LAYOUTS = 2.5
"""Private over stored bytes of codes and scales in f32 execution: the plugin keeps several layouts of them.

Measured with OpenVINO 2026.4 on random Llamas of 33 M weights, with AVX2: 2.2 for int4 in groups of 32, 2.2
for int8, 2.0 for nvfp4; with AVX512: 2.5 for int4.
"""


def private_bytes(
    spec: ModelSpec,
    weights: WeightBytes,
    assigned: Mapping[str, Storage],
    *,
    precision: str,
    bf16_cpu: bool,
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
    """
    bf16 = precision == "fast" and bf16_cpu
    plain = 2 if bf16 else 4
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
                private += (codes + scales) * (1 if bf16 else LAYOUTS)
    head = spec.vocab_size * spec.hidden_size  # a tied table is a matrix too
    return int(private * weights.layer_linears / stored) + plain * head


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
