"""Which fields of `engine.build` cannot stand together, or not with the flavour."""

from __future__ import annotations

from collections.abc import Iterator

from toolchain.recipe.schema import Recipe
from toolchain.recipe.trtllm_build import TrtllmBuild
from toolchain.recipe.violation import Violation

_SECTION = "engine.build"


def build_violations(recipe: Recipe) -> Iterator[Violation]:
    """Everything in the section that cannot work."""
    build, flavour = recipe.engine.build, recipe.engine.flavour
    if flavour != "tensorrt":
        if build != TrtllmBuild():
            yield Violation(
                _SECTION,
                ("engine.flavour",),
                "engine.build works on the tensorrt flavour only",
                f"it says how trtllm-build compiles engines, and the {flavour} flavour has none",
                "remove it, or choose engine.flavour tensorrt",
            )
        return
    yield from _executor(build)
    yield from _attention(recipe)
    yield from _needs(build)
    yield from _excludes(build)


def _executor(build: TrtllmBuild) -> Iterator[Violation]:
    if build.image is not None and build.executor == "local":
        yield Violation(
            f"{_SECTION}.image",
            (f"{_SECTION}.executor",),
            "engine.build.image has no effect on executor local",
            "that runs the trtllm-build on PATH, in no container",
            "remove it, or set engine.build.executor to docker or podman",
        )
    if build.volume_claim is not None and build.executor != "kubernetes":
        yield Violation(
            f"{_SECTION}.volume_claim",
            (f"{_SECTION}.executor",),
            f"engine.build.volume_claim has no effect on executor {build.executor}",
            "only a Kubernetes job mounts it",
            "remove it, or set engine.build.executor to kubernetes",
        )


def _attention(recipe: Recipe) -> Iterator[Violation]:
    build, engine = recipe.engine.build, recipe.engine
    where = f"{_SECTION}.use_paged_context_fmha"
    if build.use_paged_context_fmha is False:
        for path, on in (
            ("engine.kv_cache.reuse", engine.kv_cache.reuse),
            ("engine.chunked_prefill", engine.chunked_prefill),
        ):
            if on:
                yield Violation(
                    where,
                    (path,),
                    f"{path} needs engine.build.use_paged_context_fmha",
                    "prompts then attend to blocks that were computed before",
                    f"remove it, or set {path} to false",
                )
    elif build.use_paged_context_fmha and not engine.kv_cache.paged:
        yield Violation(
            where,
            ("engine.kv_cache.paged",),
            "engine.build.use_paged_context_fmha needs a paged KV cache",
            "engine.kv_cache.paged is false",
            "remove it, or set engine.kv_cache.paged to true",
        )


def _needs(build: TrtllmBuild) -> Iterator[Violation]:
    """Flags that do nothing, or fail, without another."""
    lora = build.lora_plugin not in (None, "disable")
    speculative = build.speculative_decoding_mode is not None
    for name, is_set, other, fulfilled, example in (
        ("lora_dir", bool(build.lora_dir), "lora_plugin", lora, "auto"),
        ("lora_target_modules", bool(build.lora_target_modules), "lora_plugin", lora, "auto"),
        ("lora_ckpt_source", build.lora_ckpt_source is not None, "lora_plugin", lora, "auto"),
        ("max_lora_rank", build.max_lora_rank is not None, "lora_plugin", lora, "auto"),
        ("dora_plugin", bool(build.dora_plugin), "lora_plugin", lora, "auto"),
        (
            "max_draft_len",
            bool(build.max_draft_len),
            "speculative_decoding_mode",
            speculative,
            "draft_tokens_external",
        ),
        ("user_buffer", bool(build.user_buffer), "reduce_fusion", bool(build.reduce_fusion), "true"),
    ):
        if is_set and not fulfilled:
            yield Violation(
                f"{_SECTION}.{name}",
                (f"{_SECTION}.{other}",),
                f"engine.build.{name} needs engine.build.{other}",
                "trtllm-build reads the one only with the other",
                f"set engine.build.{other} to {example}, or remove engine.build.{name}",
            )


def _excludes(build: TrtllmBuild) -> Iterator[Violation]:
    """Pairs that trtllm-build refuses."""
    for name, is_set, other, clashes in (
        ("opt_num_tokens", build.opt_num_tokens is not None, "multiple_profiles", build.multiple_profiles),
        ("gather_context_logits", build.gather_context_logits, "max_draft_len", build.max_draft_len),
        (
            "low_latency_gemm_swiglu_plugin",
            build.low_latency_gemm_swiglu_plugin == "fp8",
            "gemm_swiglu_plugin",
            build.gemm_swiglu_plugin == "fp8",
        ),
    ):
        if is_set and clashes:
            yield Violation(
                f"{_SECTION}.{name}",
                (f"{_SECTION}.{other}",),
                f"engine.build.{name} does not go with engine.build.{other}",
                "trtllm-build takes one of them",
                "remove one of the two",
            )
