"""What other tools wrote, brought into every form that can hold it, with not a bit of a weight changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantize.formats.base import W4A16_AWQ, LinearScheme
from quantize.formats.checkpoint import FORMATS, QuantizedCheckpoint
from quantize.formats.convert import convert_checkpoint
from quantize.linear import QuantizedLinear
from quantize.run import quantize_checkpoint
from toolchain.errors import ModelError, QuantizeError
from toolchain.model.spec import load_spec
from toolchain.progress import Silent

DATA = Path(__file__).parents[3] / "data" / "quantized"
ALL = frozenset(FORMATS)
INTEGERS = frozenset({"gptq", "awq", "compressed-tensors"})
BOTH = frozenset({"modelopt", "compressed-tensors"})
HELD_BY = {
    "modelopt/fp8": BOTH,
    "modelopt/fp8_kv": BOTH,
    "modelopt/fp8_pc_pt": BOTH,
    "modelopt/int4_wo": BOTH,  # its scales are any float32
    "modelopt/w4a16_awq": frozenset({"modelopt"}),
    "modelopt/w4a8_awq": frozenset({"modelopt"}),
    "modelopt/int8_wo": BOTH,
    "modelopt/int8_sq": frozenset({"modelopt"}),
    "modelopt/nvfp4": BOTH,
    "modelopt/mixed": frozenset({"modelopt"}),
    "modelopt/mixtral_fp8": BOTH,
    "llmcompressor/w4a16": ALL,
    "llmcompressor/w4a16_gptq": ALL,
    "llmcompressor/w4a16_channel": ALL,
    "llmcompressor/w4a16_asym": INTEGERS,
    "llmcompressor/w8a16": ALL - {"awq"},
    "llmcompressor/fp8": BOTH,
    "llmcompressor/fp8_kv": BOTH,
    "llmcompressor/fp8_dynamic": BOTH,
    "llmcompressor/w8a8": frozenset({"compressed-tensors"}),
    "llmcompressor/w8a8_static": BOTH,
    "llmcompressor/nvfp4": BOTH,
    "llmcompressor/nvfp4a16": BOTH,
    "gptqmodel/gptq": ALL,
    "gptqmodel/gptq_desc_act": frozenset({"gptq"}),
    "gptqmodel/gptq_asym": INTEGERS,
    "gptqmodel/gptq_v2": INTEGERS,
    "gptqmodel/gptq_8bit": ALL - {"awq"},
    "gptqmodel/awq_gemm": INTEGERS,
}
REASONS = {
    ("gptqmodel/gptq_desc_act", "modelopt"): "ModelOpt's form has no g_idx",
    ("gptqmodel/gptq_desc_act", "awq"): "AutoAWQ's form has no g_idx",
    ("gptqmodel/gptq_desc_act", "compressed-tensors"): "has no g_idx",
    ("gptqmodel/awq_gemm", "modelopt"): "ModelOpt's form has no zero points",
    ("llmcompressor/w8a8", "modelopt"): "ModelOpt's form has no W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
    ("llmcompressor/fp8_kv", "gptq"): "GPTQ's form has no scales of a KV cache",
    ("llmcompressor/w8a16", "awq"): "4-bit integer weights only, not W8A16",
    ("modelopt/w4a16_awq", "compressed-tensors"): "has no place for the linear's pre_quant_scale",
    ("modelopt/int4_wo", "gptq"): "a scale is not a number of 16 bits",
    ("modelopt/mixed", "gptq"): "not FP8",
    ("modelopt/w4a8_awq", "compressed-tensors"): "compressed-tensors has no W4A8_AWQ",
}


def test_every_checkpoint_of_the_other_tools_is_converted() -> None:
    found = {
        f"{path.parent.parent.name}/{path.parent.name}" for path in DATA.glob("*/*/expected.safetensors")
    }
    assert found == HELD_BY.keys() | {"llmcompressor/fp8_block"}


def weights(checkpoint: QuantizedCheckpoint) -> dict[str, torch.Tensor]:
    found = {}
    for module in checkpoint.scheme.linears:
        linear = checkpoint.linear(module)
        assert isinstance(linear, QuantizedLinear)
        found[module] = linear.dequantize()
    return found


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", HELD_BY)
def test_no_weight_changes_on_the_way(name: str, form: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if form not in HELD_BY[name]:
        with pytest.raises(
            QuantizeError, match=REASONS.get((name, form), r"cannot hold|no place|not a number of 16")
        ):
            convert_checkpoint(DATA / name, out, form)
        assert not (out / "config.json").exists()
        assert list(out.glob("*")) == []
        return
    scheme = convert_checkpoint(DATA / name, out, form)
    source, made = QuantizedCheckpoint.open(DATA / name), QuantizedCheckpoint.open(out)
    assert made.form is FORMATS[form]
    assert made.scheme.linears == scheme.linears
    assert made.kv_cache_quant_algo == source.kv_cache_quant_algo
    made.verify(load_spec(out))
    before, after = weights(source), weights(made)
    assert before.keys() == after.keys()
    exact = "nvfp4" not in name or source.form is made.form
    for module, weight in before.items():
        if exact:
            assert torch.equal(after[module], weight), module
        else:  # the reciprocal of a global scale is rounded once
            torch.testing.assert_close(after[module], weight, rtol=2e-7, atol=0)
    for tensor in source.checkpoint.names:
        if tensor.endswith(("norm.weight", "lm_head.weight", "embed_tokens.weight", "gate.weight")):
            assert torch.equal(made.read(tensor), source.read(tensor)), tensor
    if source.kv_cache_quant_algo:
        for one, other in zip(
            made.kv_scales("model.layers.0.") or (), source.kv_scales("model.layers.0.") or (), strict=True
        ):
            assert torch.equal(one, other)


def test_there_and_back_is_the_same(tmp_path: Path) -> None:
    """Through ModelOpt's form the tensors of GPTQModel come back as they were."""
    source = DATA / "gptqmodel/gptq"
    convert_checkpoint(source, tmp_path / "m", "modelopt")
    for name in "ab":
        convert_checkpoint(tmp_path / "m", tmp_path / name, "gptq")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    assert_same_tensors(source, tmp_path / "a")


