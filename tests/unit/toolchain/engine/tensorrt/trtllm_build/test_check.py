"""What is held against an engine directory, one difference at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolchain.engine.tensorrt.trtllm_build.check import check_engine
from toolchain.engine.tensorrt.trtllm_build.run import Order
from toolchain.errors import BuildError

Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def engine(tmp_path: Path, order: Order) -> Path:
    """Engines as ordered."""
    directory = tmp_path / "engine"
    directory.mkdir()
    checkpoint = json.loads((order.checkpoint / "config.json").read_text())
    build = {**order.flags, "kv_cache_type": "PAGED", "max_beam_width": 1}
    plugins = {"use_paged_context_fmha": build.pop("use_paged_context_fmha"), "gemm_plugin": "bfloat16"}
    written = {
        "version": order.version,
        "pretrained_config": checkpoint | {"head_size": 64},
        "build_config": build | {"plugin_config": plugins},
    }
    (directory / "config.json").write_text(json.dumps(written))
    for rank in range(4):
        (directory / f"rank{rank}.engine").write_bytes(b"shaped like an engine")
    return directory


def check(engine: Path, order: Order) -> None:
    check_engine(
        engine, order.checkpoint, version=order.version, tensor=order.tensor, pipeline=order.pipeline,
        flags=order.flags,
    )  # fmt: skip


def test_as_ordered(engine: Path, order: Order) -> None:
    check(engine, order)


def _set(*path: str, to: Any) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        for name in path[:-1]:
            config = config[name]
        config[path[-1]] = to

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (_set("version", to="1.1.0"), "the engines are of TensorRT-LLM 1.1.0, not 1.2.1"),
        (_set("pretrained_config", "mapping", "tp_size", to=4), "split 4 x 2 over 4 ranks, not 2 x 2"),
        (_set("pretrained_config", "dtype", to="float16"), "dtype is float16, not bfloat16"),
        (_set("pretrained_config", "quantization", to=None), "quant_algo is None, not FP8"),
        (_set("build_config", "max_seq_len", to=1024), "max_seq_len is 1024, not 8192"),
        (_set("build_config", "kv_cache_type", to="CONTINUOUS"), "kv_cache_type is continuous, not paged"),
        (
            _set("build_config", "plugin_config", "use_paged_context_fmha", to=False),
            "use_paged_context_fmha is False, not True",
        ),
    ],
)
def test_another_configuration(engine: Path, order: Order, edit: Edit, said: str) -> None:
    config = json.loads((engine / "config.json").read_text())
    edit(config)
    (engine / "config.json").write_text(json.dumps(config))
    with pytest.raises(BuildError, match=said):
        check(engine, order)


def test_an_enumeration_written_with_its_class(engine: Path, order: Order) -> None:
    config = json.loads((engine / "config.json").read_text())
    config["build_config"]["kv_cache_type"] = "KVCacheType.PAGED"
    (engine / "config.json").write_text(json.dumps(config))
    check(engine, order)


def test_ranks_too_few_and_too_many(engine: Path, order: Order) -> None:
    (engine / "rank1.engine").rename(engine / "rank4.engine")
    with pytest.raises(BuildError, match=r"rank1\.engine missing") as caught:
        check(engine, order)
    assert "rank4.engine of no rank" in str(caught.value.why)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"pretrained_config": 1, "version": 2}'])
def test_a_config_that_is_none(engine: Path, order: Order, content: str | None) -> None:
    (engine / "config.json").unlink()
    if content is not None:
        (engine / "config.json").write_text(content)
    with pytest.raises(BuildError, match="something else than was ordered"):
        check(engine, order)
