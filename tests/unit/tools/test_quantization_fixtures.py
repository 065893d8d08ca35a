"""The committed checkpoints of other tools are what the script that makes them says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT / "tests" / "data" / "quantized"
sys.path.insert(0, str(ROOT / "tools"))

from peer_checkpoints.compare import compare  # noqa: E402
from peer_checkpoints.source import SOURCES, write_source  # noqa: E402

KINDS = sorted(file.parent for file in FIXTURES.glob("*/*/expected.safetensors"))


@pytest.mark.parametrize("name", SOURCES)
def test_the_source_models_come_out_the_same(name: str, tmp_path: Path) -> None:
    write_source(tmp_path / name)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / name / file).read_bytes() == (FIXTURES / "source" / name / file).read_bytes()


def test_every_fixture_is_listed_beside_the_versions_that_wrote_it() -> None:
    for tool in {kind.parent for kind in KINDS}:
        listed = re.findall(r"^\| `(\w+)` \|", (tool / "README.md").read_text(), re.MULTILINE)
        assert sorted(listed) == [kind.name for kind in KINDS if kind.parent == tool]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.parent.name}-{kind.name}")
def test_the_dequantized_weights_are_near_the_sources(kind: Path) -> None:
    """Within what the format loses: names and orientation are right. (Scales may have moved into norms.)"""
    source = load_file(
        FIXTURES / "source" / ("mixtral" if "mixtral" in kind.name else "llama") / "model.safetensors"
    )
    expected = load_file(kind / "expected.safetensors")
    assert expected
    for name, weight in expected.items():
        assert weight.shape == source[name].shape
        correlation = torch.corrcoef(torch.stack([weight.flatten().float(), source[name].flatten().float()]))
        assert correlation[0, 1] > 0.9, name


@pytest.mark.slow
def test_modelopt_writes_the_committed_bytes(tmp_path: Path) -> None:
    """Of a kind that looks at no activation: sums are taken in another order on another processor."""
    pytest.importorskip("modelopt.torch", reason="nvidia-modelopt cannot be imported", exc_type=ImportError)
    script = [sys.executable, str(ROOT / "tools" / "quantization_fixtures.py"), "modelopt"]
    subprocess.run(
        [*script, str(tmp_path / "modelopt"), "--kind", "int4_wo"], check=True, capture_output=True
    )
    made, kept = (root / "modelopt" / "int4_wo" for root in (tmp_path, FIXTURES))
    for file in ("expected.safetensors", "model.safetensors", "hf_quant_config.json"):
        assert (made / file).read_bytes() == (kept / file).read_bytes(), file

    (made / "expected.safetensors").unlink()
    dump = tmp_path / "dump.safetensors"
    subprocess.run([*script, "--check", str(made), "--dump", str(dump)], check=True, capture_output=True)
    assert compare(load_file(dump), load_file(kept / "expected.safetensors")) == []


def test_a_comparison_names_what_differs() -> None:
    weight = torch.tensor([[1.0, -2.0], [0.5, 4.0]])
    other = weight.clone()
    other[0, 1] = -2.001
    assert compare({"a": weight}, {"a": weight}) == []
    assert compare({}, {"a": weight}) == ["a: the tool has no such weight"]
    assert compare({"a": weight[:1]}, {"a": weight}) == ["a: [1, 2] instead of [2, 2]"]
    [line] = compare({"a": other}, {"a": weight})
    assert line.startswith("a: 1 of 4 differ, by up to 0.00025 ")
    assert compare({"a": other}, {"a": weight}, tolerance=1e-3) == []
    assert compare({"a": torch.full((2, 2), torch.nan)}, {"a": weight}) != []


def test_a_tool_that_computes_in_bfloat16_is_compared_in_it() -> None:
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    assert compare({"a": weight.bfloat16()}, {"a": weight}) == []
    assert compare({"a": weight.bfloat16() * 1.01}, {"a": weight}) != []
