from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from quantize.formats.packing import pack_int4_rows
from toolchain.engine.openvino.weights import repack_rows

codes = st.tuples(st.integers(1, 6), st.integers(1, 20)).flatmap(
    lambda half: arrays(np.int8, (2 * half[0], 2 * half[1]), elements=st.integers(-8, 7))
)


@given(codes)
def test_repacked_codes_are_the_same_codes(codes_OI):
    """Row-major, low nibble first, two's complement: what OpenVINO calls i4."""
    bytes_OC = repack_rows(pack_int4_rows(torch.tensor(codes_OI)).numpy())
    nibbles_OCP = np.stack([bytes_OC & 15, bytes_OC >> 4], -1).astype(np.int8)
    signed_OCP = np.where(nibbles_OCP > 7, nibbles_OCP - 16, nibbles_OCP)
    np.testing.assert_array_equal(signed_OCP.reshape(codes_OI.shape), codes_OI)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_stored_weights_are_the_checkpoints_values(dtype, tiny):
    """Widening is exact, and only an untied bf16 embedding stays as narrow as it was."""
    import openvino as ov

    model = tiny("llama", dtype)
    graph = ov.Core().read_model(model.build() / "openvino_model.xml")
    constants = {op.get_friendly_name(): op for op in graph.get_ops() if op.get_type_name() == "Constant"}
    for name, parameter in model.reference.named_parameters():
        stored = constants[name]
        if name == "model.embed_tokens.weight" and dtype == torch.bfloat16:
            assert stored.get_element_type() == ov.Type.bf16
            bits = stored.get_data(dtype=None).view(np.uint16).astype(np.uint32) << 16
            values = bits.view(np.float32)
        else:
            assert stored.get_element_type() == ov.Type.f32
            values = stored.data
        np.testing.assert_array_equal(values, parameter.detach().numpy())
