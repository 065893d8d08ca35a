import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantize.formats.packing import pack_int4_rows, unpack_int4_rows


@st.composite
def codes(draw: st.DrawFn) -> torch.Tensor:
    rows = 2 * draw(st.integers(0, 6))
    columns = draw(st.integers(1, 9))
    values = draw(st.lists(st.integers(-8, 7), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.int8).reshape(rows, columns)


@given(codes())
def test_unpacking_undoes_packing(codes_OI: torch.Tensor) -> None:
    packed = pack_int4_rows(codes_OI)
    assert packed.dtype == torch.uint8
    assert packed.shape == (codes_OI.shape[0] // 2, codes_OI.shape[1])
    assert torch.equal(unpack_int4_rows(packed), codes_OI)
    assert torch.equal(unpack_int4_rows(packed.view(torch.int8)), codes_OI)


@given(codes())
def test_every_byte_is_the_documented_formula(codes_OI: torch.Tensor) -> None:
    packed = pack_int4_rows(codes_OI)
    for p, row in enumerate(packed.tolist()):
        for c, byte in enumerate(row):
            assert byte == (int(codes_OI[2 * p, c]) & 15) | ((int(codes_OI[2 * p + 1, c]) & 15) << 4)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be packed in pairs"):
        pack_int4_rows(torch.zeros(3, 4, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"outside -8\.\.7"):
        pack_int4_rows(torch.full((2, 4), 8, dtype=torch.int8))
    with pytest.raises(ValueError, match="must be int8"):
        pack_int4_rows(torch.zeros(2, 4))
