import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quantize.calibration import Calibration
from quantize.driver import Machine, quantize_model
from quantize.formats.checkpoint import FORMATS, QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from quantize.methods.awq import Awq
from quantize.methods.base import Method
from quantize.methods.gptq import AwqGptq, Gptq
from quantize.methods.weight_only import Int4WeightOnly
from quantize.selection import Override
from toolchain.errors import ModelError, QuantizeError, ToolchainError

GROUP = 16
LAYERS = 4


def calibration(seed: int = 0, samples: int = 6, seq_len: int = 24) -> Calibration:
    random = torch.Generator().manual_seed(seed)
    return Calibration("random", torch.randint(96, (samples, seq_len), generator=random), seed)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Recorder:
    """A `Progress` that remembers."""

    def __init__(self) -> None:
        self.started: tuple[str, int, str, int] | None = None
        self.advanced = 0

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        self.started = (label, total, unit, done)

    def advance(self, amount: int = 1) -> None:
        self.advanced += amount

    def note(self, text: str) -> None:
        raise AssertionError(text)


def run(source: Path, root: Path, name: str = "a", **changes: Any) -> Path:
    settings: dict[str, Any] = {"method": Awq(group_size=GROUP), "calibration": calibration()} | changes
    quantize_model(source, root / f"out-{name}", root / f"work-{name}", **settings)
    return root / f"out-{name}"


