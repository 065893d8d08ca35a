"""Checkpoints of other tools that are old, odd, damaged, or of a kind that is not read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from quantize.formats.base import INT8_DYNAMIC, W4A16_AWQ, LinearScheme
from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.formats.packing import pack_words
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError
from toolchain.model.spec import load_spec

DATA = Path(__file__).parents[3] / "data" / "quantized"
UP = "model.layers.0.mlp.up_proj"
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(DATA / name, tmp_path / "copy"))


def describe(directory: Path, **changes: Any) -> None:
    """Change the quantization_config; None removes a key."""
    config = json.loads((directory / "config.json").read_text())
    described = config["quantization_config"] | changes
    config["quantization_config"] = {key: value for key, value in described.items() if value is not None}
    (directory / "config.json").write_text(json.dumps(config))


def move_description(directory: Path, name: str, described: dict[str, Any] | None = None) -> None:
    """Old checkpoints have the description in a file of its own, and nothing in config.json."""
    config = json.loads((directory / "config.json").read_text())
    own = config.pop("quantization_config")
    (directory / "config.json").write_text(json.dumps(config))
    (directory / name).write_text(json.dumps(described or own))


def store(directory: Path, tensors: dict[str, torch.Tensor], *without: str) -> None:
    there = load_file(directory / "model.safetensors") | tensors
    save_file({n: t.clone() for n, t in there.items() if n not in without}, directory / "model.safetensors")


def linear(directory: Path, module: str = UP) -> QuantizedLinear:
    found = QuantizedCheckpoint.open(directory).linear(module)
    assert isinstance(found, QuantizedLinear)
    return found


def read_all(directory: Path) -> None:
    opened = QuantizedCheckpoint.open(directory)
    opened.verify(load_spec(directory))
    opened.linear(DOWN)


def expected(name: str, module: str = UP) -> torch.Tensor:
    return load_file(DATA / name / "expected.safetensors")[f"{module}.weight"]


def test_a_description_in_a_file_of_its_own_suffices(copy: Callable[[str], Path]) -> None:
    directory = copy("gptqmodel/gptq")
    move_description(directory, "quantize_config.json")
    assert torch.equal(linear(directory).dequantize(torch.float16), expected("gptqmodel/gptq"))


def test_so_does_autoawqs_old_one(copy: Callable[[str], Path]) -> None:
    directory = copy("gptqmodel/awq_gemm")
    old = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    move_description(directory, "quant_config.json", old)
    assert torch.equal(linear(directory).dequantize(torch.float16), expected("gptqmodel/awq_gemm"))


def test_zero_points_of_v1_are_one_more_than_stored(copy: Callable[[str], Path]) -> None:
    """AutoGPTQ, nibble by nibble; a zero that borrowed from its neighbour is GPTQModel's alone."""
    directory = copy("gptqmodel/gptq_asym")
    describe(directory, meta=None)
    zeros = torch.arange(64).view(2, 32) % 15 + 1
    store(directory, {f"{UP}.qzeros": pack_words((zeros - 1).to(torch.uint8), 4)})
    assert torch.equal(linear(directory).zero_points, zeros.T.float())  # type: ignore[arg-type]
    store(directory, {f"{UP}.qzeros": pack_words((zeros - 2).to(torch.uint8) & 15, 4)})
    with pytest.raises(ModelError, match=r"(?s)up_proj: a zero point cannot be told.*stored as 15"):
        linear(directory)
    describe(directory, meta={"quantizer": ["gptqmodel:7.6.0"]})
    borrowed = pack_words((zeros - 1).to(torch.uint8), 4) - 0x11111111
    store(directory, {f"{UP}.qzeros": borrowed})
    assert torch.equal(linear(directory).zero_points, zeros.T.float() - 1)  # type: ignore[arg-type]


def test_zero_points_that_all_lie_in_the_middle_are_none(copy: Callable[[str], Path]) -> None:
    """Then the checkpoint is symmetric, whatever it says, and more forms can hold it."""
    directory = copy("gptqmodel/gptq")
    describe(directory, sym=False)
    assert QuantizedCheckpoint.open(directory).scheme.distinct == (LinearScheme(W4A16_AWQ, 32),)
    assert torch.equal(linear(directory).dequantize(torch.float16), expected("gptqmodel/gptq"))


