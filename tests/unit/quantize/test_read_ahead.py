from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quantize.read_ahead import ReadAhead
from toolchain.errors import ModelError
from toolchain.model.checkpoint import Checkpoint

# "cuda" names where the work is done: the reading itself needs no GPU.
DEVICES = ["cpu", "cuda"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    save_file(
        {name: torch.full((4,), float(at)) for at, name in enumerate("abc")}, tmp_path / "model.safetensors"
    )
    return Checkpoint.open(tmp_path)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hold", [True, False])
def test_tensors_are_those_of_the_checkpoint_begun_or_not(
    device: str, hold: bool, checkpoint: Checkpoint
) -> None:
    ahead = ReadAhead(checkpoint, torch.device(device))
    ahead.start(["a", "b"], hold=hold)
    ahead.start(["b", "c"], hold=hold)
    for at, name in enumerate("abc"):
        assert ahead.read(name).tolist() == [float(at)] * 4
        assert ahead.read(name).tolist() == [float(at)] * 4


def test_what_goes_wrong_is_told_to_the_one_who_asks(checkpoint: Checkpoint) -> None:
    ahead = ReadAhead(checkpoint, torch.device("cuda"))
    (checkpoint.model_dir / "model.safetensors").unlink()
    ahead.start(["a"])
    with pytest.raises(ModelError, match="cannot read the weights"):
        ahead.read("a")
