"""The frequencies of every RoPE kind against transformers' own functions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from toolchain.model.rope import RopeSpec, parse_rope

HEAD_DIM = 64
LENGTHS = (None, 1, 100, 2048, 2049, 4096, 5000, 40000)

PUBLISHED: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.5},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    "yarn, all set": {
        "rope_type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 1024,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "mscale": 1.0,
        "mscale_all_dim": 0.7,
        "truncate": False,
    },
    "yarn, attention factor": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 1.25,
    },
    "yarn, factor from the lengths": {
        "rope_type": "yarn",
        "factor": None,
        "original_max_position_embeddings": 512,
    },
    "longrope": {
        "rope_type": "longrope",
        "factor": 8.0,
        "original_max_position_embeddings": 2048,
        "short_factor": [1.0 + 0.01 * i for i in range(32)],
        "long_factor": [1.0 + 0.5 * i for i in range(32)],
    },
    "longrope, factor from the lengths": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 1024,
        "short_factor": [1.0] * 32,
        "long_factor": [2.0] * 32,
    },
    "longrope, attention factor": {
        "rope_type": "longrope",
        "factor": 8.0,
        "attention_factor": 1.5,
        "original_max_position_embeddings": 2048,
        "short_factor": [1.0] * 32,
        "long_factor": [2.0] * 32,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    },
}


def ours(
    rope: dict[str, Any], *, theta: float = 10000.0, head_dim: int = HEAD_DIM, **beside: Any
) -> RopeSpec:
    problems: list[str] = []
    spec = parse_rope(
        {"rope_parameters": rope | {"rope_theta": theta}, **beside},
        head_dim,
        max_positions=4096,
        problems=problems,
    )
    assert problems == []
    return spec


def theirs(
    rope: dict[str, Any], seq_len: int | None, *, theta: float = 10000.0, head_dim: int = HEAD_DIM
) -> tuple[np.ndarray, float]:
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=4096,
        rope_parameters=rope | {"rope_theta": theta},
    )
    if rope["rope_type"] == "default":
        frequencies, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=seq_len)
    return frequencies.double().numpy(), factor


def assert_same(rope: dict[str, Any], seq_len: int | None, **settings: Any) -> None:
    spec = ours(rope, **settings)
    expected, attention_factor = theirs(rope, seq_len, **settings)
    found = spec.inv_freq(seq_len)
    assert found.dtype == np.float64
    assert found.shape == (spec.rotary_dim // 2,)
    # Theirs is float32: five kinds agree to 1e-6, the ramp of YaRN costs it up to 1.4e-6.
    np.testing.assert_allclose(found, expected, rtol=2e-6 if "truncate" in rope else 1e-6)
    assert spec.attention_factor == pytest.approx(attention_factor, rel=1e-12)


@pytest.mark.parametrize("seq_len", LENGTHS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_agrees_with_transformers(name: str, seq_len: int | None) -> None:
    assert_same(PUBLISHED[name], seq_len)


@pytest.mark.parametrize("name", ["linear", "dynamic", "yarn", "llama3"])
@pytest.mark.parametrize("partial", [0.25, 0.5])
def test_partial_rotation_agrees_with_transformers(name: str, partial: float) -> None:
    rope = PUBLISHED[name] | {"partial_rotary_factor": partial}
    assert ours(rope).rotary_dim == HEAD_DIM * partial
    assert_same(rope, 9000)


def assert_close_on_the_unscaled(spec: RopeSpec, expected: np.ndarray) -> None:
    """Both over the unscaled series: a steep ramp, which float32 blurs, would drown in relative terms."""
    unscaled = replace(spec, kind="default").inv_freq()
    np.testing.assert_allclose(spec.inv_freq() / unscaled, expected / unscaled, rtol=0, atol=2e-5)


@settings(deadline=None)
@given(
    theta=st.floats(1000, 1e7),
    factor=st.floats(1, 64),
    original=st.integers(64, 4095),
    slow=st.floats(0.25, 8),
    ratio=st.floats(1.5, 64),
    truncate=st.booleans(),
    head_dim=st.sampled_from([16, 64, 80, 128]),
)
def test_any_yarn_agrees_with_transformers(
    theta: float, factor: float, original: int, slow: float, ratio: float, truncate: bool, head_dim: int
) -> None:
    rope = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "beta_slow": slow,
        "beta_fast": slow * ratio,
        "truncate": truncate,
    }
    spec = ours(rope, theta=theta, head_dim=head_dim)
    expected, attention_factor = theirs(rope, None, theta=theta, head_dim=head_dim)
    assert_close_on_the_unscaled(spec, expected)
    assert spec.attention_factor == pytest.approx(attention_factor)


@settings(deadline=None)
@given(
    theta=st.floats(1000, 1e7),
    factor=st.floats(1, 64),
    low=st.floats(0.5, 4),
    band=st.floats(0.5, 8),
    original=st.integers(64, 4095),
)
def test_any_llama3_agrees_with_transformers(
    theta: float, factor: float, low: float, band: float, original: int
) -> None:
    rope = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": low + band,
        "original_max_position_embeddings": original,
    }
    assert_close_on_the_unscaled(ours(rope, theta=theta), theirs(rope, None, theta=theta)[0])


def test_both_spellings_mean_the_same() -> None:
    scaling = {"factor": 4.0, "original_max_position_embeddings": 2048}
    problems: list[str] = []
    old = {"rope_theta": 1e6, "rope_scaling": scaling | {"type": "yarn"}}
    newer = {"rope_theta": 1e6, "rope_scaling": scaling | {"rope_type": "yarn"}}
    new = {"rope_parameters": scaling | {"rope_type": "yarn", "rope_theta": 1e6}}
    specs = {parse_rope(config, HEAD_DIM, 4096, problems) for config in (old, newer, new)}
    assert len(specs) == 1
    assert problems == []


def test_su_is_longrope() -> None:
    rope = {"type": "su", "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    # Phi-3 states the original length beside the object.
    config = {"rope_scaling": rope, "original_max_position_embeddings": 1024}
    spec = parse_rope(config, HEAD_DIM, 4096, problems := [])
    assert problems == []
    assert spec.kind == "longrope"
    assert spec.attention_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(1024)))
    np.testing.assert_allclose(spec.inv_freq(1024), 2 * spec.inv_freq(1025))


def test_nothing_said_is_the_default() -> None:
    for config in ({}, {"rope_scaling": None}, {"rope_scaling": {}}, {"rope_parameters": None}):
        spec = parse_rope(config, HEAD_DIM, 4096, problems := [])
        assert (spec.kind, spec.theta, problems) == ("default", 10000.0, [])


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "mrope", "mrope_section": [16, 24, 24]}, "mrope_section is multimodal RoPE"),
        ({"type": "mrope", "rope_type": "default", "mrope_section": [1]}, "mrope_section is multimodal RoPE"),
        ({"rope_type": "mrope"}, "rope_type is 'mrope'; known kinds are default, linear"),
        ({"rope_type": "yarm", "factor": 4.0}, r"nearest: yarn"),
        ({"rope_type": 7}, "rope_type must be a string, not 7"),
        ({"rope_type": "linear"}, "factor is missing"),
        ({"rope_type": "linear", "factor": "4"}, "factor must be a number greater than 0, not '4'"),
        ({"rope_type": "linear", "factor": True}, "factor must be a number greater than 0, not True"),
        ({"rope_type": "linear", "factor": float("nan")}, "factor must be a number greater than 0, not nan"),
        ({"rope_type": "linear", "factor": 10**400}, "factor must be a number greater than 0"),
        ({"rope_type": "default", "fator": 2}, "fator is not a known RoPE parameter"),
        ({"rope_type": "llama3", "factor": 8.0}, "low_freq_factor is missing"),
        (PUBLISHED["llama3"] | {"high_freq_factor": 1.0}, "high_freq_factor must be greater than low_freq"),
        (
            PUBLISHED["longrope"] | {"long_factor": [1.0] * 31},
            "long_factor must be a list of 32 numbers, not 31",
        ),
        (
            PUBLISHED["longrope"] | {"short_factor": [0.0] * 32},
            "short_factor must hold only positive numbers",
        ),
        (
            PUBLISHED["yarn"] | {"beta_fast": 1.0, "beta_slow": 2.0},
            "beta_fast must not be less than beta_slow",
        ),
        (PUBLISHED["yarn"] | {"truncate": "no"}, "truncate must be true or false, not 'no'"),
        (
            {"rope_type": "default", "partial_rotary_factor": 0.3},
            "must be an even number from 2 to 64, not 19",
        ),
        ({"rope_theta": 1.0}, "rope_theta must be a number greater than 1, not 1.0"),
        (["yarn"], "rope_parameters must be a JSON object"),
    ],
)
def test_what_is_wrong_is_named(rope: Any, expected: str) -> None:
    parse_rope({"rope_parameters": rope}, HEAD_DIM, 4096, problems := [])
    assert any(expected in problem for problem in problems), problems
