"""Random checkpoints, and rank files put together again the way TensorRT-LLM reads them.

`Ranks` is written from the contract, without the code under test: it knows names, shapes and the meaning of
codes, and asserts on its way whatever else the contract wants of a rank.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from quantize.formats.base import LinearScheme, Scheme
from quantize.formats.checkpoint import FORMATS, QuantizedCheckpoint, write_checkpoint
from quantize.formats.tensorfile import StoredTensor
from quantize.linear import QuantizedLinear
from toolchain.engine.tensorrt.checklist import check_checkpoint
from toolchain.engine.tensorrt.convert import RankLayout, convert
from toolchain.findings import errors
from toolchain.model.families import expected_tensors, layer_prefix, linear_shapes
from toolchain.model.spec import ModelSpec, load_spec
from toolchain.progress import Silent

torch.set_num_threads(1)

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}

FP8_CODES = torch.tensor([code for code in range(256) if code & 0x7F != 0x7F], dtype=torch.uint8)
FP4_VALUES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -1, -1.5, -2, -3, -4, -6])


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    """A config.json of a tiny model."""
    config = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "dtype": "bfloat16",
    }
    if family == "mixtral":
        config |= {"num_local_experts": 4, "num_experts_per_tok": 2}
    elif family.endswith("moe"):
        config |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    if family == "qwen2_moe":
        config |= {"shared_expert_intermediate_size": 64}
    return config | changes


def random_linear(
    scheme: LinearScheme, shape: tuple[int, int], dtype: torch.dtype, generator: torch.Generator
) -> QuantizedLinear:
    """A linear with random codes and scales of a scheme; what fused linears share is the same in all."""
    rows, columns = shape
    algo, group = scheme.quant_algo, scheme.group_size

    def random(*sizes: int) -> Tensor:
        return torch.rand(sizes, generator=generator) + 0.01

    scales = random(*((1, 1) if algo == "FP8" else (rows, columns // group if group else 1)))
    pre_quant = input_scale = second = None
    if algo == "NVFP4":
        picked = torch.randint(len(FP4_VALUES), shape, generator=generator)
        codes = FP4_VALUES[picked].to(torch.float8_e4m3fn)
        scales, input_scale, second = (
            scales.to(torch.float8_e4m3fn).float(),
            torch.tensor(0.1),
            torch.tensor(0.3),
        )
    elif algo.startswith("FP8"):
        picked = torch.randint(len(FP8_CODES), shape, generator=generator)
        codes = FP8_CODES[picked].view(torch.float8_e4m3fn)
        if algo == "FP8":
            scales, input_scale = torch.full((1, 1), 0.013), torch.tensor(0.1)
    elif algo in ("W8A16", "W8A8_SQ_PER_CHANNEL"):
        codes = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        if algo != "W8A16":
            input_scale, pre_quant = torch.tensor(0.2), torch.linspace(0.5, 1.5, columns).to(dtype)
    else:
        codes = torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)
        pre_quant = torch.linspace(0.5, 1.5, columns).to(dtype)
        if algo == "W4A8_AWQ":
            input_scale, second = torch.tensor(0.2), torch.tensor(0.4)
    return QuantizedLinear(
        codes,
        scales,
        bits=scheme.bits,
        pre_quant_scale=pre_quant,
        input_scale=input_scale,
        weight_scale_2=second,
    )


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    """A function (directory, config, scheme, ...) -> a random checkpoint in ModelOpt's or another form."""

    def make(
        directory: Path,
        config: dict[str, Any],
        scheme: LinearScheme | None = None,
        *,
        form: str = "modelopt",
        kv_cache: str | None = None,
        exclude: tuple[str, ...] = (),
        change: Callable[[str, QuantizedLinear], QuantizedLinear] = lambda name, linear: linear,
    ) -> Path:
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(config))
        spec, dtype = load_spec(directory), getattr(torch, config["dtype"])
        generator = torch.Generator().manual_seed(0)
        linears: dict[str, LinearScheme] = {}
        tensors: dict[str, Tensor] = {}
        for name, shape in expected_tensors(spec).items():
            if name != "lm_head.weight" or not spec.tie_word_embeddings:
                tensors[name] = torch.randn(shape, generator=generator).to(dtype)
        for layer in range(spec.num_hidden_layers):
            for module, shape in linear_shapes(spec, layer).items():
                full = layer_prefix(layer) + module
                if scheme is None or any(part in full for part in exclude):
                    continue
                linears[full] = scheme
                linear = change(full, random_linear(scheme, shape, dtype, generator))
                del tensors[f"{full}.weight"]
                tensors |= FORMATS[form].linear_tensors(full, linear, scheme, dtype)
            if kv_cache:
                one, other = torch.tensor(0.5 + layer), torch.tensor(0.75 + layer)
                tensors |= FORMATS[form].kv_tensors(layer_prefix(layer), one, other)
        stored = {name: StoredTensor.of(tensor.contiguous()) for name, tensor in tensors.items()}
        described = Scheme(linears, ("lm_head", *exclude), kv_cache) if scheme or kv_cache else None
        write_checkpoint(directory, directory, stored, described, FORMATS[form])
        return directory

    return make


