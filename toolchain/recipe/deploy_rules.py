"""Rules of the `deploy` section: what only some servers know, and what parameters ask of each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from toolchain.recipe.violation import Violation

if TYPE_CHECKING:
    from toolchain.recipe.schema import Recipe
    from toolchain.recipe.triton import TensorRTLLM

_SECTION = "deploy.tensorrt_llm"


def deploy_violations(recipe: Recipe) -> Iterator[Violation]:
    """Everything under `deploy` that cannot work."""
    yield from _elsewhere(recipe)
    section = recipe.deploy.tensorrt_llm
    if section is None or recipe.engine.flavour != "tensorrt":
        return
    yield from _processes(section)
    yield from _devices(recipe, section)
    yield from _decoding(recipe, section)
    yield from _draft(recipe, section)


def _elsewhere(recipe: Recipe) -> Iterator[Violation]:
    """Fields that only some flavours' servers read."""
    deploy, flavour = recipe.deploy, recipe.engine.flavour
    for name, is_set, default, flavours in (
        ("tensorrt_llm", deploy.tensorrt_llm is not None, "null", ("tensorrt",)),
        ("engine_args", bool(deploy.engine_args), "{}", ("pytorch", "vllm")),
        ("checkpoint", deploy.checkpoint is not None, "null", ("pytorch", "vllm")),
        ("accumulate_tokens", deploy.accumulate_tokens, "false", ("openvino", "tensorrt", "pytorch")),
    ):
        if is_set and flavour not in flavours:
            yield Violation(
                f"deploy.{name}",
                ("engine.flavour",),
                f"deploy.{name} works on the flavour {' or '.join(flavours)} only",
                f"engine.flavour is {flavour}, where it would have no effect",
                f"remove it, or set it to {default}",
            )
    if flavour in ("pytorch", "vllm") and not recipe.engine.kv_cache.paged:
        yield Violation(
            "engine.kv_cache.paged",
            ("engine.flavour",),
            f"engine.kv_cache.paged false does not work on the {flavour} flavour",
            "its runtime always keeps the cache in blocks",
            "set it to true",
        )
    if flavour == "vllm" and deploy.batching == "static":
        yield Violation(
            "deploy.batching",
            ("engine.flavour",),
            "deploy.batching static does not work on the vllm flavour",
            "vLLM always lets requests join and leave the running batch",
            "set it to inflight_fused",
        )


def _processes(section: TensorRTLLM) -> Iterator[Violation]:
    orchestrator, spawned = section.mode == "orchestrator", section.spawn_processes
    if not spawned and not orchestrator:
        yield Violation(
            f"{_SECTION}.spawn_processes",
            (f"{_SECTION}.mode",),
            f"{_SECTION}.spawn_processes works in the mode orchestrator only",
            "in the mode leader mpirun starts every process",
            f"remove it, or set {_SECTION}.mode to orchestrator",
        )
    if (section.participant_ids is not None) == spawned:
        yield Violation(
            f"{_SECTION}.participant_ids",
            (f"{_SECTION}.spawn_processes",),
            f"{_SECTION}.participant_ids and spawn_processes false belong together",
            "they name the processes that the server does not spawn",
            "give both, or neither, as in participant_ids: [1, 2] and spawn_processes: false",
        )
    if section.speculative_decoding_fast_logits and (spawned or not orchestrator):
        yield Violation(
            f"{_SECTION}.speculative_decoding_fast_logits",
            (f"{_SECTION}.mode", f"{_SECTION}.spawn_processes"),
            "fast logits need the mode orchestrator without spawn_processes",
            "draft and target hand them over between processes of one MPI world",
            "set mode to orchestrator and spawn_processes to false, or remove it",
        )


def _devices(recipe: Recipe, section: TensorRTLLM) -> Iterator[Violation]:
    groups, split = section.gpu_device_ids, recipe.parallelism
    if groups is None:
        return
    path = f"{_SECTION}.gpu_device_ids"
    ranks = None if "auto" in (split.tensor, split.pipeline) else split.world_size
    if len(groups) > 1 and section.mode == "leader":
        yield Violation(
            path,
            (f"{_SECTION}.mode",),
            "several instances need the mode orchestrator",
            "in the mode leader the processes of mpirun are the ranks of one instance",
            f"set {_SECTION}.mode to orchestrator",
        )
    if ranks is not None and any(len(group) != ranks for group in groups):
        yield Violation(
            path,
            ("parallelism.tensor", "parallelism.pipeline"),
            f"each group of {path} must name {ranks} GPU{'s' if ranks > 1 else ''}",
            f"an instance has tensor x pipeline = {ranks} ranks, one on a GPU each",
            "write one list of that many GPUs for each instance",
        )
    every = [gpu for group in groups for gpu in group]
    if len(set(every)) < len(every):
        yield Violation(
            path,
            (),
            f"{path} names a GPU twice",
            "two ranks on one GPU would each take the memory for its KV cache",
            "give each rank a GPU of its own",
        )


def _decoding(recipe: Recipe, section: TensorRTLLM) -> Iterator[Violation]:
    sizes = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")
    missing = [name for name in sizes if getattr(section, name) is None]
    if section.decoding_mode == "lookahead" and missing:
        yield Violation(
            f"{_SECTION}.decoding_mode",
            tuple(f"{_SECTION}.{name}" for name in missing),
            f"lookahead decoding needs {', '.join(missing)}",
            "it has no sizes to look ahead with",
            "give all three, such as 3, 3 and 3",
        )
    built = recipe.engine.build.max_beam_width or 1
    if section.max_beam_width is not None and section.max_beam_width > built:
        yield Violation(
            f"{_SECTION}.max_beam_width",
            ("engine.build.max_beam_width",),
            f"{_SECTION}.max_beam_width exceeds that of the engine, {built}",
            "an engine searches no wider than it was built for",
            f"set it to {built} or less, or raise engine.build.max_beam_width",
        )
    for name, needs, is_there in (
        ("xgrammar_tokenizer_info_path", "guided_decoding_backend", section.guided_decoding_backend),
        ("cross_kv_cache_fraction", "encoder_model_path", section.encoder_model_path),
    ):
        if getattr(section, name) is not None and is_there is None:
            yield Violation(
                f"{_SECTION}.{name}",
                (f"{_SECTION}.{needs}",),
                f"{_SECTION}.{name} needs {needs}",
                "without it, it has no effect",
                f"remove it, or give {needs}",
            )


def _draft(recipe: Recipe, section: TensorRTLLM) -> Iterator[Violation]:
    if section.draft is None:
        return
    path = f"{_SECTION}.draft"
    if recipe.engine.build.speculative_decoding_mode != "draft_tokens_external":
        yield Violation(
            path,
            ("engine.build.speculative_decoding_mode",),
            "a draft needs an engine built for it",
            "only an engine with draft_tokens_external takes tokens that another model guessed",
            "set engine.build.speculative_decoding_mode to draft_tokens_external, and max_draft_len",
        )
    if not recipe.engine.kv_cache.reuse:
        yield Violation(
            path,
            ("engine.kv_cache.reuse",),
            "a draft needs engine.kv_cache.reuse",
            "each round would compute the whole sequence again",
            "set engine.kv_cache.reuse to true",
        )
