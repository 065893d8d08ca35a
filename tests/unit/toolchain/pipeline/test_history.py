"""What a plan learns from real builds of the demo model, and what it passes over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolchain.pipeline.history import earlier_runs
from toolchain.pipeline.store import Store
from toolchain.plan.effort import Measured, stage_needs
from toolchain.plan.plan import make_plan
from toolchain.recipe import load_recipe

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[4] / "configs"
OVERRIDES = ["quantization={method: int4_wo, group_size: 128}", "gates.perplexity.windows=1"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store after one build of the demo model up to its engine."""
    root = tmp_path_factory.mktemp("history")
    command = [sys.executable, "-m", "toolchain.cli.main", "build", str(CONFIGS / "demo-int4.yaml")]
    command += ["--out", str(root), "--until", "engine", *(f"--set={override}" for override in OVERRIDES)]
    # A process of its own: memory at the peak would be that of the tests before this one.
    subprocess.run(command, env=os.environ | {"LLMBUILD_STORE": str(root / "store")}, check=True)
    return root / "store"


def test_a_build_is_found_again_as_the_work_that_its_plan_names(built: Path) -> None:
    runs = earlier_runs(Store.open(built))
    assert {run.work.stage for run in runs} == {"source", "quantize", "baseline", "gate", "engine"}
    plan = make_plan(load_recipe(CONFIGS / "demo-int4.yaml", OVERRIDES), runs)
    took = {run.work.stage: run for run in runs}
    for need in plan.stages:
        assert need.basis == "1 earlier run here"
        assert need.seconds == pytest.approx(took[need.stage].seconds, rel=0.25)
    peaks = {need.stage: need.host for need in plan.stages}
    for stage in ("source", "quantize", "baseline"):
        assert peaks[stage] == took[stage].peak_memory


def test_predicted_peaks_and_disk_are_those_of_the_build(built: Path) -> None:
    """Before anything was measured; the libraries make up most of what a small model takes."""
    runs = {run.work.stage: run for run in earlier_runs(Store.open(built))}
    plan = make_plan(load_recipe(CONFIGS / "demo-int4.yaml", OVERRIDES))
    for need in stage_needs(plan.resolved, plan.spec, plan.weights, plan.fit):
        assert need.host == pytest.approx(runs[need.stage].peak_memory, rel=0.5)
        if need.stage == "engine":
            assert need.disk == pytest.approx(runs["engine"].work.stored, rel=0.1)  # graph.xml is the rest


def test_what_cannot_be_read_is_passed_over(built: Path, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    assert earlier_runs(store) == []
    (store.records / "broken.json").write_text("{")
    (store.records / "foreign.json").write_text("[]")
    for path in (built / "records").glob("*.json"):
        record = json.loads(path.read_bytes())
        (store.records / path.name).write_text(json.dumps(record))  # its objects are not here
    found: list[Measured] = earlier_runs(store)
    assert found == []
