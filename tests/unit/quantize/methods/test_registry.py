"""What holds for every method, by itself and within the driver."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from quantize.calibration import Calibration
from quantize.driver import quantize_model
from quantize.formats.base import FP8, FP8_ROWWISE, INT8_SQ, INT8_WO, NVFP4, W4A8_AWQ, W4A16_AWQ
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from quantize.methods.base import Group, Method
from quantize.methods.registry import METHODS, make_method
from quantize.methods.statistics import CPU
from quantize.simulate import input_rounding
from toolchain.errors import QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.recipe import quantization

# Method -> its algorithm, and how far the tiny models' logits may move, relative to them. The families' own
# values lie between twice the lower and two thirds of the upper bound.
EXPECTED = {
    "awq": (W4A16_AWQ, 0.07, 0.34),
    "gptq": (W4A16_AWQ, 0.04, 0.24),
    "awq_gptq": (W4A16_AWQ, 0.04, 0.24),
    "fp8": (FP8, 0.036, 0.17),
    "fp8_rowwise": (FP8_ROWWISE, 0.036, 0.16),
    "int8_sq": (INT8_SQ, 0.01, 0.05),
    "int8_wo": (INT8_WO, 0.006, 0.03),
    "int4_wo": (W4A16_AWQ, 0.09, 0.4),
    "w4a8_awq": (W4A8_AWQ, 0.07, 0.36),
    "nvfp4": (NVFP4, 0.12, 0.55),
}
STATIC = (FP8, INT8_SQ, NVFP4, W4A8_AWQ)
"""Algorithms whose inputs have a static scale."""
NAMES = [name for name in METHODS if name != "none"]
FAMILIES = ["Llama", "Mistral", "Qwen2", "Qwen3"]


def method_of(name: str, group_size: int = 16) -> Method:
    method = make_method(name, group_size=group_size)
    assert method is not None
    return method


def test_every_name_of_a_recipe_is_a_method() -> None:
    assert set(METHODS) == set(get_args(quantization.Method))
    assert set(NAMES) == set(EXPECTED)
    calibrated = {name for name in NAMES if method_of(name).needs_calibration}
    assert calibrated == quantization.CALIBRATED_METHODS
    assert make_method("none") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_method_carries_its_name_and_options(name: str) -> None:
    method = method_of(name, group_size=64)
    assert method.scheme.quant_algo == EXPECTED[name][0]
    assert method.parameters()["method"] == name
    for option, other in (
        ("group_size", 32),
        ("symmetric", False),
        ("clip", False),
        ("act_order", False),
        ("damp", 0.1),
        ("alpha", 0.5),
    ):
        settings: dict[str, Any] = {"group_size": 64, option: other}
        changed = make_method(name, **settings)
        assert changed is not None
        assert (changed != method) == (name in quantization.READ_BY[option])
        assert (changed.parameters() != method.parameters()) == (changed != method)
    if method.scheme.group_size is not None and name != "nvfp4":
        assert method.scheme.group_size == 64


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(QuantizeError, match=r"method: there is no method 'int8sq'\n.*did you mean int8_sq"):
        make_method("int8sq")
    with pytest.raises(QuantizeError, match="use one of none, awq"):
        make_method("magic")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_answers_have_one_form(name: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(6, 48, generator=random).to(dtype) for name in ("a", "b")}
    method, x = method_of(name), torch.randn(300, 48, generator=random)
    statistics = method.observe(48, 0, CPU) if method.needs_calibration else None
    if statistics is not None:
        statistics.update(x.to(dtype))
    answer = method.quantize(Group(weights, {"b": torch.ones(6, dtype=dtype)}, None, True), statistics)
    shared = [answer.linears["a"], answer.linears["b"]]
    for linear, (which, weight) in zip(shared, weights.items(), strict=True):
        assert linear.codes.shape == weight.shape
        assert linear.scales.dtype == torch.float32
        assert linear.bits == method.scheme.bits
        assert (linear.bias is None) == (which == "a")
        assert linear.pre_quant_scale is None or linear.pre_quant_scale.dtype == dtype
        assert (linear.dequantize() - weight.float()).norm() < 0.2 * weight.float().norm()
        facts = answer.report[which]
        assert 0 < facts["relative_error"] < 0.2
        for scalar in (linear.input_scale, linear.weight_scale_2):
            assert scalar is None or (scalar.shape == () and scalar.dtype == torch.float32)
    static = method.scheme.quant_algo in STATIC
    double = method.scheme.quant_algo in (NVFP4, W4A8_AWQ)
    for field, there in (("input_scale", static), ("weight_scale_2", double)):
        first, second = (getattr(linear, field) for linear in shared)
        assert (first is not None) == there
        assert first is None or torch.equal(first, second)


def test_w4a8_scales_the_input_that_awq_leaves() -> None:
    """Whether AWQ's scale went into the norm, beside the linear or into the linear before."""
    random = torch.Generator().manual_seed(2)
    weights = {name: torch.randn(8, 64, generator=random).bfloat16() for name in ("gate", "up")}
    x = torch.randn(400, 64, generator=random)
    x[:, 7] *= 30
    norm = (torch.rand(64, generator=random) + 0.5).bfloat16()
    method = method_of("w4a8_awq")
    statistics = method.observe(64, 0, CPU)
    statistics.update(x)
    in_norm = method.quantize(Group(weights, {}, norm, False), statistics)
    beside = method.quantize(Group(weights, {}, None, True), statistics)
    before = method.quantize(Group(weights, {}, None, False, source_rows=torch.arange(64)), statistics)
    assert in_norm.norm is not None
    assert before.source_scale is not None
    beside_factor = beside.linears["up"].pre_quant_scale
    assert beside_factor is not None
    for answer, factor in (
        (in_norm, in_norm.norm.float() / norm.float()),
        (beside, beside_factor.float()),
        (before, 1 / before.source_scale),
    ):
        linear = answer.linears["up"]
        largest = (x * factor).abs().max()
        assert float(linear.input_scale) == pytest.approx(float(largest) / 448, rel=1e-6)  # type: ignore[arg-type]
        assert largest < 0.7 * x.abs().max()
        products = [
            (own.codes.float().view(8, -1, 16) * own.scales.unsqueeze(2)).abs().max()
            for own in answer.linears.values()
        ]
        assert float(linear.weight_scale_2) == pytest.approx(float(max(products)) / 448, rel=1e-6)  # type: ignore[arg-type]
        facts = answer.report["up"]
        assert 0.2 > facts["relative_error"] > facts["relative_error_of_weight"]
        assert "alpha" in facts


