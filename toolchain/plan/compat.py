"""Which model can be split over which GPUs, run by which flavour, and guess tokens for which other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolchain.data import load_table
from toolchain.errors import PlanError
from toolchain.model.families import mlp_widths
from toolchain.model.spec import ModelSpec
from toolchain.plan.quantization import Storage

if TYPE_CHECKING:
    from toolchain.plan.stored import PlannedWeights
    from toolchain.recipe.engine import Parallelism


def parallel_problems(
    spec: ModelSpec, weights: PlannedWeights, flavour: str, split: Parallelism
) -> list[PlanError]:
    """Why `spec` cannot be split as the recipe, without `auto`, says; empty when it can.

    TensorRT-LLM's rules: query heads divide by `tensor`; KV heads divide by it or it by them; the MLP
    divides; a pipeline stage has at least one layer. Group-wise int4 linears are padded at load to a
    multiple of max(64, group) x tensor (128 for W4A8), and a stored checkpoint cannot be padded.
    """
    problems = []
    tensor, pipeline = split.tp_size, split.pp_size
    experts = split.moe_expert or (tensor // split.moe_tensor if split.moe_tensor else 1)
    heads, kv_heads = spec.num_attention_heads, spec.num_key_value_heads
    if heads % tensor:
        problems.append(_split_error("attention heads", heads, "parallelism.tensor", tensor))
    if kv_heads % tensor and tensor % kv_heads:
        problems.append(_split_error("KV heads", kv_heads, "parallelism.tensor", tensor))
    if spec.moe is not None and spec.moe.num_experts % experts:
        problems.append(_split_error("experts", spec.moe.num_experts, "parallelism.moe_expert", experts))
    routed = "intermediate_size" if spec.family == "mixtral" else "moe_intermediate_size"
    for field, width in mlp_widths(spec).items():
        ways = tensor // experts if spec.moe is not None and field == routed else tensor
        if width % ways:
            problems.append(_split_error(field, width, "parallelism.tensor", ways))
    if pipeline > spec.num_hidden_layers:
        problems.append(_split_error("layers", spec.num_hidden_layers, "parallelism.pipeline", pipeline))
    if flavour != "openvino":
        problems += _padding_problems(weights, tensor)
    return problems


def _padding_problems(weights: PlannedWeights, tensor: int) -> list[PlanError]:
    """One error for each way of storing linears, with the kinds of linears that it does not suit."""
    formats = load_table("formats")
    wrong: dict[tuple[Storage, int], dict[str, None]] = {}
    patterns = {id(pattern): pattern for layers in weights.searched for pattern in layers}
    for pattern in patterns.values():
        for kind, shape, own in pattern.linears:
            block = max(128 if own.method == "w4a8_awq" else 64, own.group_size) * tensor
            if formats[own.method]["group"] == "recipe" and any(size % block for size in shape):
                wrong.setdefault((own, block), {})[f"{kind} is {shape[0]} x {shape[1]}"] = None
    return [
        PlanError(
            f"{own.method} with group size {own.group_size} needs multiples of {block} at tensor parallelism "
            f"{tensor}: {', '.join(kinds)}",
            where="quantization.group_size",
            why="TensorRT-LLM pads group-wise int4 linears at load, which a stored checkpoint cannot follow",
            fix="lower parallelism.tensor or quantization.group_size, use method fp8, or exclude the linears",
        )
        for (own, block), kinds in wrong.items()
    ]


def draft_problems(draft: ModelSpec, spec: ModelSpec, max_seq_len: int | None) -> list[PlanError]:
    """Why `draft` cannot guess tokens for the model, as far as their configs say; empty when it can.

    Args:
        draft: the smaller model.
        spec: the model that it guesses for.
        max_seq_len: of the engine; None: the model's positions.
    """
    problems = []
    where, fix = "engine.speculative.source", "take a small model of the same family"
    if draft.vocab_size != spec.vocab_size:
        problems.append(
            PlanError(
                f"the draft has {draft.vocab_size} tokens in its vocabulary, the model {spec.vocab_size}",
                where=where,
                why="the model checks the very tokens that the draft guesses",
                fix=fix,
            )
        )
    longest = max_seq_len or spec.max_position_embeddings
    if draft.max_position_embeddings < longest:
        problems.append(
            PlanError(
                f"the draft reads {draft.max_position_embeddings} tokens, sequences may have {longest}",
                where=where,
                fix=f"set engine.max_seq_len to {draft.max_position_embeddings}, or {fix}",
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


def _split_error(what: str, count: int, field: str, ways: int) -> PlanError:
    divisors = [str(n) for n in range(1, count + 1) if count % n == 0 and n <= 16]
    return PlanError(
        f"{count} {what} cannot be split {ways} ways", where=field, fix=f"use one of {', '.join(divisors)}"
    )
