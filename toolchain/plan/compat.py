"""Which model can be split over which GPUs and run by which flavour: divisibility."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.data import load_table
from toolchain.errors import PlanError
from toolchain.model.families import linear_kind, linear_kinds, mlp_widths
from toolchain.model.spec import ModelSpec
from toolchain.plan.quantization import Storage, defaults, storages

if TYPE_CHECKING:
    from toolchain.recipe.quantization import Quantization


def parallel_problems(
    spec: ModelSpec, quant: Quantization, flavour: str, tensor: int, pipeline: int
) -> list[PlanError]:
    """Why `spec` cannot be split tensor x pipeline ways; empty when it can.

    TensorRT-LLM's rules: query heads divide by `tensor`; KV heads divide by it or it by them; the MLP
    divides; a pipeline stage has at least one layer. Group-wise int4 linears are padded at load to a
    multiple of max(64, group) x tensor (128 for W4A8), and a stored checkpoint cannot be padded.
    """
    problems = []
    heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
    if heads % tensor:
        problems.append(_split_error("attention heads", heads, "parallelism.tensor", tensor))
    if kv_heads % tensor and tensor % kv_heads:
        problems.append(_split_error("KV heads", kv_heads, "parallelism.tensor", tensor))
    for field, width in mlp_widths(spec).items():
        if width % tensor:
            problems.append(_split_error(field, width, "parallelism.tensor", tensor))
    if pipeline > spec.num_hidden_layers:
        problems.append(_split_error("layers", spec.num_hidden_layers, "parallelism.pipeline", pipeline))
    if flavour != "openvino":
        problems += _padding_problems(spec, quant, tensor)
    return problems


def _padding_problems(spec: ModelSpec, quant: Quantization, tensor: int) -> list[PlanError]:
    kinds = linear_kinds(spec)
    blocks: dict[str, tuple[int, Storage]] = {}  # the largest of each kind of linear
    for method in defaults(quant):
        for name, own in storages(spec, quant, method).items():
            if load_table("formats")[own.method]["group"] == "recipe":
                block = max(128 if own.method == "w4a8_awq" else 64, own.group_size) * tensor
                kind = linear_kind(name.split(".", 3)[3])
                blocks[kind] = max(blocks.get(kind, (0, own)), (block, own))
    return [
        PlanError(
            f"{kind} is {kinds[kind][0]} x {kinds[kind][1]}: {own.method} with group size {own.group_size} "
            f"needs multiples of {block} at tensor parallelism {tensor}",
            where="quantization.group_size",
            why="TensorRT-LLM pads group-wise int4 linears at load, which a stored checkpoint cannot follow",
            fix="lower parallelism.tensor or quantization.group_size, use method fp8, or exclude the linear",
        )
        for kind, (block, own) in blocks.items()
        if any(size % block for size in kinds[kind])
    ]


def flavour_problems(spec: ModelSpec, flavour: str) -> list[PlanError]:
    """Why `flavour` cannot run the model; empty when it can."""
    if flavour != "openvino" or spec.moe is None:
        return []
    return [
        PlanError(
            f"the openvino flavour does not run {spec.architecture}",
            where="engine.flavour",
            why="its graph has dense MLPs only, and this model has experts",
            fix="use a flavour for GPUs, or a dense model",
        )
    ]


def _split_error(what: str, count: int, field: str, ways: int) -> PlanError:
    divisors = [str(n) for n in range(1, count + 1) if count % n == 0 and n <= 16]
    return PlanError(
        f"{count} {what} cannot be split {ways} ways", where=field, fix=f"use one of {', '.join(divisors)}"
    )
