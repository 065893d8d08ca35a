"""Rules of `deploy`: each with a recipe that breaks it and one that just does not."""

from __future__ import annotations

from typing import Any

import pytest

from toolchain.recipe import Recipe
from toolchain.recipe.rules import violations

SECTION = "deploy.tensorrt_llm"


def broken(flavour: str = "tensorrt", **sections: Any) -> list[str]:
    """Paths at fault of a recipe with these sections; `engine` is merged with the flavour."""
    engine = {"flavour": flavour, **sections.pop("engine", {})}
    recipe = {"schema": 1, "name": "r", "model": {"source": "o/n"}, "engine": engine, **sections}
    return [violation.path for violation in violations(Recipe.model_validate(recipe))]


def with_section(**fields: Any) -> dict[str, Any]:
    return {"tensorrt_llm": fields}


@pytest.mark.parametrize(
    ("name", "value", "flavours"),
    [
        ("tensorrt_llm", {}, ["tensorrt"]),
        ("engine_args", {"enforce_eager": True}, ["pytorch", "vllm"]),
        ("checkpoint", "/models/llama", ["pytorch", "vllm"]),
        ("accumulate_tokens", True, ["openvino", "tensorrt", "pytorch"]),
    ],
)
def test_what_a_server_does_not_read_is_refused(name: str, value: Any, flavours: list[str]) -> None:
    for flavour in ("openvino", "tensorrt", "pytorch", "vllm"):
        expected = [] if flavour in flavours else [f"deploy.{name}"]
        assert broken(flavour, deploy={name: value}) == expected


def test_vllm_has_no_static_batches() -> None:
    assert broken("vllm", deploy={"batching": "static"}) == ["deploy.batching"]
    assert broken("pytorch", deploy={"batching": "static"}) == []


@pytest.mark.parametrize("flavour", ["pytorch", "vllm"])
def test_runtimes_whose_cache_is_always_paged(flavour: str) -> None:
    engine = {"kv_cache": {"paged": False, "reuse": False}, "chunked_prefill": False, "max_seq_len": 512}
    assert "engine.kv_cache.paged" in broken(flavour, engine=engine)
    assert "engine.kv_cache.paged" not in broken(engine=engine)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"spawn_processes": False}, ["spawn_processes", "participant_ids"]),
        ({"mode": "orchestrator", "spawn_processes": False}, ["participant_ids"]),
        ({"mode": "orchestrator", "spawn_processes": False, "participant_ids": [1, 2]}, []),
        ({"mode": "orchestrator", "participant_ids": [1]}, ["participant_ids"]),
        ({"speculative_decoding_fast_logits": True}, ["speculative_decoding_fast_logits"]),
        ({"gpu_device_ids": [[0], [1]]}, ["gpu_device_ids"]),
        ({"gpu_device_ids": [[0], [1]], "mode": "orchestrator"}, []),
        ({"gpu_device_ids": [[0], [0]], "mode": "orchestrator"}, ["gpu_device_ids"]),
        ({"gpu_device_ids": [[0, 1]]}, ["gpu_device_ids"]),
        ({"decoding_mode": "lookahead"}, ["decoding_mode"]),
        ({"decoding_mode": "top_k"}, []),
        ({"max_beam_width": 2}, ["max_beam_width"]),
        ({"max_beam_width": 1}, []),
        ({"xgrammar_tokenizer_info_path": "/info.json"}, ["xgrammar_tokenizer_info_path"]),
        ({"xgrammar_tokenizer_info_path": "/info.json", "guided_decoding_backend": "xgrammar"}, []),
        ({"cross_kv_cache_fraction": 0.5}, ["cross_kv_cache_fraction"]),
        ({"draft": {"gpt_model_path": "/draft"}}, ["draft"]),
    ],
)  # fmt: skip
def test_parameters_that_do_not_go_together(fields: dict[str, Any], expected: list[str]) -> None:
    assert broken(deploy=with_section(**fields)) == [f"{SECTION}.{name}" for name in expected]


def test_a_group_has_a_gpu_for_each_rank() -> None:
    deploy = with_section(gpu_device_ids=[[0, 1], [2, 3]], mode="orchestrator")
    assert broken(deploy=deploy, parallelism={"tensor": 2}) == []
    assert broken(deploy=deploy, parallelism={"tensor": 2, "pipeline": 2}) == [f"{SECTION}.gpu_device_ids"]


def test_a_draft_needs_an_engine_for_it_and_reuse() -> None:
    build = {"speculative_decoding_mode": "draft_tokens_external", "max_draft_len": 8}
    deploy = with_section(draft={"gpt_model_path": "/draft"})
    assert broken(engine={"build": build}, deploy=deploy) == []
    assert broken(engine={"build": build, "kv_cache": {"reuse": False}}, deploy=deploy) == [
        f"{SECTION}.draft"
    ]


def test_beams_as_wide_as_the_engine_was_built_for() -> None:
    assert broken(engine={"build": {"max_beam_width": 4}}, deploy=with_section(max_beam_width=4)) == []
