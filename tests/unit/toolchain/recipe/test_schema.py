"""The models themselves: exact types, no unknown keys, immutable."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from toolchain.recipe import Recipe

BASE: dict[str, Any] = {"schema": 1, "name": "r", "model": {"source": "o/n"}}


def test_a_recipe_is_immutable_and_hashable() -> None:
    recipe = Recipe.model_validate(BASE)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.engine.max_batch_size = 3  # type: ignore[misc]
    assert hash(recipe) == hash(Recipe.model_validate(BASE))


@pytest.mark.parametrize(
    "section",
    [
        {"engine": {"max_batch_size": "4"}},
        {"engine": {"max_batch_size": 4.0}},
        {"engine": {"max_batch_size": True}},
        {"engine": {"kv_cache": {"paged": "true"}}},
        {"engine": {"kv_cache": {"free_gpu_mem_fraction": float("nan")}}},
        {"quantization": {"exclude": "lm_head"}},
        {"quantization": {"exclude": [1]}},
        {"quantization": {"group_size": "128"}},
        {"engine": {"speculative": "eagle"}},
        {"unknown": 1},
    ],
)
def test_types_are_exact(section: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="1 validation error"):
        Recipe.model_validate(BASE | section)


@pytest.mark.parametrize("name", ["Demo", "-x", "", "a b", "a/b", "..", "x" * 64, "\u00e9", "a\n"])
def test_names_are_safe_as_directories(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        Recipe.model_validate(BASE | {"name": name})


@pytest.mark.parametrize(
    "source", ["a/b/c", "", "org/", "/a\x00b", "C:\\models", "org/name\n", "-x", ".hidden"]
)
def test_sources_that_are_neither_id_nor_directory(source: str) -> None:
    with pytest.raises(ValidationError, match="source"):
        Recipe.model_validate(BASE | {"model": {"source": source}})


@pytest.mark.parametrize(
    "source", ["/", ".", "..", "~", "./a b", "../m", "~/m", "/abs/ü", "org/name", "Qwen2.5"]
)
def test_sources_that_are(source: str) -> None:
    model = Recipe.model_validate(BASE | {"model": {"source": source}}).model
    assert (model.directory is None) == (source in ("org/name", "Qwen2.5"))
