"""The streamed figures against transformers with the whole model in memory."""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import quantize.device
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.linear import QuantizedLinear
from toolchain.errors import GateError, ModelError
from toolchain.gate import streamed
from toolchain.gate.baseline import Baseline, make_baseline
from toolchain.gate.evaluate import evaluate
from toolchain.gate.result import Evaluation
from toolchain.gate.text import Windows, load_windows
from toolchain.text.files import TextFiles

DEMO = Path(__file__).parents[4] / "models" / "demo"


def measure(source: Path, checkpoint: Path, cut: Windows, **options: Any) -> Evaluation:
    """Both steps at once, on the CPU."""
    return evaluate(source, checkpoint, make_baseline(source, cut, device="cpu"), device="cpu", **options)


def windows(count: int = 5, length: int = 32, stride: int = 32) -> Windows:
    tokens = torch.randint(96, (1000,), generator=torch.Generator().manual_seed(3))
    return Windows(tokens.unfold(0, length, stride)[:count].contiguous(), stride)


def whole_model(source: Path, checkpoint: Path | None = None) -> Any:
    """transformers in float32; with the weights that `checkpoint` stands for, if one is given."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    if checkpoint is not None:
        opened = QuantizedCheckpoint.open(checkpoint)
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if weight is None or (name == "lm_head" and model.config.tie_word_embeddings):
                continue
            linear = opened.linear(name)
            weight.data.copy_(linear.dequantize() if isinstance(linear, QuantizedLinear) else linear)
    return model


@torch.no_grad()
def reference(source: Any, quantized: Any, cut: Windows) -> dict[str, float]:
    """The figures by the book: whole logits, one window after the other."""
    sums = torch.zeros(4, dtype=torch.float64)
    end = 0
    for number, tokens in enumerate(cut.tokens):
        begin = number * cut.stride
        first = max(1, end - begin)  # tokens that an earlier window did not hold
        end = begin + len(tokens)
        one, other = (m(tokens[None]).logits[0, first - 1 : -1].log_softmax(-1) for m in (source, quantized))
        targets = tokens[first:]
        sums[0] += F.nll_loss(one, targets, reduction="sum")
        sums[1] += F.nll_loss(other, targets, reduction="sum")
        sums[2] += F.kl_div(other, one, log_target=True, reduction="sum")
        sums[3] += (one.argmax(-1) == other.argmax(-1)).sum()
    mean = (sums / cut.predicted).tolist()
    return {
        "source_perplexity": math.exp(mean[0]),
        "quantized_perplexity": math.exp(mean[1]),
        "kl": mean[2],
        "top1": mean[3],
    }


def assert_equal(figures: Evaluation, wanted: dict[str, float], rel: float = 2e-5) -> None:
    assert {name: getattr(figures, name) for name in wanted} == pytest.approx(wanted, rel=rel)


FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("Llama", {}),
    ("Llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ("Mistral", {"sliding_window": 8}),
    ("Qwen2", {}),
    ("Qwen3", {}),
]


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_figures_are_those_of_transformers(
    family: str, changes: dict[str, Any], save_model: Callable[..., Path], quantized: Callable[[Path], Path]
) -> None:
    source = save_model(family, **changes)
    checkpoint = quantized(source)
    cut = windows()
    figures = measure(source, checkpoint, cut)
    one, other = whole_model(source), whole_model(source, checkpoint)
    assert_equal(figures, reference(one, other, cut))
    assert figures.increase == pytest.approx(figures.quantized_perplexity / figures.source_perplexity - 1)
    assert figures.tokens == 5 * 31
    assert figures.kl > 1e-4  # or nothing was compared

    with torch.no_grad():
        states = [m(cut.tokens[:1], output_hidden_states=True).hidden_states for m in (one, other)]
    for layer in range(2):  # after the last, transformers shows the final norm's output
        errors = [error(states[1][layer + 1], states[0][layer + 1])]
        one.model.layers[layer].load_state_dict(other.model.layers[layer].state_dict())
        with torch.no_grad():
            replaced = one(cut.tokens[:1], output_hidden_states=True).hidden_states[layer + 1]
        errors.append(error(replaced, states[0][layer + 1]))
        one.model.layers[layer].load_state_dict(whole_model(source).model.layers[layer].state_dict())
        found = figures.layers[layer]
        assert [found.relative_error, found.own_error] == pytest.approx(errors, rel=1e-4)


def error(x: Tensor, reference: Tensor) -> float:
    """Of one window: each token's relative error, and their root mean square."""
    relative = (x - reference).norm(dim=-1) / reference.norm(dim=-1)
    return float(relative.square().mean().sqrt())


@pytest.mark.parametrize("stride", [1, 8, 31])
def test_overlapping_windows_predict_each_token_once(
    stride: int, save_model: Callable[..., Path], quantized: Callable[[Path], Path]
) -> None:
    source = save_model()
    checkpoint = quantized(source)
    cut = windows(stride=stride)
    figures = measure(source, checkpoint, cut)
    assert figures.tokens == 31 + 4 * stride
    assert_equal(figures, reference(whole_model(source), whole_model(source, checkpoint), cut))


