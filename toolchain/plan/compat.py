"""Which recipe can work on which GPU and split: divisibility, kernels, flavours."""

from __future__ import annotations

from toolchain.data import load_table
from toolchain.errors import PlanError
from toolchain.model.families import linear_kinds, mlp_widths
from toolchain.model.spec import ModelSpec

GROUPWISE = frozenset({"awq", "gptq", "awq_gptq", "w4a8_awq"})


def parallel_problems(
    spec: ModelSpec, method: str, group_size: int, tensor: int, pipeline: int
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
    if method in GROUPWISE:
        block = max(128 if method == "w4a8_awq" else 64, group_size) * tensor
        for module, shape in linear_kinds(spec).items():
            if any(size % block for size in shape):
                problems.append(
                    PlanError(
                        f"{module} is {shape[0]} x {shape[1]}: {method} with group size {group_size} needs "
                        f"multiples of {block} at tensor parallelism {tensor}",
                        where="quantization.group_size",
                        why="TensorRT-LLM pads group-wise int4 linears at load, which a stored checkpoint "
                        "cannot follow",
                        fix="lower parallelism.tensor or quantization.group_size, or use method fp8",
                    )
                )
    return problems


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


def gpu_problems(method: str, kv_cache: str, gpu: str) -> list[PlanError]:
    """Why `method` or the KV-cache format has no kernel on `gpu` (a row of `data/gpus.yaml`)."""
    sm = load_table("gpus")[gpu]["sm"]
    problems = []
    needed = {"quantization.method": (method, load_table("formats")[method]["min_sm"])}
    if kv_cache == "fp8":
        needed["quantization.kv_cache"] = (kv_cache, load_table("formats")["fp8"]["min_sm"])
    for where, (value, min_sm) in needed.items():
        if sm < min_sm:
            able = [name for name, row in load_table("gpus").items() if row["sm"] >= min_sm]
            problems.append(
                PlanError(
                    f"{value} has no kernel on {gpu} (compute capability {sm / 10:.1f}, "
                    f"needs {min_sm / 10:.1f})",
                    where=where,
                    fix=f"choose one of {', '.join(able)} as engine.gpu, or another {where.split('.')[1]}",
                )
            )
    return problems


def _split_error(what: str, count: int, field: str, ways: int) -> PlanError:
    divisors = [str(n) for n in range(1, count + 1) if count % n == 0 and n <= 16]
    return PlanError(
        f"{count} {what} cannot be split {ways} ways", where=field, fix=f"use one of {', '.join(divisors)}"
    )
