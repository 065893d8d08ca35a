"""The unified Hugging Face form against nvidia-modelopt itself: our files look like theirs, we read theirs.

What differs on purpose:

| what                           | ModelOpt 0.47        | here                   | why                       |
|--------------------------------|----------------------|------------------------|---------------------------|
| order, alignment of tensors    | by name, as it comes | by layer, 64 bytes     | zero-copy readers         |
| quantization_report.json       | none                 | written                | errors, calibration digest|
| other keys of config.json      | rewritten            | the source's, as is    | nothing there is ours     |
| values of weight_scale         | any float32          | float32 that the       | TensorRT-LLM casts to it  |
|                                |                      | model's dtype can hold | on loading                |
"""

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

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed", exc_type=ImportError)
pytest.importorskip("modelopt.torch", reason="nvidia-modelopt cannot be imported", exc_type=ImportError)

# The models and ModelOpt itself take some seconds.
pytestmark = pytest.mark.slow

FAMILIES = ["Llama", "Qwen2", "Qwen3"]


@pytest.fixture(scope="module", params=FAMILIES)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One tiny model: its directory, ModelOpt's export, ours, and ModelOpt's fake-quantized weights."""
    import modelopt.torch.quantization as mtq
    import transformers
    from modelopt.torch.export import export_hf_checkpoint
    from modelopt.torch.export.unified_export_hf import requantize_resmooth_fused_llm_layers

    family = request.param
    root = tmp_path_factory.mktemp(family)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        pad_token_id=None,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.uniform_(0.5, 1.5)
    model.save_pretrained(root / "source")

    tokens = torch.randint(128, (4, 32), generator=torch.Generator().manual_seed(1))
    calibration = Calibration("random", tokens, seed=0)
    quantize_model(root / "source", root / "ours", root / "work", method=Awq(), calibration=calibration)

    model = mtq.quantize(model, mtq.INT4_AWQ_CFG, lambda module: [module(row[None]) for row in tokens])
    # The first step of the export: q, k and v get one scale, as gate and up do, and it goes into the norm.
    # From here on the model's weights are what the export stores, so this is where they can be compared.
    with torch.inference_mode():
        requantize_resmooth_fused_llm_layers(model)
        fake_quantized = {
            name: effective_weight(module) for name, module in model.named_modules() if name.endswith("_proj")
        }
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=root / "theirs")
    return {"root": root, "fake_quantized": fake_quantized}


def effective_weight(module: Any) -> torch.Tensor:
    """What a quantized linear of ModelOpt multiplies its input by, float32 [out, in]."""
    weight = module.weight_quantizer(module.weight.float())
    pre_quant_scale = getattr(module.input_quantizer, "pre_quant_scale", None)
    return weight if pre_quant_scale is None else weight * pre_quant_scale.to(torch.bfloat16).float()


def described(checkpoint: QuantizedCheckpoint) -> dict[str, tuple[str, tuple[int, ...]]]:
    stored = checkpoint.checkpoint
    return {name: (stored.dtype(name), stored.shape(name)) for name in stored.names}


def test_names_dtypes_and_shapes_are_those_of_modelopt(exported: dict[str, Any]) -> None:
    ours = QuantizedCheckpoint.open(exported["root"] / "ours")
    theirs = QuantizedCheckpoint.open(exported["root"] / "theirs")
    assert described(ours) == described(theirs)
    assert (ours.quant_algo, ours.group_size, ours.kv_cache_quant_algo) == ("W4A16_AWQ", 128, None)


def test_the_configuration_is_that_of_modelopt(exported: dict[str, Any]) -> None:
    ours, theirs, source = (exported["root"] / name for name in ("ours", "theirs", "source"))
    read = lambda path: json.loads(path.read_text())  # noqa: E731
    assert read(ours / "hf_quant_config.json") == read(theirs / "hf_quant_config.json")
    config = read(ours / "config.json")
    assert config.pop("quantization_config") == read(theirs / "config.json")["quantization_config"]
    assert config == read(source / "config.json")


def test_we_read_modelopts_checkpoint_to_its_own_weights(exported: dict[str, Any]) -> None:
    """Equal, but for ties: ModelOpt simulates with a product and packs with a quotient, and where a bfloat16
    weight lies exactly between two codes the two may round apart."""
    theirs = QuantizedCheckpoint.open(exported["root"] / "theirs")
    assert len(exported["fake_quantized"]) == 14
    for name, expected in exported["fake_quantized"].items():
        linear = theirs.linear(name)
        assert isinstance(linear, QuantizedLinear)
        difference = (linear.dequantize() - expected).abs()
        step = QuantizedLinear(
            torch.ones_like(linear.codes), linear.scales, bits=4, pre_quant_scale=linear.pre_quant_scale
        ).dequantize()
        tied = difference > 1e-5 * step
        torch.testing.assert_close(difference[tied], step[tied], msg=f"{name}: not a tie")
        assert tied.float().mean() < 2e-3, name


def test_an_unquantized_directory_reads_as_plain(exported: dict[str, Any]) -> None:
    source: Path = exported["root"] / "source"
    plain = QuantizedCheckpoint.open(source)
    assert plain.quant_algo is None
    weight = plain.linear("model.layers.0.mlp.up_proj")
    assert isinstance(weight, torch.Tensor)
    assert weight.shape == (256, 128)
    assert plain.linear("lm_head").dtype == torch.bfloat16  # type: ignore[union-attr]
