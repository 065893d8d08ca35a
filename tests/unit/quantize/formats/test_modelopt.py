import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from quantize.algorithms.integer import quantize_groups
from quantize.formats.base import W4A16_AWQ, LinearScheme, Scheme
from quantize.formats.checkpoint import QuantizedCheckpoint, shards_of, write_checkpoint
from quantize.formats.modelopt import ModelOpt
from quantize.formats.tensorfile import StoredTensor
from quantize.linear import QuantizedLinear
from toolchain.errors import ModelError

LINEAR = LinearScheme(W4A16_AWQ, 8)
SCHEME = Scheme({"m.q": LINEAR}, ("lm_head", "model.embed_tokens"))
FORM = ModelOpt()


@pytest.fixture
def linear() -> QuantizedLinear:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    codes, scales = quantize_groups(weight, 8, torch.bfloat16)
    scale = torch.linspace(0.5, 2, 32).to(torch.bfloat16)
    return QuantizedLinear(codes, scales, bits=4, pre_quant_scale=scale, bias=torch.ones(6).bfloat16())


@pytest.fixture
def directory(tmp_path: Path, linear: QuantizedLinear) -> Path:
    """A checkpoint of one quantized and one plain linear."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (source / "tokenizer.json").write_text("{}")
    (source / "notes.txt").write_text("private")
    tensors = FORM.linear_tensors("m.q", linear, LINEAR, torch.bfloat16) | {"m.p.weight": torch.eye(4)}
    stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
    write_checkpoint(source, tmp_path / "out", stored, SCHEME, FORM)
    return tmp_path / "out"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_what_was_written_is_read_back(directory: Path, linear: QuantizedLinear) -> None:
    checkpoint = QuantizedCheckpoint.open(directory)
    read = checkpoint.linear("m.q")
    assert isinstance(read, QuantizedLinear)
    assert torch.equal(read.dequantize(), linear.dequantize())
    assert torch.equal(read.bias, linear.bias)  # type: ignore[arg-type]
    plain = checkpoint.linear("m.p")
    assert isinstance(plain, torch.Tensor)
    assert torch.equal(plain, torch.eye(4))
    assert (checkpoint.quant_algo, checkpoint.group_size) == ("W4A16_AWQ", 8)
    assert checkpoint.exclude_modules == ("lm_head", "model.embed_tokens")
    assert {path.name for path in directory.iterdir()} == {
        "config.json",
        "hf_quant_config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_the_description_in_config_json_suffices(directory: Path) -> None:
    (directory / "hf_quant_config.json").unlink()
    checkpoint = QuantizedCheckpoint.open(directory)
    assert (checkpoint.quant_algo, checkpoint.group_size) == ("W4A16_AWQ", 8)
    assert checkpoint.exclude_modules == ("lm_head", "model.embed_tokens")


def test_an_fp8_cache_is_noted(directory: Path) -> None:
    edit(directory / "hf_quant_config.json", lambda v: v["quantization"].update(kv_cache_quant_algo="FP8"))
    assert QuantizedCheckpoint.open(directory).kv_cache_quant_algo == "FP8"


def test_forms_not_known_are_refused(directory: Path) -> None:
    file = directory / "hf_quant_config.json"
    edit(file, lambda v: v["quantization"].update(has_zero_point=True))
    with pytest.raises(ModelError, match="has zero points"):
        QuantizedCheckpoint.open(directory)
    edit(file, lambda v: v["quantization"].update(has_zero_point=False, quant_algo="MXFP4"))
    with pytest.raises(ModelError, match="quantized as MXFP4, which cannot be read"):
        QuantizedCheckpoint.open(directory)
    file.write_text("{}")
    with pytest.raises(ModelError, match="no object `quantization`"):
        QuantizedCheckpoint.open(directory)
    file.unlink()
    edit(directory / "config.json", lambda v: v["quantization_config"].update(quant_method="hqq"))
    with pytest.raises(ModelError, match="in the form 'hqq'"):
        QuantizedCheckpoint.open(directory)


def test_shapes_that_contradict_each_other_are_named(tmp_path: Path, linear: QuantizedLinear) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = FORM.linear_tensors("m.q", linear, LINEAR, torch.bfloat16) | {
        "m.q.weight_scale": torch.ones(6, 5)
    }
    stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
    write_checkpoint(tmp_path, tmp_path / "out", stored, SCHEME, FORM)
    with pytest.raises(ModelError, match=r"(?s)m\.q: .*weight_scale is \[6, 5\] where \[6, 4\]"):
        QuantizedCheckpoint.open(tmp_path / "out").linear("m.q")


def test_large_checkpoints_are_split(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    tensors = {f"t{number}": torch.full((16,), float(number)) for number in range(5)}
    stored = {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}
    write_checkpoint(tmp_path, tmp_path / "out", stored, None, FORM, shard_bytes=128)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 320}
    assert index["weight_map"]["t4"] == "model-00003-of-00003.safetensors"
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "out" / file)[name], tensors[name])
    assert QuantizedCheckpoint.open(tmp_path / "out").read("t3")[0] == 3


def test_a_tensor_larger_than_a_shard_stands_alone() -> None:
    sizes = {"a": 10, "b": 300, "c": 10, "d": 80}
    tensors = {name: StoredTensor.of(torch.zeros(n, dtype=torch.uint8)) for name, n in sizes.items()}
    assert [list(shard) for shard in shards_of(tensors, 100)] == [["a"], ["b"], ["c", "d"]]
