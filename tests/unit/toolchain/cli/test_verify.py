"""`llmbuild verify` and `llmbuild inspect` of rank files, as a user types them."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from toolchain.cli.main import app
from toolchain.engine.tensorrt.convert import RankLayout, convert
from toolchain.progress import Silent

SOURCE = Path(__file__).parents[3] / "data" / "quantized" / "source" / "llama"


def llmbuild(*argv):
    return CliRunner().invoke(app, [str(arg) for arg in argv])


@pytest.fixture
def ranks(tmp_path):
    convert(SOURCE, tmp_path / "ranks", tmp_path / "work", layout=RankLayout(tensor=2), progress=Silent())
    return tmp_path / "ranks"


def swap(ranks):
    """Give each rank the other's file."""
    files = [ranks / f"rank{rank}.safetensors" for rank in range(2)]
    for old, new in ((files[0], ranks / "other"), (files[1], files[0]), (ranks / "other", files[1])):
        shutil.move(old, new)


def test_ranks_that_are_their_source(ranks):
    done = llmbuild("verify", ranks, "--source", SOURCE, "--tokens", "1,2,3")
    assert done.exit_code == 0, done.output
    assert "2 ranks (tp 2 x pp 1) over" in done.stdout
    assert "the ranks are the source" in done.stdout
    done = llmbuild("verify", ranks, "--source", SOURCE, "--json")
    assert json.loads(done.stdout)["passed"] is True


def test_ranks_that_are_not_end_with_exit_code_4(ranks):
    """Both are sound by themselves, and their sums are right; embedding and logits are not."""
    swap(ranks)
    done = llmbuild("verify", ranks, "--source", SOURCE)
    assert done.exit_code == 4
    assert "the embedding diverges first, then 1 more" in done.stderr
    assert "since both compute in float32" in done.stderr
    done = llmbuild("verify", ranks, "--source", SOURCE, "--json")
    assert done.exit_code == 4
    assert json.loads(done.stdout)["diverging"] == ["the embedding", "the output layer"]


def test_what_is_missing_is_said(ranks, tmp_path):
    done = llmbuild("verify", ranks)
    assert done.exit_code == 2
    assert "name it: --source DIR" in done.stderr
    done = llmbuild("verify", tmp_path)
    assert "there is no rank checkpoint here" in done.stderr
    done = llmbuild("verify", ranks, "--source", SOURCE, "--tokens", "1,x")
    assert "is no list of token numbers" in done.stderr
    done = llmbuild("verify", ranks, "--source", SOURCE, "--tokens", "1", "--prompt", "x")
    assert "either --prompt or --tokens" in done.stderr


def test_inspect_prints_what_it_found(ranks):
    done = llmbuild("inspect", ranks)
    assert done.exit_code == 0
    assert "TensorRT-LLM checkpoint" in done.stdout
    assert "26.07-trtllm-python-py3" in done.stdout
    assert "nothing is wrong with it" in done.stdout
    assert llmbuild("inspect", ranks, "--verify").exit_code == 0
    done = llmbuild("inspect", ranks, "--target", "1.4.0rc1")
    assert done.exit_code == 2
    assert "TensorRT-LLM 1.4.0rc1 builds no engines" in done.stdout
    (ranks / "rank1.safetensors").unlink()
    done = llmbuild("inspect", ranks, "--json")
    assert done.exit_code == 2
    assert json.loads(done.stdout)["findings"][0]["what"] == "the file is missing"
