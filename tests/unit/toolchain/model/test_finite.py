"""NaN and infinity are found in every dtype, counted exactly, and nothing else is mistaken for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from toolchain.errors import ModelError
from toolchain.model import finite
from toolchain.model.checkpoint import TORCH_DTYPES, Checkpoint

FLOATS = [name for name in TORCH_DTYPES if finite.is_float(name)]


def count(directory: Path, tensor: torch.Tensor) -> int:
    save_file({"t": tensor}, directory / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    return finite.count_non_finite(checkpoint.dtype("t"), checkpoint.location("t"), lambda amount: None)


def test_every_floating_dtype_is_covered() -> None:
    for name, dtype in TORCH_DTYPES.items():
        torch_dtype: torch.dtype = getattr(torch, dtype)
        assert finite.is_float(name) == (torch_dtype.is_floating_point or torch_dtype.is_complex)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_bit_pattern_of_the_short_formats(tmp_path: Path, dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15).to(torch.int16) if dtype.itemsize == 2 else torch.arange(256).byte()
    tensor = bits.view(dtype)
    assert count(tmp_path, tensor) == int((~torch.isfinite(tensor.double())).sum())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.floats(width=32) | st.sampled_from([float("nan"), float("inf"), -float("inf")]), max_size=20),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_any_values_of_the_long_formats(tmp_path: Path, values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values, dtype=dtype)
    assert count(tmp_path, tensor) == int((~torch.isfinite(tensor)).sum())


def test_beyond_one_chunk(tmp_path: Path) -> None:
    tensor = torch.zeros(finite._CHUNK // 2 * 2 + 17, dtype=torch.bfloat16)
    tensor[0] = tensor[finite._CHUNK // 2] = tensor[-1] = float("nan")
    assert count(tmp_path, tensor) == 3


def test_the_error_names_tensors_and_counts(tmp_path: Path) -> None:
    tensors = {f"layer{i}": torch.zeros(4, 2) for i in range(8)}
    for name in tensors:
        if name != "layer0":
            tensors[name][1] = float("inf")
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="7 tensors hold NaN or infinity") as caught:
        Checkpoint.open(tmp_path).check_finite()
    assert "layer1 (2 of 8 values), " in (caught.value.why or "")
    assert "and 2 more" in (caught.value.why or "")


def test_integers_are_passed_over_and_progress_adds_up(tmp_path: Path) -> None:
    class Recorder:
        total, done = 0, 0

        def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
            self.total = total

        def advance(self, amount: int = 1) -> None:
            self.done += amount

        def note(self, text: str) -> None: ...

    save_file(
        {"codes": torch.full((64,), -1, dtype=torch.int8), "scales": torch.ones(10), "none": torch.ones(0)},
        tmp_path / "model.safetensors",
    )
    recorder = Recorder()
    Checkpoint.open(tmp_path).check_finite(recorder)
    assert (recorder.total, recorder.done) == (40, 40)
