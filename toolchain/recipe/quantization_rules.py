"""Which fields of `quantization` cannot stand together, or not with the flavour."""

from __future__ import annotations

from collections.abc import Iterator

from toolchain.recipe.quantization import CALIBRATED_METHODS, READ_BY, VLLM_MODELOPT_METHODS, Quantization
from toolchain.recipe.schema import Recipe
from toolchain.recipe.violation import Violation


def quantization_violations(recipe: Recipe) -> Iterator[Violation]:
    """Everything in the section that cannot work."""
    quantization, flavour = recipe.quantization, recipe.engine.flavour
    yield from _calibration(quantization)
    yield from _unread(quantization)
    yield from _search(recipe)
    yield from _form(quantization, flavour)
    yield from _openvino(quantization) if flavour == "openvino" else _gpu(quantization, flavour)


def _calibration(quantization: Quantization) -> Iterator[Violation]:
    if quantization.calibration is not None:
        return
    add = "add `calibration: {dataset: file:TEXT}` to `quantization`"
    others = ("quantization.calibration",)
    if quantization.method in CALIBRATED_METHODS | {"mixed"}:
        yield Violation(
            "quantization.method",
            others,
            f"quantization.method {quantization.method} needs quantization.calibration",
            "its scales are chosen from the activations that real text causes",
            f"{add}, or choose int8_wo or int4_wo, which need none",
        )
    looking = [o.method for o in quantization.overrides if o.method in CALIBRATED_METHODS]
    if looking:
        yield Violation(
            "quantization.overrides",
            others,
            f"the method {looking[0]} of an override needs quantization.calibration",
            "its scales are chosen from the activations that real text causes",
            f"{add}, or choose int8_wo or int4_wo, which need none",
        )
    if quantization.kv_cache == "int8":
        yield Violation(
            "quantization.kv_cache",
            others,
            "quantization.kv_cache int8 needs quantization.calibration",
            "its scales are chosen from the keys and values that real text causes",
            f"{add}, or choose fp8, which works with a scale of 1",
        )


def _unread(quantization: Quantization) -> Iterator[Violation]:
    """Fields that say something which no method of the recipe hears."""
    methods = quantization.methods
    # As with the calibration of an imported recipe, nothing is then read; or auto may choose what reads it.
    if not methods or quantization.method == "auto":
        return
    for name, readers in READ_BY.items():
        default = Quantization.model_fields[name].default
        if getattr(quantization, name) != default and not methods & readers:
            shown = {None: "null", True: "true"}.get(default, default)
            yield Violation(
                f"quantization.{name}",
                ("quantization.method",),
                f"quantization.{name} has no effect on {' or '.join(sorted(methods))}",
                f"it is read by {', '.join(sorted(readers))}",
                f"remove it, or set it to {shown}",
            )
    for override in quantization.overrides:
        if override.group_size is not None and override.method not in READ_BY["group_size"]:
            yield Violation(
                "quantization.overrides",
                (),
                f"the group_size of the override {override.modules} has no effect on {override.method}",
                f"it is read by {', '.join(sorted(READ_BY['group_size']))}",
                "remove it",
            )


