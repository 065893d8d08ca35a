"""What nvidia-smi says of the GPUs."""

from __future__ import annotations

from toolchain.engine.tensorrt.gpus import Gpu, architecture, known_sm, parse_gpus, sm_of


def test_lines_of_nvidia_smi() -> None:
    text = (
        "NVIDIA H100 80GB HBM3, 9.0\nNVIDIA RTX PRO 6000, Blackwell, 12.0\nNo devices were found\nx, [N/A]\n"
    )
    assert parse_gpus(text) == [Gpu("NVIDIA H100 80GB HBM3", 90), Gpu("NVIDIA RTX PRO 6000, Blackwell", 120)]
    assert parse_gpus("") == []


def test_names_of_architectures() -> None:
    assert known_sm("b200") == 100
    assert known_sm("x") is known_sm(None) is None
    assert sm_of(architecture(89)) == 89
