"""A dumped recipe loads to an equal one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from toolchain.recipe import Recipe, dump_recipe, load_recipe, shipped_recipes
from toolchain.recipe.rules import violations

TRICKY = [
    *("no", "on", "1e3", "010", "1_000", "1:30", "0o7", "0x10", "null", "~", "1.0", "2026-04-20", "=", "<<"),
    *(
        "",
        " x ",
        "a: b",
        "# c",
        "'",
        '"',
        "- a",
        "*a",
        "&a",
        "!t",
        "\n",
        "\u2028",
        "\x85",
        "\x85\u2029x",
        "\U0001f600",
    ),
]
TEXTS = st.sampled_from(TRICKY) | st.text(st.characters(codec="utf-8"), max_size=12)
TOKENS = st.integers(1, 1 << 24)
DATASETS = st.builds(
    "file:/{}".format, st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12)
) | st.just("hf:org/set")


def optional(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


RECIPES = st.fixed_dictionaries(
    {
        "schema": st.just(1),
        "name": st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True),
        "model": st.fixed_dictionaries(
            {"source": st.sampled_from(["org/name", "gpt2", "/models/a b", "1e3", "no", "010"])},
            optional={"revision": TEXTS.filter(bool), "dtype": st.sampled_from(["auto", "float16"])},
        ),
    },
    optional={
        "quantization": optional(
            method=st.sampled_from(["none", "awq", "fp8", "int8_wo"]),
            exclude=st.lists(TEXTS, max_size=3).map(tuple),
            calibration=st.none() | st.fixed_dictionaries({"dataset": DATASETS}, optional={"seed": TOKENS}),
        ),
        "engine": optional(
            flavour=st.sampled_from(["openvino", "tensorrt", "vllm"]),
            version=st.sampled_from([None, "1.20", "1.2.1", "0.17.0.post1"]),
            max_seq_len=st.none() | TOKENS,
            kv_cache=optional(free_gpu_mem_fraction=st.floats(0.0, 1.0, exclude_min=True), max_tokens=TOKENS),
        ),
        "deploy": optional(streaming=st.booleans(), max_queue_size=st.integers(0, 1_000_000)),
        "gates": optional(
            perplexity=st.none() | st.fixed_dictionaries(
                {"dataset": DATASETS, "max": st.floats(0.0, exclude_min=True, allow_infinity=False)}
            ),
            kl=st.none() | st.fixed_dictionaries(
                {"dataset": DATASETS, "max": st.floats(0.0, exclude_min=True, allow_infinity=False)},
                optional={"windows": st.integers(1, 64), "stride": st.none() | st.integers(1, 64)},
            ),
        ),
    },
)  # fmt: skip


@given(data=RECIPES)
@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much]
)
def test_round_trip(tmp_path: Path, data: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(data)
    assume(not list(violations(recipe)))
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(recipe), "utf-8", newline="")
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("path", [shipped.path for shipped in shipped_recipes()], ids=lambda path: path.stem)
def test_shipped_recipes_round_trip_from_another_directory(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_recipe(recipe), "utf-8")
    assert load_recipe(copy) == recipe
    assert dump_recipe(load_recipe(copy)) == dump_recipe(recipe)


def test_every_field_is_written_out_in_the_order_of_the_schema() -> None:
    recipe = Recipe.model_validate({"schema": 1, "name": "r", "model": {"source": "o/n"}})
    data = yaml.safe_load(dump_recipe(recipe))
    assert list(data) == [
        "schema",
        "name",
        "model",
        "quantization",
        "parallelism",
        "engine",
        "deploy",
        "gates",
    ]
    assert data["engine"]["max_seq_len"] is None
    assert data["quantization"]["exclude"] == ["lm_head"]