@pytest.fixture(scope="module")
def sources(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each family."""
    found = {}
    for family in FAMILIES:
        found[family] = tmp_path_factory.mktemp(family)
        make_model(family).to(torch.bfloat16).save_pretrained(found[family])
    return found


@pytest.fixture(scope="module")
def mixtral(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of four experts."""
    directory = tmp_path_factory.mktemp("mixtral")
    model = make_model("Mixtral", num_local_experts=4, num_experts_per_tok=2)
    model.to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_quantizes_every_family(
    name: str, family: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    """The logits of transformers on what the checkpoint stands for, inputs rounded as kernels do."""
    tokens = torch.randint(96, (6, 24), generator=torch.Generator().manual_seed(0))
    method = method_of(name)
    report = quantize_model(
        sources[family],
        tmp_path / "out",
        tmp_path / "work",
        method=method,
        calibration=Calibration("random", tokens, 0) if method.needs_calibration else None,
    )
    assert len(report["linears"]) == 14
    assert all(0 < facts["relative_error"] < 0.25 for facts in report["linears"].values())
    algo, least, most = EXPECTED[name]
    checkpoint = QuantizedCheckpoint.open(tmp_path / "out")
    assert checkpoint.quant_algo == algo
    assert least < logits_moved(sources[family], checkpoint, tokens) < most


@pytest.mark.parametrize("name", NAMES)
def test_every_method_quantizes_experts(name: str, mixtral: Path, tmp_path: Path) -> None:
    tokens = torch.randint(96, (6, 24), generator=torch.Generator().manual_seed(0))
    method = method_of(name)
    calibration = Calibration("random", tokens, 0) if method.needs_calibration else None
    quantize_model(mixtral, tmp_path / "out", tmp_path / "work", method=method, calibration=calibration)
    source, checkpoint = Checkpoint.open(mixtral), QuantizedCheckpoint.open(tmp_path / "out")
    for expert in range(4):
        for which in ("w1", "w2", "w3"):
            module = f"model.layers.1.block_sparse_moe.experts.{expert}.{which}"
            linear = checkpoint.linear(module)
            assert isinstance(linear, QuantizedLinear)
            assert linear.pre_quant_scale is None or bool((linear.pre_quant_scale == 1).all())
            assert (linear.input_scale is not None) == (method.scheme.quant_algo in STATIC)
            if which == "w2":  # the others' input may be scaled by the norm
                weight = source.read(f"{module}.weight").float()
                assert (linear.dequantize() - weight).norm() < 0.2 * weight.norm()


@torch.inference_mode()
def logits_moved(source: Path, checkpoint: QuantizedCheckpoint, tokens: torch.Tensor) -> float:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    before = model(tokens).logits
    state = {}
    for name in model.state_dict():
        module = name.removesuffix(".weight")
        linear = checkpoint.linear(module) if "_proj.weight" in name else None
        if isinstance(linear, QuantizedLinear):
            state[name] = linear.dequantize()
            rounding = input_rounding(linear, checkpoint.scheme.linears[module].quant_algo)
            if rounding is not None:
                model.get_submodule(module).register_forward_pre_hook(
                    lambda _, inputs, rounding=rounding: (rounding(inputs[0]),)
                )
        elif name in checkpoint.checkpoint:
            state[name] = checkpoint.read(name).float()
    model.load_state_dict(state, strict=False)
    return float((model(tokens).logits - before).norm() / before.norm())