def assert_same_tensors(source: Path, made: Path) -> None:
    theirs, ours = load_file(source / "model.safetensors"), load_file(made / "model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("name", HELD_BY)
def test_in_its_own_form_a_checkpoint_is_copied(name: str, tmp_path: Path) -> None:
    convert_checkpoint(DATA / name, tmp_path / "out", "own")
    assert_same_tensors(DATA / name, tmp_path / "out")
    for file in ("config.json", "hf_quant_config.json"):
        if (DATA / name / file).exists():
            one, other = (json.loads((place / file).read_text()) for place in (DATA / name, tmp_path / "out"))
            assert one == other


def rewritten(name: str, tmp_path: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The tensors of a checkpoint, and what its form makes of its linears after they were read."""
    opened = QuantizedCheckpoint.open(DATA / name)
    assert opened.form is not None
    ours = {}
    for module, scheme in opened.scheme.linears.items():
        linear = opened.linear(module)
        assert isinstance(linear, QuantizedLinear)
        dtype = torch.float16 if name.startswith("gptqmodel/") else torch.bfloat16
        ours |= opened.form.linear_tensors(module, linear, scheme, dtype)
    theirs = load_file(DATA / name / "model.safetensors")
    modules = tuple(f"{module}." for module in opened.scheme.linears)
    return {n: t for n, t in theirs.items() if n.startswith(modules) and not n.endswith(".bias")}, ours


@pytest.mark.parametrize("name", HELD_BY)
def test_tensors_are_written_as_their_own_tools_write_them(name: str, tmp_path: Path) -> None:
    theirs, ours = rewritten(name, tmp_path)
    own = ("k_scale", "v_scale")
    assert {tensor for tensor in theirs if not tensor.endswith(own)} == ours.keys()
    for tensor, value in ours.items():
        assert theirs[tensor].shape == value.shape, tensor
        assert theirs[tensor].dtype == value.dtype, tensor
        if tensor.endswith("_global_scale"):
            torch.testing.assert_close(value, theirs[tensor], rtol=2e-7, atol=0)
        elif tensor.endswith("qzeros") and name == "gptqmodel/gptq_asym":
            continue  # GPTQModel's v1; here asymmetric codes are written in v2
        else:
            assert torch.equal(value, theirs[tensor]), tensor


def test_auto_takes_the_first_form_that_holds_it(tmp_path: Path) -> None:
    for name, form in {
        "gptqmodel/gptq": "modelopt",
        "gptqmodel/awq_gemm": "compressed-tensors",
        "gptqmodel/gptq_desc_act": "gptq",
        "llmcompressor/w8a8": "compressed-tensors",
    }.items():
        convert_checkpoint(DATA / name, tmp_path / name)
        made = QuantizedCheckpoint.open(tmp_path / name).form
        assert made is FORMATS[form], name


def test_a_scale_per_channel_becomes_groups_that_repeat_it(tmp_path: Path) -> None:
    scheme = convert_checkpoint(DATA / "llmcompressor/w4a16_channel", tmp_path / "out", "modelopt")
    assert scheme.distinct == (LinearScheme(W4A16_AWQ, 32),)


def test_ones_stand_where_readers_of_modelopt_want_a_scale(tmp_path: Path) -> None:
    convert_checkpoint(DATA / "gptqmodel/gptq", tmp_path / "out", "modelopt")
    tensors = load_file(tmp_path / "out/model.safetensors")
    scaled = {name for name in tensors if name.endswith("pre_quant_scale")}
    assert {name.split(".")[-2] for name in scaled} == {"o_proj", "down_proj"}
    assert all(bool((tensors[name] == 1).all()) for name in scaled)


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_scales_that_engines_may_round_are_told(tmp_path: Path) -> None:
    """transformers 5.17 loads them in the model's dtype, 5.23 as they are stored."""
    fine, coarse = Notes(), Notes()
    convert_checkpoint(DATA / "modelopt/int4_wo", tmp_path / "a", "compressed-tensors", progress=fine)
    assert fine.notes[0].startswith("scales of 7 linears are no numbers of bfloat16: they are stored exactly")
    convert_checkpoint(DATA / "llmcompressor/w4a16", tmp_path / "b", "modelopt", progress=coarse)
    assert coarse.notes == []


def edited(name: str, to: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    directory = Path(shutil.copytree(DATA / name, to / "edited"))
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")
    return directory


def scaled(module: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith("pre_quant_scale"):
                tensors[name] = torch.ones_like(tensors[name])
        tensors[f"model.layers.0.{module}.pre_quant_scale"] = value.bfloat16()

    return change


def test_a_scale_that_up_proj_takes_up_exactly_is_folded(tmp_path: Path) -> None:
    scale_I = 2.0 ** (torch.arange(32) % 5 - 2)
    source = edited("modelopt/w4a16_awq", tmp_path, scaled("mlp.down_proj", scale_I))
    convert_checkpoint(source, tmp_path / "out", "compressed-tensors")
    before = weights(QuantizedCheckpoint.open(source))
    after = weights(QuantizedCheckpoint.open(tmp_path / "out"))
    for module, weight in before.items():
        expected = weight
        if module.endswith("up_proj"):
            expected = weight * scale_I.view(-1, 1)
        elif module.endswith("down_proj"):
            expected = weight / scale_I
        assert torch.equal(after[module], expected), module


def test_a_scale_that_heads_share_is_folded_into_v_proj(tmp_path: Path) -> None:
    """4 heads of 16 channels, 2 to a head of v_proj."""
    value_KD = 2.0 ** (torch.arange(32) % 3 - 1)
    scale_I = value_KD.view(2, 1, 16).expand(2, 2, 16).reshape(-1)
    source = edited("modelopt/w4a16_awq", tmp_path, scaled("self_attn.o_proj", scale_I))
    convert_checkpoint(source, tmp_path / "out", "compressed-tensors")
    before = weights(QuantizedCheckpoint.open(source))
    after = weights(QuantizedCheckpoint.open(tmp_path / "out"))
    prefix = "model.layers.0.self_attn."
    assert torch.equal(after[f"{prefix}v_proj"], before[f"{prefix}v_proj"] * value_KD.view(-1, 1))
    assert torch.equal(after[f"{prefix}o_proj"], before[f"{prefix}o_proj"] / scale_I)


@pytest.mark.parametrize(
    ("module", "scale", "why"),
    [
        ("self_attn.o_proj", 2.0 ** (torch.arange(64) // 16), "heads that share a head of v_proj have diff"),
        ("mlp.down_proj", torch.linspace(0.3, 1.7, 32), "is not a number of float32"),
    ],
)
def test_a_scale_that_would_be_rounded_is_refused(
    module: str, scale: torch.Tensor, why: str, tmp_path: Path
) -> None:
    source = edited("modelopt/w4a16_awq", tmp_path, scaled(module, scale))
    with pytest.raises(QuantizeError, match=f"(?s){module}.*no place.*{why}"):
        convert_checkpoint(source, tmp_path / "out", "compressed-tensors")
    assert list((tmp_path / "out").iterdir()) == []


def test_smoothquants_scale_goes_into_the_norm_where_it_can(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith("pre_quant_scale"):
                columns = tensors[name].numel()
                power = 2.0 ** (torch.arange(columns) % 3)
                kind = name.split(".")[-2]
                same = kind in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
                tensors[name] = (power if same else torch.ones(columns)).bfloat16()

    source = edited("modelopt/int8_sq", tmp_path, change)
    convert_checkpoint(source, tmp_path / "out", "compressed-tensors")
    made, opened = QuantizedCheckpoint.open(tmp_path / "out"), QuantizedCheckpoint.open(source)
    power = 2.0 ** (torch.arange(64) % 3)
    name = "model.layers.0.input_layernorm.weight"
    assert torch.equal(made.read(name).float(), opened.read(name).float() * power)
    one, other = (weights(which)["model.layers.0.self_attn.q_proj"] for which in (made, opened))
    assert torch.equal(one, other / power)


def test_a_bias_of_zeros_is_dropped_and_another_refused(tmp_path: Path) -> None:
    module = "model.layers.0.mlp.up_proj"

    def zeros(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{module}.bias"] = torch.zeros(32, dtype=torch.float16)

    source = edited("gptqmodel/gptq", tmp_path, zeros)
    convert_checkpoint(source, tmp_path / "out", "modelopt")
    assert f"{module}.bias" not in load_file(tmp_path / "out/model.safetensors")
    tensors = load_file(source / "model.safetensors")
    save_file(tensors | {f"{module}.bias": torch.ones(32).half()}, source / "model.safetensors")
    with pytest.raises(ModelError, match="up_proj: the linear has a bias, which the model does not have"):
        convert_checkpoint(source, tmp_path / "other", "modelopt")


def test_a_plain_model_has_no_form_to_convert(tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="is not quantized"):
        convert_checkpoint(DATA / "source/llama", tmp_path / "out", "gptq")
    assert not (tmp_path / "out").exists()


def test_a_quantized_source_is_taken_as_it_is_or_refused(tmp_path: Path) -> None:
    """What the quantize stage does."""
    source = DATA / "gptqmodel/gptq"
    config = {"method": "none", "format": "modelopt"}
    quantize_checkpoint(source, tmp_path / "out", tmp_path / "work", config=config)
    assert QuantizedCheckpoint.open(tmp_path / "out").quant_algo == W4A16_AWQ
    assert json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["quant_method"] == (
        "modelopt"
    )
    with pytest.raises(QuantizeError, match="the source model is quantized already"):
        quantize_checkpoint(source, tmp_path / "b", tmp_path / "work", config={"method": "awq"})
    with pytest.raises(QuantizeError, match="has no zero points"):
        quantize_checkpoint(DATA / "gptqmodel/awq_gemm", tmp_path / "c", tmp_path / "work", config=config)
