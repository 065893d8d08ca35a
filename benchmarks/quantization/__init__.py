"""Quantization beside its peers: the same model, calibration tokens and machine; time, memory, quality.

    LLMBUILD_PEERS=/path/with/environments python -m benchmarks quantization
    python -m benchmarks.quantization --help            a part of it, printed and not kept

$LLMBUILD_PEERS holds an environment a peer: llmcompressor/, gptqmodel/, and modelopt/ unless it is installed
beside us. A peer without one is reported as absent. They are made, torch first and by exact version, by

    python -m venv $LLMBUILD_PEERS/llmcompressor
    $LLMBUILD_PEERS/llmcompressor/bin/pip install torch==2.13.0
    $LLMBUILD_PEERS/llmcompressor/bin/pip install llmcompressor==0.14.0.1 torch==2.13.0

    python -m venv $LLMBUILD_PEERS/gptqmodel
    $LLMBUILD_PEERS/gptqmodel/bin/pip install torch==2.13.0 setuptools wheel ninja packaging numpy
    $LLMBUILD_PEERS/gptqmodel/bin/pip install --no-build-isolation GPTQModel==7.6.0 torch==2.13.0
"""

from __future__ import annotations

from typing import Any


def run() -> dict[str, Any]:
    """All of it, with the sizes that the page shows."""
    from benchmarks.quantization.driver import measure

    return measure()
