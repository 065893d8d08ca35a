"""Engine flavours: one module each, all of one Protocol (`toolchain.engine.base.Flavour`)."""

from __future__ import annotations

from toolchain.engine.base import Flavour


def flavour(name: str) -> Flavour:
    """The flavour of that name: openvino, tensorrt, pytorch or vllm."""
    if name == "openvino":
        from toolchain.engine.openvino.flavour import OpenVINO

        return OpenVINO()
    if name == "tensorrt":
        from toolchain.engine.tensorrt.flavour import TensorRT

        return TensorRT()
    if name == "pytorch":
        from toolchain.engine.pytorch import PyTorch

        return PyTorch()
    from toolchain.engine.vllm import Vllm

    return Vllm()
