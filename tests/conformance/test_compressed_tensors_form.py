"""Our files, read by compressed-tensors itself: it dequantizes them to our weights, to the bit."""

import os
from pathlib import Path

import pytest
import torch

from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.formats.convert import convert_checkpoint
from quantize.linear import QuantizedLinear

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed", exc_type=ImportError)

DATA = Path(__file__).parents[1] / "data" / "quantized"
# Of every kind, from checkpoints in other forms: their tensors and config.json are written by us alone.
KINDS = (
    "gptqmodel/gptq",  # int4
    "gptqmodel/awq_gemm",  # int4 with zero points
    "gptqmodel/gptq_8bit",  # int8, a scale per output channel
    "modelopt/int8_wo",  # the same with float32 scales
    "modelopt/int4_wo",
    "modelopt/fp8",
    "modelopt/fp8_kv",
    "modelopt/fp8_pc_pt",
    "modelopt/nvfp4",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_it_dequantizes_our_files_to_our_weights(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import CompressedTensorsConfig

    convert_checkpoint(DATA / name, tmp_path / "out", "compressed-tensors")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto", quantization_config=CompressedTensorsConfig(run_compressed=False)
    )
    modules = dict(model.named_modules())
    ours = QuantizedCheckpoint.open(tmp_path / "out")
    assert len(ours.scheme.linears) == 7
    for module in ours.scheme.linears:
        linear = ours.linear(module)
        assert isinstance(linear, QuantizedLinear)
        theirs = modules[module].weight
        assert torch.equal(theirs, linear.dequantize(theirs.dtype)), module
