from pathlib import Path

import pytest
import torch

from quantize.work import WorkDir
from toolchain.errors import QuantizeError, StoreError


def test_a_layer_that_is_there_is_finished(tmp_path: Path) -> None:
    work = WorkDir(tmp_path / "w", {"a": 1})
    assert work.finished_layers() == 0
    hidden = torch.randn(2, 3, 4).bfloat16()
    work.save_hidden(0, hidden)
    work.save_hidden(1, hidden * 2)
    work.finish_layer(0, {"x": torch.ones(2)}, {"x": {"alpha": 0.5}})
    again = WorkDir(tmp_path / "w", {"a": 1})
    assert again.finished_layers() == 1
    assert torch.equal(again.load_hidden(1), hidden * 2)
    assert (again.latest_hidden(0), again.latest_hidden(1), again.latest_hidden(5)) == (0, 1, 1)
    again.drop_hidden(before=1)
    assert (again.latest_hidden(0), again.latest_hidden(1)) == (None, 1)
    assert again.layer_report(0) == {"x": {"alpha": 0.5}}


def test_half_written_files_are_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".layer-00000.safetensors.partial").write_bytes(b"x")
    work = WorkDir(tmp_path, {})
    assert work.finished_layers() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["fingerprint.json"]


def test_another_fingerprint_is_refused_with_the_difference(tmp_path: Path) -> None:
    WorkDir(tmp_path, {"method": {"group_size": 128}, "seed": 0})
    WorkDir(tmp_path, {"seed": 0, "method": {"group_size": 128}})
    with pytest.raises(QuantizeError, match=r"state of another quantization\n  why: seed: 0 there, 1 here\n"):
        WorkDir(tmp_path, {"method": {"group_size": 128}, "seed": 1})


def test_a_place_that_cannot_be_written_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot prepare the working directory"):
        WorkDir(tmp_path / "file", {})


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_state_is_said_to_be_one(text: str, tmp_path: Path) -> None:
    (tmp_path / "fingerprint.json").write_text(text)
    with pytest.raises(QuantizeError, match=r"state cannot be read\n.*\n  fix: delete the directory"):
        WorkDir(tmp_path, {})
