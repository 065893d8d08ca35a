"""The repository of TensorRT-LLM engines: golden, whole, checked; with no TensorRT-LLM in sight."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from deploy.check import check_repository
from deploy.pbtxt import read_config, write_config
from deploy.repositories.tensorrt import DraftEngine, TensorRTSettings, render_tensorrt, written
from toolchain.errors import PackageError

GOLDEN = Path(__file__).parents[3] / "golden/triton_repo"
EVERYTHING: dict[str, Any] = {
    "max_beam_width": 4,
    "encoder_model_path": "/engines/encoder",
    "max_attention_window_size": [4096, 512],
    "sink_token_length": 4,
    "cross_kv_cache_fraction": 0.5,
    "kv_cache_host_memory_bytes": 1 << 30,
    "kv_cache_onboard_blocks": True,
    "enable_trt_overlap": False,
    "exclude_input_in_output": False,
    "cancellation_check_period_ms": 50,
    "stats_check_period_ms": 200,
    "recv_poll_period_ms": 1,
    "iter_stats_max_iterations": 1000,
    "request_stats_max_iterations": 0,
    "normalize_log_probs": False,
    "gpu_device_ids": [[0, 1], [2, 3]],
    "participant_ids": [1, 2, 3, 4],
    "num_nodes": 1,
    "lora_cache_optimal_adapter_size": 8,
    "lora_cache_max_adapter_size": 64,
    "lora_cache_gpu_memory_fraction": 0.05,
    "lora_cache_host_memory_bytes": 1 << 30,
    "lora_prefetch_dir": "/adapters",
    "decoding_mode": "top_k_top_p",
    "lookahead_window_size": 3,
    "lookahead_ngram_size": 3,
    "lookahead_verification_set_size": 3,
    "medusa_choices": [[0], [0, 0], [1]],
    "eagle_choices": [[0], [0, 0, 0]],
    "gpu_weights_percent": 0.8,
    "enable_context_fmha_fp32_acc": True,
    "multi_block_mode": True,
    "cuda_graph_mode": True,
    "cuda_graph_cache_size": 10,
    "speculative_decoding_fast_logits": True,
    "guided_decoding_backend": "xgrammar",
}


@pytest.fixture
def settings(make_engine: Callable[..., Path], tokenizer_dir: Path) -> TensorRTSettings:
    return TensorRTSettings(
        engine_dir=make_engine(),
        tokenizer_dir=tokenizer_dir,
        vocab_size=64,
        end_ids=(2, 3),
        pad_id=0,
        version="1.2.1",
        max_batch_size=4,
        max_queue_size=16,
    )


def parameters(repository: Path, model: str = "tensorrt_llm") -> dict[str, str]:
    config = read_config(repository / model / "config.pbtxt")
    return {key: config.parameters[key].string_value for key in config.parameters}


def compare(repository: Path, golden: Path) -> None:
    rendered = {path.parent.name: path.read_text() for path in repository.glob("*/config.pbtxt")}
    assert rendered == {path.stem: path.read_text() for path in golden.glob("*.pbtxt")}


def test_configurations_are_the_golden_ones(settings: TensorRTSettings, tmp_path: Path) -> None:
    render_tensorrt(tmp_path / "repository", settings)
    compare(tmp_path / "repository", GOLDEN / "tensorrt")


def test_with_every_parameter_they_are_the_golden_ones(settings: TensorRTSettings, tmp_path: Path) -> None:
    everything = dataclasses.replace(
        settings,
        parameters=EVERYTHING,
        types={"logits": "FP16", "encoder_input_features": "BF16", "prompt_embedding_table": "BF16"},
        batching="static",
        streaming=False,
        max_queue_delay_microseconds=100,
    )
    render_tensorrt(tmp_path / "repository", everything)
    compare(tmp_path / "repository", GOLDEN / "tensorrt_everything")


def test_the_recipe_reaches_every_parameter() -> None:
    from toolchain.recipe.triton import TensorRTLLM

    elsewhere = {
        "FORCE_CPU_ONLY_INPUT_TENSORS", "gpt_model_type", "batch_scheduler_policy", "enable_chunked_context",
        "kv_cache_free_gpu_mem_fraction", "max_tokens_in_paged_kv_cache", "enable_kv_cache_reuse",
        "tokenizer_dir",
    }  # fmt: skip
    golden = read_config(GOLDEN / "tensorrt_everything/tensorrt_llm.pbtxt")
    assert set(golden.parameters) - elsewhere <= set(TensorRTLLM.model_fields)
    assert set(EVERYTHING) <= set(TensorRTLLM.model_fields)


def test_the_engine_takes_no_second_copy(settings: TensorRTSettings, tmp_path: Path) -> None:
    render_tensorrt(tmp_path / "repository", settings)
    for name in ("config.json", "rank0.engine", "rank1.engine"):
        linked = tmp_path / "repository/tensorrt_llm/1/engine" / name
        assert linked.stat().st_ino == (settings.engine_dir / name).stat().st_ino
    assert parameters(tmp_path / "repository")["gpt_model_path"] == "tensorrt_llm/1/engine"


def test_an_engine_elsewhere_is_named(settings: TensorRTSettings, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(settings, parameters={"gpt_model_path": "/engines/llama"})
    render_tensorrt(tmp_path / "repository", elsewhere)
    assert not (tmp_path / "repository/tensorrt_llm/1/engine").exists()
    assert parameters(tmp_path / "repository")["gpt_model_path"] == "/engines/llama"


@pytest.mark.parametrize(
    ("version", "old"),
    [
        ("0.18.2", {"random_seed", "min_length", "return_kv_cache_reuse_stats"}),
        ("0.19.0", {"random_seed", "min_length"}),
        ("0.20.0", set()),
    ],
)
def test_old_versions_get_their_names_and_clients_keep_the_new(
    settings: TensorRTSettings, tmp_path: Path, version: str, old: set[str]
) -> None:
    every = {"random_seed", "min_length", "return_kv_cache_reuse_stats"}
    render_tensorrt(tmp_path / "old", dataclasses.replace(settings, version=version))
    front, engine = (
        read_config(tmp_path / "old" / name / "config.pbtxt") for name in ("ensemble", "tensorrt_llm")
    )
    assert {tensor.name for tensor in engine.input} & every == old
    assert set(front.ensemble_scheduling.step[1].input_map) & every == old
    assert {"seed", "min_tokens", "return_perf_metrics"} <= {tensor.name for tensor in front.input}
    straight = json.loads(parameters(tmp_path / "old", "tensorrt_llm_bls")["straight_to_engine"])
    assert set(straight) & every == old


def test_a_draft_is_a_second_model(
    settings: TensorRTSettings, tmp_path: Path, make_engine: Callable[..., Path]
) -> None:
    speculative = make_engine("speculative", speculative_decoding_mode=2, max_draft_len=8)
    drafted = dataclasses.replace(
        settings,
        engine_dir=speculative,
        parameters={"lookahead_window_size": 3, "cancellation_check_period_ms": 50},
        draft=DraftEngine("/engines/draft", kv_cache_free_gpu_mem_fraction=0.3),
    )
    render_tensorrt(tmp_path / "repository", drafted)
    compare(tmp_path / "repository", GOLDEN / "tensorrt_draft")
    draft = parameters(tmp_path / "repository", "tensorrt_llm_draft")
    assert draft["gpt_model_path"] == "/engines/draft"
    assert draft["kv_cache_free_gpu_mem_fraction"] == "0.3"
    assert draft["cancellation_check_period_ms"] == "50"
    assert "lookahead_window_size" not in draft


def test_a_draft_needs_an_engine_that_takes_drafts(settings: TensorRTSettings, tmp_path: Path) -> None:
    drafted = dataclasses.replace(settings, draft=DraftEngine("/engines/draft"))
    with pytest.raises(PackageError) as refused:
        render_tensorrt(tmp_path / "repository", drafted)
    assert "needs an engine built with draft_tokens_external" in str(refused.value)


def test_guided_decoding_knows_every_token_by_its_id(settings: TensorRTSettings, tmp_path: Path) -> None:
    guided = dataclasses.replace(settings, parameters={"guided_decoding_backend": "xgrammar"})
    render_tensorrt(tmp_path / "repository", guided)
    path = parameters(tmp_path / "repository")["xgrammar_tokenizer_info_path"]
    info = json.loads((tmp_path / "repository" / path).read_text())
    tokenizer = Tokenizer.from_file(str(settings.tokenizer_dir / "tokenizer.json"))
    assert all(info["encoded_vocab"][index] == token for token, index in tokenizer.get_vocab().items())
    assert len(info["encoded_vocab"]) == 60 == len(set(info["encoded_vocab"]))
    assert info["stop_token_ids"] == [2, 3]
    assert Tokenizer.from_str(info["tokenizer_str"]).get_vocab() == tokenizer.get_vocab()


@given(st.lists(st.lists(st.integers(0, 99), min_size=1), min_size=1))
def test_groups_and_trees_are_read_back(value: list[list[int]]) -> None:
    groups = written("gpu_device_ids", value)
    assert [[int(gpu) for gpu in group.split(",")] for group in groups.split(";")] == value
    tree = written("medusa_choices", value)
    assert [list(path) for path in eval(tree.replace("{", "(").replace("}", ",)") + ",")] == value


def _engine_fact(section: str, **changes: Any) -> Callable[[Path], None]:
    def apply(repository: Path) -> None:
        file = repository / "tensorrt_llm/1/engine/config.json"
        facts = json.loads(file.read_text())
        facts[section] |= changes
        file.unlink()  # a link to the engine's
        file.write_text(json.dumps(facts))

    return apply


def _parameter(key: str, value: str) -> Callable[[Path], None]:
    def apply(repository: Path) -> None:
        path = repository / "tensorrt_llm/config.pbtxt"
        config = read_config(path)
        config.parameters[key].string_value = value
        write_config(config, path)

    return apply


def _instances(count: int) -> Callable[[Path], None]:
    def apply(repository: Path) -> None:
        path = repository / "tensorrt_llm/config.pbtxt"
        config = read_config(path)
        config.instance_group[0].count = count
        write_config(config, path)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_parameter("lora_prefetch_dir", "${lora_prefetch_dir}"), "lora_prefetch_dir was left open"),
        (_parameter("batch_scheduler_policy", "fair"), "not one of guaranteed_no_evict, max_utilization"),
        (_parameter("kv_cache_free_gpu_mem_fraction", "90%"), "not a number from 0 to 1"),
        (_parameter("gpt_model_path", ""), "parameter gpt_model_path is missing"),
        (_parameter("max_beam_width", "8"), "max_beam_width is '8', and the engine was built for 4"),
        (_parameter("gpu_device_ids", "0,1;2,3"), "gpu_device_ids has 2 groups for 1 instances"),
        (_parameter("gpu_device_ids", "0,0"), "gpu_device_ids names a GPU twice"),
        (_parameter("gpu_device_ids", "0"), "each group of gpu_device_ids needs 2 GPUs, one a rank"),
        (_parameter("gpu_device_ids", "all"), "not numbers such as 0,1;2,3"),
        (_parameter("guided_decoding_backend", "xgrammar"), "needs xgrammar_tokenizer_info_path"),
        (_instances(2), "2 instances need gpu_device_ids"),
        (lambda r: (r / "tensorrt_llm/1/engine/rank1.engine").unlink(), "rank1.engine are missing"),
        (lambda r: (r / "tensorrt_llm/1/engine/config.json").unlink(), "no engine with a config.json"),
        (
            _engine_fact("build_config", plugin_config={"use_paged_context_fmha": False}),
            "enable_kv_cache_reuse needs an engine built with use_paged_context_fmha",
        ),
        (_engine_fact("pretrained_config", vocab_size=50), "has token 59, the model's vocabulary only 50"),
    ],
)
def test_damage_is_found(
    settings: TensorRTSettings, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    repository = tmp_path / "repository"
    render_tensorrt(repository, settings)
    damage(repository)
    with pytest.raises(PackageError) as found:
        check_repository(repository)
    assert message in str(found.value)
