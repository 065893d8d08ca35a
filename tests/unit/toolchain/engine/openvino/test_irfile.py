from __future__ import annotations

import io
from itertools import repeat
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from toolchain.engine.openvino.irfile import ALIGNMENT, Constants
from toolchain.errors import BuildError


def sum_model(constants, pieces):
    """x + a + b + 1, with `a` given in `pieces` and `b` the very same constant."""
    x = ops.parameter([3], ov.Type.f32)
    a = constants.get("a", ov.Type.f32, (3,), pieces)
    assert constants.get("a", ov.Type.f32, (3,), pieces) is a
    return ov.Model([ops.result(ops.add(ops.add(x, a), ops.add(a, np.float32(1))))], [x], "sum")


def test_written_weights_are_what_runs(tmp_path):
    xml, binary = tmp_path / "m.xml", tmp_path / "m.bin"
    values = np.array([1.5, -2.0, 1e-30], np.float32).tobytes()
    with binary.open("wb") as file:
        constants = Constants(file)
        constants.finish(sum_model(constants, [values[:5], values[5:]]), xml)
    result = ov.Core().compile_model(xml, "CPU")(np.zeros(3, np.float32))[0]
    np.testing.assert_array_equal(result, np.array([4.0, -3.0, 1.0], np.float32))
    assert constants.nbytes == 12
    assert binary.stat().st_size == ALIGNMENT + 4  # ours, and the constant of the graph itself


@pytest.mark.parametrize("found", [0, 11, 13])
def test_a_source_of_the_wrong_length_is_refused(found):
    with pytest.raises(BuildError, match="wrong number of bytes") as error:
        sum_model(Constants(io.BytesIO()), [bytes(found)])
    assert error.value.where == "a"


def test_placeholders_take_no_memory():
    """A gigabyte of weights under construction."""
    with Path("/dev/null").open("wb") as file:
        constants, piece, before = Constants(file), bytes(1 << 20), private_bytes()
        for index in range(4):
            constants.get(f"w{index}", ov.Type.bf16, (8192, 16384), repeat(piece, 256))
        assert constants.nbytes == 1 << 30
        assert private_bytes() - before < 16 << 20


def private_bytes():
    with open("/proc/self/smaps_rollup") as file:  # noqa: PTH123 -- pathlib stats the file first, which is 0 long
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))
