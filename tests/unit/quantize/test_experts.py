"""Experts through the driver: quality, routing, experts without tokens, memory."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantize.algorithms.integer import quantize_groups
from quantize.calibration import Calibration
from quantize.driver import quantize_model
from quantize.experts import FEW_TOKENS, ExpertsRun
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.layer import DecoderLayer, rotary_tables
from quantize.linear import QuantizedLinear
from quantize.methods.awq import Awq
from quantize.methods.base import Method
from quantize.methods.gptq import AwqGptq, Gptq
from quantize.methods.registry import make_method
from quantize.selection import Override
from toolchain.gate.baseline import make_baseline
from toolchain.gate.evaluate import evaluate
from toolchain.gate.result import Evaluation
from toolchain.gate.text import Windows
from toolchain.model.families import expected_tensors, layer_prefix, layer_tensors
from toolchain.model.spec import load_spec

GROUP = 16
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
SHARED = {"shared_expert_intermediate_size": 80}
FAMILIES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": EXPERTS | SHARED,
    "Qwen3Moe": EXPERTS | {"norm_topk_prob": True, "mlp_only_layers": [0]},
}
METHODS = {"awq": Awq(GROUP), "gptq": Gptq(GROUP), "awq_gptq": AwqGptq(Gptq(GROUP))}
MLP_NORM = "post_attention_layernorm.weight"


def calibration(samples: int = 32, seq_len: int = 24) -> Calibration:
    random = torch.Generator().manual_seed(0)
    return Calibration("random", torch.randint(96, (samples, seq_len), generator=random), 0)


@pytest.fixture
def save_outlying(make_model: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """A function (family, dtype, **config) -> a model some of whose channels stand out before the experts."""

    def save(family: str, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
        directory = tmp_path / f"source-{family}"
        model = make_model(family, **(FAMILIES[family] | changes))
        with torch.no_grad():
            for layer in model.model.layers:
                layer.post_attention_layernorm.weight[::9] *= 12
        model.to(dtype).save_pretrained(directory)
        return directory

    return save


class Recorder:
    """A `Progress` that remembers notes, and stops the work after some layers."""

    def __init__(self, stop_after: int = 1000) -> None:
        self.left, self.notes = stop_after, list[str]()

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        pass

    def advance(self, amount: int = 1) -> None:
        self.left -= amount
        if self.left == 0:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def run(source: Path, name: str = "a", **changes: Any) -> Path:
    settings: dict[str, Any] = {"method": Awq(GROUP), "calibration": calibration()} | changes
    root = source.parent
    quantize_model(source, root / f"out-{name}", root / f"work-{name}", **settings)
    return root / f"out-{name}"


def plain(source: Path, name: str, weight: Callable[[str], torch.Tensor]) -> Path:
    """A plain checkpoint of the same model with other weights, as transformers can load it."""
    directory = source.parent / name
    directory.mkdir()
    shutil.copy(source / "config.json", directory)
    tensors = {key: weight(key).contiguous() for key in expected_tensors(load_spec(source))}
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def dequantized(source: Path, quantized: Path) -> Path:
    checkpoint = QuantizedCheckpoint.open(quantized)

    def weight(name: str) -> torch.Tensor:
        linear = checkpoint.linear(name.removesuffix(".weight")) if ".weight" in name else None
        return linear.dequantize() if isinstance(linear, QuantizedLinear) else checkpoint.read(name).float()

    return plain(source, f"plain-{quantized.name}", weight)


def rounded(source: Path) -> Path:
    stored = load_file(source / "model.safetensors")

    def weight(name: str) -> torch.Tensor:
        if "_proj.weight" not in name and ".experts." not in name:
            return stored[name].float()
        codes, scales = quantize_groups(stored[name], GROUP, stored[name].dtype)
        return QuantizedLinear(codes, scales, bits=4).dequantize()

    return plain(source, "rounded", weight)


def measure(source: Path, checkpoint: Path) -> Evaluation:
    baseline = make_baseline(source, held_out(), device="cpu")
    return evaluate(source, checkpoint, baseline, device="cpu")


def held_out() -> Windows:
    return Windows(torch.randint(96, (16, 32), generator=torch.Generator().manual_seed(9)), 32)


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@torch.no_grad()
def expert_error(source: Path, other: Path) -> float:
    """Relative error of what the experts of layer 1 say to what the source's attention gives them."""
    spec, models = load_spec(source), [load_file(path / "model.safetensors") for path in (source, other)]
    hidden = models[0]["model.embed_tokens.weight"][held_out().tokens].float()
    rotary = rotary_tables(spec, hidden.shape[1], torch.float32)
    layers = [
        [
            DecoderLayer(
                spec, n, {name: model[layer_prefix(n) + name].float() for name in layer_tensors(spec, n)}
            )
            for n in range(2)
        ]
        for model in models
    ]
    hidden = layers[0][0].forward(hidden, rotary)
    layer = layers[0][1]
    hidden = layer.after_attention(hidden, layer.attend(layer.attention_input(hidden), rotary))
    wanted, found = (own[1].after_experts(hidden) - hidden for own in layers)
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_is_better_than_rounding(save_outlying: Callable[..., Path], family: str) -> None:
    source = save_outlying(family)
    nearest = rounded(source)
    worst, worst_experts = measure(source, nearest), expert_error(source, nearest)
    for name, method in METHODS.items():
        out = run(source, name, method=method)
        # 0.34 to 0.58 of rounding's; what reaches the logits is mostly tokens that attention sends elsewhere.
        assert expert_error(source, dequantized(source, out)) < 0.7 * worst_experts, name
        assert measure(source, out).kl < worst.kl, name


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_transformers_runs_what_the_checkpoint_stands_for(
    save_outlying: Callable[..., Path], family: str
) -> None:
    from transformers import AutoModelForCausalLM

    source = save_outlying(family)
    quantized = run(source, method=METHODS["awq_gptq"])
    tokens = held_out().tokens
    logits = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()(tokens).logits.log_softmax(-1)
        for path in (source, dequantized(source, quantized))
    ]
    kl = float((logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean())
    assert kl == pytest.approx(measure(source, quantized).kl, rel=0.1)
    assert 0 < kl < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_the_scale_of_the_norm_moves_no_token(save_outlying: Callable[..., Path], family: str) -> None:
    source = save_outlying(family)
    quantized = QuantizedCheckpoint.open(run(source))
    before, spec = load_file(source / "model.safetensors"), load_spec(source)
    prefix = layer_prefix(1)
    scale = before[prefix + MLP_NORM] / quantized.read(prefix + MLP_NORM)
    assert (scale != 1).any()
    assert torch.equal(scale, scale.float().log2().round().exp2().to(scale.dtype))
    own = {name: before[prefix + name] for name in layer_tensors(spec, 1)}
    routers = [name for name in own if name.endswith(("gate.weight", "shared_expert_gate.weight"))]
    after = dict(own)
    for name in [*routers, MLP_NORM]:
        after[name] = quantized.read(prefix + name)
    for name in routers:
        assert torch.equal(after[name], own[name] * scale)
    hidden = torch.randn(500, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    routes = []
    for tensors in (own, after):
        layer = DecoderLayer(spec, 1, tensors)
        routes.append(layer.route(layer.mlp_input(hidden)))
    assert torch.equal(routes[0].experts, routes[1].experts)
    assert torch.equal(routes[0].weights, routes[1].weights)


# About twice what each gives here: 0.010, 0.008, 0.004, 0.0009, 0.035, 0.029 and 0.068.
@pytest.mark.parametrize(
    ("method", "most"),
    [
        *(("fp8", 0.02), ("fp8_rowwise", 0.02), ("int8_sq", 0.01), ("int8_wo", 0.002)),
        *(("int4_wo", 0.07), ("w4a8_awq", 0.06), ("nvfp4", 0.14)),
    ],
)
def test_every_other_method_quantizes_experts_too(
    save_outlying: Callable[..., Path], method: str, most: float
) -> None:
    source = save_outlying("Qwen2Moe")
    found = measure(source, run(source, method=make_method(method, group_size=GROUP)))
    assert 0 < found.kl < most


def test_down_projections_of_experts_store_ones(save_outlying: Callable[..., Path]) -> None:
    quantized = QuantizedCheckpoint.open(run(save_outlying("Qwen2Moe")))
    for expert in range(4):
        down = quantized.read(f"model.layers.1.mlp.experts.{expert}.down_proj.pre_quant_scale")
        assert torch.equal(down, torch.ones_like(down))
    shared = quantized.read("model.layers.1.mlp.shared_expert.down_proj.pre_quant_scale")
    assert not torch.equal(shared, torch.ones_like(shared))
    assert not [name for name in quantized.checkpoint.names if "up_proj.pre_quant_scale" in name]


def test_routers_are_listed_and_stay_as_plain_tensors(
    save_outlying: Callable[..., Path], read_json: Callable[[Path], Any]
) -> None:
    out = run(save_outlying("Qwen2Moe"), method=Gptq(GROUP))
    excluded = read_json(out / "hf_quant_config.json")["quantization"]["exclude_modules"]
    gates = [f"model.layers.{n}.mlp.{name}" for n in (0, 1) for name in ("gate", "shared_expert_gate")]
    assert excluded == ["lm_head", "model.embed_tokens", *gates]
    before, after = (
        load_file(directory / "model.safetensors") for directory in (out.parent / "source-Qwen2Moe", out)
    )
    for name in gates:  # GPTQ scales nothing
        assert torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])


