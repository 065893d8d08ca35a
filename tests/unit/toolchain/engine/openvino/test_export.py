"""The directory that is written: loadable, reproducible, and refused where it would be wrong."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from toolchain.engine.openvino import build_ir
from toolchain.errors import ModelError, PlanError, StoreError
from toolchain.model.checkpoint import Checkpoint
from toolchain.progress import Silent


def digests(directory):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


def test_facts_and_files(tiny):
    model = tiny("llama", torch.bfloat16, "int4")
    facts = build_ir(model.directory, model.ir_dir, max_seq_len=100)
    names = {path.name for path in model.ir_dir.iterdir()}
    assert names == {"openvino_model.xml", "openvino_model.bin", "config.json", "generation_config.json"}
    assert facts == {
        "weight_bytes": facts["weight_bytes"],
        "quantized_linears": 14,
        "max_seq_len": 100,
    }
    assert 0 < facts["weight_bytes"] <= (model.ir_dir / "openvino_model.bin").stat().st_size


class Counter(Silent):
    """Adds up what it is told."""

    total = done = 0

    def start(self, label, total, unit="steps", done=0):
        assert (label, unit) == ("write the OpenVINO model", "bytes")
        self.total = total

    def advance(self, amount=1):
        self.done += amount


@pytest.mark.parametrize("scheme", [None, "int4", "gptq"])
def test_progress_counts_what_is_read(scheme, tiny):
    model, counter = tiny("llama", torch.bfloat16, scheme), Counter()
    model.build(events=counter)
    checkpoint = Checkpoint.open(model.directory)
    stored = sum(checkpoint.location(name).nbytes for name in checkpoint.names)
    assert counter.done == counter.total == stored


def test_end_tokens_without_a_generation_config(tiny):
    model = tiny("llama")
    (model.directory / "generation_config.json").unlink()
    written = json.loads((model.build() / "generation_config.json").read_text())
    assert written == {"eos_token_id": [2], "bos_token_id": 1}


def test_same_bytes_in_this_process_and_in_another(tiny, tmp_path):
    """OpenVINO numbers its nodes through the life of a process, and may note where files came from."""
    model = tiny("qwen2", torch.bfloat16)
    model.build()
    script = "import sys; from pathlib import Path; from toolchain.engine.openvino import build_ir;"
    script += "build_ir(Path(sys.argv[1]), Path(sys.argv[2]))"
    elsewhere = tmp_path / "moved" / "checkpoint"
    elsewhere.parent.mkdir()
    model.directory.rename(elsewhere)
    subprocess.run([sys.executable, "-c", script, elsewhere, tmp_path / "again"], check=True, timeout=120)
    assert digests(tmp_path / "again") == digests(model.ir_dir)
    assert str(tmp_path) not in (model.ir_dir / "openvino_model.xml").read_text()


def test_a_rotation_that_changes_with_length_is_refused(tiny):
    dynamic = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = tiny("llama", rope_parameters=dynamic)
    build_ir(model.directory, model.ir_dir, max_seq_len=256)
    with pytest.raises(PlanError, match="dynamic RoPE cannot be served up to 257 tokens") as error:
        build_ir(model.directory, model.ir_dir, max_seq_len=257)
    assert error.value.fix == "set engine.max_seq_len to at most 256"


def test_experts_are_refused(tiny):
    model = tiny("llama")
    config = json.loads((model.directory / "config.json").read_text())
    config |= {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    (model.directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match="openvino flavour does not run MixtralForCausalLM"):
        build_ir(model.directory, model.ir_dir)
    assert not model.ir_dir.exists()


def test_longrope_is_served_within_the_original_context(tiny, run_stateful):
    factors = {"short_factor": [1.0 + i / 16 for i in range(16)], "long_factor": [4.0] * 16}
    longrope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64} | factors
    model = tiny("llama", rope_parameters=longrope)
    with pytest.raises(PlanError, match="longrope RoPE cannot be served up to 256 tokens") as error:
        build_ir(model.directory, model.ir_dir)
    assert error.value.fix == "set engine.max_seq_len to at most 64"
    ids = np.random.default_rng(0).integers(0, 503, (1, 64))
    found = run_stateful(model.build(max_seq_len=64), ids, [63, 1])
    assert np.abs(found - model.logits(ids)).max() < 5e-5


def edit(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})


def test_a_missing_tensor_is_named(tiny):
    model = tiny("qwen2")
    edit(model.directory, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.bias"))
    with pytest.raises(ModelError, match=r"1 missing: model\.layers\.1\.self_attn\.k_proj\.bias"):
        model.build()


def test_a_tensor_of_another_shape_is_named(tiny):
    model = tiny("llama")
    edit(model.directory, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight is \[64\], expected \[128\]"):
        model.build()


@pytest.mark.parametrize("shape", [(100, 8), (), (256, 3)], ids=str)
def test_scales_of_another_linear_are_refused(shape, tiny):
    model = tiny("llama", torch.float32, "int4")
    name = "model.layers.0.mlp.up_proj.weight_scale"
    edit(model.directory, lambda tensors: tensors.update({name: torch.ones(shape)}))
    found = re.escape(f"weight_scale is {list(shape)} where [256, 4] would fit")
    with pytest.raises(ModelError, match=found) as error:
        model.build()
    assert "model.layers.0.mlp.up_proj" in error.value.where
    assert not model.ir_dir.exists()


def test_a_dtype_that_means_nothing_is_named(tiny):
    model = tiny("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    edit(model.directory, lambda tensors: tensors.update({name: tensors[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(ModelError, match=f"{name} is stored as F8_E4M3, but nothing says how"):
        model.build()


@pytest.mark.parametrize("name", ["openvino_model.bin", "generation_config.json"])
def test_a_full_disk_is_reported(name, tiny):
    model = tiny("llama")
    model.ir_dir.mkdir()
    (model.ir_dir / name).symlink_to("/dev/full")
    with pytest.raises(StoreError, match="cannot write the OpenVINO model: No space left on device"):
        model.build()


def test_input_scales_of_one_are_left_out(tiny):
    """They cost a pass over the activation and change nothing."""
    model = tiny("llama", torch.float32, "int4")

    def ones(tensors):
        tensors.update({name: torch.ones_like(tensors[name]) for name in tensors if "pre_quant" in name})

    assert "pre_quant_scale" in (model.build() / "openvino_model.xml").read_text()
    edit(model.directory, ones)
    assert "pre_quant_scale" not in (model.build() / "openvino_model.xml").read_text()
