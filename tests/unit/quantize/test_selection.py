from collections.abc import Callable
from pathlib import Path

import pytest

from quantize.selection import check_shapes, excluded_modules
from toolchain.errors import QuantizeError
from toolchain.model.spec import ModelSpec, load_spec


@pytest.fixture
def spec(save_model: Callable[..., Path]) -> ModelSpec:
    return load_spec(save_model())


def test_head_and_embedding_are_always_excluded(spec: ModelSpec) -> None:
    assert excluded_modules(spec, []) == ("lm_head", "model.embed_tokens")
    assert excluded_modules(spec, ["lm_head"]) == ("lm_head", "model.embed_tokens")


def test_patterns_become_names_in_the_models_order(spec: ModelSpec) -> None:
    found = excluded_modules(spec, ["*.1.mlp.up_proj", "*.o_proj"])
    assert found[2:] == (
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.1.mlp.up_proj",
    )


def test_shapes_are_checked_for_what_is_quantized(spec: ModelSpec) -> None:
    check_shapes(spec, 32, ())
    with pytest.raises(QuantizeError, match=r"groups of 64\n  why: mlp.down_proj has 96 input channels\n"):
        check_shapes(spec, 64, ())
    check_shapes(spec, 64, excluded_modules(spec, ["*.down_proj"]))
    with pytest.raises(QuantizeError, match="a group size of 0 is not possible"):
        check_shapes(spec, 0, ())
