import shutil
from pathlib import Path

import pytest

from quantize.formats.checkpoint import QuantizedCheckpoint
from toolchain.errors import ModelError, QuantizeError, UsageError
from toolchain.pipeline.export import export_checkpoint

DATA = Path(__file__).parents[3] / "data" / "quantized"


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_checkpoint_is_written_in_another_form(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    exported = export_checkpoint(DATA / "gptqmodel/gptq", "compressed-tensors", out)
    assert exported.path == out
    assert exported.facts.quantization["format"] == "compressed-tensors"
    opened = QuantizedCheckpoint.open(out)
    assert opened.form is not None
    assert opened.form.name == "compressed-tensors"
    assert entries(out) == ["config.json", "model.safetensors"]
    assert entries(out.parent) == ["out"]


def test_an_empty_directory_is_taken_and_any_other_left_alone(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    export_checkpoint(DATA / "gptqmodel/gptq", "awq", tmp_path / "empty")
    assert "config.json" in entries(tmp_path / "empty")
    with pytest.raises(UsageError, match="there is something at the place of the output"):
        export_checkpoint(DATA / "gptqmodel/gptq", "gptq", tmp_path / "empty")
    opened = QuantizedCheckpoint.open(tmp_path / "empty")
    assert opened.form is not None
    assert opened.form.name == "awq"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(QuantizeError, match=r"(?s)cannot hold.*no zero points"):
        export_checkpoint(DATA / "gptqmodel/gptq_v2", "modelopt", out)
    with pytest.raises(UsageError, match="there is no form 'gguf'"):
        export_checkpoint(DATA / "gptqmodel/gptq", "gguf", out)
    with pytest.raises(QuantizeError, match="is not quantized"):
        export_checkpoint(DATA / "source/llama", "gptq", out)
    damaged = Path(shutil.copytree(DATA / "gptqmodel/gptq", tmp_path / "damaged"))
    file = damaged / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="truncated"):
        export_checkpoint(damaged, "modelopt", out)
    assert entries(tmp_path) == ["damaged"]