def dequantized_model(source: Path, quantized: Path) -> Any:
    """transformers on the weights that the quantized checkpoint stands for."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    checkpoint = QuantizedCheckpoint.open(quantized)
    state = {}
    for name in model.state_dict():
        linear = checkpoint.linear(name.removesuffix(".weight")) if "_proj.weight" in name else None
        if isinstance(linear, QuantizedLinear):
            state[name] = linear.dequantize()
        elif name in checkpoint.checkpoint:
            state[name] = checkpoint.read(name).float()
    model.load_state_dict(state, strict=False)
    return model.eval()


def test_none_copies_every_tensor(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source = save_model("Qwen2")
    report = quantize_model(source, tmp_path / "out", tmp_path / "work", method=None)
    assert report["method"] == {"method": "none"}
    original, copy = load_file(source / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert original.keys() == copy.keys()
    assert all(torch.equal(original[name], copy[name]) for name in original)
    assert not (tmp_path / "out/model.safetensors").samefile(source / "model.safetensors")
    assert json.loads((tmp_path / "out/config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert not (tmp_path / "out/hf_quant_config.json").exists()
    assert QuantizedCheckpoint.open(tmp_path / "out").quant_algo is None


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_every_family_quantizes(family: str, save_model: Callable[..., Path], tmp_path: Path) -> None:
    out = run(save_model(family), tmp_path)
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
    layer = "model.layers.1."
    assert {f"{layer}self_attn.{m}_proj.weight_scale" for m in "qkvo"} <= names
    assert {name for name in names if name.endswith("pre_quant_scale")} == {
        f"model.layers.{index}.{module}.pre_quant_scale"
        for index in range(2)
        for module in ("self_attn.o_proj", "mlp.down_proj")
    }
    assert {"model.embed_tokens.weight", "model.norm.weight"} <= names
    assert (f"{layer}self_attn.v_proj.bias" in names) == (family == "Qwen2")
    assert (out / "tokenizer.json").exists()


def test_the_report_says_what_was_done(save_model: Callable[..., Path], tmp_path: Path) -> None:
    events = Recorder()
    out = tmp_path / "out"
    report = quantize_model(
        save_model(),
        out,
        tmp_path / "work",
        method=Awq(group_size=GROUP),
        calibration=calibration(),
        events=events,
    )
    assert events.started == ("quantize", 2, "layers", 0)
    assert events.advanced == 2
    assert len(report.pop("seconds_per_layer")) == 2
    assert json.loads((out / "quantization_report.json").read_text()) == report
    assert report["calibration"] == calibration().digest
    assert report["calibration_tokens"] == 6 * 24
    assert len(report["linears"]) == 14
    for facts in report["linears"].values():
        assert 0 < facts["relative_error"] < 0.2
        assert 0.55 <= facts["mean_clip"] <= 1
        assert 0 <= facts["alpha"] <= 1


def test_awq_is_clearly_better_than_rounding_where_channels_stand_out(
    make_model: Callable[..., Any], save_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Outlier channels as real models have them: large in the norm, small in the weights that read it."""
    source = save_model(dtype=torch.float32)
    tensors = load_file(source / "model.safetensors")
    outliers = torch.tensor([3, 17, 40])
    for name in tensors:
        if name.endswith("layernorm.weight"):
            tensors[name][outliers] *= 30
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    out = run(source, tmp_path)

    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    rounded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    from quantize.algorithms.integer import quantize_groups

    with torch.no_grad():
        for name, parameter in rounded.named_parameters():
            if "_proj.weight" in name:
                codes, scales = quantize_groups(parameter, GROUP, torch.float32)
                parameter.copy_(QuantizedLinear(codes, scales, bits=4).dequantize())
        tokens = calibration(seed=9).tokens
        exact = reference(tokens).logits
        awq_error = (dequantized_model(source, out)(tokens).logits - exact).square().mean()
        rounding_error = (rounded(tokens).logits - exact).square().mean()
    assert awq_error < 0.6 * rounding_error


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_gptq_leaves_norms_alone_and_stores_ones(
    family: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model(family)
    out = run(source, tmp_path, method=Gptq(GROUP))
    assert QuantizedCheckpoint.open(out).quant_algo == "W4A16_AWQ"
    original, stored = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    by_awq = load_file(run(source, tmp_path, "awq") / "model.safetensors")
    assert stored.keys() == by_awq.keys()
    for name, tensor in stored.items():
        assert (tensor.dtype, tensor.shape) == (by_awq[name].dtype, by_awq[name].shape)
        if name.endswith("norm.weight"):
            assert torch.equal(tensor, original[name])
        if name.endswith("pre_quant_scale"):
            assert torch.equal(tensor, torch.ones_like(tensor))


METHODS = [Awq(GROUP), Gptq(GROUP), AwqGptq(Gptq(GROUP))]


@pytest.mark.parametrize("method", METHODS)
def test_the_same_recipe_gives_the_same_bytes(
    method: Method, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model()
    first = run(source, tmp_path, "a", method=method)
    second = run(source, tmp_path, "b", method=method)
    assert files_of(first) == files_of(second)


@pytest.mark.parametrize("method", METHODS)
def test_interrupted_after_a_layer_and_resumed_it_gives_the_same_bytes(
    method: Method, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    class StopAtOnce(Recorder):
        def advance(self, amount: int = 1) -> None:
            raise KeyboardInterrupt

    source = save_model()
    expected = files_of(run(source, tmp_path, "whole", method=method))
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path, method=method, events=StopAtOnce())
    events = Recorder()
    assert files_of(run(source, tmp_path, method=method, events=events)) == expected
    assert events.started == ("quantize", 2, "layers", 1)


def test_other_calibration_gives_other_bytes(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source = save_model()
    first = run(source, tmp_path, "a")
    second = run(source, tmp_path, "b", calibration=calibration(seed=1))
    assert files_of(first)["model.safetensors"] != files_of(second)["model.safetensors"]


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from quantize.methods.awq import Awq
from quantize.calibration import Calibration
from quantize.driver import quantize_model
tokens = torch.randint(96, (6, 24), generator=torch.Generator().manual_seed(0))
source, out, work = map(Path, sys.argv[1:])
quantize_model(source, out, work, method=Awq(group_size=16), calibration=Calibration("random", tokens, 0))
"""


def start_child(*arguments: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, *map(str, arguments)], env=os.environ)


@pytest.mark.slow
def test_killed_at_any_instant_and_resumed_it_gives_the_same_bytes(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model(num_hidden_layers=LAYERS)
    assert start_child(source, tmp_path / "whole", tmp_path / "work-whole").wait() == 0
    expected = files_of(tmp_path / "whole")

    # Kill as soon as a file appears: before, within and between layers, and while the output is written.
    appearing = ["work/fingerprint.json", "work/layer-00000.safetensors", "work/hidden-00001.safetensors"]
    appearing += ["work/layer-00002.safetensors", "out/quantization_report.json"]
    for number, name in enumerate(appearing):
        root = tmp_path / str(number)
        root.mkdir()
        child = start_child(source, root / "out", root / "work")
        while not (root / name).exists() and child.poll() is None:
            time.sleep(0.0005)
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, f"ended before {name} was seen"
        assert start_child(source, root / "out", root / "work").wait() == 0
        assert files_of(root / "out") == expected


def test_a_resumed_run_tells_what_is_done(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source = save_model()
    first = run(source, tmp_path)
    events = Recorder()
    kept = files_of(first)
    run(source, tmp_path, events=events)
    assert events.started == ("quantize", 2, "layers", 2)
    assert events.advanced == 0
    assert files_of(first) == kept


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"calibration": calibration(seed=5)}, "calibration: '[0-9a-f]{64}' there"),
        ({"method": Awq(group_size=32)}, "'group_size': 16"),
        ({"method": AwqGptq(Gptq(GROUP))}, "'method': 'awq_gptq'"),
        ({"exclude": ["model.layers.0.*"]}, "excluded: "),
    ],
)
def test_the_state_of_another_recipe_is_refused(
    changes: dict[str, Any], why: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model()
    run(source, tmp_path)
    with pytest.raises(QuantizeError, match="state of another quantization") as caught:
        run(source, tmp_path, **changes)
    assert caught.match(why)


def test_the_state_of_another_source_is_refused(save_model: Callable[..., Path], tmp_path: Path) -> None:
    run(save_model(), tmp_path)
    with pytest.raises(QuantizeError, match="source: "):
        run(save_model("Mistral"), tmp_path)


def test_excluded_modules_stay_as_they_are(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source = save_model()
    out = run(source, tmp_path, exclude=["lm_head", "model.layers.0.*", "*.1.self_attn.q_proj"])
    original, stored = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    for name, tensor in original.items():
        if name.startswith("model.layers.0.") or "1.self_attn.q_proj" in name:
            assert torch.equal(stored[name], tensor)
    # q_proj reads the norm as it is, so k_proj and v_proj cannot fold a scale into it.
    assert torch.equal(
        stored["model.layers.1.input_layernorm.weight"], original["model.layers.1.input_layernorm.weight"]
    )
    assert "model.layers.1.self_attn.k_proj.weight_scale" in stored
    checkpoint = QuantizedCheckpoint.open(out)
    assert isinstance(checkpoint.linear("model.layers.1.self_attn.q_proj"), torch.Tensor)
    assert "model.layers.1.self_attn.q_proj" in checkpoint.exclude_modules
    assert "model.layers.0.mlp.down_proj" in checkpoint.exclude_modules


def test_overflowing_activations_name_layer_and_module(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model()
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.self_attn.v_proj.weight"][3, 3] = torch.inf
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(QuantizeError, match=r"model\.layers\.1\.self_attn\.(v|o)_proj: .*NaN or Inf"):
        run(source, tmp_path)


def test_what_cannot_work_is_said_before_any_work(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source = save_model()
    with pytest.raises(QuantizeError, match="do not divide into groups") as caught:
        run(source, tmp_path, method=Awq())
    assert caught.match("down_proj has 96 input channels, which groups of 128 do not divide")
    with pytest.raises(QuantizeError, match="needs calibration data"):
        run(source, tmp_path, calibration=None)
    with pytest.raises(QuantizeError, match="'lm_hed' matches no linear") as caught:
        run(source, tmp_path, exclude=["lm_hed"])
    assert caught.match("nearest name is lm_head")
    with pytest.raises(QuantizeError, match="every linear of the model is excluded"):
        run(source, tmp_path, exclude=["*"])
    with pytest.raises(QuantizeError, match="exceed the model's context of 64"):
        run(source, tmp_path, calibration=calibration(seq_len=65))
    assert not (tmp_path / "work-a").exists()


def test_a_quantized_source_is_refused(save_model: Callable[..., Path], tmp_path: Path) -> None:
    out = run(save_model(), tmp_path)
    with pytest.raises(QuantizeError, match="quantized already"):
        run(out, tmp_path, "again")


def test_a_damaged_source_is_refused(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source = save_model()
    tensors = load_file(source / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        run(source, tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_hidden_states_that_were_not_saved_are_computed_again(
    method: Method, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model(num_hidden_layers=LAYERS)
    out = run(source, tmp_path, method=method)
    expected = files_of(out)
    (tmp_path / "work-a/layer-00003.safetensors").unlink()
    for file in (tmp_path / "work-a").glob("hidden-*"):
        file.unlink()
    run(source, tmp_path, method=method)
    assert files_of(out) == expected


def test_hidden_states_beyond_their_memory_go_to_a_file_that_leaves_no_trace(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model()
    expected = files_of(run(source, tmp_path))
    spilled = run(source, tmp_path, "spilled", machine=Machine("cpu", hidden_memory=0))
    assert files_of(spilled) == expected
    assert not [path for path in (tmp_path / "work-spilled").iterdir() if path.name.startswith(".")]


def test_linears_may_have_methods_of_their_own(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source = save_model()
    overrides = [
        Override("*.0.mlp.*_proj", Gptq(32)),
        Override("*.mlp.down_proj", None),  # of layer 1: the first match won in layer 0
    ]
    out = run(source, tmp_path, overrides=overrides)
    checkpoint = QuantizedCheckpoint.open(out)
    assert checkpoint.quant_algo == "MIXED_PRECISION"
    groups = {name: own.group_size for name, own in checkpoint.scheme.linears.items()}
    assert groups["model.layers.0.mlp.down_proj"] == 32
    assert groups["model.layers.1.mlp.up_proj"] == GROUP
    assert "model.layers.1.mlp.down_proj" not in groups
    assert "model.layers.1.mlp.down_proj" in checkpoint.exclude_modules
    with pytest.raises(QuantizeError, match=r"quantization.overrides: '\*.q_prj' matches no linear"):
        run(source, tmp_path, "b", overrides=[Override("*.q_prj", None)])


@pytest.mark.parametrize("algo", ["FP8", "INT8"])
def test_the_caches_scales_are_those_of_the_keys_and_values(
    algo: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Against transformers' own cache, filled by the unquantized model."""
    from transformers import AutoModelForCausalLM

    source = save_model(dtype=torch.float32)
    out = run(source, tmp_path, method=None, kv_cache=algo)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        cache = model(calibration().tokens, use_cache=True).past_key_values
    checkpoint = QuantizedCheckpoint.open(out)
    assert checkpoint.kv_cache_quant_algo == algo
    for index, layer in enumerate(cache.layers):
        scales = checkpoint.kv_scales(f"model.layers.{index}.")
        assert scales is not None
        for scale, states in zip(scales, (layer.keys, layer.values), strict=True):
            amax = states.abs().max()
            expected = amax / 127 if algo == "INT8" else max(amax / 448, torch.tensor(1.0))
            torch.testing.assert_close(scale, expected, rtol=1e-5, atol=0)


def test_a_device_that_is_not_there_is_said(save_model: Callable[..., Path], tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ToolchainError, match="there is no CUDA device"):
        run(save_model(), tmp_path, machine=Machine("cuda"))
    assert not (tmp_path / "work-a").exists()


@pytest.mark.parametrize("family", ["Llama", "Qwen2"])
def test_a_form_without_pre_quant_scale_folds_into_the_linear_before(
    family: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Outliers in the inputs of o_proj and down_proj, which no norm can take."""
    source = save_model(family, dtype=torch.float32, num_attention_heads=4, num_key_value_heads=2)
    tensors = load_file(source / "model.safetensors")
    for name in tensors:
        if "v_proj" in name or "up_proj.weight" in name:
            tensors[name][5] *= 32
            tensors[name][20] *= 64
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    form = FORMATS["compressed-tensors"]
    by_awq = run(source, tmp_path, "awq", form=form)
    beside = run(source, tmp_path, "beside")
    rounded = run(source, tmp_path, "rtn", form=form, method=Int4WeightOnly(GROUP))

    from transformers import AutoModelForCausalLM

    tokens = calibration(seed=9).tokens
    with torch.no_grad():
        exact = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()(tokens).logits
        errors = [
            float((dequantized_model(source, out)(tokens).logits - exact).square().mean())
            for out in (by_awq, beside, rounded)
        ]
    assert errors[0] < 1.6 * errors[1]
    assert errors[0] < 0.6 * errors[2]
    stored = load_file(by_awq / "model.safetensors")
    assert not [name for name in stored if name.endswith("pre_quant_scale")]
    if family == "Qwen2":  # the bias follows its row
        ratio = (
            tensors["model.layers.0.self_attn.v_proj.bias"] / stored["model.layers.0.self_attn.v_proj.bias"]
        )
        assert ratio[5] > 1
        assert torch.equal(ratio.log2(), ratio.log2().round())


def test_a_fold_into_the_linear_before_is_resumed_to_the_same_bytes(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model(num_hidden_layers=LAYERS)
    form = FORMATS["compressed-tensors"]
    expected = files_of(run(source, tmp_path, form=form))
    (tmp_path / "work-a/layer-00003.safetensors").unlink()
    for file in (tmp_path / "work-a").glob("hidden-*"):
        file.unlink()
    assert files_of(run(source, tmp_path, form=form)) == expected