@pytest.fixture(scope="session")
def convert_to() -> Callable[..., dict[str, Any]]:
    """A function (checkpoint, out directory, **layout) -> the facts of the conversion."""

    def run(checkpoint: Path, out: Path, **layout: Any) -> dict[str, Any]:
        return convert(
            checkpoint, out, out.with_name(f"{out.name}-work"), layout=RankLayout(**layout), progress=Silent()
        )

    return run


def effective_weights(checkpoint: Path) -> dict[str, Tensor]:
    """The weights that a checkpoint stands for, by Hugging Face's names, and its other tensors as stored."""
    source, spec = QuantizedCheckpoint.open(checkpoint), load_spec(checkpoint)
    found = {}
    for name in expected_tensors(spec):
        linear = source.scheme.linears.get(name.removesuffix(".weight"))
        if linear is not None:
            quantized = source.linear(name.removesuffix(".weight"))
            assert isinstance(quantized, QuantizedLinear)
            dtype = getattr(torch, spec.dtype) if linear.quant_algo == "W8A16" else torch.float32
            found[name] = quantized.dequantize(dtype).float()
        elif name in source.checkpoint:
            found[name] = source.read(name).float()
    if spec.tie_word_embeddings:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


class Ranks:
    """Rank files, read as TensorRT-LLM reads them."""

    def __init__(self, directory: Path, spec: ModelSpec) -> None:
        self.spec, self.config = spec, json.loads((directory / "config.json").read_text())
        mapping = self.config["mapping"]
        self.tp, self.pp = mapping["tp_size"], mapping["pp_size"]
        self.moe_tp, self.moe_ep = mapping.get("moe_tp_size", self.tp), mapping.get("moe_ep_size", 1)
        self.files = [load_file(directory / f"rank{rank}.safetensors") for rank in range(self.tp * self.pp)]
        assert len(list(directory.glob("rank*"))) == len(self.files)
        self.quantized = json.loads((directory / "quant_cfg.json").read_text())

    def assembled(self) -> dict[str, Tensor]:
        """Every weight of the model, by Hugging Face's names."""
        first, last = self.files[: self.tp], self.files[-self.tp :]
        found = {"model.embed_tokens.weight": self._embedding(first)}
        head = torch.cat([file["lm_head.weight"] for file in last]).float()
        assert not head[self.spec.vocab_size :].any()
        found["lm_head.weight"] = head[: self.spec.vocab_size]
        found["model.norm.weight"] = self._same([file["transformer.ln_f.weight"] for file in last])
        base = 0
        for stage in range(self.pp):
            files = self.files[stage * self.tp : (stage + 1) * self.tp]
            count = len({name.split(".")[2] for name in files[0] if ".layers." in name})
            for local in range(count):
                prefix = f"transformer.layers.{local}."
                own = [
                    {name.removeprefix(prefix): t for name, t in file.items() if name.startswith(prefix)}
                    for file in files
                ]
                layer = self._layer(own, base + local)
                found |= {layer_prefix(base + local) + name: t for name, t in layer.items()}
            base += count
        assert base == self.spec.num_hidden_layers == self.config["num_hidden_layers"]
        return found

    def _embedding(self, files: list[dict[str, Tensor]]) -> Tensor:
        parts = [file["transformer.vocab_embedding.weight"] for file in files]
        if not self.config["use_parallel_embedding"]:
            return self._same(parts)
        if self.config["embedding_sharding_dim"] == 1:
            return torch.cat(parts, dim=1).float()
        table = torch.cat(parts).float()
        assert not table[self.spec.vocab_size :].any()
        return table[: self.spec.vocab_size]

    def _layer(self, ranks: list[dict[str, Tensor]], layer: int) -> dict[str, Tensor]:
        spec, found = self.spec, {}
        names = {"input_layernorm": "input_layernorm", "post_layernorm": "post_attention_layernorm"}
        if spec.qk_norm:
            names |= {
                "attention.q_layernorm": "self_attn.q_norm",
                "attention.k_layernorm": "self_attn.k_norm",
            }
        for own, name in names.items():
            found[f"{name}.weight"] = self._same([rank[f"{own}.weight"] for rank in ranks])
        found |= self._qkv(ranks, "weight") | (self._qkv(ranks, "bias") if spec.qkv_bias else {})
        found["self_attn.o_proj.weight"] = self._row(ranks, "attention.dense")
        if spec.o_bias:
            biases = [rank["attention.dense.bias"] for rank in ranks]
            found["self_attn.o_proj.bias"] = self._same(biases)
        return found | (self._dense(ranks) if spec.moe is None else self._moe(ranks))

    def _dense(self, ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        found = {
            "mlp.gate_proj.weight": torch.cat([weight(rank, "mlp.fc") for rank in ranks]),
            "mlp.up_proj.weight": torch.cat([weight(rank, "mlp.gate") for rank in ranks]),
            "mlp.down_proj.weight": self._row(ranks, "mlp.proj"),
        }
        if self.spec.mlp_bias:
            found["mlp.gate_proj.bias"] = torch.cat([rank["mlp.fc.bias"] for rank in ranks]).float()
            found["mlp.up_proj.bias"] = torch.cat([rank["mlp.gate.bias"] for rank in ranks]).float()
            found["mlp.down_proj.bias"] = self._same([rank["mlp.proj.bias"] for rank in ranks])
        return found

    def _moe(self, ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        moe, mixtral = self.spec.moe, self.spec.family == "mixtral"
        assert moe is not None
        routers = [rank["mlp.router.weight"] for rank in ranks]
        assert routers[0].dtype == torch.float32
        found = {f"{'block_sparse_moe' if mixtral else 'mlp'}.gate.weight": self._same(routers)}
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        each = moe.num_experts // self.moe_ep
        for expert in range(moe.num_experts):
            group, slot = divmod(expert, each)
            own = [rank for number, rank in enumerate(ranks) if number % self.moe_ep == group]
            assert len(own) == self.moe_tp
            single = [{name: expert_part(name, t, slot) for name, t in rank.items()} for rank in own]
            prefix = f"{'block_sparse_moe' if mixtral else 'mlp'}.experts.{expert}."
            halves = [weight(rank, "mlp.fc").chunk(2) for rank in single]
            found[f"{prefix}{names[0]}.weight"] = torch.cat([gate for _, gate in halves])
            found[f"{prefix}{names[1]}.weight"] = torch.cat([up for up, _ in halves])
            found[f"{prefix}{names[2]}.weight"] = self._row(single, "mlp.proj")
        if moe.shared_expert_intermediate_size:
            halves = [weight(rank, "mlp.shared_expert.fc").chunk(2) for rank in ranks]
            found["mlp.shared_expert.gate_proj.weight"] = torch.cat([gate for _, gate in halves])
            found["mlp.shared_expert.up_proj.weight"] = torch.cat([up for up, _ in halves])
            found["mlp.shared_expert.down_proj.weight"] = self._row(ranks, "mlp.shared_expert.proj")
            gates = [rank["mlp.shared_expert_gate.weight"] for rank in ranks]
            found["mlp.shared_expert_gate.weight"] = self._same(gates)
        return found

    def _qkv(self, ranks: list[dict[str, Tensor]], kind: str) -> dict[str, Tensor]:
        spec = self.spec
        queries = spec.num_attention_heads // self.tp * spec.head_dim
        keys = max(1, spec.num_key_value_heads // self.tp) * spec.head_dim
        parts = [
            (weight(rank, "attention.qkv") if kind == "weight" else rank["attention.qkv.bias"].float()).split(
                [queries, keys, keys]
            )
            for rank in ranks
        ]
        repeated = max(1, self.tp // spec.num_key_value_heads)
        found = {f"self_attn.q_proj.{kind}": torch.cat([part[0] for part in parts])}
        for number, name in ((1, "k"), (2, "v")):
            for at in range(0, self.tp, repeated):
                self._same([part[number] for part in parts[at : at + repeated]])
            own = [part[number] for part in parts[::repeated]]
            found[f"self_attn.{name}_proj.{kind}"] = torch.cat(own)
        return found

    def _row(self, ranks: list[dict[str, Tensor]], name: str) -> Tensor:
        return torch.cat([weight(rank, name) for rank in ranks], dim=1)

    def _same(self, tensors: list[Tensor]) -> Tensor:
        assert all(torch.equal(tensors[0], other) for other in tensors[1:])
        return tensors[0].float()


def expert_part(name: str, tensor: Tensor, slot: int) -> Tensor:
    """The tensor of one expert of a stack."""
    stacked = name.startswith(("mlp.fc.", "mlp.proj.")) and not name.endswith("activation_scaling_factor")
    return tensor[slot] if stacked else tensor


def weight(rank: dict[str, Tensor], module: str) -> Tensor:
    """The effective weight [out, in] of a module on one rank, by the contract's table of meanings."""
    stored = rank[f"{module}.weight"]
    scales, second = (
        rank.get(f"{module}.weights_scaling_factor"),
        rank.get(f"{module}.weights_scaling_factor_2"),
    )
    if f"{module}.per_channel_scale" in rank:
        return stored.float() * rank[f"{module}.per_channel_scale"].view(-1, 1)
    if scales is None:
        return stored.float()
    if stored.dtype == torch.float8_e4m3fn:
        assert scales.shape == (1,)
        return stored.float() * scales
    if stored.dtype == torch.uint8:
        assert second is not None
        codes = torch.stack((stored & 15, stored >> 4), dim=2).flatten(1)
        magnitudes = FP4_VALUES[:8][(codes & 7).int()]
        values = torch.where(codes > 7, -magnitudes, magnitudes)
        fine = scales.float() * second.view(1)
        return (values.view(*fine.shape, -1) * fine.unsqueeze(-1)).flatten(1)
    pre_quant = rank[f"{module}.prequant_scaling_factor"].float()
    if scales.dim() == 1:
        return stored.float() * scales.view(-1, 1) * pre_quant
    low, high = stored.view(torch.uint8) & 15, stored.view(torch.uint8) >> 4
    codes = torch.stack((low, high), dim=1).reshape(-1, stored.shape[1]).float()
    codes = codes - 16 * (codes > 7)
    return (codes.view(*scales.shape, -1) * scales.unsqueeze(-1)).flatten(1) * pre_quant


def assert_same_weights(checkpoint: Path, ranks: Path, *, rounded_to_fp8: bool = False) -> Ranks:
    """Make sure that rank files stand for the very numbers that a checkpoint stands for.

    Where some were `rounded_to_fp8` once more, they may be off by half a step: 1/16 of the number, or
    2^-10 of a scale, which is 1/448 of the largest, among the smallest.
    """
    spec, expected = load_spec(checkpoint), effective_weights(checkpoint)
    read = Ranks(ranks, spec)
    found = read.assembled()
    assert found.keys() == expected.keys()
    for name, exact in expected.items():
        off = exact.abs() / 16 + exact.abs().max() * 2**-10 / 300 if rounded_to_fp8 else 0
        assert bool(((found[name] - exact).abs() <= off).all()), name
    assert [str(finding) for finding in errors(check_checkpoint(ranks))] == []
    return read


@pytest.fixture(scope="session")
def same_weights() -> Callable[..., Ranks]:
    return assert_same_weights


@pytest.fixture(scope="session")
def make_config() -> Callable[..., dict[str, Any]]:
    return config_of
