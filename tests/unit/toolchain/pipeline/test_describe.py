"""Directories of TensorRT-LLM's and Triton's, as their tools leave them."""

import json
from pathlib import Path
from typing import Any

import pytest

from toolchain.errors import UsageError
from toolchain.findings import errors
from toolchain.pipeline.describe_repository import describe_repository
from toolchain.pipeline.describe_tensorrt import describe_engines
from toolchain.pipeline.described import Described
from toolchain.pipeline.inspect import inspect_path

MODEL = {
    "architecture": "Qwen2ForCausalLM",
    "dtype": "float16",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_size": 64,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "norm_epsilon": 1e-06,
    "hidden_act": "silu",
    "position_embedding_type": "rope_gpt_neox",
    "rotary_base": 1000000.0,
    "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1, "gpus_per_node": 8},
    "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
}


def make_engine(directory: Path, version: str = "1.2.1", ranks: int = 2, **model: Any) -> Path:
    config = {
        "version": version,
        "pretrained_config": MODEL | model,
        "build_config": {
            "max_batch_size": 64,
            "max_seq_len": 4096,
            "max_num_tokens": 8192,
            "max_beam_width": 1,
            "kv_cache_type": "PAGED",
            "weight_streaming": False,
            "plugin_config": {"gemm_plugin": "auto", "use_paged_context_fmha": True, "lora_plugin": None},
        },
    }
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (directory / f"rank{rank}.engine").write_bytes(b"engine")
    return directory


def test_engines_say_what_runs_them(tmp_path: Path) -> None:
    found = inspect_path(make_engine(tmp_path / "engine"))
    assert isinstance(found, Described)
    assert found.kind == "TensorRT-LLM engines"
    assert found.findings == []
    assert found.facts["tensorrt_llm"] == "1.2.1"
    assert found.facts["tensorrt"] == "10.14.1.48"
    assert (found.facts["tensor_parallel"], found.facts["quant_algo"]) == (2, "FP8")
    assert (found.facts["max_batch_size"], found.facts["gemm_plugin"]) == (64, "auto")
    assert "weight_streaming" not in found.facts
    assert [runner.container for runner in found.runners] == [
        "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    ]
    assert [part["rank"] for part in found.parts] == [0, 1]


def test_what_is_wrong_with_engines(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "engine", "9.9", ranks=1)
    (engine / "rank5.engine").touch()
    found = describe_engines(engine, target="1.2.1")
    told = {
        (finding.level, Path(finding.where.split(":")[0]).name, finding.what) for finding in found.findings
    }
    assert told == {
        ("error", "rank1.engine", "the engine is missing"),
        ("warning", "rank5.engine", "no rank loads this engine"),
        ("warning", "config.json", "9.9 is no release of TensorRT-LLM that is known"),
        ("error", "config.json", "it is 9.9, and 1.2.1 is to run it"),
    }
    assert found.runners == []


def test_an_engine_of_an_unknown_model_is_described_all_the_same(tmp_path: Path) -> None:
    found = describe_engines(make_engine(tmp_path / "engine", architecture="GPTForCausalLM"))
    assert found.facts["architecture"] == "GPTForCausalLM"
    assert found.facts["world_size"] == 2
    assert errors(found.findings) == []
    assert "not supported" in found.findings[0].what


def make_model(repository: Path, name: str, text: str, **files: str) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(f'name: "{name}"\n{text}')
    for file, content in files.items():
        (repository / name / "1" / file.replace("_", ".")).write_text(content)


TENSORRT = """
backend: "tensorrtllm"
max_batch_size: 64
model_transaction_policy { decoupled: true }
dynamic_batching { preferred_batch_size: [ 64 ] }
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "gpt_model_type" value { string_value: "inflight_fused_batching" } }
parameters { key: "gpt_model_path" value { string_value: "tensorrt_llm/1" } }
parameters { key: "batch_scheduler_policy" value { string_value: "${batch_scheduler_policy}" } }
"""


def test_a_repository_of_engines_tells_their_version(tmp_path: Path) -> None:
    make_engine(tmp_path / "tensorrt_llm" / "1", "1.0.0")
    (tmp_path / "tensorrt_llm" / "config.pbtxt").write_text('name: "tensorrt_llm"' + TENSORRT)
    found = inspect_path(tmp_path)
    assert isinstance(found, Described)
    assert found.kind == "Triton repository, TensorRT-LLM engines (tensorrtllm backend)"
    assert found.facts["tensorrt_llm"] == "1.0.0"
    assert found.runners[0].container == "nvcr.io/nvidia/tritonserver:25.10-trtllm-python-py3"
    assert found.parts[0]["backend"] == "tensorrtllm"
    assert any("batch_scheduler_policy was left open" in finding.what for finding in found.findings)
    assert errors(found.findings) == []  # as NVIDIA's template is meant


def test_a_template_that_was_not_filled_in(tmp_path: Path) -> None:
    make_model(tmp_path, "tensorrt_llm", TENSORRT.replace("64", "${triton_max_batch_size}"))
    found = describe_repository(tmp_path)
    assert [finding.what for finding in found.findings] == ["triton_max_batch_size was not filled in"]


def test_a_repository_of_the_llm_api_and_one_of_vllm(tmp_path: Path) -> None:
    llmapi, vllm = tmp_path / "llmapi", tmp_path / "vllm"
    make_model(llmapi, "tensorrt_llm", 'backend: "python"', model_py="", model_yaml="model: meta/Llama\n")
    make_model(vllm, "llama", 'backend: "vllm"', model_json='{"model": "meta/Llama"}')
    found = describe_repository(llmapi)
    assert (found.facts["flavour"], found.facts["model"]) == ("pytorch", "meta/Llama")
    assert found.runners[0].container
    found = describe_repository(vllm)
    assert (found.facts["flavour"], found.facts["model"]) == ("vllm", "meta/Llama")


def test_what_is_none_of_these(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing that is known lies at"):
        inspect_path(tmp_path)
    make_model(tmp_path, "tensorrt_llm", TENSORRT)
    with pytest.raises(UsageError, match="nothing that is known") as raised:
        inspect_path(tmp_path / "tensorrt_llm")
    assert f"name the repository: {tmp_path}" in str(raised.value)
    with pytest.raises(UsageError, match="does not exist"):
        inspect_path(tmp_path / "nowhere")


def test_model_files_that_are_not_the_models(tmp_path: Path) -> None:
    source = Path(__file__).parents[3] / "data" / "quantized" / "source" / "llama"
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    found = inspect_path(tmp_path)
    assert not isinstance(found, Described)
    assert found.findings == []  # type: ignore[union-attr]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    found = inspect_path(tmp_path)
    assert "the weights are not those of the LlamaForCausalLM" in found.findings[0].what  # type: ignore[union-attr]
    assert found.findings[0].level == "error"  # type: ignore[union-attr]
