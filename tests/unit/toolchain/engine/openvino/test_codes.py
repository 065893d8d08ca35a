from __future__ import annotations

import numpy as np
import openvino as ov
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantize.linear import QuantizedLinear
from toolchain.engine.openvino import codes
from toolchain.engine.openvino.codes import dequantized_chunks, in_codes, pack_nibbles, row_blocks

int4 = st.tuples(st.integers(1, 7), st.integers(1, 9)).flatmap(
    lambda shape: arrays(np.int8, (shape[0], 2 * shape[1]), elements=st.integers(-8, 7))
)


@given(int4)
def test_packed_codes_are_the_same_codes(codes_OI):
    """Row-major, low nibble first, two's complement: what OpenVINO calls i4."""
    bytes_OP = pack_nibbles(torch.tensor(codes_OI)).numpy()
    nibbles_OP2 = np.stack([bytes_OP & 15, bytes_OP >> 4], -1).astype(np.int8)
    signed_OP2 = np.where(nibbles_OP2 > 7, nibbles_OP2 - 16, nibbles_OP2)
    np.testing.assert_array_equal(signed_OP2.reshape(codes_OI.shape), codes_OI)


def random_int4(rows, columns):
    generator = torch.Generator().manual_seed(0)
    codes_OI = torch.randint(-8, 8, (rows, columns), generator=generator).to(torch.int8)
    return QuantizedLinear(codes_OI, torch.rand((rows, 1), generator=generator), 4)


def test_blocks_of_rows_give_the_same_bytes(monkeypatch):
    linear = random_int4(11, 6)
    kept, _ = in_codes(linear)
    whole, plain = b"".join(kept.chunks()), b"".join(dequantized_chunks(linear))
    monkeypatch.setattr(codes, "BLOCK", 30)
    assert [len(block) for block in row_blocks(linear.codes)] == [5, 5, 1]
    assert b"".join(kept.chunks()) == whole
    assert b"".join(dequantized_chunks(linear)) == plain == linear.dequantize().numpy().tobytes()


def test_what_has_no_narrow_form_is_widened():
    uneven = QuantizedLinear(
        random_int4(2, 4).codes, torch.ones(2, 2), 4, group_index=torch.tensor([0, 1, 1, 1])
    )
    fp8 = QuantizedLinear(torch.ones(2, 4).to(torch.float8_e4m3fn), torch.ones(1, 1), 8)
    eights = QuantizedLinear(random_int4(2, 24).codes, torch.ones(2, 3), 4)
    assert [in_codes(linear) for linear in (uneven, fp8, eights)] == [None, None, None]
    kept, _ = in_codes(random_int4(3, 5))
    assert kept.element_type == ov.Type.i8


def test_groups_that_are_in_order_after_all_need_no_reordering():
    linear = QuantizedLinear(
        random_int4(2, 32).codes, torch.ones(2, 2), 4, group_index=torch.arange(2).repeat_interleave(16)
    )
    kept, order = in_codes(linear)
    assert order is None
    assert torch.equal(kept.codes, linear.codes)
