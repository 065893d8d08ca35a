"""Every algorithm, decoded from what its formula in the contract says is stored."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.formats.packing import pack_fp4, pack_int4_rows
from quantize.linear import QuantizedLinear
from toolchain.engine.tensorrt.decode import DECODED, SQ_PLUGINS, decode, experts, rows
from toolchain.errors import ModelError

E4M3 = torch.float8_e4m3fn
Stored = dict[str, torch.Tensor]


def stored_linear(algo: str, out: int, columns: int, seed: int) -> tuple[Stored, torch.Tensor]:
    """Random tensors of a linear of `algo`, and its weight in float64."""
    random = torch.Generator().manual_seed(seed)

    def positive(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=random) + 0.5

    def codes(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (out, columns), generator=random).to(torch.int8)

    factor = positive(columns).bfloat16()
    one = {"activation_scaling_factor": positive(1)}
    if algo in ("W4A16_AWQ", "W4A8_AWQ"):
        q, scales = codes(-8, 8), positive(out, columns // 16)
        stored = {
            "weight": pack_int4_rows(q).view(torch.int8),
            "weights_scaling_factor": scales,
            "prequant_scaling_factor": factor,
        }
        if algo == "W4A8_AWQ":
            stored |= one | {"weights_scaling_factor_2": positive(1)}
        return stored, q.double() * scales.double().repeat_interleave(16, 1) * factor.double()
    if algo == "NVFP4":
        values = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6])
        q = values[torch.randint(15, (out, columns), generator=random)].to(E4M3)
        scales, second = positive(out, columns // 16).to(E4M3), positive(1)
        stored = {"weight": pack_fp4(q), "weights_scaling_factor": scales, "weights_scaling_factor_2": second}
        weight = q.double() * scales.double().repeat_interleave(16, 1) * second.double()
        return stored | one, weight
    if algo in ("FP8", "FP8_PER_CHANNEL_PER_TOKEN"):
        q = torch.randn(out, columns, generator=random).to(E4M3)
        if algo == "FP8":
            scale = positive(1)
            return {"weight": q, "weights_scaling_factor": scale} | one, q.double() * scale.double()
        scale = positive(out)
        return {"weight": q, "per_channel_scale": scale}, q.double() * scale.double()[:, None]
    q = codes(-127, 128)
    if algo in SQ_PLUGINS:
        scale = positive(1, 1 if algo.startswith("W8A8_SQ_PER_TENSOR") else out)
        smoother = positive(1, columns)
        weight = q.double() * scale.double().t() / smoother.double()
        return {"weight": q, "per_channel_scale": scale, "smoother": smoother}, weight
    scale = positive(out)
    stored = {"weight": q, "weights_scaling_factor": scale, "prequant_scaling_factor": factor} | one
    return stored, q.double() * scale.double()[:, None] * factor.double()


@pytest.mark.parametrize("algo", DECODED)
@given(
    out=st.integers(1, 6).map(lambda n: 2 * n),
    groups=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=15, deadline=None)
def test_a_linear_is_what_its_formula_says(algo: str, out: int, groups: int, seed: int) -> None:
    stored, weight = stored_linear(algo, out, 16 * groups, seed)
    linear = decode(stored, algo, "here")
    assert isinstance(linear, QuantizedLinear)
    torch.testing.assert_close(linear.dequantize(torch.float64), weight, rtol=1e-6, atol=0)
    half = rows(linear, slice(0, out // 2))
    assert isinstance(half, QuantizedLinear)
    torch.testing.assert_close(half.dequantize(torch.float64), weight[: out // 2], rtol=1e-6, atol=0)
    assert (linear.input_scale is not None) == ("activation_scaling_factor" in stored)


def test_a_zero_is_added_in_units_of_the_scale() -> None:
    stored, weight = stored_linear("W4A16_AWQ", 4, 32, 0)
    z = torch.tensor([[8, 3, 0, 15], [7, 8, 1, 2]])
    zero_GO = (8 - z) * stored["weights_scaling_factor"].t()
    linear = decode(stored | {"zero": zero_GO}, "W4A16_AWQ", "here")
    assert isinstance(linear, QuantizedLinear)
    added_OI = zero_GO.t().double().repeat_interleave(16, 1) * stored["prequant_scaling_factor"].double()
    torch.testing.assert_close(linear.dequantize(torch.float64), weight + added_OI, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algo", ["W4A16_AWQ", "NVFP4", "FP8", "W8A8_SQ_PER_CHANNEL"])
def test_experts_are_told_apart(algo: str) -> None:
    parts = [stored_linear(algo, 4, 32, seed) for seed in range(3)]
    shared = {"activation_scaling_factor": torch.ones(1)} if algo != "W4A16_AWQ" else {}
    names = [name for name in parts[0][0] if name not in shared]
    together = {name: torch.stack([own[name] for own, _ in parts]) for name in names} | shared
    first = parts[0][0].get("prequant_scaling_factor")
    for own, (stored, weight) in zip(experts(together), parts, strict=True):
        linear: Any = decode(own, algo, "here")
        if first is not None:  # the runtime takes the first expert's for all
            weight = weight / stored["prequant_scaling_factor"].double() * first.double()
        torch.testing.assert_close(linear.dequantize(torch.float64), weight, rtol=1e-6, atol=0)


def test_a_plain_weight_is_as_it_is() -> None:
    weight = torch.ones(2, 3, dtype=torch.bfloat16)
    assert decode({"weight": weight}, "W8A16", "here") is weight


@pytest.mark.parametrize(
    ("stored", "algo", "message"),
    [
        ({}, "FP8", "the weight is missing"),
        ({"weight": torch.ones(2, 2).to(E4M3)}, "FP8", "weights_scaling_factor is missing"),
        ({"weight": torch.ones(2, 2, dtype=torch.int8)}, "W4A16_GPTQ", "permuted for one kind of GPU"),
        ({"weight": torch.ones(2, 2, dtype=torch.int8)}, None, "an unquantized linear is stored as int8"),
        (
            {"weight": torch.ones(2, 2).to(E4M3), "per_channel_scale": torch.ones(3)},
            "FP8_PER_CHANNEL_PER_TOKEN",
            "do not fit together",
        ),
    ],
)
def test_what_cannot_be_decoded_is_said(stored: Stored, algo: str | None, message: str) -> None:
    with pytest.raises(ModelError, match=r".") as raised:
        decode(stored, algo, "here")
    assert message in str(raised.value)
    assert str(raised.value).startswith("here:")