def test_chunks_of_logits_make_no_difference(
    save_model: Callable[..., Path], quantized: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_model()
    checkpoint = quantized(source)
    whole = measure(source, checkpoint, windows())
    monkeypatch.setitem(streamed._LOGITS, "cpu", 7 * 96)
    monkeypatch.setitem(quantize.device._BATCH_TOKENS, "cpu", 64)
    chunked = asdict(measure(source, checkpoint, windows()))
    names = ("source_perplexity", "quantized_perplexity", "kl", "kl_error", "top1")
    assert {name: chunked[name] for name in names} == pytest.approx(
        {name: getattr(whole, name) for name in names}, rel=1e-5
    )
    assert [layer["relative_error"] for layer in chunked["layers"]] == pytest.approx(
        [layer.relative_error for layer in whole.layers], rel=1e-5
    )


def test_a_model_beside_itself_has_no_error(save_model: Callable[..., Path]) -> None:
    source = save_model()
    figures = measure(source, source, windows())
    assert (figures.kl, figures.increase, figures.increase_error, figures.kl_error) == (0, 0, 0, 0)
    assert figures.top1 == 1
    assert {layer.relative_error for layer in figures.layers} == {0}


def test_the_standard_error_is_that_of_the_mean_over_windows(
    save_model: Callable[..., Path], quantized: Callable[[Path], Path]
) -> None:
    source = save_model()
    checkpoint = quantized(source)
    cut = windows()
    alone = [measure(source, checkpoint, Windows(tokens[None], 32)) for tokens in cut.tokens]
    assert {figures.kl_error for figures in alone} == {None}
    together = measure(source, checkpoint, cut)
    kl = torch.tensor([figures.kl for figures in alone])
    assert together.kl_error == pytest.approx(float(kl.std() / math.sqrt(5)), rel=1e-4)
    logs = torch.tensor([1 + figures.increase for figures in alone]).log()
    error = (1 + together.increase) * float(logs.std() / math.sqrt(5))
    assert together.increase_error == pytest.approx(error, rel=1e-3)


def rounding_hooks(model: Any, checkpoint: Path) -> None:
    """Let every linear of transformers' model read what the checkpoint's static e4m3 scale makes of it."""
    opened = QuantizedCheckpoint.open(checkpoint)
    for name in opened.scheme.linears:
        linear = opened.linear(name)
        assert isinstance(linear, QuantizedLinear)
        scale = linear.input_scale
        assert scale is not None

        def hook(_module: Any, args: tuple[Tensor], scale: Tensor = scale) -> tuple[Tensor]:
            codes = (args[0].double() / scale.double()).clamp(-448, 448).to(torch.float8_e4m3fn)
            return ((codes.double() * scale.double()).float(),)

        model.get_submodule(name).register_forward_pre_hook(hook)


def test_rounded_activations_are_part_of_the_figures(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source = save_model()
    checkpoint = tmp_path / "fp8"
    write_fp8(source, checkpoint)
    cut = windows()
    one, other = whole_model(source), whole_model(source, checkpoint)
    weights_only = measure(source, checkpoint, cut, simulate=False)
    assert_equal(weights_only, reference(one, other, cut))
    assert weights_only.simulated == ()
    rounding_hooks(other, checkpoint)
    figures = measure(source, checkpoint, cut)
    assert_equal(figures, reference(one, other, cut), rel=1e-3)  # a value at a tie may round either way
    assert figures.simulated == ("activations as FP8",)
    assert figures.kl > 1.3 * weights_only.kl


def write_fp8(source: Path, out: Path) -> None:
    """The model in FP8: per-tensor scales of weights, and one input scale for all."""
    shutil.copytree(source, out)
    tensors = load_file(source / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        module, weight = name.removesuffix(".weight"), tensors[name].float()
        scale = weight.abs().max() / 448
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[f"{module}.weight_scale"] = scale
        tensors[f"{module}.input_scale"] = torch.tensor(0.02)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "modelopt", "quant_algo": "FP8"}
    (out / "config.json").write_text(json.dumps(config))


def test_the_floor_is_what_transformers_loses_in_bfloat16(save_model: Callable[..., Path]) -> None:
    source = save_model()
    cut = windows()
    floor = make_baseline(source, cut, device="cpu").floor
    low = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).eval()

    def logits(tokens: Tensor) -> Any:
        return SimpleNamespace(logits=low(tokens).logits.float())

    wanted = reference(whole_model(source), logits, Windows(cut.tokens[:2], cut.stride))
    assert floor is not None
    assert floor.dtype == "bfloat16"
    assert floor.kl == pytest.approx(wanted["kl"], rel=0.05)  # rounding differs here and there
    assert 0 < floor.kl < 1e-3
    assert floor.top1 == pytest.approx(wanted["top1"], abs=0.04)  # two of 62 predictions are near ties


def test_a_baseline_that_was_kept_gives_the_same_figures(
    save_model: Callable[..., Path], quantized: Callable[[Path], Path], tmp_path: Path
) -> None:
    source = save_model()
    checkpoint = quantized(source)
    made = make_baseline(source, windows(stride=8), device="cpu")
    kept = tmp_path / "baseline"
    kept.mkdir()
    made.save(kept)
    loaded = Baseline.load(kept)
    figures = [evaluate(source, checkpoint, baseline, device="cpu") for baseline in (made, loaded)]
    assert figures[0] == figures[1]  # to the bit
    assert figures[0].floor is not None


def spoil(directory: Path, name: str, change: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(directory / "model.safetensors")
    tensors[name] = change(tensors[name])
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def test_a_damaged_layer_is_the_worst(
    save_model: Callable[..., Path], quantized: Callable[[Path], Path]
) -> None:
    source = save_model(num_hidden_layers=5)
    checkpoint = quantized(source)
    before = measure(source, checkpoint, windows())
    spoil(checkpoint, "model.layers.2.mlp.down_proj.weight_scale", lambda scale: scale * 4)
    after = measure(source, checkpoint, windows())
    assert after.worst()[0].layer == 2
    assert after.worst()[0].own_error > 1.5 * after.worst()[1].own_error
    assert after.kl > before.kl
    assert after.layers[:2] == before.layers[:2]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_told_with_its_layer(
    value: float, save_model: Callable[..., Path], quantized: Callable[[Path], Path]
) -> None:
    source = save_model()
    checkpoint = quantized(source)
    spoil(checkpoint, "model.layers.1.self_attn.o_proj.weight_scale", lambda s: s * value)
    with pytest.raises(GateError, match=r"^model\.layers\.1: the quantized model's hidden states") as caught:
        measure(source, checkpoint, windows())
    assert '"model.layers.1.*"' in str(caught.value)
    spoil(source, "model.layers.0.mlp.up_proj.weight", lambda weight: weight * value)
    with pytest.raises(ModelError, match=r"^model\.layers\.0: the source model's hidden states"):
        measure(source, checkpoint, windows())


def test_a_checkpoint_of_another_model_is_refused(
    save_model: Callable[..., Path], quantized: Callable[[Path], Path]
) -> None:
    source, other = save_model(), save_model(num_hidden_layers=2, intermediate_size=128)
    with pytest.raises(ModelError, match="differ in intermediate_size, num_hidden_layers"):
        measure(source, quantized(other), windows())


def test_a_quantized_source_is_what_its_codes_stand_for(
    save_model: Callable[..., Path], quantized: Callable[[Path], Path]
) -> None:
    source = save_model()
    checkpoint = quantized(source)
    itself, back = measure(checkpoint, checkpoint, windows()), measure(checkpoint, source, windows())
    assert (itself.kl, itself.increase, itself.top1) == (pytest.approx(0, abs=1e-9), 0, 1)
    assert back.source_perplexity == measure(source, checkpoint, windows()).quantized_perplexity


def test_figures_survive_json(save_model: Callable[..., Path], quantized: Callable[[Path], Path]) -> None:
    source = save_model()
    figures = measure(source, quantized(source), windows())
    assert Evaluation.from_json(figures.to_json()) == figures


PEAK = """
import sys
from pathlib import Path
import torch
from toolchain.gate.baseline import make_baseline
from toolchain.gate.evaluate import evaluate
from toolchain.gate.text import Windows
from toolchain.pipeline.measure import Meter

torch.set_num_threads(1)
windows = Windows(torch.zeros(2, 16, dtype=torch.int64), 16)
first = Path(sys.argv[1])
evaluate(first, first, make_baseline(first, windows, device="cpu"), device="cpu")  # pools fill
for directory in map(Path, sys.argv[1:]):
    meter = Meter()
    evaluate(directory, directory, make_baseline(directory, windows, device="cpu"), device="cpu")
    print(meter.read()[1])
"""


def test_memory_does_not_grow_with_the_layers(save_model: Callable[..., Path]) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 32}
    shallow, deep = (save_model(num_hidden_layers=count, **sizes) for count in (2, 10))
    script = [sys.executable, "-c", PEAK, shallow, deep]
    output = subprocess.run(script, capture_output=True, text=True, check=True).stdout
    few, many = map(int, output.split())
    assert many - few < 8 << 20  # a layer is 12 MiB in float32, and there are eight more of each model


@pytest.mark.slow
def test_the_demo_model_has_the_perplexity_of_its_card() -> None:
    cut = load_windows(TextFiles.local(DEMO / "heldout.txt"), DEMO, vocab_size=4096, context=1024)
    assert cut.tokens.shape == (27, 1024)
    figures = measure(DEMO, DEMO, cut)
    assert f"value: {figures.source_perplexity:.4f}\n" in (DEMO / "README.md").read_text()
    assert figures.kl == 0
