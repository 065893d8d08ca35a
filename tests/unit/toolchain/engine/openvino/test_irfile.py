from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as ops

from toolchain.engine.openvino.irfile import ALIGNMENT, Constants
from toolchain.errors import BuildError


def ignore(nbytes):
    pass


def sum_model(constants, pieces):
    """x + a + b + 1, with `a` given in `pieces` and `b` the very same constant."""
    x = ops.parameter([3], ov.Type.f32)
    a = constants.get("a", ov.Type.f32, (3,), lambda: iter(pieces))
    assert constants.get("a", ov.Type.f32, (3,), lambda: iter(pieces)) is a
    return ov.Model([ops.result(ops.add(ops.add(x, a), ops.add(a, np.float32(1))))], [x], "sum")


def write(constants, model, tmp_path):
    xml, binary = tmp_path / "m.xml", tmp_path / "m.bin"
    constants.write(model, xml, binary, ignore)
    return xml, binary


def test_written_weights_are_what_runs(tmp_path):
    constants = Constants()
    values = np.array([1.5, -2.0, 1e-30], np.float32).tobytes()
    xml, binary = write(constants, sum_model(constants, [values[:5], values[5:]]), tmp_path)
    result = ov.Core().compile_model(xml, "CPU")(np.zeros(3, np.float32))[0]
    np.testing.assert_array_equal(result, np.array([4.0, -3.0, 1.0], np.float32))
    assert constants.nbytes == 12
    assert binary.stat().st_size == ALIGNMENT + 4  # ours, and the constant of the graph itself


def test_progress_counts_the_weights(tmp_path):
    constants, steps = Constants(), []
    model = sum_model(constants, [bytes(12)])
    constants.write(model, tmp_path / "m.xml", tmp_path / "m.bin", steps.append)
    assert steps == [12]


@pytest.mark.parametrize("found", [0, 11, 13])
def test_a_source_of_the_wrong_length_is_refused(found, tmp_path):
    constants = Constants()
    with pytest.raises(BuildError, match="wrong number of bytes") as error:
        write(constants, sum_model(constants, [bytes(found)]), tmp_path)
    assert error.value.where == "a"


def test_placeholders_take_no_memory():
    """A gigabyte of weights under construction."""
    constants, before = Constants(), private_bytes()
    for index in range(4):
        constants.get(f"w{index}", ov.Type.bf16, (8192, 16384), lambda: iter([]))
    assert constants.nbytes == 1 << 30
    assert private_bytes() - before < 16 << 20


def private_bytes():
    with open("/proc/self/smaps_rollup") as file:  # noqa: PTH123 -- pathlib stats the file first, which is 0 long
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Anonymous:"))