def test_a_symmetric_checkpoint_with_zero_points_contradicts_itself(copy: Callable[[str], Path]) -> None:
    directory = copy("gptqmodel/gptq_v2")
    describe(directory, sym=True)
    with pytest.raises(ModelError, match="says symmetric, but there is a zero point other than 8"):
        linear(directory)


def test_overrides_by_module_are_followed(copy: Callable[[str], Path]) -> None:
    directory = copy("gptqmodel/gptq_8bit")
    describe(directory, bits=4, dynamic={"+:.*self_attn.*": {"bits": 8}, r".*\.mlp\..*": {"bits": 8}})
    assert torch.equal(linear(directory).dequantize(torch.float16), expected("gptqmodel/gptq_8bit"))
    describe(directory, dynamic={"(": {}})
    with pytest.raises(ModelError, match=r"'\(' in `dynamic` is not a regular expression"):
        QuantizedCheckpoint.open(directory)


@pytest.mark.parametrize(
    ("name", "changes", "match"),
    [
        ("gptq", {"bits": 3}, "codes of 3 bits"),
        ("gptq", {"group_size": 0}, "group_size must be a positive number or -1, not 0"),
        ("gptq", {"group_size": 48}, "groups of 48 do not divide"),
        ("gptq", {"checkpoint_format": "marlin"}, "laid out as marlin; readable are gptq and gptq_v2"),
        ("gptq", {"is_marlin_format": True}, "laid out as marlin"),
        ("gptq", {"pack_dtype": "int64"}, "packed in int64"),
        ("gptq", {"quant_method": "aqlm"}, "in the form 'aqlm', which cannot be read"),
        ("awq_gemm", {"version": "gemv"}, "4 bits in the layout gemv, which cannot be read"),
        ("awq_gemm", {"bits": 8}, "8 bits in the layout gemm"),
        ("awq_gemm", {"group_size": "32"}, "group_size must be a positive number or -1, not '32'"),
    ],
)
def test_other_kinds_are_refused(
    name: str, changes: dict[str, Any], match: str, copy: Callable[[str], Path]
) -> None:
    directory = copy(f"gptqmodel/{name}")
    describe(directory, **changes)
    with pytest.raises(ModelError, match=match):
        QuantizedCheckpoint.open(directory)


@pytest.mark.parametrize("name", ["gptq", "gptq_8bit", "awq_gemm"])
def test_tensors_that_contradict_each_other_are_named(name: str, copy: Callable[[str], Path]) -> None:
    directory = copy(f"gptqmodel/{name}")
    tensors = load_file(directory / "model.safetensors")
    scales = tensors[f"{DOWN}.scales"]

    def problem(tensors: dict[str, torch.Tensor], *without: str) -> str:
        store(directory, tensors, *without)
        with pytest.raises(ModelError, match=r"down_proj|lm_head") as caught:
            read_all(directory)
        return str(caught.value)

    assert "down_proj" in problem({}, f"{DOWN}.scales")
    assert "scales is missing" in problem({}, f"{DOWN}.scales")
    assert "scales is [3, 64]" in problem({f"{DOWN}.scales": torch.ones(3, 64).half()})
    assert "scales is I32, not F32 or F16 or BF16" in problem({f"{DOWN}.scales": scales.int()})
    assert "a scale is NaN or infinite" in problem({f"{DOWN}.scales": torch.full_like(scales, torch.nan)})
    broken = {f"{DOWN}.scales": scales, f"{DOWN}.qzeros": tensors[f"{DOWN}.qzeros"].long()}
    assert "qzeros is" in problem(broken)
    head = {f"lm_head.{part}": tensors[f"{DOWN}.{part}"] for part in ("qweight", "qzeros", "scales")}
    whole = {f"{DOWN}.qzeros": tensors[f"{DOWN}.qzeros"]}
    assert "lm_head is quantized" in problem(whole | head)


def test_a_g_idx_out_of_range_is_refused(copy: Callable[[str], Path]) -> None:
    directory = copy("gptqmodel/gptq_desc_act")
    store(directory, {f"{UP}.g_idx": torch.full((64,), 2, dtype=torch.int32)})
    with pytest.raises(ModelError, match="g_idx must give a group below 2 to each of 64 input channels"):
        linear(directory)


WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
FLOAT8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True, "symmetric": True}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "its weights are sparse"),
        ({"transform_config": {"config_groups": {"u": {}}}}, "its activations are transformed"),
        ({"format": "marlin-24"}, "its weights are marlin-24; readable are pack-quantized"),
        ({"config_groups": None}, "`config_groups` are missing"),
        ({"config_groups": {"W4A16": ["Linear"]}}, "W4A16 of its `config_groups` does not say"),
        ({"weights": WEIGHTS | {"num_bits": 3}}, "its codes have 3 bits"),
        ({"weights": WEIGHTS | {"strategy": "block"}}, "a scale for each block of a weight has no place"),
        ({"weights": WEIGHTS | {"dynamic": True}}, "quantized while the model runs"),
        ({"weights": WEIGHTS | {"group_size": None}}, "its group_size is None"),
        ({"weights": FLOAT8}, "float weights of 8 bits multiply activations of another kind"),
        ({"weights": FLOAT8, "inputs": INT8}, "float weights of 8 bits multiply activations of another kind"),
        ({"weights": INT8, "inputs": TOKEN | {"symmetric": False}}, "activations are not symmetric"),
        ({"weights": INT8 | {"symmetric": False}, "inputs": TOKEN}, "weights with zero points multiply"),
        ({"weights": FLOAT8, "inputs": FLOAT8 | {"strategy": "tensor"}}, "have static activations"),
        ({"weights": FLOAT8, "inputs": FLOAT8 | {"strategy": "group"}}, "a scale for each group"),
        ({"weights": WEIGHTS | {"type": "float"}}, "float weights of 4 bits with a scale for each group"),
        ({"targets": ["re:("]}, r"target 're:\(' is not a pattern"),
        ({"targets": "Linear"}, "not a list of names"),
        ({"kv_cache_scheme": FLOAT8 | {"dynamic": False}}, "its KV cache is quantized otherwise"),
    ],
)
def test_other_kinds_of_compressed_tensors_are_refused(
    changes: dict[str, Any], match: str, copy: Callable[[str], Path]
) -> None:
    directory = copy("llmcompressor/w4a16")
    group = {
        "targets": changes.pop("targets", ["Linear"]),
        "weights": changes.pop("weights", WEIGHTS),
        "input_activations": changes.pop("inputs", None),
    }
    describe(directory, **({"config_groups": {"group_0": group}} | changes))
    with pytest.raises(ModelError, match=match):
        QuantizedCheckpoint.open(directory)


def test_the_first_group_that_matches_a_module_is_its_own(copy: Callable[[str], Path]) -> None:
    directory = copy("llmcompressor/w8a8")
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    group = config["config_groups"]["group_0"]
    attention = group | {"targets": ["re:.*self_attn.*", UP]}
    describe(directory, config_groups={"a": attention, "b": group | {"targets": ["re:.*(gate|down)_proj$"]}})
    assert QuantizedCheckpoint.open(directory).scheme.distinct == (LinearScheme(INT8_DYNAMIC, bits=8),)
    describe(directory, config_groups={"a": attention})
    with pytest.raises(ModelError, match="has scales, but no group of the configuration is about it"):
        QuantizedCheckpoint.open(directory)


def test_scattered_groups_are_read(copy: Callable[[str], Path]) -> None:
    """As llm-compressor wrote them before 0.19: `actorder: group` and weight_g_idx."""
    directory = copy("llmcompressor/w4a16")
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    group = config["config_groups"]["group_0"]
    group["weights"]["actorder"] = "group"
    describe(directory, config_groups={"group_0": group})
    index_I = torch.arange(64, dtype=torch.int32) % 2
    modules = [name.removesuffix(".weight_packed") for name in load_file(directory / "model.safetensors")
               if name.endswith(".weight_packed")]  # fmt: skip
    columns = {module: 32 if module == DOWN else 64 for module in modules}
    store(
        directory,
        {f"{m}.weight_g_idx": index_I[:n] if n == 64 else torch.zeros(n).int() for m, n in columns.items()},
    )
    found = linear(directory)
    assert torch.equal(found.group_index, index_I.long())  # type: ignore[arg-type]
    assert torch.equal(found.dequantize(), found.codes.float() * found.scales[:, index_I.long()])
    store(directory, {f"{UP}.weight_g_idx": index_I + 1})
    with pytest.raises(ModelError, match="weight_g_idx must be below 2"):
        linear(directory)
