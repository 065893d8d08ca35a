"""`make_plan`: what a recipe will need and whether it can work, from facts alone, before any work."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.data import load_table
from toolchain.errors import PlanError, combined
from toolchain.model.families import active_width
from toolchain.plan import compat, kernels, memory, openvino
from toolchain.plan.build_flags import asked_flags, flag_problems
from toolchain.plan.facts import model_facts
from toolchain.plan.memory import MethodBytes
from toolchain.plan.quantization import published_storage, quantization_problems
from toolchain.plan.releases import default_version
from toolchain.plan.serving import serving_problems
from toolchain.plan.stored import planned_storages, quantized_bytes
from toolchain.recipe.section import size_bytes

if TYPE_CHECKING:
    from toolchain.model.spec import ModelSpec
    from toolchain.recipe import Recipe

GPU_RUNTIME_BYTES = 2 * 2**30
"""CUDA context, libraries and workspace of a rank; measured values in reports lie between 1 and 2.5 GiB."""

CPU_RUNTIME_BYTES = 400 * 2**20
"""The server, its Python models and the engine's libraries, without weights and cache."""


@dataclass(frozen=True)
class Plan:
    """The figures of a plan. Bytes are of the fullest rank where a recipe has several.

    Args:
        device: what the memory budget is of: a GPU name, or "host memory".
        device_bytes: memory of one device; None when it is not known.
        kv_tokens_wanted: tokens that `max_batch_size` sequences of `max_seq_len` would need.
        kv_tokens_fit: tokens whose cache fits beside the weights; None without a budget.
        problems: why the recipe cannot work; empty when it can.
        notes: what a careful engineer would say before spending the time.
        by_method: the linears of each method; empty where nothing is quantized or a search will decide.
    """

    recipe: str
    flavour: str
    method: str
    ranks: int
    spec: ModelSpec
    spec_origin: str
    parameters: int
    source_bytes: int
    stored_bytes: int
    rank_bytes: int
    kv_dtype: str
    kv_bytes_per_token: float
    kv_tokens_wanted: int
    kv_tokens_fit: int | None
    max_seq_len: int
    max_batch_size: int
    device: str
    device_bytes: int | None
    quantize_peak_bytes: int
    problems: list[PlanError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_method: dict[str, MethodBytes] = field(default_factory=dict)

    @property
    def sequences_fit(self) -> int | None:
        """Sequences of `max_seq_len` tokens whose cache fits at the same time."""
        return None if self.kv_tokens_fit is None else self.kv_tokens_fit // self.max_seq_len

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object; the model as its few deciding numbers."""
        spec = self.spec
        model = {
            "architecture": spec.architecture,
            "origin": self.spec_origin,
            "parameters": self.parameters,
            "layers": spec.num_hidden_layers,
            "heads": spec.num_attention_heads,
            "kv_heads": spec.num_key_value_heads,
            "head_dim": spec.head_dim,
            "max_position_embeddings": spec.max_position_embeddings,
        }
        skipped = {"spec", "spec_origin", "parameters", "problems", "by_method"}
        figures = {name: value for name, value in vars(self).items() if name not in skipped}
        return figures | {
            "sequences_fit": self.sequences_fit,
            "methods": {
                name: vars(found) | {"bits": round(found.bits, 3)} for name, found in self.by_method.items()
            },
            "model": model,
            "problems": [problem.to_json() for problem in self.problems],
        }

    def check(self) -> None:
        """Raise one error that tells of all problems, if there are any."""
        if self.problems:
            raise combined(self.problems)


def make_plan(recipe: Recipe) -> Plan:
    """Plan `recipe`: memory by rank, KV cache, what fits, what cannot work.

    Reads the model's config.json (or the table of published models) and this machine's memory size.

    Raises:
        ModelError, ToolchainError: the model's config cannot be had.
    """
    facts = model_facts(recipe.model.source, recipe.model.revision)
    spec, engine, quant = facts.spec, recipe.engine, recipe.quantization
    tensor, pipeline = recipe.parallelism.tensor, recipe.parallelism.pipeline
    on_cpu = engine.flavour == "openvino"

    problems = compat.flavour_problems(spec, engine.flavour)
    problems += kernels.version_problems(engine.flavour, engine.version)
    problems += serving_problems(recipe)
    if engine.flavour == "tensorrt":
        asked = asked_flags(engine.build.model_dump())
        problems += flag_problems(asked, engine.version or default_version("tensorrt"))
    notes: list[str] = []
    source = memory.weight_bytes(spec, *published_storage(spec.quantization))
    stored, by_method, private = source, dict[str, MethodBytes](), 0
    try:
        problems += quantization_problems(spec, quant, engine.flavour)
        problems += compat.parallel_problems(spec, quant, engine.flavour, tensor, pipeline)
        if quant.methods:
            stored, by_method = quantized_bytes(spec, quant, notes)
        if on_cpu:
            assigned, bf16 = planned_storages(spec, quant), _cpu_executes_bf16()
            private = openvino.private_bytes(
                spec, stored, assigned, precision=engine.precision, bf16_cpu=bf16
            )
            notes += openvino.notes(assigned)
    except PlanError as error:  # a pattern that means nothing: no linear's method is known
        problems.append(error)
    rank_bytes = private if on_cpu else memory.rank_weight_bytes(spec, stored, tensor, pipeline)
    kv_dtype = _kv_dtype(recipe, spec)
    kv_per_token = memory.kv_bytes_per_token(spec, kv_dtype, tensor, pipeline)
    max_seq_len = engine.max_seq_len or spec.max_position_embeddings
    wanted = engine.kv_cache.max_tokens or engine.max_batch_size * max_seq_len

    if recipe.model.dtype not in ("auto", spec.dtype):
        problems.append(
            PlanError(
                f"the model is stored in {spec.dtype}, not in {recipe.model.dtype}",
                where="model.dtype",
                why="weights are taken as they are stored",
                fix="set it to auto, or convert the model first",
            )
        )
    if max_seq_len > spec.max_position_embeddings:
        problems.append(
            PlanError(
                f"max_seq_len {max_seq_len} exceeds the model's {spec.max_position_embeddings} positions",
                where="engine.max_seq_len",
                fix=f"use {spec.max_position_embeddings} or less",
            )
        )
    device, device_bytes = _device(recipe, problems)
    problems += kernels.kernel_problems(quant, engine.flavour, None if on_cpu else engine.gpu)
    fit = None
    if device_bytes is not None:
        if on_cpu:
            free = device_bytes - rank_bytes - CPU_RUNTIME_BYTES
        else:
            work = _activation_bytes(recipe, spec)
            free = int(
                (device_bytes - rank_bytes - GPU_RUNTIME_BYTES - work) * engine.kv_cache.free_gpu_mem_fraction
            )
        fit = max(0, int(free / kv_per_token))
        if engine.kv_cache.max_tokens is not None and not on_cpu:
            fit = min(fit, engine.kv_cache.max_tokens)
        problems += _fit_problems(recipe, rank_bytes, device, device_bytes, fit, wanted, max_seq_len)
    if not on_cpu:
        notes += _gpu_notes(recipe, fit, wanted)
    calibration = quant.calibration if quant.calibrates else None
    limit = quant.hidden_states_memory
    return Plan(
        recipe=recipe.name,
        flavour=engine.flavour,
        method=quant.method,
        ranks=recipe.parallelism.world_size,
        spec=spec,
        spec_origin=facts.origin,
        parameters=memory.parameter_count(spec),
        source_bytes=source.total,
        stored_bytes=stored.total,
        rank_bytes=rank_bytes,
        kv_dtype=kv_dtype,
        kv_bytes_per_token=kv_per_token,
        kv_tokens_wanted=wanted,
        kv_tokens_fit=fit,
        max_seq_len=max_seq_len,
        max_batch_size=engine.max_batch_size,
        device=device,
        device_bytes=device_bytes,
        quantize_peak_bytes=memory.quantize_peak_bytes(
            spec,
            quant.methods,
            calibration.samples if calibration else 0,
            calibration.seq_len if calibration else 0,
            None if limit is None else size_bytes(limit),
        ),
        by_method=by_method,
        problems=problems,
        notes=notes,
    )


def _kv_dtype(recipe: Recipe, spec: ModelSpec) -> str:
    """The cache's element type that the recipe's words come to."""
    if recipe.engine.flavour == "openvino":
        if recipe.engine.kv_cache.dtype != "auto":
            return recipe.engine.kv_cache.dtype
        return "f32" if recipe.engine.precision == "exact" else "u8"
    if recipe.quantization.kv_cache != "auto":
        return recipe.quantization.kv_cache
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[spec.dtype]


def _device(recipe: Recipe, problems: list[PlanError]) -> tuple[str, int | None]:
    """The device to plan for and its memory in bytes; a GPU that no table knows is a problem."""
    if recipe.engine.flavour == "openvino":
        return "host memory", host_memory()
    gpu = recipe.engine.gpu
    if gpu is None:
        return "GPU (engine.gpu not given)", None
    gpus = load_table("gpus")
    if gpu not in gpus:
        near = difflib.get_close_matches(gpu, gpus, 1)
        problems.append(
            PlanError(
                f"no facts about GPU {gpu}",
                where="engine.gpu",
                fix=f"{f'did you mean {near[0]}? ' if near else ''}known: {', '.join(gpus)}",
            )
        )
        return gpu, None
    return gpu, int(gpus[gpu]["memory_gib"] * 2**30)


def host_memory() -> int:
    """Bytes of memory of this machine, or of the control group that confines this process if less."""
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal:")
    )
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        return min(total, int(text))
    return total


def _cpu_executes_bf16() -> bool:
    """Whether OpenVINO's `fast` computes in bf16 on this CPU."""
    flags = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split()
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)


