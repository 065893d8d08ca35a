"""What a quantized linear becomes in the graph: its weight to the last bit, its codes as narrow as before."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import openvino as ov
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from openvino import opset13 as ops

from quantize.linear import QuantizedLinear
from toolchain.engine.openvino import plugin_properties
from toolchain.engine.openvino.irfile import Constants
from toolchain.engine.openvino.linears import quantized_product

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6])
KINDS = {"i4": (4, False), "u4": (4, True), "i8": (8, False), "u8": (8, True), "f4e2m1": (4, False)}


def random_linear(kind, rows, groups, size, seed=0, *, scattered=False, uneven=False, scaled=False):
    """A linear of `kind`, "f8e4m3" or one of KINDS. `uneven`: groups of scattered channels differ in size."""
    generator = torch.Generator().manual_seed(seed)
    columns, shape = groups * size, (rows, groups * size)
    scales, zeros, factor = torch.rand((rows, groups), generator=generator) + 0.01, None, None
    bits, asymmetric = KINDS.get(kind, (8, False))
    if kind == "f4e2m1":
        codes = E2M1[torch.randint(len(E2M1), shape, generator=generator)].to(torch.float8_e4m3fn)
        scales, factor = scales.to(torch.float8_e4m3fn).float(), torch.tensor(0.37)
    elif kind == "f8e4m3":
        codes = (torch.randn(shape, generator=generator) * 100).to(torch.float8_e4m3fn)
    elif asymmetric:
        codes = torch.randint(2**bits, shape, generator=generator).to(torch.uint8)
        # GPTQ's first format can mean 16 for 4 bits.
        zeros = torch.randint(2**bits + (bits == 4), (rows, groups), generator=generator).float()
    else:
        codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), shape, generator=generator).to(torch.int8)
    index = None
    if scattered:
        index = torch.arange(columns)[torch.randperm(columns, generator=generator)] // size
        if uneven:
            index[index == 0] = groups - 1
            index[0] = 0
    scale = torch.rand(columns, generator=generator) + 0.5 if scaled else None
    return QuantizedLinear(codes, scales, bits, zeros, index, scale, weight_scale_2=factor)


def compile_products(linears, directory, precision="exact"):
    """What multiplies an input [tokens, in] by each of `linears`."""
    hidden = ops.parameter(ov.PartialShape([-1, linears[0].in_features]), ov.Type.f32)
    with (directory / "m.bin").open("wb") as file:
        constants = Constants(file)
        results = [
            ops.result(quantized_product(constants, f"linear{index}", linear, hidden))
            for index, linear in enumerate(linears)
        ]
        constants.finish(ov.Model(results, [hidden], "products"), directory / "m.xml")
    return ov.Core().compile_model(directory / "m.xml", "CPU", plugin_properties(precision, "auto"))


def layer_types(compiled):
    return [op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ops()]


@st.composite
def linears(draw):
    kind = draw(st.sampled_from([*KINDS, "f8e4m3"]))
    scattered = draw(st.booleans())
    groups = draw(st.integers(1, 5))
    size = 16 if kind == "f4e2m1" else draw(st.integers(1, 40))
    uneven = scattered and groups > 1 and draw(st.booleans())
    rows, seed, scaled = draw(st.integers(1, 9)), draw(st.integers(0, 99)), draw(st.booleans())
    return random_linear(kind, rows, groups, size, seed, scattered=scattered, uneven=uneven, scaled=scaled)


@settings(deadline=None, max_examples=60)
@given(linear=linears())
def test_the_weight_is_the_linears_to_the_bit(linear, tmp_path_factory):
    """Each unit vector times the weight is a column of it: nothing is added up that could be rounded."""
    compiled = compile_products([linear], tmp_path_factory.mktemp("m"))
    weight_IO = compiled(np.eye(linear.in_features, dtype=np.float32))[0]
    np.testing.assert_array_equal(weight_IO.T, linear.dequantize().numpy())


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("size", [1, 5, 8, 16, 24, 32, 48, 64, 96, 128])
@pytest.mark.parametrize("kind", KINDS)
def test_any_group_size_for_one_token_and_for_many(kind, size, groups, tmp_path):
    """The plugin has other kernels for a single token, which make garbage of some group sizes."""
    if kind == "f4e2m1" and size % 16:
        pytest.skip("NVFP4 has groups of 16")
    linear = random_linear(kind, 48, groups, size)
    product = compile_products([linear], tmp_path)
    for tokens in (1, 9):
        hidden = np.random.default_rng(size).standard_normal((tokens, linear.in_features))
        wanted = hidden @ linear.dequantize().numpy().astype(np.float64).T
        found = product(hidden.astype(np.float32))[0]
        assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("shape", [(), (1, 1)], ids=["per-channel", "per-tensor"])
@pytest.mark.parametrize("kind", ["i8", "f8e4m3"])
def test_one_scale_of_all(kind, shape, tmp_path):
    linear = random_linear(kind, 6, 1, 32)
    if shape:
        linear = replace(linear, scales=torch.full(shape, 0.3))
    weight_IO = compile_products([linear], tmp_path)(np.eye(32, dtype=np.float32))[0]
    np.testing.assert_array_equal(weight_IO.T, linear.dequantize().numpy())


def test_zero_points_between_the_codes(tmp_path):
    """No file form has them; the definition of the linear does."""
    linear = random_linear("u4", 6, 2, 32)
    linear = replace(linear, zero_points=linear.zero_points - 0.25)
    weight_IO = compile_products([linear], tmp_path)(np.eye(64, dtype=np.float32))[0]
    np.testing.assert_array_equal(weight_IO.T, linear.dequantize().numpy())


@pytest.mark.parametrize("precision", ["exact", "fast"])
@pytest.mark.parametrize("scattered", [False, True], ids=["in-order", "scattered"])
@pytest.mark.parametrize("kind", KINDS)
def test_codes_stay_as_narrow_as_they_are(kind, scattered, precision, tmp_path):
    """In the graph that the plugin made of ours."""
    linear = random_linear(kind, 256, 16, 16, scattered=scattered)
    compiled = compile_products([linear], tmp_path, precision)
    wide = [
        op.get_output_element_type(0).get_type_name()
        for op in compiled.get_runtime_model().get_ops()
        if op.get_rt_info()["layerType"].astype(str) == "Const"
        and np.prod(op.get_output_shape(0)) == linear.codes.numel()
    ]
    assert wide == [kind]
    assert layer_types(compiled).count("FullyConnected") == 1


def test_equal_inputs_are_prepared_once(tmp_path):
    """Query, key and value have one order and one scale: the plugin reorders and scales for all of them."""
    first = random_linear("i4", 8, 128, 16, scattered=True, scaled=True)
    second = random_linear("i4", 8, 128, 16, 1)
    second = replace(second, group_index=first.group_index, pre_quant_scale=first.pre_quant_scale)
    other = random_linear("i4", 8, 128, 16, 2, scattered=True)
    together = compile_products([first, second, other], tmp_path)
    types = layer_types(together)
    assert (types.count("Gather"), types.count("Eltwise"), types.count("FullyConnected")) == (2, 1, 3)
    found = together(np.eye(2048, dtype=np.float32))
    for index, linear in enumerate((first, second, other)):
        np.testing.assert_array_equal(found[index].T, linear.dequantize().numpy())
