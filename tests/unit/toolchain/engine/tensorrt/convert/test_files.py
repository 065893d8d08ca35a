"""Rank files grow in place, go on after a kill at any instant, and come out the same."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from quantize.formats.base import LinearScheme
from quantize.formats.tensorfile import TensorType
from toolchain.engine.tensorrt.convert import files as files_module
from toolchain.engine.tensorrt.convert.files import RankFiles
from toolchain.errors import StoreError

LAYOUT = [{"a": TensorType("F32", (4, 2)), "b": TensorType("I8", (3,))}]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_parts_make_up_a_tensor(tmp_path: Path) -> None:
    values = torch.arange(8.0).view(4, 2)
    with RankFiles(tmp_path / "work", LAYOUT, {}) as files:
        assert files.write(0, "a", values[2:], 4) == 4
        files.write(0, "a", values[:2])
        files.write(0, "b", torch.tensor([1, 2, 3], dtype=torch.int8))
        files.finish_step({0: ["a", "b"]})
        files.publish(tmp_path / "out")
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "out/rank0.safetensors")["a"], values)


def test_a_strided_tensor_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "_CHUNK", 16)
    table = torch.arange(64.0).view(8, 8)
    with RankFiles(tmp_path / "work", [{"a": TensorType("F32", (8, 3))}], {}) as files:
        files.write(0, "a", table[:, 2:5])
        files.finish_step({0: ["a"]})
        files.publish(tmp_path / "out")
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "out/rank0.safetensors")["a"], table[:, 2:5])


@pytest.mark.parametrize(
    ("write", "match"),
    [
        (lambda files: files.write(0, "a", torch.zeros(8, dtype=torch.float16)), "is F32, not torch.float16"),
        (lambda files: [files.write(0, "a", torch.zeros(8)) for _ in range(2)], "is written twice"),
        (lambda files: files.write(0, "a", torch.zeros(7)), "or not all of them"),
        (lambda files: files.write(0, "b", torch.zeros(3, dtype=torch.int8)), "wrote other tensors"),
    ],
)
def test_a_step_writes_what_it_should(tmp_path: Path, write: Callable[[RankFiles], Any], match: str) -> None:
    def step(files: RankFiles) -> None:
        write(files)
        files.finish_step({0: ["a"]})

    with RankFiles(tmp_path / "work", LAYOUT, {}) as files, pytest.raises(ValueError, match=match):
        step(files)


def test_no_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    layout = [{"a": TensorType("F32", (10**6, 10**9))}]
    with pytest.raises(StoreError, match=r"take 4000000\.0 GB, and there are"):
        RankFiles(tmp_path / "work", layout, {})
    assert list((tmp_path / "work").iterdir()) == []


def test_a_full_disk_is_an_error_of_the_store(
    tmp_path: Path,
    make_config: Callable[..., dict[str, Any]],
    make_checkpoint: Callable[..., Path],
    convert_to: Callable[..., dict[str, Any]],
) -> None:
    source = make_checkpoint(tmp_path / "source", make_config("llama"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(StoreError, match="cannot"):
            convert_to(source, tmp_path / "ranks", tensor=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "ranks").exists()
    convert_to(source, tmp_path / "ranks", tensor=2)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from toolchain.engine.tensorrt.convert import RankLayout, convert
from toolchain.progress import Silent

class Killer(Silent):
    def __init__(self, steps):
        self.steps = steps
    def advance(self, amount=1):
        self.steps -= 1
        if self.steps == 0:
            while not Path(work, "progress.json").exists():  # it is written beside the work
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)

source, out, work, steps = sys.argv[1:]
layout = RankLayout(tensor=2, pipeline=2)
convert(Path(source), Path(out), Path(work), layout=layout, progress=Killer(int(steps)))
"""


class Steps:
    """Counts what a conversion still had to do."""

    def __init__(self) -> None:
        self.total = self.done = self.advanced = 0

    def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
        self.total, self.done = total, done

    def advance(self, amount: int = 1) -> None:
        self.advanced += amount

    def note(self, text: str) -> None:
        pass


def test_killed_it_goes_on_and_the_files_are_the_same(
    tmp_path: Path,
    make_config: Callable[..., dict[str, Any]],
    make_checkpoint: Callable[..., Path],
    convert_to: Callable[..., dict[str, Any]],
) -> None:
    from toolchain.engine.tensorrt.convert import RankLayout, convert

    config = make_config("llama", num_hidden_layers=4)
    source = make_checkpoint(tmp_path / "source", config, LinearScheme("FP8", bits=8))
    convert_to(source, tmp_path / "whole", tensor=2, pipeline=2)
    whole = contents(tmp_path / "whole")
    work = tmp_path / "work"
    for steps in (1, 2, 3):
        command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "out"), str(work), str(steps)]
        killed = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not (tmp_path / "out").exists()
    progress = Steps()
    layout = RankLayout(tensor=2, pipeline=2)
    convert(source, tmp_path / "out", work, layout=layout, progress=progress)
    assert 0 < progress.done < progress.total == progress.done + progress.advanced
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("change", ["layout", "source", "state", "size"])
def test_files_of_something_else_are_begun_again(
    change: str,
    tmp_path: Path,
    make_config: Callable[..., dict[str, Any]],
    make_checkpoint: Callable[..., Path],
) -> None:
    from toolchain.engine.tensorrt.convert import RankLayout, convert
    from toolchain.progress import Silent

    source = make_checkpoint(tmp_path / "source", make_config("llama"))
    work = tmp_path / "work"
    convert(source, tmp_path / "out", work, layout=RankLayout(tensor=2), progress=Silent())
    layout = RankLayout(tensor=2, use_parallel_embedding=change != "layout")
    if change == "source":
        os.utime(source / "model.safetensors", (1, 1))
    elif change == "state":
        (work / "progress.json").write_text("{")
    elif change == "size":
        os.truncate(work / "rank1.safetensors", 100)
    progress = Steps()
    convert(source, tmp_path / "again", work, layout=layout, progress=progress)
    assert progress.done == 0
    expected = tmp_path / "expected"
    convert(source, expected, tmp_path / "fresh", layout=layout, progress=Silent())
    assert contents(tmp_path / "again") == contents(expected)


def test_a_finished_conversion_has_nothing_to_do(
    tmp_path: Path, make_config: Callable[..., dict[str, Any]], make_checkpoint: Callable[..., Path]
) -> None:
    """Killed between the last byte and the output's place, with files that are read-only already."""
    from toolchain.engine.tensorrt.convert import RankLayout, convert

    source, work = make_checkpoint(tmp_path / "source", make_config("qwen2")), tmp_path / "work"
    convert(source, tmp_path / "out", work, layout=RankLayout(), progress=Steps())
    for path in (tmp_path / "out").iterdir():
        path.chmod(0o444)
    progress = Steps()
    convert(source, tmp_path / "again", work, layout=RankLayout(), progress=progress)
    assert (progress.done, progress.advanced) == (progress.total, 0)
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_config_comes_last(
    tmp_path: Path, make_config: Callable[..., dict[str, Any]], make_checkpoint: Callable[..., Path]
) -> None:
    from toolchain.engine.tensorrt.convert import RankLayout, convert
    from toolchain.progress import Silent

    source = make_checkpoint(tmp_path / "source", make_config("llama"))
    convert(source, tmp_path / "out", tmp_path / "work", layout=RankLayout(), progress=Silent())
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert max(times, key=lambda name: times[name]) == "config.json"
    assert json.loads((tmp_path / "out/config.json").read_text())["architecture"] == "LlamaForCausalLM"
