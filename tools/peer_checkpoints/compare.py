"""Two sets of dequantized weights, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def compare(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, tolerance: float = 0.0
) -> list[str]:
    """A line for each tensor that is missing or differs; no line when everything agrees.

    A tool computes in its own dtype: where that has fewer bits than `expected`, `expected` is rounded to it.

    Args:
        found: the tool's weights [out, in], by name.
        expected: what they should be. Names beyond these in `found` are not looked at.
        tolerance: the largest difference that passes, relative to the tensor's largest magnitude.
    """
    lines = []
    for name, want in expected.items():
        if name not in found:
            lines.append(f"{name}: the tool has no such weight")
            continue
        have = found[name]
        if have.shape != want.shape:
            lines.append(f"{name}: {list(have.shape)} instead of {list(want.shape)}")
            continue
        rounded = want.to(have.dtype) if have.dtype.itemsize < want.dtype.itemsize else want
        difference = (have.double() - rounded.double()).abs()
        size = rounded.double().abs().max().clamp(min=1e-300)
        worst = (difference.max() / size).item()
        if not worst <= tolerance:
            count = int((difference > tolerance * size).sum())
            lines.append(
                f"{name}: {count} of {have.numel()} differ, by up to {worst:.3g} of the largest weight"
            )
    return lines
