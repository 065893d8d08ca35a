"""Every method but the 4-bit AWQ and GPTQ against nvidia-modelopt, on the same model and calibration tokens.

What differs on purpose:

| what                        | ModelOpt 0.47             | here               | why                        |
|-----------------------------|---------------------------|--------------------|----------------------------|
| FP8 weight_scale of q, k, v | one each                  | the largest        | engines have one, and      |
| and of gate, up             |                           |                    | would round again          |
| FP8 weight / weight_scale   | rounded to bfloat16 first | exact              | rounding twice             |
| FP8 row-wise weight_scale   | at least 1 / (448 * 512)  | amax / 448         | small rows lose nothing    |
| W8A16 weight_scale          | any float32               | one that the dtype | runtimes multiply in it    |
|                             |                           | can hold           |                            |
| pre_quant_scale of int8_sq  | one for each linear       | one for a group    | fused kernels have one     |
| int4_wo, o_proj, down_proj  | no pre_quant_scale        | ones               | TensorRT-LLM demands it    |
| input_scale                 | of what the source's      | of what quantized  | that is what engines round |
|                             | layers make               | layers make        |                            |
"""

import copy
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
from quantize.methods.base import Method
from quantize.methods.nvfp4 import Nvfp4
from quantize.methods.registry import make_method
from quantize.methods.smoothquant import SmoothQuant

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)
pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed", exc_type=ImportError)
pytest.importorskip("modelopt.torch", reason="nvidia-modelopt cannot be imported", exc_type=ImportError)

# The models and ModelOpt itself take some seconds.
pytestmark = pytest.mark.slow

PRESETS = {
    "fp8": "FP8_DEFAULT_CFG",
    "fp8_rowwise": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "int8_sq": "INT8_SMOOTHQUANT_CFG",
    "int8_wo": "INT8_WEIGHT_ONLY_CFG",
    "int4_wo": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "w4a8_awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
}
# With the choices that ModelOpt has made.
ALIKE: dict[str, Method] = {"int8_sq": SmoothQuant(alpha=1.0), "nvfp4": Nvfp4(search=False)}
BFLOAT16 = 2.0**-8
"""What rounding the largest activation to bfloat16 may change, relative to it."""
FILES = ("hf_quant_config.json", "config.json")
FUSED = [
    [f"model.layers.0.{part}_proj" for part in parts]
    for parts in (["self_attn.q", "self_attn.k", "self_attn.v"], ["mlp.gate", "mlp.up"])
]
SINGLE = ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"]
MODULES = [*FUSED[0], *FUSED[1], *SINGLE]
FIRST = FUSED[0]
"""The linears whose input no quantized linear has touched yet."""


class Pair:
    """One method's checkpoint by ModelOpt, and ours."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.theirs, self.ours = (QuantizedCheckpoint.open(root / name) for name in ("theirs", "ours"))

    def linears(self, module: str) -> tuple[QuantizedLinear, QuantizedLinear]:
        """ModelOpt's and ours."""
        theirs, ours = self.theirs.linear(module), self.ours.linear(module)
        assert isinstance(theirs, QuantizedLinear)
        assert isinstance(ours, QuantizedLinear)
        return theirs, ours

    def stored(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.theirs.read(name), self.ours.read(name)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    import modelopt.torch.quantization as mtq
    import transformers
    from modelopt.torch.export import export_hf_checkpoint

    root = tmp_path_factory.mktemp("modelopt")
    config = transformers.Qwen2Config(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=None,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    source = transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).eval()
    with torch.no_grad():
        for name, parameter in source.named_parameters():
            if name.endswith(("norm.weight", "bias")):
                parameter.uniform_(0.5, 1.5)
    source.save_pretrained(root / "source")
    tokens = torch.randint(128, (4, 32), generator=torch.Generator().manual_seed(1))

    def loop(model: Any) -> None:
        for row in tokens:
            model(row[None])

    found = {}
    for name, preset in PRESETS.items():
        model = mtq.quantize(copy.deepcopy(source), getattr(mtq, preset), loop)
        with torch.inference_mode():
            export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=root / name / "theirs")
        method = ALIKE.get(name) or make_method(name)
        assert method is not None
        quantize_model(
            root / "source",
            root / name / "ours",
            root / name / "work",
            method=method,
            calibration=Calibration("random", tokens, seed=0) if method.needs_calibration else None,
        )
        found[name] = Pair(root / name)
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_names_dtypes_and_shapes_are_those_of_modelopt(name: str, pairs: dict[str, Pair]) -> None:
    ours, theirs = (
        {n: (c.checkpoint.dtype(n), c.checkpoint.shape(n)) for n in c.checkpoint.names}
        for c in (pairs[name].ours, pairs[name].theirs)
    )
    if name == "int4_wo":
        theirs |= {f"{module}.pre_quant_scale": ours[f"{module}.pre_quant_scale"] for module in SINGLE}
    assert ours == theirs


