"""The repository of Triton's vLLM backend: golden, whole, checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.check import check_repository
from deploy.pbtxt import read_config, write_config
from deploy.repositories.vllm import CHECKPOINT, VllmSettings, render_vllm, serve_command
from toolchain.errors import PackageError

GOLDEN = Path(__file__).parents[3] / "golden/triton_repo/vllm"
ARGUMENTS: dict[str, Any] = {
    "model": CHECKPOINT,
    "tensor_parallel_size": 2,
    "enable_prefix_caching": False,
    "compilation_config": {"level": 3},
}


@pytest.fixture
def settings(tokenizer_dir: Path) -> VllmSettings:
    (tokenizer_dir / "config.json").write_text("{}")
    (tokenizer_dir / "model.safetensors").write_bytes(b"weights")
    return VllmSettings(checkpoint_dir=tokenizer_dir, arguments=ARGUMENTS, max_requests=8)


def test_it_is_the_golden_one(settings: VllmSettings, tmp_path: Path) -> None:
    render_vllm(tmp_path / "repository", settings)
    rendered = {path.parent.name: path.read_text() for path in tmp_path.glob("repository/*/config.pbtxt")}
    assert rendered == {path.stem: path.read_text() for path in GOLDEN.glob("*.pbtxt")}
    model_json = tmp_path / "repository/vllm_model/1/model.json"
    assert model_json.read_text() == (GOLDEN / "model.json").read_text()
    assert (tmp_path / "repository" / CHECKPOINT / "model.safetensors").is_file()


def test_the_plain_command_says_the_same() -> None:
    assert serve_command(ARGUMENTS) == [
        "vllm", "serve", CHECKPOINT, "--tensor-parallel-size", "2", "--no-enable-prefix-caching",
        "--compilation-config", '{"level": 3}',
    ]  # fmt: skip


def _config(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(repository: Path) -> None:
        path = repository / "vllm_model/config.pbtxt"
        config = read_config(path)
        change(config)
        write_config(config, path)

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_config(lambda c: c.ClearField("model_transaction_policy")), "works decoupled only"),
        (_config(lambda c: setattr(c, "max_batch_size", 4)), "must be 0, because vLLM batches"),
        (lambda r: (r / "vllm_model/1/model.json").write_text("{"), "1/model.json cannot be read"),
        (lambda r: (r / "vllm_model/1/model.json").write_text(json.dumps({})), "names no model"),
        (lambda r: (r / CHECKPOINT / "config.json").unlink(), "there is no checkpoint with a config.json"),
        (lambda r: (r / "ensemble/1/model.py").unlink(), "ensemble: 1/model.py is missing"),
    ],
)
def test_damage_is_found(
    settings: VllmSettings, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    render_vllm(tmp_path / "repository", settings)
    damage(tmp_path / "repository")
    with pytest.raises(PackageError) as found:
        check_repository(tmp_path / "repository")
    assert message in str(found.value)
