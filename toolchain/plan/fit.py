"""How weights, cache and everything else of a recipe share the memory of its ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING

from toolchain.errors import PlanError
from toolchain.model.families import active_width
from toolchain.plan import openvino, ranks
from toolchain.plan.device import Device, cpu_executes_bf16, cpu_has_avx512
from toolchain.plan.memory import human_bytes
from toolchain.plan.ranks import Cache, RankMemory, StageWeights
from toolchain.plan.stored import PlannedWeights, planned_weights
from toolchain.recipe.quantization import Quantization

if TYPE_CHECKING:
    from toolchain.model.spec import ModelSpec
    from toolchain.recipe import Recipe

GPU_RUNTIME_BYTES = 2 * 2**30
"""CUDA context, libraries and workspace of a rank; measured values in reports lie between 1 and 2.5 GiB."""

CPU_RUNTIME_BYTES = 400 * 2**20
"""The server, its Python models and the engine's libraries, without weights and cache."""

BLOCK_TOKENS = {"tensorrt": 32, "pytorch": 32, "vllm": 16, "openvino": 32}
"""Tokens of a block of the paged KV cache, as each runtime has it unless told otherwise."""


@dataclass(frozen=True)
class Fit:
    """The memory of every rank, and what of the KV cache fits.

    Args:
        ranks: in order.
        cache: how the KV cache is kept.
        wanted: tokens of cache that the recipe asks for.
        draft: the model that guesses tokens beside it, with a cache of its own.
    """

    spec: ModelSpec
    tensor: int
    ranks: tuple[RankMemory, ...]
    cache: Cache
    wanted: int
    draft: ModelSpec | None = None

    @property
    def fullest(self) -> RankMemory:
        """The rank with the most weights, the first of several."""
        return max(self.ranks, key=lambda rank: rank.weights.total)

    @property
    def token_bytes(self) -> float:
        """Cache bytes of one token on the rank where it takes most."""
        return max(rank.token for rank in self.ranks)

    @property
    def tokens(self) -> int | None:
        """Tokens whose cache fits, within every window; None where the device is not known.

        All ranks cache the same tokens, so the one with the least room decides.
        """
        if any(rank.capacity is None for rank in self.ranks):
            return None
        return min(int(rank.room / rank.token) for rank in self._caching)

    def sequences(self, length: int) -> int | None:
        """Sequences of `length` tokens whose cache fits at the same time, in whole blocks."""
        if any(rank.capacity is None for rank in self.ranks):
            return None
        return min(rank.room // self.sequence_bytes(rank, length) for rank in self._caching)

    @property
    def _caching(self) -> list[RankMemory]:
        """The ranks with layers: all, unless there are more stages than layers, which is a problem."""
        return [rank for rank in self.ranks if rank.token]

    def sequence_bytes(self, rank: RankMemory, length: int) -> int:
        """Cache bytes of one sequence of `length` tokens on a rank."""
        stage = rank.weights
        own = ranks.sequence_bytes(self.spec, self.cache, length, self.tensor, stage.begin, stage.end)
        return own + (0 if self.draft is None else ranks.sequence_bytes(self.draft, self.cache, length))


def find_fit(
    recipe: Recipe, spec: ModelSpec, weights: PlannedWeights, device: Device, draft: ModelSpec | None = None
) -> Fit:
    """Share out the memory of `device`, which each rank of `recipe` has, among what the rank holds.

    Args:
        recipe: without `auto`.
        spec: the model.
        weights: the model's.
        device: each rank's.
        draft: the draft model of the openvino flavour.
    """
    engine = recipe.engine
    on_cpu = engine.flavour == "openvino"
    tensor, pipeline = recipe.parallelism.tp_size, recipe.parallelism.pp_size
    if on_cpu:
        private = _private_bytes(recipe, spec, weights)
        if draft is not None:
            private += _private_bytes(recipe, draft, planned_weights(draft, Quantization(), engine.flavour))
        stages = [StageWeights(0, spec.num_hidden_layers, 0, private, 0)]
    else:
        stages = ranks.stage_weights(
            spec,
            weights.layers,
            tensor,
            pipeline,
            flavour=engine.flavour,
            scale=weights.scale,
            whole_embedding=not recipe.parallelism.use_parallel_embedding,
        )
    cache = Cache(_kv_dtype(recipe, spec), BLOCK_TOKENS[engine.flavour], _windows(recipe, spec))
    max_seq_len = engine.max_seq_len or spec.max_position_embeddings
    limit = engine.kv_cache.max_tokens
    guessed = engine.speculative.max_draft_len if engine.speculative is not None else 0
    wanted = limit or engine.max_batch_size * (max_seq_len + guessed)
    share = 1.0 if on_cpu else engine.kv_cache.free_gpu_mem_fraction
    runtime = CPU_RUNTIME_BYTES if on_cpu else GPU_RUNTIME_BYTES
    found: list[RankMemory] = []
    for number, held in enumerate(stages):
        token = ranks.token_bytes(spec, cache, tensor, held.begin, held.end)
        token += 0 if draft is None else ranks.token_bytes(draft, cache)
        work = 0 if on_cpu else _activation_bytes(recipe, spec, last=number == pipeline - 1)
        room = 0
        if device.memory is not None:
            room = max(0, int((device.memory - held.total - runtime - work) * share))
            if limit is not None and not on_cpu:
                room = min(room, math.ceil(limit * token))
        # A GPU's runtime takes all the room that there is; the CPU's what the recipe asks for.
        taken = min(room, math.ceil(wanted * token)) if on_cpu else room
        found += [
            RankMemory(number * tensor + copy, number, held, token, work, runtime, room, taken, device.memory)
            for copy in range(tensor)
        ]
    return Fit(spec, tensor, tuple(found), cache, wanted, draft)


def _private_bytes(recipe: Recipe, spec: ModelSpec, weights: PlannedWeights) -> int:
    """What a model's weights take in OpenVINO's process on this machine."""
    return openvino.private_bytes(
        spec,
        weights.stored,
        weights.assigned,
        precision=recipe.engine.precision,
        bf16_cpu=cpu_executes_bf16(),
        avx512=cpu_has_avx512(),
    )


def fit_problems(recipe: Recipe, fit: Fit, device: Device, max_seq_len: int) -> list[PlanError]:
    """Why the memory does not do; empty when it does, or is not known."""
    if device.memory is None or fit.tokens is None:
        return []
    fullest, total, tokens = fit.fullest, human_bytes(device.memory), fit.tokens
    on_cpu = recipe.engine.flavour == "openvino"
    if not fit.sequences(max_seq_len):
        room = f"{tokens} tokens of KV cache" if tokens else "no KV cache"
        fix = "lower engine.max_seq_len, quantize further"
        if not on_cpu:
            fix += ", raise parallelism.tensor or choose a larger engine.gpu"
        return [
            PlanError(
                f"one sequence of {max_seq_len} tokens does not fit: {total} of {device.name} hold "
                f"{human_bytes(fullest.weights.total)} of weights and then {room}",
                where="engine",
                fix=fix,
            )
        ]
    if on_cpu and tokens < fit.wanted:
        return [
            PlanError(
                f"a KV cache of {fit.wanted} tokens does not fit {total} of {device.name}: {tokens} would",
                where="engine.kv_cache.max_tokens" if recipe.engine.kv_cache.max_tokens else "engine",
                fix=f"set engine.kv_cache.max_tokens to {tokens}, or lower max_batch_size or max_seq_len",
            )
        ]
    return []


def _windows(recipe: Recipe, spec: ModelSpec) -> tuple[int | None, ...]:
    """The tokens that each layer caches at most.

    vLLM lets go of what has left a sliding window, the tensorrtllm backend if it is told the windows. GenAI
    keeps it; of the LLM API it is not known, so that it is planned to.
    """
    section = recipe.deploy.tensorrt_llm
    told = section.max_attention_window_size if section is not None else None
    if recipe.engine.flavour == "tensorrt" and told:
        return tuple(islice(cycle(told), spec.num_hidden_layers))
    limited = recipe.engine.flavour == "vllm" and any(spec.sliding_windows)
    return spec.sliding_windows if limited else ()


def _kv_dtype(recipe: Recipe, spec: ModelSpec) -> str:
    """The cache's element type that the recipe's words come to."""
    if recipe.engine.flavour == "openvino":
        if recipe.engine.kv_cache.dtype != "auto":
            return recipe.engine.kv_cache.dtype
        return "f32" if recipe.engine.precision == "exact" else "u8"
    if recipe.quantization.kv_cache != "auto":
        return recipe.quantization.kv_cache
    return {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[spec.dtype]


def _activation_bytes(recipe: Recipe, spec: ModelSpec, last: bool) -> int:
    """Rough peak of a step: MLP intermediates of max_num_tokens; where the logits are, those of a batch."""
    engine, tensor = recipe.engine, recipe.parallelism.tp_size
    mlp = engine.max_num_tokens * (2 * active_width(spec) // tensor + 4 * spec.hidden_size) * 2
    return mlp + (engine.max_batch_size * spec.vocab_size * 4 if last else 0)
