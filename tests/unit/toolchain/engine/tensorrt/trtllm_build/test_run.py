"""Building engines, with stand-ins for NVIDIA's tools: every way in which it can end."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from toolchain.engine.tensorrt.stamp import read_engine
from toolchain.engine.tensorrt.trtllm_build.run import Host, Order, build_engines
from toolchain.errors import BuildError, ToolchainError

from .conftest import Notes, assert_dead

Dirs = tuple[Path, Path]
pytestmark = pytest.mark.usefixtures("stand_ins")

WHOLE = {
    "config.json", "llmbuild_engine.json", "model.cache", "trtllm-build.log",
    "rank0.engine", "rank1.engine", "rank2.engine", "rank3.engine",
}  # fmt: skip


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_a_build_is_whole_and_stamped(order: Order, local: Host, dirs: Dirs) -> None:
    out, work = dirs
    progress = Notes()
    facts = build_engines(order, local, out, work, progress)
    assert names(out) == WHOLE
    engine = read_engine(out)
    assert (engine.tensorrt_llm, engine.tensorrt, engine.sm) == ("1.2.1", "10.14.1.48", 90)
    assert engine.gpu == facts["gpu"] == "NVIDIA H100 80GB HBM3"
    assert (engine.tensor, engine.pipeline, engine.world_size) == (2, 2, 4)
    assert facts["rank_peak_memory_mb"] == 19028
    assert (progress.done, progress.total) == (4, 4)
    assert "network constructed in 2 s; choosing kernels" in progress.notes
    assert not any("Implicitly" in note for note in progress.notes)
    assert "Total time of building all engines" in (out / "trtllm-build.log").read_text()


def test_the_timing_cache_of_one_build_starts_the_next(order: Order, local: Host, dirs: Dirs) -> None:
    out, work = dirs
    build_engines(order, local, out, work, Notes())
    cache, again = out / "model.cache", out.with_name("again")
    again.mkdir()
    lora = out.with_name("lora")
    lora.mkdir()
    (lora / "adapter_config.json").write_text("{}")
    flags = {**order.flags, "lora_plugin": "auto"}
    build_engines(
        replace(order, input_timing_cache=cache, lora_dirs=(lora,), flags=flags), local, again, work, Notes()
    )
    assert names(again) == WHOLE


@pytest.mark.parametrize(
    ("mode", "what", "fix"),
    [
        ("fail", "trtllm-build ended with 1 after 0 of 4 ranks", "lower engine.max_num_tokens"),
        ("killed", "signal 9 ended trtllm-build after 1 of 4 ranks", "lower engine.build.workers"),
        ("partial", "rank3.engine missing", "--force engine"),
        ("empty", "rank0.engine is empty", "--force engine"),
        ("smaller", "max_batch_size is 1, not 64", "--force engine"),
    ],
)
def test_a_failure_leaves_nothing_and_says_what_mends_it(
    order: Order, local: Host, dirs: Dirs, monkeypatch: pytest.MonkeyPatch, mode: str, what: str, fix: str
) -> None:
    out, work = dirs
    monkeypatch.setenv("STAND_IN", mode)
    with pytest.raises(BuildError, match=what) as caught:
        build_engines(order, local, out, work, Notes())
    assert fix in str(caught.value.fix)
    assert names(out) == set()
    if mode == "fail":
        assert "out of memory" in str(caught.value.why)
        assert caught.value.where == str(work / "trtllm-build.log")

    monkeypatch.delenv("STAND_IN")
    build_engines(order, local, out, work, Notes())
    assert names(out) == WHOLE
    assert len(list(work.glob("engine.partial.*"))) == 1  # that of the failure is gone


def test_another_version_is_stopped_when_it_says_so(
    order: Order, local: Host, dirs: Dirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = dirs
    monkeypatch.setenv("STAND_IN_VERSION", "1.1.0")
    monkeypatch.setenv("STAND_IN", "hang")
    began = time.monotonic()
    with pytest.raises(
        ToolchainError, match=r"is of TensorRT-LLM 1\.1\.0, and the recipe is for 1\.2\.1"
    ) as caught:
        build_engines(order, local, out, work, Notes())
    assert time.monotonic() - began < 30
    assert "set engine.version to 1.1.0" in str(caught.value.fix)
    assert names(out) == set()


def test_a_flag_that_the_version_does_not_know_is_named(
    order: Order, local: Host, dirs: Dirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_VERSION", "0.17.0")
    flags = {**order.flags, "norm_quant_fusion": True}
    with pytest.raises(BuildError, match="ended with 2") as caught:
        build_engines(replace(order, version="0.17.0", flags=flags), local, *dirs, Notes())
    assert "unrecognized arguments: --norm_quant_fusion" in str(caught.value.why)
    assert "engine.version" in str(caught.value.fix)


def test_too_long_ends_the_whole_group(
    order: Order, local: Host, dirs: Dirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = dirs
    monkeypatch.setenv("STAND_IN", "hang")
    host = replace(local, timeout_minutes=0.03)  # type: ignore[arg-type]
    with pytest.raises(BuildError, match=r"took longer than 0\.03 minutes") as caught:
        build_engines(order, host, out, work, Notes())
    assert "waiting" in str(caught.value.why)
    assert_dead(int((work / "worker.pid").read_text()))
    assert names(out) == set()


def test_ctrl_c_ends_the_whole_group(
    order: Order, local: Host, dirs: Dirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = dirs
    monkeypatch.setenv("STAND_IN", "hang")

    def interrupt() -> None:
        while not (work / "worker.pid").exists():
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        build_engines(order, local, out, work, Notes())
    assert_dead(int((work / "worker.pid").read_text()))
    assert names(out) == set()


def test_engines_of_another_gpu_are_refused(
    order: Order, local: Host, dirs: Dirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_GPUS", "NVIDIA L40S, 8.9\n")
    with pytest.raises(BuildError, match="for sm_90, but were built on NVIDIA L40S"):
        build_engines(order, local, *dirs, Notes())
    assert names(dirs[0]) == set()


def test_no_trtllm_build(order: Order, local: Host, dirs: Dirs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ToolchainError, match="there is no trtllm-build on PATH"):
        build_engines(order, local, *dirs, Notes())


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_in_a_container(order: Order, dirs: Dirs, stand_ins: Path, engine: str) -> None:
    out, work = dirs
    image = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    build_engines(order, Host(engine, image, workers=4), out, work, Notes())
    assert names(out) == WHOLE
    run, remove = map(json.loads, stand_ins.read_text().splitlines())
    assert run[:2] == [engine, "run"]
    assert run[run.index(image) + 1] == "trtllm-build"
    assert f"type=bind,src={order.checkpoint},dst={order.checkpoint},readonly" in run
    assert ("--gpus" in run) == (engine == "docker")
    assert remove == [engine, "rm", "--force", run[run.index("--name") + 1]]


def test_a_killed_client_leaves_no_container(
    order: Order, dirs: Dirs, stand_ins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "hang")
    host = Host("docker", "x:1", workers=1, timeout_minutes=0.03)  # type: ignore[arg-type]
    with pytest.raises(BuildError, match="took longer"):
        build_engines(order, host, *dirs, Notes())
    assert json.loads(stand_ins.read_text().splitlines()[-1])[:3] == ["docker", "rm", "--force"]


@pytest.mark.parametrize("executor", ["slurm", "kubernetes"])
def test_a_cluster_builds_and_the_next_run_takes_it(order: Order, dirs: Dirs, executor: str) -> None:
    out, work = dirs
    host = Host(executor, "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3", workers=4)
    with pytest.raises(ToolchainError, match=f"to be built by {executor}") as caught:
        build_engines(order, host, out, work, Notes())
    assert "then run the same build again" in str(caught.value.fix)
    assert names(out) == set()
    assert os.system(f"bash {work}/build.sh > /dev/null") == 0  # as the job runs it
    build_engines(order, host, out, work, Notes())
    assert names(out) == WHOLE
    assert read_engine(out).gpu == "NVIDIA H100 80GB HBM3"


def test_a_job_that_fails_leaves_nothing_to_take(
    order: Order, dirs: Dirs, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = dirs
    host = Host("slurm", None, workers=4)
    with pytest.raises(ToolchainError, match="to be built by slurm"):
        build_engines(order, host, out, work, Notes())
    monkeypatch.setenv("STAND_IN", "killed")
    assert os.system(f"bash {work}/build.sh > /dev/null 2>&1") != 0
    with pytest.raises(ToolchainError, match="to be built by slurm") as caught:
        build_engines(order, host, out, work, Notes())
    assert "an earlier job left no engines; its log ends with" in str(caught.value.why)
