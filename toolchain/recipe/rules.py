"""Checks that span several fields and need no model: what cannot work together, whatever the weights are.

Every rule looks at values only, never at whether a value was written or is a default, so that a resolved
recipe and the one it came from are judged alike. What depends on the model, the GPU or the version of a
tool belongs to the plan.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from toolchain.recipe.build_rules import build_violations
from toolchain.recipe.deploy_rules import deploy_violations
from toolchain.recipe.quantization_rules import quantization_violations
from toolchain.recipe.schema import Recipe
from toolchain.recipe.violation import Violation


def violations(recipe: Recipe) -> Iterator[Violation]:
    """Everything in `recipe` that cannot work, in no particular order."""
    yield from quantization_violations(recipe)
    yield from build_violations(recipe)
    yield from deploy_violations(recipe)
    yield from _flavour(recipe)
    yield from _ranks(recipe)
    yield from _limits(recipe)
    yield from _cache(recipe)
    yield from _speculative(recipe)
    yield from _gates(recipe)
    yield from _texts(recipe)


def _flavour(recipe: Recipe) -> Iterator[Violation]:
    engine, flavour = recipe.engine, recipe.engine.flavour
    if flavour == "openvino":
        for axis in ("tensor", "pipeline"):
            if getattr(recipe.parallelism, axis) not in (1, "auto"):
                yield Violation(
                    f"parallelism.{axis}",
                    ("engine.flavour",),
                    f"parallelism.{axis} above 1 needs a GPU flavour",
                    "the openvino flavour runs in one process on the CPU",
                    "set it to 1, or choose engine.flavour tensorrt, pytorch or vllm",
                )
        return
    for path, is_set, default in (
        ("engine.precision", engine.precision != "fast", "fast"),
        ("engine.kv_cache.dtype", engine.kv_cache.dtype != "auto", "auto"),
        ("engine.num_threads", engine.num_threads is not None, "null"),
        ("engine.guided_decoding", engine.guided_decoding, "false"),
        ("engine.speculative", engine.speculative is not None, "null"),
    ):
        if is_set:
            yield Violation(
                path,
                ("engine.flavour",),
                f"{path} works on the openvino flavour only",
                f"engine.flavour is {flavour}, where it would have no effect",
                f"remove it, or set it to {default}",
            )


def _ranks(recipe: Recipe) -> Iterator[Violation]:
    parallelism, flavour = recipe.parallelism, recipe.engine.flavour
    for name, default in (
        ("moe_tensor", None),
        ("moe_expert", None),
        ("use_parallel_embedding", True),
        ("embedding_sharding_dim", 0),
    ):
        if flavour != "tensorrt" and getattr(parallelism, name) != default:
            yield Violation(
                f"parallelism.{name}",
                ("engine.flavour",),
                f"parallelism.{name} works on the tensorrt flavour only",
                f"engine.flavour is {flavour}, where it would have no effect",
                f"remove it, or set it to {'null' if default is None else str(default).lower()}",
            )
    given = [size for size in (parallelism.moe_tensor, parallelism.moe_expert) if size is not None]
    product, tensor = math.prod(given), parallelism.tensor
    if tensor != "auto" and ((len(given) == 2 and product != tensor) or tensor % product):
        yield Violation(
            f"parallelism.{'moe_tensor' if parallelism.moe_tensor is not None else 'moe_expert'}",
            ("parallelism.tensor", "parallelism.moe_tensor", "parallelism.moe_expert"),
            "parallelism.moe_tensor times moe_expert is not parallelism.tensor",
            "the GPUs that share the attention share the experts",
            "set one of the two to a divisor of parallelism.tensor, and the other to null",
        )


def _limits(recipe: Recipe) -> Iterator[Violation]:
    engine = recipe.engine
    if engine.max_num_tokens < engine.max_batch_size:
        yield Violation(
            "engine.max_num_tokens",
            ("engine.max_batch_size",),
            "engine.max_num_tokens is less than engine.max_batch_size",
            "each running request needs one token in every step",
            f"set it to {engine.max_batch_size} or more, or lower engine.max_batch_size",
        )
    if engine.max_seq_len is None:
        return
    if not engine.chunked_prefill and engine.max_num_tokens < engine.max_seq_len:
        yield Violation(
            "engine.max_num_tokens",
            ("engine.max_seq_len", "engine.chunked_prefill"),
            "engine.max_num_tokens is less than engine.max_seq_len, and chunked_prefill is off",
            "a prompt is then computed in one step, so the longest could never start",
            f"set it to {engine.max_seq_len} or more, or engine.chunked_prefill to true",
        )
    if engine.kv_cache.max_tokens is not None and engine.kv_cache.max_tokens < engine.max_seq_len:
        yield Violation(
            "engine.kv_cache.max_tokens",
            ("engine.max_seq_len",),
            "engine.kv_cache.max_tokens is less than engine.max_seq_len",
            "a request of full length would never fit the cache",
            f"set it to {engine.max_seq_len} or more, or lower engine.max_seq_len",
        )


def _cache(recipe: Recipe) -> Iterator[Violation]:
    engine = recipe.engine
    if engine.kv_cache.paged:
        return
    for path, on, off in (
        ("engine.kv_cache.reuse", engine.kv_cache.reuse, "false"),
        ("engine.chunked_prefill", engine.chunked_prefill, "false"),
        ("deploy.batching", recipe.deploy.batching == "inflight_fused", "static"),
    ):
        if on:
            yield Violation(
                path,
                ("engine.kv_cache.paged",),
                f"{path} needs a paged KV cache",
                "engine.kv_cache.paged is false",
                f"set {path} to {off}, or engine.kv_cache.paged to true",
            )


def _speculative(recipe: Recipe) -> Iterator[Violation]:
    speculative = recipe.engine.speculative
    if speculative is None:
        return
    drafts = speculative.method == "draft_model"
    if drafts and speculative.source is None:
        yield Violation(
            "engine.speculative.method",
            (),
            "engine.speculative.source is missing",
            "with method draft_model another model guesses",
            "name a small model of the same vocabulary, or take method prompt_lookup",
        )
    if not drafts and speculative.source is not None:
        yield Violation(
            "engine.speculative.source",
            ("engine.speculative.method",),
            "engine.speculative.source has no effect",
            "with method prompt_lookup no model guesses",
            "remove it, or take method draft_model",
        )


def _gates(recipe: Recipe) -> Iterator[Violation]:
    gate = recipe.gates.perplexity
    if gate is not None and gate.max is None and gate.max_increase is None:
        yield Violation(
            "gates.perplexity",
            ("gates.perplexity.max", "gates.perplexity.max_increase"),
            "gates.perplexity has no bound",
            "without max_increase or max every model passes",
            "add `max_increase: 3%`",
        )
    kl = recipe.gates.kl
    if kl is not None and kl.max is None and kl.max_over_floor is None and kl.min_top1 is None:
        yield Violation(
            "gates.kl",
            ("gates.kl.max", "gates.kl.max_over_floor", "gates.kl.min_top1"),
            "gates.kl has no bound",
            "without one every model passes",
            "add `max: 0.02`, `max_over_floor: 20` or `min_top1: 97%`",
        )
    calibration = recipe.quantization.calibration
    for name, text in (("perplexity", gate), ("kl", recipe.gates.kl)):
        if text is None:
            continue
        path = f"gates.{name}"
        if calibration is not None and calibration.same_source(text):
            yield Violation(
                f"{path}.dataset",
                ("quantization.calibration.dataset",),
                f"{path}.dataset is the calibration text",
                "a model measured on the text it was fitted to looks better than it is",
                "name a held-out text",
            )
        if text.stride is not None and text.window is not None and text.stride > text.window:
            yield Violation(
                f"{path}.stride",
                (f"{path}.window",),
                f"{path}.stride is longer than the window",
                "text between the windows would be skipped",
                f"set {path}.stride to {text.window} or less",
            )


def _texts(recipe: Recipe) -> Iterator[Violation]:
    for path, text in (
        ("quantization.calibration", recipe.quantization.calibration),
        ("gates.perplexity", recipe.gates.perplexity),
        ("gates.kl", recipe.gates.kl),
    ):
        if text is None or text.file is None:
            continue
        for name, is_set, default in (
            ("subset", text.subset is not None, "null"),
            ("split", text.split is not None, "null"),
            ("revision", text.revision != "main", "main"),
        ):
            if is_set:
                yield Violation(
                    f"{path}.{name}",
                    (f"{path}.dataset",),
                    f"{path}.{name} works with data sets of the Hub only",
                    f"{path}.dataset is a local file, where it would have no effect",
                    f"remove it, or set it to {default}",
                )
