"""A composed tree to a `Recipe`, or to everything that is wrong with it."""

from __future__ import annotations

import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from toolchain.errors import LlmbuildError
from toolchain.recipe.document import KeyPath, Leaf, Table, Tree, find, leaves, locate, plain
from toolchain.recipe.fields import Fragment, all_paths, as_yaml, expectation, fragment_at, nearest
from toolchain.recipe.marks import Mark, problem, quoted, shown
from toolchain.recipe.rules import violations
from toolchain.recipe.scalars import ambiguity, resolve
from toolchain.recipe.schema import Recipe
from toolchain.recipe.section import DATASET_FORM, PERCENT_FORM, SLUG_FORM, SOURCE_FORM

Found = tuple[Mark, LlmbuildError]

# What TensorRT-LLM, ModelOpt and vLLM call a thing that has another name or place here.
_ELSEWHERE = {
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
    "max_model_len": "engine.max_seq_len",
    "max_num_batched_tokens": "engine.max_num_tokens",
    "max_num_seqs": "engine.max_batch_size",
    "max_tokens_in_paged_kv_cache": "engine.kv_cache.max_tokens",
    "pipeline_parallel": "parallelism.pipeline",
    "pipeline_parallel_size": "parallelism.pipeline",
    "pp_size": "parallelism.pipeline",
    "qformat": "quantization.method",
    "tensor_parallel": "parallelism.tensor",
    "tensor_parallel_size": "parallelism.tensor",
    "tp_size": "parallelism.tensor",
}
_OTHER_WORDS = {
    "bf16": "bfloat16",
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


def diagnose(tree: Table, *, complete: bool) -> tuple[Recipe | None, list[LlmbuildError]]:
    """Validate a tree. Either a recipe and no problems, or problems in the order of the file.

    Args:
        tree: the composed recipe.
        complete: False when parts of it could not be read; what is absent is then no problem.
    """
    found: list[Found] = []
    bad: set[KeyPath] = set()
    recipe, errors = _validate(plain(tree))
    unknown = {error["loc"] for error in errors if error["type"] == "extra_forbidden"}
    for path, leaf in leaves(tree):
        if leaf.reported:
            bad.add(path)
        elif leaf.raw is not None and not any(path[:n] in unknown for n in range(1, len(path) + 1)):
            other = ambiguity(leaf.raw)
            # No choice of any field is ambiguous, so there the choices are what needs to be said.
            if other is not None and "enum" not in (fragment_at(path) or {}):
                bad.add(path)
                found.append(_unclear(path, leaf, *other))
    for error in errors:
        if error["loc"] not in bad and (complete or error["type"] != "missing"):
            found.append(_explain(tree, error))
    bad |= {error["loc"] for error in errors}
    if complete:
        found += _broken_rules(tree, recipe if not bad else _valid_part(plain(tree), bad), bad)
    found.sort(key=lambda item: (item[0].line == 0, item[0].origin != tree.mark.origin, item[0].origin,
                                 item[0].line, item[0].column))  # fmt: skip
    return recipe, [error for _, error in found]


def _validate(data: Any) -> tuple[Recipe | None, list[ErrorDetails]]:
    try:
        return Recipe.model_validate(data), []
    except ValidationError as error:
        return None, error.errors(include_url=False, include_context=False)


def _valid_part(data: Any, bad: set[KeyPath]) -> Recipe | None:
    """A recipe of what is valid in `data`, with defaults for the rest, so that rules can judge that much."""
    for _ in range(8):  # removing a value can make its section incomplete, and so on upwards
        for path in bad:
            _remove(data, path)
        data = {"schema": 1, "name": "unnamed", "model": {}} | data
        data["model"] = {"source": "/"} | data["model"]
        recipe, errors = _validate(data)
        if recipe is not None:
            return recipe
        bad = {error["loc"][:-1] if error["type"] == "missing" else error["loc"] for error in errors}
    return None


def _remove(data: Any, path: KeyPath) -> None:
    for step in path[:-1]:
        if isinstance(step, int):  # an element of a list: the list goes
            break
        if not isinstance(data, dict) or not isinstance(data.get(step), dict):
            if isinstance(data, dict):
                data.pop(step, None)
            return
        data = data[step]
    else:
        if path and isinstance(data, dict):
            data.pop(path[-1], None)


def _broken_rules(tree: Table, recipe: Recipe | None, bad: set[KeyPath]) -> list[Found]:
    if recipe is None:
        return []
    wrong = {".".join(map(str, path)) for path in bad}
    found = []
    for rule in violations(recipe):
        if any(f"{field}.".startswith(f"{path}.") or f"{path}.".startswith(f"{field}.")
               for path in wrong for field in (rule.path, *rule.others)):  # fmt: skip
            continue
        # A default at fault has no place of its own: point to what it clashes with.
        paths = [tuple(field.split(".")) for field in (rule.path, *rule.others)]
        written = next((path for path in paths if find(tree, path) is not None), paths[0])
        mark = locate(tree, written)
        found.append((mark, problem(rule.what, mark, why=rule.why, fix=rule.fix)))
    return found


def _name(path: KeyPath) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    return text if text.isprintable() else ascii(text)[1:-1]


def _unclear(path: KeyPath, leaf: Leaf, why: str, meant: str) -> Found:
    fragment = fragment_at(path) or {}
    as_text = f'"{leaf.raw}"'
    if fragment.get("type") == "string":
        fix = f"put quotes around it: {as_text}"
    elif fragment.get("type") in ("boolean", "integer", "number"):
        fix = f"write {meant}"
    elif meant == as_text:
        fix = f"write {meant} for the text"
    else:
        fix = f"write {meant}, or {as_text} for the text"
    return leaf.mark, problem(f"{_name(path)}: `{leaf.raw}` is ambiguous", leaf.mark, why=why, fix=fix)


def _explain(tree: Table, error: ErrorDetails) -> Found:
    """What pydantic found, in our words and at its place."""
    path: KeyPath = error["loc"]
    if error["type"] == "extra_forbidden":
        return _unknown_key(tree, path)
    fragment = fragment_at(path)
    if error["type"] == "missing":
        assert fragment is not None
        mark = locate(tree, path)
        where = f" under `{_name(path[:-1])}:`" if path[:-1] else ""
        entry = f"{path[-1]}: {{...}}" if "properties" in fragment else f"{path[-1]}: ..."
        why = str(fragment.get("description", "")).split(". ")[0].rstrip(".")
        return mark, problem(f"{_name(path)} is missing", mark, why=why, fix=f"add `{entry}`{where}")
    mark = locate(tree, path)
    value = error["input"]
    if fragment is None:  # no field is nested here, so pydantic looked no deeper: cannot be
        raise AssertionError(error)
    return mark, problem(
        f"{_name(path)} must be {expectation(fragment)}",
        mark,
        why=f"it is {shown(value)}",
        fix=_mend(path, fragment, value, find(tree, path)),
    )


def _unknown_key(tree: Table, path: KeyPath) -> Found:
    mark = locate(tree, path, key=True)
    key, section = str(path[-1]), path[:-1]
    names = list((fragment_at(section) or {}).get("properties", {}))
    place = f"section {_name(section)}" if section else "a recipe"
    elsewhere = _ELSEWHERE.get(key) or next(
        (field for field in all_paths() if field.rpartition(".")[2] == key), None
    )
    near = nearest(key, names)
    if elsewhere is not None:
        why, fix = f"{place} has no such field", f"write it as {elsewhere}"
    elif near is not None:
        why, fix = f"{place} has no such field; the nearest name is {near}", f"write `{near}`"
    else:
        why, fix = f"{place} has the fields {', '.join(names)}", "remove it, or use one of these"
    return mark, problem(f"unknown key {quoted(_name(path))}", mark, why=why, fix=fix)


def _mend(path: KeyPath, fragment: Fragment, value: object, tree: Tree | None) -> str:
    """The edit that most likely makes `value` acceptable."""
    if "properties" in fragment:
        return f"remove `{path[-1]}:`, or indent its fields below it" if path else "begin with `schema: 1`"
    if value is None:
        default = fragment.get("default")
        return "write a value" if default is None else f"write {as_yaml(default)}, the default"
    if "enum" in fragment:
        return _choice(fragment["enum"], value)
    raw = tree.raw if isinstance(tree, Leaf) else None
    if fragment["type"] == "boolean":
        return "write true or false"
    mended = {"integer": _mend_number, "number": _mend_number, "string": _mend_text}.get(fragment["type"])
    if mended is not None:
        return mended(fragment, value, raw) or _see(path)
    if fragment["type"] == "array" and isinstance(value, str | int | float):
        return f"write [{raw if raw is not None else value}]"
    return _see(path)


def _see(path: KeyPath) -> str:
    return f"see `llmbuild explain {_name(tuple(step for step in path if isinstance(step, str)))}`"


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
        if form == SOURCE_FORM and value.count("/") > 1 and value.isprintable():
            return f"for a directory, write ./{value}"
        return None
    if raw is None:
        return None
    return f"write {raw}%" if form == PERCENT_FORM else f'put quotes around it: "{raw}"'


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
