"""Quantized linears as nodes of an OpenVINO graph, spelled as the CPU plugin recognises them."""

from __future__ import annotations

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from torch import Tensor

from quantize.linear import QuantizedLinear
from toolchain.engine.openvino.codes import dequantized_chunks, in_codes
from toolchain.engine.openvino.irfile import Constants


def quantized_product(constants: Constants, module: str, linear: QuantizedLinear, hidden: ov.Node) -> ov.Node:
    """`hidden` [.., in] times the transpose of the weight [out, in] of `linear`: [.., out]; without its bias.

    Linears that scale or reorder one input in the same way each say so: the plugin computes it once.

    Args:
        constants: where the bytes go.
        module: the linear's name, of which the constants get theirs.
        linear: codes and scales.
        hidden: element type f32.
    """
    rows, columns = linear.codes.shape
    name, kept, scale = f"{module}.weight", in_codes(linear), linear.pre_quant_scale
    if scale is not None and not bool((scale == 1).all()):
        hidden = ops.multiply(hidden, stored(constants, f"{module}.pre_quant_scale", scale))
    if kept is None:
        weight_OI = constants.get(name, ov.Type.f32, (rows, columns), dequantized_chunks(linear))
        return product(hidden, weight_OI)
    codes, order = kept
    groups = codes.scales.shape[1]
    shape = rows, groups, columns // groups
    weight_OGI = ops.convert(constants.get(name, codes.element_type, shape, codes.chunks()), ov.Type.f32)
    if codes.zero_points is not None:
        zeros_OG1 = stored(constants, f"{module}.weight_zero_point", codes.zero_points.unsqueeze(2))
        weight_OGI = ops.subtract(weight_OGI, zeros_OG1)
    scales_OG1 = stored(constants, f"{module}.weight_scale", codes.scales.unsqueeze(2))
    weight_OGI = ops.multiply(weight_OGI, scales_OG1)
    weight_OI = ops.reshape(weight_OGI, ops.constant(np.array([rows, columns])), special_zero=False)
    if order is not None:
        indices = stored(constants, f"{module}.input_order", order.int())
        hidden = ops.gather(hidden, indices, ops.constant(np.int64(-1)))
    return product(hidden, weight_OI)


def stored(constants: Constants, name: str, tensor: Tensor) -> ov.Node:
    """A tensor in memory as a constant: integers as they are, other numbers as f32. uint8 is f32 in use."""
    values = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy()
    node = constants.get(name, ov.Type(values.dtype), values.shape, [values.tobytes()])
    return ops.convert(node, ov.Type.f32) if values.dtype == np.uint8 else node


def product(hidden: ov.Node, weight_OI: ov.Node) -> ov.Node:
    """`hidden` [.., in] times the transpose of a weight: [.., out]."""
    return ops.matmul(hidden, weight_OI, transpose_a=False, transpose_b=True)