def test_where_something_that_reads_the_norm_is_left_alone_nothing_is_scaled(
    save_outlying: Callable[..., Path],
) -> None:
    source = save_outlying("Mixtral")
    before = load_file(source / "model.safetensors")
    expert = "model.layers.1.block_sparse_moe.experts.2"
    for name, changes in {
        "excluded": {"exclude": [f"{expert}.*"]},
        "other": {"overrides": [Override(f"{expert}.*", Gptq(GROUP))]},
    }.items():
        after = load_file(run(source, name, **changes) / "model.safetensors")
        for tensor in (MLP_NORM, "block_sparse_moe.gate.weight"):
            assert torch.equal(before[f"model.layers.1.{tensor}"], after[f"model.layers.1.{tensor}"])
            assert not torch.equal(before[f"model.layers.0.{tensor}"], after[f"model.layers.0.{tensor}"])
        for linear in ("w1", "w2", "w3"):
            same = before[f"{expert}.{linear}.weight"].shape == after[f"{expert}.{linear}.weight"].shape
            assert same == (name == "excluded")
            if same:
                assert torch.equal(before[f"{expert}.{linear}.weight"], after[f"{expert}.{linear}.weight"])


@pytest.mark.parametrize("method", ["awq", "awq_gptq"])
def test_interrupted_and_resumed_it_gives_the_same_bytes(
    save_outlying: Callable[..., Path], method: str
) -> None:
    source = save_outlying("Qwen2Moe")
    whole = files_of(run(source, "whole", method=METHODS[method]))
    with pytest.raises(KeyboardInterrupt):
        run(source, "parts", method=METHODS[method], events=Recorder(stop_after=1))
    assert files_of(run(source, "parts", method=METHODS[method])) == whole


