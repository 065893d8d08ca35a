"""`make_plan`: what a recipe will need and whether it can work, from facts alone, before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from toolchain.errors import PlanError, combined
from toolchain.plan import auto, compat, kernels, memory, openvino
from toolchain.plan.auto import Choice
from toolchain.plan.build_flags import asked_flags, flag_problems
from toolchain.plan.device import Device, find_device, host_memory
from toolchain.plan.effort import Measured, StageNeed, stage_needs
from toolchain.plan.facts import ModelFacts, model_facts
from toolchain.plan.fit import Fit, find_fit, fit_problems
from toolchain.plan.notes import gpu_notes
from toolchain.plan.ranks import token_bytes
from toolchain.plan.releases import default_version
from toolchain.plan.serving import serving_problems
from toolchain.plan.stored import PlannedWeights, planned_weights
from toolchain.recipe.rules import violations

if TYPE_CHECKING:
    from toolchain.model.spec import ModelSpec
    from toolchain.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """The figures of a plan.

    Args:
        resolved: the recipe with every `auto` that the plan decides filled in: what `build` builds.
        weights: the weights, whatever they are split over.
        fit: the memory of every rank.
        device: what each rank runs on.
        problems: why the recipe cannot work; empty when it can.
        notes: what a careful engineer would say before spending the time.
        stages: what each stage of the build takes on this machine.
        choices: the ways to fill in `auto`, the best, which is in `resolved`, first; empty without `auto`.
    """

    resolved: Recipe
    facts: ModelFacts
    weights: PlannedWeights
    fit: Fit
    device: Device
    problems: list[PlanError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    stages: list[StageNeed] = field(default_factory=list)

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.facts.spec

    @property
    def parameters(self) -> int:
        """Of the model."""
        return memory.parameter_count(self.spec)

    @property
    def max_seq_len(self) -> int:
        """The longest sequence, the model's context where the recipe does not say."""
        return self.resolved.engine.max_seq_len or self.spec.max_position_embeddings

    @property
    def token_bytes(self) -> float:
        """KV cache of one token in all layers, with no head copied."""
        return token_bytes(self.spec, self.fit.cache)

    def sequence_counts(self) -> dict[int, int | None]:
        """How many sequences of which length fit at the same time: full length, a quarter, a sixteenth."""
        lengths = sorted({max(1, self.max_seq_len // part) for part in (1, 4, 16)}, reverse=True)
        return {length: self.fit.sequences(length) for length in lengths}

    def to_json(self) -> dict[str, Any]:
        """The plan as a JSON object; the model as its few deciding numbers, bytes as numbers."""
        spec, fit, recipe = self.spec, self.fit, self.resolved
        return {
            "recipe": recipe.name,
            "flavour": recipe.engine.flavour,
            "method": recipe.quantization.method,
            "parallelism": {
                "tensor": recipe.parallelism.tp_size,
                "pipeline": recipe.parallelism.pp_size,
                "ranks": len(fit.ranks),
            },
            "model": {
                "architecture": spec.architecture,
                "origin": self.facts.origin,
                "parameters": self.parameters,
                "layers": spec.num_hidden_layers,
                "heads": spec.num_attention_heads,
                "kv_heads": spec.num_key_value_heads,
                "head_dim": spec.head_dim,
                "max_position_embeddings": spec.max_position_embeddings,
            },
            "source_bytes": self.weights.source.total,
            "stored_bytes": self.weights.stored.total,
            "methods": {
                name: vars(found) | {"bits": round(found.bits, 3)}
                for name, found in self.weights.by_method.items()
            },
            "kv_cache": {
                "dtype": fit.cache.dtype,
                "bytes_per_token": self.token_bytes,
                "bytes_per_token_of_rank": fit.token_bytes,
                "tokens_wanted": fit.wanted,
                "tokens_fit": fit.tokens,
                "sequences_fit": {str(length): count for length, count in self.sequence_counts().items()},
            },
            "device": vars(self.device),
            "ranks": [
                {
                    "rank": rank.rank,
                    "stage": rank.stage,
                    "layers": [rank.weights.begin, rank.weights.end],
                    "weights": rank.weights.total,
                    "embedding": rank.weights.embedding,
                    "head": rank.weights.head,
                    "kv_bytes_per_token": rank.token,
                    "activations": rank.activations,
                    "runtime": rank.runtime,
                    "kv_cache": rank.cache,
                    "unused": rank.unused,
                }
                for rank in fit.ranks
            ],
            "stages": [stage.to_json() for stage in self.stages],
            "choices": [vars(choice) for choice in self.choices],
            "problems": [problem.to_json() for problem in self.problems],
            "notes": self.notes,
        }

    def check(self) -> None:
        """Raise one error that tells of all problems, if there are any."""
        if self.problems:
            raise combined(self.problems)


def make_plan(recipe: Recipe, measured: Sequence[Measured] = ()) -> Plan:
    """Plan `recipe`: memory by rank, KV cache, what fits, what cannot work; `auto` is decided first.

    Reads the model's config.json (or the table of published models) and this machine's memory size.

    Args:
        recipe: what to plan.
        measured: what earlier builds took on this machine, for the stages' times.

    Raises:
        ModelError, ToolchainError: the model's config cannot be had.
    """
    facts = model_facts(recipe.model.source, recipe.model.revision)
    guess = recipe.engine.speculative
    if guess is not None and guess.source is not None:
        facts = replace(facts, draft=model_facts(guess.source, guess.revision).spec)
    device, problems = find_device(recipe.engine)
    choices: list[Choice] = []
    if auto.is_open(recipe):
        if not device.known and not problems:
            problems.append(
                PlanError(
                    "auto needs to know the GPU",
                    where="engine.gpu",
                    why="what fits it, and what it has kernels for, decides",
                    fix="name it as engine.gpu",
                )
            )
        ranked = auto.rank_choices(recipe, facts.spec, device, lambda filled: _judge(filled, facts, device))
        choices, recipe = [choice for choice, _ in ranked], ranked[0][1]
    made = _plan(recipe, facts, device)
    made.problems[:0] = problems
    made.choices.extend(choices)
    made.stages.extend(stage_needs(recipe, facts.spec, made.weights, made.fit, measured))
    made.notes.extend(_too_large_here(made.stages))
    if not choices and not made.problems:
        made.notes.extend(_unsharded(recipe, facts, device))
    return made


def _too_large_here(stages: Sequence[StageNeed]) -> list[str]:
    """The stages that want more memory than this machine has: it need not be the one that builds."""
    here = host_memory()
    return [
        f"the stage {need.stage} needs {memory.human_bytes(need.host)} of host memory; this machine has "
        f"{memory.human_bytes(here)}"
        for need in stages
        if need.host > here
    ]


def _unsharded(recipe: Recipe, facts: ModelFacts, device: Device) -> list[str]:
    """What to know of a sharded recipe whose model one GPU holds, with room for enough requests."""
    ranks = recipe.parallelism.world_size
    if ranks == 1 or not device.known:
        return []
    unsharded = auto.fill_in(recipe, recipe.quantization.method, 1, 1)
    if next(violations(unsharded), None) is not None:  # other fields are about the split
        return []
    alone = _plan(unsharded, facts, device)
    if alone.problems or not auto.has_room(alone.fit, alone.resolved, facts.spec):
        return []
    beside = alone.fit.sequences(alone.max_seq_len)
    return [
        f"the model fits one {device.name}, with {beside} full-length sequences beside it: {ranks} copies on "
        f"a GPU each serve more requests than one copy on {ranks}, which answers each sooner"
    ]


def _judge(recipe: Recipe, facts: ModelFacts, device: Device) -> tuple[Fit, list[PlanError]]:
    made = _plan(recipe, facts, device)
    return made.fit, made.problems


def _plan(recipe: Recipe, facts: ModelFacts, device: Device) -> Plan:
    """The plan of a recipe without `auto`."""
    spec, engine, quant = facts.spec, recipe.engine, recipe.quantization
    on_cpu = engine.flavour == "openvino"
    problems = compat.flavour_problems(spec, engine.flavour)
    problems += kernels.version_problems(engine.flavour, engine.version)
    problems += serving_problems(recipe)
    if engine.flavour == "tensorrt":
        asked = asked_flags(engine.build.model_dump())
        version = engine.version or default_version("tensorrt")
        problems += flag_problems(asked, version, gpu=engine.gpu, architecture=spec.architecture)
    weights = planned_weights(spec, quant, engine.flavour)
    problems += weights.problems
    problems += compat.parallel_problems(spec, weights, engine.flavour, recipe.parallelism)
    problems += _recipe_problems(recipe, spec)
    problems += kernels.kernel_problems(quant, engine.flavour, None if on_cpu else engine.gpu)
    if facts.draft is not None:
        problems += compat.draft_problems(facts.draft, spec, recipe.engine.max_seq_len)
    fit = find_fit(recipe, spec, weights, device, facts.draft)
    max_seq_len = engine.max_seq_len or spec.max_position_embeddings
    problems += fit_problems(recipe, fit, device, max_seq_len)
    said = openvino.notes(weights.assigned) if on_cpu else gpu_notes(recipe, spec, fit, device)
    return Plan(recipe, facts, weights, fit, device, problems, [*weights.notes, *said])


def _recipe_problems(recipe: Recipe, spec: ModelSpec) -> list[PlanError]:
    """What of the recipe the model itself contradicts, and what the GPUs that there are."""
    problems = []
    if recipe.model.dtype not in ("auto", spec.dtype):
        problems.append(
            PlanError(
                f"the model is stored in {spec.dtype}, not in {recipe.model.dtype}",
                where="model.dtype",
                why="weights are taken as they are stored",
                fix="set it to auto, or convert the model first",
            )
        )
    max_seq_len = recipe.engine.max_seq_len or spec.max_position_embeddings
    if max_seq_len > spec.max_position_embeddings:
        problems.append(
            PlanError(
                f"max_seq_len {max_seq_len} exceeds the model's {spec.max_position_embeddings} positions",
                where="engine.max_seq_len",
                fix=f"use {spec.max_position_embeddings} or less",
            )
        )
    gpus, ranks = recipe.parallelism.gpus, recipe.parallelism.world_size
    if gpus is not None and ranks > gpus:
        problems.append(
            PlanError(
                f"{ranks} ranks do not fit {gpus} GPU{'s' if gpus > 1 else ''}",
                where="parallelism.gpus",
                why="each rank of tensor x pipeline has a GPU to itself",
                fix="lower parallelism.tensor or pipeline, set them to auto, or use more GPUs",
            )
        )
    return problems