def _search(recipe: Recipe) -> Iterator[Violation]:
    quantization, search = recipe.quantization, recipe.quantization.search
    if search is None:
        if quantization.method == "mixed":
            yield Violation(
                "quantization.method",
                ("quantization.search",),
                "quantization.method mixed needs quantization.search",
                "the search chooses the method of each group of linears",
                "add `search: {candidates: [awq_gptq, none], max_bits: 5}` to `quantization`",
            )
        return
    if quantization.method != "mixed":
        yield Violation(
            "quantization.search",
            ("quantization.method",),
            "quantization.search needs method mixed",
            f"method {quantization.method} says already how linears are quantized",
            "set quantization.method to mixed, or remove the search",
        )
    if len(set(search.candidates)) < len(search.candidates):
        yield Violation(
            "quantization.search.candidates",
            (),
            "quantization.search.candidates names a method twice",
            "each is a choice of its own",
            "name each once",
        )
    budgets = [name for name in ("max_bits", "max_size", "max_kl") if getattr(search, name) is not None]
    if len(budgets) != 1:
        yield Violation(
            "quantization.search",
            tuple(f"quantization.search.{name}" for name in budgets),
            f"quantization.search has {'no budget' if not budgets else 'several budgets'}",
            "it meets one: bits, size or divergence",
            "give exactly one of max_bits, max_size and max_kl",
        )
    fixed = [own for own in quantization.overrides if own.method != "none"]
    if search.max_size is not None and fixed:
        yield Violation(
            "quantization.search.max_size",
            ("quantization.overrides",),
            "quantization.search.max_size does not go with overrides that quantize",
            f"what {fixed[0].modules} takes is known only when it is quantized",
            "use max_bits, which counts the searched linears alone, or let overrides say none",
        )
    if search.max_kl is not None and recipe.gates.kl is None:
        yield Violation(
            "quantization.search.max_kl",
            ("gates.kl",),
            "quantization.search.max_kl needs gates.kl",
            "the divergence is measured on that gate's text",
            f"add `kl: {{dataset: file:HELD_OUT_TEXT, max: {search.max_kl}}}` to `gates`",
        )


def _form(quantization: Quantization, flavour: str) -> Iterator[Violation]:
    form = quantization.file_form(flavour)
    if not quantization.symmetric and quantization.format == "modelopt":
        yield Violation(
            "quantization.format",
            ("quantization.symmetric",),
            "quantization.format modelopt cannot hold an asymmetric model",
            "it has no place for zero points",
            "set it to auto, gptq, awq or compressed-tensors, or quantization.symmetric to true",
        )
    unread = sorted(quantization.methods - VLLM_MODELOPT_METHODS)
    if flavour == "vllm" and form == "modelopt" and unread:
        yield Violation(
            "quantization.format",
            ("engine.flavour",),
            f"quantization.format modelopt does not work on the vllm flavour with {unread[0]}",
            f"of ModelOpt's form vLLM reads {', '.join(sorted(VLLM_MODELOPT_METHODS))} alone",
            "set it to auto",
        )
    if flavour not in ("tensorrt", "pytorch"):
        return
    if not quantization.symmetric:
        yield Violation(
            "quantization.symmetric",
            ("engine.flavour",),
            f"quantization.symmetric false does not work on the {flavour} flavour",
            "TensorRT-LLM's 4-bit kernels for AWQ checkpoints have no zero points",
            "set it to true, or choose engine.flavour vllm or openvino",
        )
    elif form != "modelopt" and quantization.methods:
        yield Violation(
            "quantization.format",
            ("engine.flavour",),
            f"quantization.format {form} does not work on the {flavour} flavour",
            "TensorRT-LLM reads ModelOpt's form alone",
            "set it to auto, or choose engine.flavour vllm or openvino",
        )


def _openvino(quantization: Quantization) -> Iterator[Violation]:
    if quantization.kv_cache != "auto":
        yield Violation(
            "quantization.kv_cache",
            ("engine.flavour",),
            f"quantization.kv_cache {quantization.kv_cache} needs a GPU flavour",
            "OpenVINO quantizes its own cache, to u8",
            "set it to auto, and engine.kv_cache.dtype to u8",
        )


def _gpu(quantization: Quantization, flavour: str) -> Iterator[Violation]:
    small = "the 4-bit kernels of the GPU flavours have groups of 64 or 128"
    if quantization.group_size == 32 and quantization.methods & READ_BY["group_size"]:
        yield Violation(
            "quantization.group_size",
            ("engine.flavour", "quantization.method"),
            "quantization.group_size 32 works on the openvino flavour only",
            small,
            "set it to 64 or 128",
        )
    for override in quantization.overrides:
        if override.group_size == 32:
            yield Violation(
                "quantization.overrides",
                ("engine.flavour",),
                f"the group_size 32 of the override {override.modules} works on the openvino flavour only",
                small,
                "set it to 64 or 128",
            )