@pytest.mark.parametrize("name", PRESETS)
def test_the_configuration_is_that_of_modelopt(name: str, pairs: dict[str, Pair]) -> None:
    ours, theirs = (
        [json.loads((pairs[name].root / which / file).read_text()) for file in FILES]
        for which in ("ours", "theirs")
    )
    assert ours[0] == theirs[0]
    assert ours[1]["quantization_config"] == theirs[1]["quantization_config"]


def test_fp8_scales_and_codes(pairs: dict[str, Pair]) -> None:
    pair = pairs["fp8"]
    for group in [*FUSED, *([module] for module in SINGLE)]:
        scales = [pair.stored(f"{module}.weight_scale") for module in group]
        largest = max(float(theirs) for theirs, _ in scales)
        assert all(float(ours) == pytest.approx(largest, rel=1e-6) for _, ours in scales)
        for module in group:
            theirs, ours = pair.stored(f"{module}.input_scale")
            assert float(ours) == pytest.approx(float(theirs), rel=BFLOAT16 if module in FIRST else 0.1)
    for module in SINGLE:
        theirs, ours = pair.stored(f"{module}.weight")
        apart = theirs.view(torch.uint8).int() - ours.view(torch.uint8).int()
        assert int(apart.abs().max()) <= 1
        assert float((apart != 0).float().mean()) < 0.07  # the quotients that bfloat16 takes to a tie


def test_row_wise_fp8_scales_and_codes(pairs: dict[str, Pair]) -> None:
    for module in MODULES:
        theirs, ours = pairs["fp8_rowwise"].stored(f"{module}.weight_scale")
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
        theirs, ours = pairs["fp8_rowwise"].stored(f"{module}.weight")
        apart = theirs.view(torch.uint8).int() - ours.view(torch.uint8).int()
        assert int(apart.abs().max()) <= 1
        assert float((apart != 0).float().mean()) < 0.07


@pytest.mark.parametrize("name", ["int8_wo", "int4_wo", "int8_sq"])
def test_integer_weights_are_at_most_a_code_apart(name: str, pairs: dict[str, Pair]) -> None:
    for module in MODULES:
        theirs, ours = pairs[name].linears(module)
        if name == "int8_sq" and module not in FIRST:
            continue  # smoothed by other activations
        steps = theirs.scales.repeat_interleave(theirs.group_size, 1)
        if theirs.pre_quant_scale is not None:
            steps = steps * theirs.pre_quant_scale.float()
        apart = (theirs.dequantize() - ours.dequantize()).abs() / steps
        # Half a step each, and what ModelOpt's smoothed weights and our scales lose to bfloat16.
        assert float(apart.max()) < 1.6
        assert float(apart.mean()) < (0.5 if name == "int8_wo" else 0.25)


def test_smoothing_is_that_of_modelopt_but_for_a_common_factor(pairs: dict[str, Pair]) -> None:
    for module in MODULES:
        theirs, ours = pairs["int8_sq"].linears(module)
        ratio = ours.pre_quant_scale.double() / theirs.pre_quant_scale.double()  # type: ignore[union-attr]
        spread = float(ratio.max() / ratio.min()) - 1
        assert spread < (0.017 if module in FIRST else 0.5)  # two roundings to bfloat16
        inputs = [float(linear.input_scale) for linear in (theirs, ours)]  # type: ignore[arg-type]
        assert inputs[1] == pytest.approx(
            inputs[0] * float(ratio.median()), rel=0.01 if module in FIRST else 0.3
        )


def test_nvfp4_weights_are_equal_to_the_bit(pairs: dict[str, Pair]) -> None:
    for module in MODULES:
        for tensor in ("weight_scale_2", "weight_scale", "weight"):
            theirs, ours = (
                value.view(-1).view(torch.uint8) for value in pairs["nvfp4"].stored(f"{module}.{tensor}")
            )
            assert torch.equal(theirs, ours), f"{module}.{tensor}"
        theirs, ours = pairs["nvfp4"].stored(f"{module}.input_scale")
        assert float(ours) == pytest.approx(float(theirs), rel=BFLOAT16 if module in FIRST else 0.1)


def test_w4a8_scales_are_of_modelopts_size(pairs: dict[str, Pair]) -> None:
    """The AWQ scales differ, and with them both ranges."""
    for module in MODULES:
        theirs, ours = pairs["w4a8_awq"].linears(module)
        for field in ("input_scale", "weight_scale_2"):
            ratio = float(getattr(ours, field) / getattr(theirs, field))
            assert 0.3 < ratio < 3, (module, field)
    for group in FUSED:
        for field in ("input_scale", "weight_scale_2"):
            assert len({float(pairs["w4a8_awq"].ours.read(f"{module}.{field}")) for module in group}) == 1
