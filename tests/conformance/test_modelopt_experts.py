"""Experts against nvidia-modelopt itself: our FP8 checkpoint has the tensors and the words of its export.

Of AWQ with experts there is no export to compare with: ModelOpt 0.47 stops at the experts that transformers 5
fuses in memory, which `test_modelopt_has_no_awq_export_of_experts` watches.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from quantize.calibration import Calibration
from quantize.driver import quantize_model
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from quantize.methods.awq import Awq
from quantize.methods.base import Method
from quantize.methods.fp8 import Fp8
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.selection import modules
from toolchain.model.spec import load_spec

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed", exc_type=ImportError)
pytest.importorskip("modelopt.torch", reason="nvidia-modelopt cannot be imported", exc_type=ImportError)

pytestmark = pytest.mark.slow

WIDTHS: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
QWEN = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
FAMILIES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": QWEN | {"shared_expert_intermediate_size": 256},
    "Qwen3Moe": QWEN | {"head_dim": 32, "mlp_only_layers": [0]},
}
TOKENS = torch.randint(128, (4, 32), generator=torch.Generator().manual_seed(1))


def tiny(family: str) -> Any:
    import transformers

    config = getattr(transformers, f"{family}Config")(**WIDTHS | FAMILIES[family])
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16).eval()
    model.config.architectures = [type(model).__name__]
    return model


def export(model: Any, config: Any, directory: Path) -> Path:
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    model = mtq.quantize(model, config, lambda module: [module(row[None]) for row in TOKENS])
    export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=directory)
    return directory


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The directories of a source and of ModelOpt's FP8 export of it."""
    import modelopt.torch.quantization as mtq

    root = tmp_path_factory.mktemp(request.param)
    model = tiny(request.param)
    model.save_pretrained(root / "source")
    return root / "source", export(model, mtq.FP8_DEFAULT_CFG, root / "theirs")


def ours(source: Path, root: Path, method: Method) -> Path:
    calibration = Calibration("random", TOKENS, seed=0)
    quantize_model(source, root / "ours", root / "work", method=method, calibration=calibration)
    return root / "ours"


def test_our_fp8_checkpoint_has_the_same_tensors(exported: tuple[Path, Path], tmp_path: Path) -> None:
    source, theirs = exported
    mine, stored = Checkpoint.open(ours(source, tmp_path, Fp8())), Checkpoint.open(theirs)
    assert {name: (mine.dtype(name), mine.shape(name)) for name in mine.names} == {
        name: (stored.dtype(name), stored.shape(name)) for name in stored.names
    }
    read = lambda directory: json.loads((directory / "hf_quant_config.json").read_text())  # noqa: E731
    assert read(tmp_path / "ours") == read(theirs)


def test_weights_of_experts_are_read_as_what_they_were(exported: tuple[Path, Path]) -> None:
    """Half a step of e4m3 is a sixteenth of the value, or of the step at its smallest exponent."""
    source, theirs = exported
    plain, quantized = Checkpoint.open(source), QuantizedCheckpoint.open(theirs)
    for module in modules(load_spec(source))[1]:
        linear = quantized.linear(module)
        assert isinstance(linear, QuantizedLinear)
        weight = plain.read(f"{module}.weight").float()
        bound = weight.abs() / 16 + linear.scales.max() * 2**-10
        assert ((linear.dequantize() - weight).abs() <= bound * 1.001).all(), module


def test_our_awq_checkpoint_names_the_same_modules(exported: tuple[Path, Path], tmp_path: Path) -> None:
    source, theirs = exported
    directories = ours(source, tmp_path, Awq()), theirs
    names = [{name.rpartition(".")[0] for name in Checkpoint.open(path).names} for path in directories]
    assert names[0] == names[1]
    excluded = [
        json.loads((path / "hf_quant_config.json").read_text())["quantization"]["exclude_modules"]
        for path in directories
    ]
    assert excluded[0] == excluded[1]


def test_modelopt_has_no_awq_export_of_experts(tmp_path: Path) -> None:
    """When this fails, compare AWQ as well: names, and whose pre_quant_scale is whose."""
    import modelopt.torch.quantization as mtq

    with pytest.raises(TypeError, match=r"QuantMixtralExperts.*has no len"):
        export(tiny("Mixtral"), mtq.INT4_AWQ_CFG, tmp_path)
