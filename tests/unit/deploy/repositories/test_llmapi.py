"""The repository of the LLM API: golden, whole, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.check import check_repository
from deploy.pbtxt import read_config
from deploy.repositories.llmapi import CHECKPOINT, LlmApiSettings, render_llmapi
from toolchain.errors import PackageError

GOLDEN = Path(__file__).parents[3] / "golden/triton_repo/llmapi"
ARGUMENTS: dict[str, Any] = {
    "model": CHECKPOINT,
    "backend": "pytorch",
    "tensor_parallel_size": 2,
    "kv_cache_config": {"free_gpu_memory_fraction": 0.8},
}


@pytest.fixture
def settings(tokenizer_dir: Path) -> LlmApiSettings:
    (tokenizer_dir / "config.json").write_text("{}")
    (tokenizer_dir / "model.safetensors").write_bytes(b"weights")
    return LlmApiSettings(
        checkpoint_dir=tokenizer_dir,
        arguments=ARGUMENTS,
        vocab_size=64,
        end_ids=(2, 3),
        pad_id=0,
        max_batch_size=4,
        max_queue_size=16,
    )


def test_it_is_the_golden_one(settings: LlmApiSettings, tmp_path: Path) -> None:
    render_llmapi(tmp_path / "repository", settings)
    rendered = {path.parent.name: path.read_text() for path in tmp_path.glob("repository/*/config.pbtxt")}
    assert rendered == {path.stem: path.read_text() for path in GOLDEN.glob("*.pbtxt")}
    model_yaml = tmp_path / "repository/tensorrt_llm/1/model.yaml"
    assert model_yaml.read_text() == (GOLDEN / "model.yaml").read_text()


def test_the_checkpoint_takes_no_second_copy(settings: LlmApiSettings, tmp_path: Path) -> None:
    render_llmapi(tmp_path / "repository", settings)
    linked = tmp_path / "repository" / CHECKPOINT / "model.safetensors"
    assert linked.stat().st_ino == (settings.checkpoint_dir / "model.safetensors").stat().st_ino


def test_a_checkpoint_elsewhere_is_named(settings: LlmApiSettings, tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(settings, arguments=ARGUMENTS | {"model": "/models/llama"})
    render_llmapi(tmp_path / "repository", elsewhere)
    assert not (tmp_path / "repository" / CHECKPOINT).exists()


@pytest.mark.parametrize("streaming", [False, True])
def test_config_and_yaml_say_the_same(settings: LlmApiSettings, tmp_path: Path, streaming: bool) -> None:
    """Triton started with --disable-auto-complete-config reads the one, upstream's model.py the other."""
    render_llmapi(tmp_path / "repository", dataclasses.replace(settings, streaming=streaming))
    config = read_config(tmp_path / "repository/tensorrt_llm/config.pbtxt")
    stated = yaml.safe_load((tmp_path / "repository/tensorrt_llm/1/model.yaml").read_text())["triton_config"]
    assert config.model_transaction_policy.decoupled is stated["decoupled"] is streaming
    assert config.max_batch_size == stated["max_batch_size"] == 4


def _yaml(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(repository: Path) -> None:
        path = repository / "tensorrt_llm/1/model.yaml"
        values = yaml.safe_load(path.read_text())
        change(values)
        path.write_text(yaml.safe_dump(values))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            _yaml(lambda v: v["triton_config"].update(decoupled=False)),
            "decoupled is True in config.pbtxt and",
        ),
        (_yaml(lambda v: v["triton_config"].update(max_batch_size=0)), "and 0 in model.yaml"),
        (_yaml(lambda v: v.pop("triton_config")), "model.yaml has no triton_config"),
        (_yaml(lambda v: v.pop("model")), "model.yaml names no model"),
        (lambda r: (r / "tensorrt_llm/1/model.yaml").unlink(), "1/model.yaml cannot be read"),
        (lambda r: (r / "tensorrt_llm/1/model.yaml").write_text("a: ["), "1/model.yaml cannot be read"),
        (lambda r: (r / CHECKPOINT / "config.json").unlink(), "there is no checkpoint with a config.json"),
        (lambda r: (r / "preprocessing/1/tokenizer/tokenizer.json").unlink(), "there is no tokenizer.json"),
    ],
)
def test_damage_is_found(
    settings: LlmApiSettings, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    render_llmapi(tmp_path / "repository", settings)
    damage(tmp_path / "repository")
    with pytest.raises(PackageError) as found:
        check_repository(tmp_path / "repository")
    assert message in str(found.value)
