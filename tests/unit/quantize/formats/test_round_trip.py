"""Every form gives back what was written in it, to the bit, whatever the scheme, the sizes and the values."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quantize.formats.base import (
    FP8,
    FP8_ROWWISE,
    INT8_DYNAMIC,
    INT8_GROUPS,
    INT8_SQ,
    INT8_WO,
    NVFP4,
    NVFP4_WO,
    W4A8_AWQ,
    W4A16,
    W4A16_AWQ,
    LinearScheme,
    Scheme,
)
from quantize.formats.checkpoint import FORMATS, QuantizedCheckpoint, write_checkpoint
from quantize.formats.packing import as_bytes
from quantize.formats.tensorfile import StoredTensor
from quantize.linear import QuantizedLinear

FLOAT = (FP8, FP8_ROWWISE, NVFP4, NVFP4_WO)
HELD = {
    "modelopt": (W4A16_AWQ, W4A8_AWQ, FP8, FP8_ROWWISE, INT8_SQ, INT8_WO, NVFP4, NVFP4_WO),
    "gptq": (W4A16_AWQ, W4A16, INT8_WO, INT8_GROUPS),
    "awq": (W4A16_AWQ, W4A16),
    "compressed-tensors": (
        *(W4A16_AWQ, W4A16, INT8_WO, INT8_GROUPS, FP8, FP8_ROWWISE, INT8_SQ, INT8_DYNAMIC, NVFP4, NVFP4_WO),
    ),
}


@dataclass
class Case:
    """A form, a linear of it, and how the form should describe it."""

    form: str
    linear: QuantizedLinear
    scheme: LinearScheme
    dtype: torch.dtype


@st.composite
def cases(draw: st.DrawFn) -> Case:
    form = draw(st.sampled_from(sorted(HELD)))
    algo = draw(st.sampled_from(HELD[form]))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    packed = 8 if form in ("gptq", "awq") else 2 if form == "modelopt" else 1
    rows = packed * draw(st.integers(1, 5))
    group = 16 if algo in (NVFP4, NVFP4_WO) else 8 * draw(st.integers(1, 3))
    columns = group * draw(st.integers(1, 4))
    grouped = algo in (W4A16_AWQ, W4A8_AWQ, INT8_GROUPS, NVFP4, NVFP4_WO)
    bits = 4 if algo in (W4A16_AWQ, W4A8_AWQ, W4A16, NVFP4, NVFP4_WO) else 8
    if algo in (W4A16, INT8_WO) and form == "compressed-tensors":
        columns += draw(st.integers(0, 5))  # a last word that is not full
    weight_only = algo in (W4A16_AWQ, W4A16, INT8_GROUPS)
    zero_point = weight_only and form != "modelopt" and draw(st.booleans())
    act_order = form == "gptq" and grouped and columns > group and draw(st.booleans())
    scheme = LinearScheme(algo, group if grouped else None, zero_point, bits, act_order)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator) + 0.01

    groups = columns // group if grouped else 1
    scales = random(*((1, 1) if algo == FP8 else (rows, groups)))
    if algo in (NVFP4, NVFP4_WO):
        scales = scales.to(torch.float8_e4m3fn).float()
    elif form in ("gptq", "awq") or draw(st.booleans()):
        scales = scales.to(dtype).float()
    if algo in (NVFP4, NVFP4_WO):
        table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6, -0.0])
        codes = table[torch.randint(16, (rows, columns), generator=generator)].to(torch.float8_e4m3fn)
    elif algo in FLOAT:
        codes = ((random(rows, columns) - 0.5) * 800).to(torch.float8_e4m3fn)
    else:
        codes = torch.randint(2**bits, (rows, columns), generator=generator).to(torch.uint8)
        if not zero_point:
            codes = (codes.short() - 2 ** (bits - 1)).to(torch.int8)
    zeros = torch.randint(2**bits, (rows, groups), generator=generator).float() if zero_point else None
    if zeros is not None:
        zeros[0, 0] = 0  # never all in the middle
    static = algo in (FP8, INT8_SQ, NVFP4, W4A8_AWQ)
    bias = random(rows).to(dtype) if draw(st.booleans()) else None
    scaled = form == "modelopt" and algo in (W4A16_AWQ, W4A8_AWQ, INT8_SQ) and draw(st.booleans())
    index = None
    if act_order:
        index = (torch.arange(columns) // group)[torch.randperm(columns, generator=generator)]
        index[0], index[-1] = groups - 1, 0  # never in order
    powers = algo in (NVFP4, NVFP4_WO) and form == "compressed-tensors"  # see _reciprocal
    scalar = torch.tensor(2.0 ** draw(st.integers(-9, 0))) if powers else random(1)[0]
    return Case(
        form,
        QuantizedLinear(
            codes,
            scales,
            bits,
            zero_points=zeros,
            group_index=index,
            pre_quant_scale=random(columns).to(dtype) if scaled else None,
            input_scale=scalar / 4 if static else None,
            weight_scale_2=scalar if algo in (NVFP4, NVFP4_WO, W4A8_AWQ) else None,
            bias=bias,
        ),
        scheme,
        dtype,
    )


def write(root: Path, case: Case, *, module: str = "model.layers.0.m", **more: object) -> Path:
    """A checkpoint of this one linear, written as the driver writes it."""
    root.mkdir(exist_ok=True)
    (root / "config.json").write_text(json.dumps({"model_type": "llama"}))
    form = FORMATS[case.form]
    tensors = form.linear_tensors(module, case.linear, case.scheme, case.dtype)
    stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
    scheme = Scheme({module: case.scheme}, ("lm_head", "model.layers.0.other"))
    assert form.problems(scheme) == []
    write_checkpoint(root, root / "out", stored, scheme, form)
    return root / "out"


def assert_same(read: QuantizedLinear, written: QuantizedLinear) -> None:
    for field in fields(QuantizedLinear):
        one, other = getattr(read, field.name), getattr(written, field.name)
        if isinstance(other, torch.Tensor):
            assert isinstance(one, torch.Tensor), field.name
            assert (one.dtype, one.shape) == (other.dtype, other.shape), field.name
            # Bytes: float8 cannot be compared everywhere, and -0 is not 0.
            assert torch.equal(as_bytes(one), as_bytes(other)), field.name
        else:
            assert one == other, field.name


@given(case=cases())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_what_was_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, case: Case) -> None:
    opened = QuantizedCheckpoint.open(write(tmp_path_factory.mktemp("t"), case))
    assert opened.form is FORMATS[case.form]
    assert opened.scheme.linears == {"model.layers.0.m": case.scheme}
    read = opened.linear("model.layers.0.m")
    assert isinstance(read, QuantizedLinear)
    assert_same(read, case.linear)


@given(case=cases())
@settings(max_examples=50, deadline=None)
def test_the_layout_is_what_is_written(case: Case) -> None:
    """`verify` and `convert` rely on it."""
    form = FORMATS[case.form]
    tensors = form.linear_tensors("m", case.linear, case.scheme, case.dtype)
    layout = form.layout(case.scheme, case.linear.out_features, case.linear.in_features)
    known = {**layout.required, **layout.optional}
    for name, tensor in tensors.items():
        part = known[name.removeprefix("m.")]
        assert part.shape == tuple(tensor.shape), name
        assert StoredTensor.of(tensor).dtype in part.dtypes, name
    assert {f"m.{name}" for name in layout.required} <= tensors.keys()


def test_the_cases_cover_every_algorithm_that_a_form_takes() -> None:
    algos = {algo for held in HELD.values() for algo in held}
    for name, form in FORMATS.items():
        for algo in algos:
            group = {NVFP4: 16, NVFP4_WO: 16}.get(algo, 8)
            grouped = algo in (W4A16_AWQ, W4A8_AWQ, INT8_GROUPS, NVFP4, NVFP4_WO)
            bits = 4 if algo.startswith(("W4", "NV")) else 8
            scheme = Scheme({"m": LinearScheme(algo, group if grouped else None, bits=bits)})
            assert (form.problems(scheme) == []) == (algo in HELD[name]), (name, algo)
