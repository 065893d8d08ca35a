import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from quantize.formats.tensorfile import ALIGNMENT, StoredTensor, write_tensor_file, write_text_file
from toolchain.errors import ModelError, StoreError
from toolchain.model.safetensors_file import Location, read_header

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.int8, torch.int64]
SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)


@given(st.lists(st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=6))
def test_the_safetensors_library_reads_the_same_tensors(
    tmp_path_factory: pytest.TempPathFactory, described: list[tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "m.safetensors"
    tensors = {
        f"tensor.{number}": torch.arange(int(torch.Size(shape).numel())).to(dtype).reshape(shape)
        for number, (dtype, shape) in enumerate(described)
    }
    write_tensor_file(path, {name: StoredTensor.of(tensor) for name, tensor in tensors.items()}, {"a": "b"})
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    for entry in read_header(path).values():
        assert entry.location.offset % torch.empty(0, dtype=read_dtype(entry.dtype)).element_size() == 0
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "a": "b"}


def read_dtype(name: str) -> torch.dtype:
    from toolchain.model.checkpoint import TORCH_DTYPES

    dtype: torch.dtype = getattr(torch, TORCH_DTYPES[name])
    return dtype


def test_whole_cache_lines_are_aligned_in_the_order_given(tmp_path: Path) -> None:
    sizes = {"b": 64, "odd": 3, "a": 256, "c": 128}
    tensors = {name: StoredTensor.of(torch.zeros(n, dtype=torch.uint8)) for name, n in sizes.items()}
    write_tensor_file(tmp_path / "m.safetensors", tensors)
    entries = read_header(tmp_path / "m.safetensors")
    assert list(entries) == ["b", "a", "c", "odd"]
    assert all(entry.location.offset % ALIGNMENT == 0 for entry in entries.values())


def test_bytes_are_copied_from_other_files(tmp_path: Path) -> None:
    source = {"x": torch.randn(33, 7), "y": torch.arange(5)}
    save_file(source, tmp_path / "source.safetensors")
    tensors = {
        name: StoredTensor(entry.dtype, entry.shape, entry.location)
        for name, entry in read_header(tmp_path / "source.safetensors").items()
    }
    write_tensor_file(tmp_path / "copy.safetensors", tensors)
    copy = load_file(tmp_path / "copy.safetensors")
    assert all(torch.equal(copy[name], source[name]) for name in source)


def test_a_source_that_ends_early_is_named(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"12345")
    tensor = StoredTensor("U8", (8,), Location(tmp_path / "source", 0, 8))
    with pytest.raises(ModelError, match="ended within w"):
        write_tensor_file(tmp_path / "m.safetensors", {"w": tensor})
    assert not (tmp_path / "m.safetensors").exists()


def test_a_refusing_file_system_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot write m\.json: No such file or directory"):
        write_text_file(tmp_path / "absent" / "m.json", "{}")
    with pytest.raises(StoreError, match=r"cannot write m\.safetensors: No such file or directory"):
        write_tensor_file(tmp_path / "absent" / "m.safetensors", {})


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from quantize.formats.tensorfile import StoredTensor, write_tensor_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
write_tensor_file(Path(sys.argv[1]), {"w": StoredTensor.of(torch.zeros(9999))})
"""


def test_no_half_written_file_appears(tmp_path: Path) -> None:
    """A write that fails half-way, for real: the process may not write files of more than 4 KiB."""
    path = tmp_path / "m.safetensors"
    child = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], env=os.environ, capture_output=True, text=True, check=False
    )
    assert "StoreError" in child.stderr
    assert "File too large" in child.stderr
    assert not path.exists()