def test_experts_without_tokens_are_named_and_quantized_on_the_layer(
    save_outlying: Callable[..., Path], read_json: Callable[[Path], Any]
) -> None:
    source = save_outlying("Mixtral", num_local_experts=40, num_experts_per_tok=1, num_hidden_layers=1)
    events = Recorder()
    out = run(source, calibration=calibration(samples=6), events=events)
    report = read_json(out / "quantization_report.json")
    counts = [
        report["linears"][f"model.layers.0.block_sparse_moe.experts.{expert}.w2"] for expert in range(40)
    ]
    tokens = [facts["calibration_tokens"] for facts in counts]
    assert sum(tokens) == 6 * 24
    unreached = [expert for expert, count in enumerate(tokens) if count == 0]
    assert len(unreached) > 2
    prefix = "model.layers.0.block_sparse_moe.experts."
    assert report["unreached_experts"] == [f"{prefix}{expert}" for expert in unreached]
    (none,) = [note for note in events.notes if "no calibration token" in note]
    assert none == (
        f"layer 0: no calibration token reached experts {', '.join(map(str, unreached))} of 40; "
        "quantized on tokens of the whole layer instead"
    )
    assert any(f"fewer than {FEW_TOKENS} tokens reached experts" in note for note in events.notes)
    for count, facts in zip(tokens, counts, strict=True):
        assert facts.get("calibrated_on_layer", False) == (count < FEW_TOKENS)
        assert facts["relative_error"] < facts["relative_error_of_rounding"]