def _activation_bytes(recipe: Recipe, spec: ModelSpec) -> int:
    """Rough peak of a step: MLP intermediates of max_num_tokens, float32 logits of each sequence."""
    engine, tensor = recipe.engine, recipe.parallelism.tensor
    mlp = engine.max_num_tokens * (2 * active_width(spec) // tensor + 4 * spec.hidden_size) * 2
    return int(mlp + engine.max_batch_size * spec.vocab_size * 4)


def _fit_problems(
    recipe: Recipe, rank_bytes: int, device: str, device_bytes: int, fit: int, wanted: int, max_seq_len: int
) -> list[PlanError]:
    human = memory.human_bytes
    if fit < max_seq_len:
        room = f"{fit} tokens of KV cache" if fit else "no KV cache"
        fix = "lower engine.max_seq_len, quantize further"
        if recipe.engine.flavour != "openvino":
            fix += ", raise parallelism.tensor or choose a larger engine.gpu"
        return [
            PlanError(
                f"one sequence of {max_seq_len} tokens does not fit: {human(device_bytes)} of {device} hold "
                f"{human(rank_bytes)} of weights and then {room}",
                where="engine",
                fix=fix,
            )
        ]
    if recipe.engine.flavour == "openvino" and fit < wanted:
        return [
            PlanError(
                f"a KV cache of {wanted} tokens does not fit {human(device_bytes)} of {device}: {fit} would",
                where="engine.kv_cache.max_tokens" if recipe.engine.kv_cache.max_tokens else "engine",
                fix=f"set engine.kv_cache.max_tokens to {fit}, or lower max_batch_size or max_seq_len",
            )
        ]
    return []


def _gpu_notes(recipe: Recipe, fit: int | None, wanted: int) -> list[str]:
    notes = []
    method, batch = recipe.quantization.method, recipe.engine.max_batch_size
    if method in {"awq", "gptq", "awq_gptq", "int4_wo"} and batch >= 8:
        notes.append(
            f"{method} is weight-only: on a GPU it wins at batch 1 and loses to bf16 or fp8 from about "
            f"batch 8; max_batch_size is {batch}. For throughput on Ada or Hopper, consider method fp8."
        )
    if fit is not None and fit < wanted:
        evicts = recipe.deploy.scheduler == "max_utilization"
        notes.append(
            f"the cache holds {fit} tokens, not the {wanted} of {batch} full-length sequences: under "
            f"full load some requests will {'be paused and recomputed' if evicts else 'wait'}"
        )
    return notes
