"""A build whose texts are a data set of the Hub, in the Hub's cache and without network."""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "models" / "demo"
LLMBUILD = Path(sysconfig.get_path("scripts")) / "llmbuild"
COMMITS = "a" * 40, "b" * 40
HUB = {"dataset": "hf:owner/demo", "column": "code"}
# What can be read of the data set, by file; the split is in the name.
SPLITS = {"train": "calibration.jsonl", "test": "heldout.txt"}


def publish(home: Path, commit: str) -> None:
    """Put the demo's texts into the Hub's cache as the commit that main is at."""
    repo = home / "hub" / "datasets--owner--demo"
    for directory in ("refs", "blobs", f"snapshots/{commit}/data"):
        (repo / directory).mkdir(parents=True, exist_ok=True)
    (repo / "refs" / "main").write_text(commit)
    lines = (DEMO / SPLITS["train"]).read_text("utf-8").splitlines()
    texts = {
        "train": [json.loads(line)["text"] for line in lines],
        "test": (DEMO / SPLITS["test"]).read_text("utf-8").splitlines(keepends=True),
    }
    for split, rows in texts.items():
        blob = repo / "blobs" / f"{commit[0]}-{split}"
        pq.write_table(pa.table({"code": rows}), blob, row_group_size=5)
        (repo / "snapshots" / commit / "data" / f"{split}-00000-of-00001.parquet").symlink_to(
            f"../../../blobs/{blob.name}"
        )


def build(tmp_path: Path, calibration: dict[str, str], gate: dict[str, str]) -> dict[str, Any]:
    """Build up to the gate; the manifest's stages by name."""
    sets = [f"quantization.calibration.{name}={value}" for name, value in calibration.items()]
    sets += [f"gates.perplexity.{name}={value}" for name, value in gate.items()]
    sets += ["quantization.calibration.samples=4", "quantization.calibration.seq_len=64"]
    sets += [
        "gates.perplexity.windows=2",
        "gates.perplexity.window=128",
        "gates.perplexity.max_increase=200%",
    ]
    command = [LLMBUILD, "build", ROOT / "configs" / "demo-int4.yaml", "--until", "gate", "--out", tmp_path]
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(word) for word in command] + [word for text in sets for word in ("--set", text)],
        env=env | {"LLMBUILD_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    stages = json.loads((tmp_path / "demo-int4" / "manifest.json").read_text())["stages"]
    return {stage["stage"]: stage for stage in stages}


@pytest.mark.slow
def test_a_hub_data_set_gives_what_the_same_files_give(tmp_path: Path) -> None:
    publish(tmp_path / "home", COMMITS[0])
    hub = build(tmp_path, HUB | {"split": "train"}, HUB | {"split": "test"})
    local = build(
        tmp_path,
        {"dataset": f"file:{DEMO / SPLITS['train']}"},
        {"dataset": f"file:{DEMO / SPLITS['test']}"},
    )
    facts = hub["quantize"]["facts"]
    assert facts["calibration_sha256"] == local["quantize"]["facts"]["calibration_sha256"]
    assert facts["calibration_commit"] == COMMITS[0]
    assert "calibration_commit" not in local["quantize"]["facts"]
    assert hub["quantize"]["config"]["calibration"]["files"] == ["data/train-00000-of-00001.parquet"]
    assert hub["quantize"]["object"] == local["quantize"]["object"]

    assert hub["gate"]["facts"].pop("commits") == {"perplexity": COMMITS[0]}
    assert hub["gate"]["facts"] == local["gate"]["facts"]
    assert hub["gate"]["object"] == local["gate"]["object"]

    publish(tmp_path / "home", COMMITS[1])  # the same files
    again = build(tmp_path, HUB | {"split": "train"}, HUB | {"split": "test"})
    assert [stage["outcome"] for stage in again.values()] == ["cached"] * 3