def test_no_note_where_every_expert_has_its_tokens(save_outlying: Callable[..., Path]) -> None:
    events = Recorder()
    run(save_outlying("Qwen3Moe"), events=events)
    assert events.notes == []


class Counting:
    """GPTQ, and the most of its statistics that were alive at once."""

    def __init__(self, method: Gptq) -> None:
        self.method, self.most, self._alive = method, 0, weakref.WeakSet[Any]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def observe(self, in_features: int, seed: int, device: torch.device) -> Any:
        statistics = self.method.observe(in_features, seed, device)
        self._alive.add(statistics)
        self.most = max(self.most, len(self._alive))
        return statistics


def test_one_experts_statistics_and_weights_at_a_time(
    save_outlying: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = set[int]()
    original = ExpertsRun._input

    def looking(self: ExpertsRun, tokens: torch.Tensor) -> torch.Tensor:
        names = [name for name in self.run.layer.tensors if ".experts." in name]
        held.add(len(names))
        assert len(names) == len([name for name in self.run.original if ".experts." in name])
        return original(self, tokens)

    monkeypatch.setattr(ExpertsRun, "_input", looking)
    method: Any = Counting(Gptq(GROUP))
    run(save_outlying("Mixtral"), method=method)
    assert held == {3}
    assert method.most == 1


def test_methods_that_look_at_nothing_quantize_experts_too(save_outlying: Callable[..., Path]) -> None:
    source = save_outlying("Qwen2Moe")
    out = run(source, method=Blind(), calibration=None)
    worst = measure(source, rounded(source))
    assert measure(source, out).kl == pytest.approx(worst.kl, rel=1e-3)


class Blind:
    """Rounds to nearest, and needs no calibration."""

    scheme = Awq(GROUP).scheme
    needs_calibration = False

    def parameters(self) -> dict[str, Any]:
        return {"method": "nearest"}

    def observe(self, in_features: int, seed: int, device: torch.device) -> Any:
        raise AssertionError

    def quantize(self, group: Any, statistics: None) -> Any:
        from quantize.methods.base import QuantizedGroup

        linears = {}
        for name, weight in group.weights.items():
            codes, scales = quantize_groups(weight, GROUP, weight.dtype)
            ones = torch.ones(weight.shape[1], dtype=weight.dtype) if group.pre_quant_scale else None
            linears[name] = QuantizedLinear(
                codes, scales, bits=4, pre_quant_scale=ones, bias=group.biases.get(name)
            )
        return QuantizedGroup(linears)


def test_the_stored_form_is_that_of_the_method_protocol() -> None:
    method: Method = Blind()
    assert method.scheme == Awq(GROUP).scheme
