"""`explain_field`, and that the schema explains itself everywhere."""

from __future__ import annotations

import pytest

from toolchain.errors import UsageError
from toolchain.recipe import explain_field
from toolchain.recipe.fields import all_paths, expectation, fragment_at, nearest


@pytest.mark.parametrize(
    ("path", "type_", "default"),
    [
        ("engine.max_batch_size", "a whole number from 1 to 65536", "64"),
        ("engine.max_seq_len", "a whole number from 1 to 16777216, or null", "null"),
        ("engine.kv_cache.free_gpu_mem_fraction", "a number above 0 and at most 1", "0.9"),
        ("engine.flavour", "one of openvino, tensorrt, pytorch, vllm", "openvino"),
        ("deploy.streaming", "true or false", "true"),
        ("quantization.exclude", "a list of texts", "[lm_head]"),
        ("gates.perplexity.max_increase", "a percentage such as 3% or 0.5%, or null", "null"),
        ("gates.perplexity.max", "a number above 0, or null", "null"),
        ("gates.perplexity", "a section, or null", "null"),
        ("quantization.overrides", "a list of mappings with the fields modules, method, group_size", "[]"),
        ("quantization.overrides.modules", "text", "required"),
        ("quantization.search.max_size", "a size such as 512MiB or 5GiB, or null", "null"),
        ("quantization.search", "a section, or null", "null"),
        ("quantization.calibration.dataset", "file:PATH or hf:OWNER/NAME", "required"),
        ("model", "a section", "required"),
        ("engine.kv_cache", "a section", None),
        ("schema", "1", "required"),
        ("engine.speculative", "a section, or null", "null"),
    ],
)  # fmt: skip
def test_explain(path: str, type_: str, default: str | None) -> None:
    explained = explain_field(path)
    assert (explained.path, explained.type, explained.default) == (path, type_, default)


def test_a_section_explains_its_fields() -> None:
    explained = explain_field("engine.kv_cache")
    assert [field.path for field in explained.fields][:2] == [
        "engine.kv_cache.paged",
        "engine.kv_cache.reuse",
    ]
    assert "engine.kv_cache.reuse: true or false; default true\n    Reuse blocks" in str(explained)


def test_the_recipe_explains_its_sections() -> None:
    explained = explain_field()
    assert "engine" in [field.path for field in explained.fields]
    assert "name: lower-case letters" in str(explained)


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("engine.max_bach_size", "llmbuild explain engine.max_batch_size"),
        ("max_batch_size", "llmbuild explain engine.max_batch_size"),
        ("engine.kv", "llmbuild explain engine.kv_cache"),
        ("Engine.Flavor", "llmbuild explain engine.flavour"),
        ("qqq", "llmbuild explain name, or"),
        ("engine.max_batch_size.x", "llmbuild explain engine.max_batch_size"),
        (".", "llmbuild explain "),
    ],
)
def test_unknown_fields(path: str, fix: str) -> None:
    with pytest.raises(UsageError, match="no field") as caught:
        explain_field(path)
    assert caught.value.fix is not None
    assert caught.value.fix.startswith(fix)


@pytest.mark.parametrize("path", all_paths())
def test_every_field_has_a_description_and_a_form(path: str) -> None:
    fragment = fragment_at(tuple(path.split(".")))
    assert fragment is not None
    assert len(fragment["description"]) > 10
    assert expectation(fragment)


def test_nearest_ignores_case_and_dashes() -> None:
    assert nearest("Max-Seq-Len", ["max_seq_len", "max_num_tokens"]) == "max_seq_len"
    assert nearest("kv", ["engine", "kv_cache"]) == "kv_cache"
    assert nearest("colour", ["max_seq_len"]) is None
