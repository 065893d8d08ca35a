"""The edit that most likely mends a value, and the words of neighbouring tools for what we call otherwise."""

from __future__ import annotations

import re
from typing import Any

from toolchain.data import load_table
from toolchain.recipe.document import KeyPath, Leaf, Tree
from toolchain.recipe.fields import Fragment, as_yaml, nearest
from toolchain.recipe.scalars import resolve
from toolchain.recipe.section import DATASET_FORM, PATH_FORM, PERCENT_FORM, SIZE_FORM, SLUG_FORM, SOURCE_FORM

# What TensorRT-LLM, ModelOpt and vLLM call a thing that has another name or place here.
OTHER_PLACES = {
    "batch_scheduler_policy": "deploy.scheduler",
    "capacity_scheduler_policy": "deploy.scheduler",
    "enable_block_reuse": "engine.kv_cache.reuse",
    "enable_chunked_context": "engine.chunked_prefill",
    "enable_chunked_prefill": "engine.chunked_prefill",
    "enable_kv_cache_reuse": "engine.kv_cache.reuse",
    "free_gpu_memory_fraction": "engine.kv_cache.free_gpu_mem_fraction",
    "gpu_memory_utilization": "engine.kv_cache.free_gpu_mem_fraction",
    "kv_cache_dtype": "quantization.kv_cache",
    "kv_cache_free_gpu_mem_fraction": "engine.kv_cache.free_gpu_mem_fraction",
    "kv_cache_type": "engine.kv_cache.paged",
    "max_decoder_seq_len": "engine.max_seq_len",
    "max_model_len": "engine.max_seq_len",
    "max_num_batched_tokens": "engine.max_num_tokens",
    "max_num_seqs": "engine.max_batch_size",
    "max_output_len": "engine.max_seq_len",
    "max_tokens_in_paged_kv_cache": "engine.kv_cache.max_tokens",
    "paged_kv_cache": "engine.kv_cache.paged",
    "pipeline_parallel": "parallelism.pipeline",
    "pipeline_parallel_size": "parallelism.pipeline",
    "pp_size": "parallelism.pipeline",
    "qformat": "quantization.method",
    "tensor_parallel": "parallelism.tensor",
    "tensor_parallel_size": "parallelism.tensor",
    "tp_size": "parallelism.tensor",
    "use_inflight_batching": "deploy.batching",
    "world_size": "parallelism.tensor",
}
# And what they call a choice.
_OTHER_WORDS = {
    "bf16": "bfloat16",
    "float8": "fp8",
    "fp16": "float16",
    "fp32": "float32",
    "full_prec": "none",
    "half": "float16",
    "inflight_batching": "inflight_fused",
    "inflight_fused_batching": "inflight_fused",
    "int4_awq": "awq",
    "int4_gptq": "gptq",
    "smoothquant": "int8_sq",
    "tensorrt_llm": "tensorrt",
    "trt": "tensorrt",
    "w4a16_awq": "awq",
}


# Flags of trtllm-build that older guides show and the versions that we build with no longer have.
_GONE = (
    "auto_parallel",
    "builder_opt",
    "cluster_key",
    "enable_xqa",
    "gpus_per_node",
    "use_custom_all_reduce",
)


def unset_flag(name: str) -> str | None:
    """Why `engine.build` has no field for a flag of trtllm-build; None for what is, or was, no flag."""
    if name in _GONE:
        return "trtllm-build no longer has this flag"
    facts = load_table("build_flags").get(name, {})
    if "unused" in facts:
        return f"trtllm-build has this flag, but {facts['unused']}"
    return "llmbuild sets this flag itself" if facts.get("set_by") == "llmbuild" else None


def path_name(path: KeyPath) -> str:
    """`engine.kv_cache`, `quantization.exclude[0]`; unprintable keys escaped."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    return text if text.isprintable() else ascii(text)[1:-1]


def mend(path: KeyPath, fragment: Fragment, value: object, tree: Tree | None) -> str:
    """The edit that most likely makes `value` acceptable."""
    if "properties" in fragment and path and isinstance(path[-1], int):
        return "write a mapping: {" + ", ".join(f"{name}: ..." for name in fragment["required"]) + "}"
    if "properties" in fragment:
        return f"remove `{path[-1]}:`, or indent its fields below it" if path else "begin with `schema: 1`"
    if value is None:
        default = fragment.get("default")
        return "write a value" if default is None else f"write {as_yaml(default)}, the default"
    if "enum" in fragment:
        return _choice(fragment["enum"], value)
    if isinstance(value, str) and value.lower() in fragment.get("words", ()):
        return f"write {value.lower()}"
    raw = tree.raw if isinstance(tree, Leaf) else None
    if fragment["type"] == "boolean":
        known = {"enable": "true", "disable": "false"}.get(value) if isinstance(value, str) else None
        return f"write {known or 'true or false'}"
    mended = {"integer": _mend_number, "number": _mend_number, "string": _mend_text}.get(fragment["type"])
    if mended is not None:
        return mended(fragment, value, raw) or _see(path)
    if fragment["type"] == "array" and isinstance(value, str | int | float):
        one = str(value) if raw is None else raw
        return f"write [{one}]" if one.isprintable() else _see(path)
    return _see(path)


def _see(path: KeyPath) -> str:
    return f"see `llmbuild explain {path_name(tuple(step for step in path if isinstance(step, str)))}`"


def _mend_number(fragment: Fragment, value: object, raw: str | None) -> str | None:
    if isinstance(value, str):
        if fragment["type"] == "number" and re.fullmatch(r"[0-9]{1,6}%", value):
            return f"write {int(value[:-1]) / 100:g}"
        number = resolve(value)
        return f"remove the quotes: {value}" if raw is None and type(number) in (int, float) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    low, high = fragment.get("minimum"), fragment.get("maximum")
    if low is not None and value < low:
        return f"write {low} or more"
    if high is not None and value > high:
        return f"write {high} or less"
    if fragment["type"] == "integer" and isinstance(value, float) and value.is_integer():
        return f"write {int(value)}"
    return None


def _mend_text(fragment: Fragment, value: object, raw: str | None) -> str | None:
    form = fragment.get("patternErrorMessage", "")
    if isinstance(value, str):
        slug = re.sub(r"[^a-z0-9._-]+", "-", value.lower()).strip("._-")[:63]
        if form == SLUG_FORM:
            return f"write {slug}" if slug else None
        if form == DATASET_FORM and ":" not in value:
            return f"write file:{value}" if value.isprintable() and value else None
        if form == SIZE_FORM and (number := re.match(r"[0-9]{1,9}(\.[0-9]{1,3})?", value)):
            prefix = re.match(r" *([kmgt]i?)?", value[number.end() :].lower())
            unit = (prefix and prefix[1]) or "gi"
            return f"write {number[0]}{unit[0].upper()}{unit[1:]}B"
        if form == SOURCE_FORM and value.count("/") > 1 and value.isprintable():
            return f"for a directory, write ./{value}"
        if form == PATH_FORM and value and value.isprintable():
            return f"write ./{value}"
        return None
    if raw is None:
        return None
    unit = {PERCENT_FORM: "%", SIZE_FORM: "GiB"}.get(form)
    return f"write {raw}{unit}" if unit else f'put quotes around it: "{raw}"'


def _choice(choices: list[Any], value: object) -> str:
    if isinstance(value, str):
        text = value.lower().replace("-", "_")
        for certain in (text, _OTHER_WORDS.get(text)):
            if certain in choices:
                return f"write {certain}"
        near = nearest(value, [str(choice) for choice in choices])
        if near is not None:
            return f"did you mean {near}?"
    return "write one of these"
