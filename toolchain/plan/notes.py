"""What a careful engineer would say of a recipe for GPUs before spending the time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolchain.model.spec import ModelSpec
    from toolchain.plan.device import Device
    from toolchain.plan.fit import Fit
    from toolchain.recipe import Recipe

INT4_WEIGHT_ONLY = frozenset({"awq", "gptq", "awq_gptq", "int4_wo"})


def gpu_notes(recipe: Recipe, spec: ModelSpec, fit: Fit, device: Device) -> list[str]:
    """Notes on method, split and cache; empty when there is nothing to say."""
    notes = []
    method, batch = recipe.quantization.method, recipe.engine.max_batch_size
    tensor, pipeline = recipe.parallelism.tp_size, recipe.parallelism.pp_size
    if method in INT4_WEIGHT_ONLY and batch >= 8:
        notes.append(
            f"{method} is weight-only: on a GPU it wins at batch 1 and loses to bf16 or fp8 from about "
            f"batch 8; max_batch_size is {batch}. For throughput on Ada or Hopper, consider method fp8."
        )
    if device.known and tensor > 1 and not device.node:
        notes.append(
            f"{device.name} has no NVLink: tensor parallelism exchanges activations twice a layer over PCIe; "
            f"pipeline parallelism ({tensor * pipeline} stages) needs one exchange a stage"
        )
    elif device.node and tensor > device.node:
        notes.append(
            f"tensor parallelism over {tensor} GPUs leaves the node of {device.node}: keep it within, and "
            "use pipeline parallelism between nodes"
        )
    if tensor > spec.num_key_value_heads:
        notes.append(
            f"{tensor} ranks share {spec.num_key_value_heads} KV heads, so that each head is cached "
            f"{tensor // spec.num_key_value_heads} times"
        )
    if fit.tokens is not None and fit.tokens < fit.wanted:
        evicts = recipe.deploy.scheduler == "max_utilization"
        notes.append(
            f"the cache holds {fit.tokens} tokens, not the {fit.wanted} of {batch} full-length sequences: "
            f"under full load some requests will {'be paused and recomputed' if evicts else 'wait'}"
        )
    return notes
