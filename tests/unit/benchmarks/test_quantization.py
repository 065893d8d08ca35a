"""The benchmark of quantizers: its table, its floor, and how it starts, stops and kills what it measures."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from benchmarks.quantization import child  # noqa: E402
from benchmarks.quantization.cases import DEMO, OURS, PEERS, Case, cases  # noqa: E402
from benchmarks.quantization.child import Outcome  # noqa: E402
from benchmarks.quantization.floor import Machine, floor_seconds  # noqa: E402
from benchmarks.quantization.quality import Quality  # noqa: E402
from benchmarks.quantization.resume import measure_resume  # noqa: E402
from benchmarks.quantization.runners.job import Job  # noqa: E402
from benchmarks.quantization.table import Measured, rows  # noqa: E402

DEMO_DIR = ROOT / "models" / "demo"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A quick quantization of the demo model."""
    tokens = np.random.default_rng(0).integers(0, 4096, (2, 64))
    np.save(tmp_path / "tokens.npy", tokens)
    return Job(
        model=str(DEMO_DIR),
        tokens=str(tmp_path / "tokens.npy"),
        out=str(tmp_path / "out"),
        method="awq",
        group_size=128,
        variant="",
        dtype="float32",
        report=str(tmp_path / "out.json"),
    )


def test_every_case_has_a_run_of_ours_to_be_compared_with() -> None:
    found = list(cases())
    assert len(found) == len(set(found))
    ours = {case.same for case in found if case.tool == OURS}
    assert {case.same for case in found} == ours
    assert {case.tool for case in found} == {OURS, *PEERS}


def test_ratios_are_to_the_best_peer_of_the_same_method() -> None:
    quality = Quality(0.02, None, 9.0, 8.9, "checkpoint")
    measured = [
        Measured(Case(DEMO, "awq", 128, OURS), Outcome("", 4.0, 2.0, 300), quality, 1.0),
        Measured(
            Case(DEMO, "awq", 128, "modelopt"),
            Outcome("", 10.0, 8.0, 900),
            dataclasses.replace(quality, kl=0.04),
            1.0,
        ),
        Measured(Case(DEMO, "awq", 128, "llmcompressor"), Outcome("", 20.0, 4.0, 600), "unreadable", 1.0),
        Measured(Case(DEMO, "awq", 128, "gptqmodel"), Outcome("over 5 s", 5.0, 0.0, 100), "", 1.0),
        Measured(Case(DEMO, "awq", 64, "gptqmodel"), Outcome("", 1.0, 1.0, 100), "", 1.0),
    ]
    ours, _, dropped, late, _ = rows(measured)
    ratios = ("time ratio", "total ratio", "RSS ratio", "KL ratio", "of the floor")
    assert [ours[name] for name in ratios] == ["0.50", "0.40", "0.50", "0.50", "50 %"]
    assert dropped["judged by"] == "unreadable"
    assert (late["quantize, s"], late["time ratio"], late["peak RSS, MB"]) == ("over 5 s", "-", "0")


def test_the_floor_counts_the_products_of_the_model() -> None:
    """Against torch's own count of a forward pass: linears and, masked away by half, attention."""
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    length = 64
    model = AutoModelForCausalLM.from_pretrained(DEMO_DIR, attn_implementation="eager").model
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, length, dtype=torch.long), use_cache=False)
    counts = {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}
    layers = len(model.layers)
    attention = counts["aten.bmm"]
    slow_reader = Machine(flops=1.0, dtype="float32", read=1e30)
    assert floor_seconds(DEMO_DIR, "fp8", length, length, slow_reader) == counts["aten.mm"] + attention / 2

    widths = [layer.in_features for layer in model.layers[0].modules() if isinstance(layer, torch.nn.Linear)]
    distinct = [widths[0], widths[3], widths[4], widths[6]]  # q/k/v share one input, gate/up another
    grams = layers * sum(2 * length * width**2 for width in distinct)
    twice = 2 * (counts["aten.mm"] + attention / 2) + grams
    assert floor_seconds(DEMO_DIR, "gptq", length, length, slow_reader) == twice


def test_a_peer_without_an_environment_is_absent(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(child.PEERS_VARIABLE, str(tmp_path))
    assert child.interpreter("llmcompressor") is None
    assert child.run("llmcompressor", job, tmp_path / "log", 1.0) == Outcome("absent")
    assert child.versions()["GPTQModel"] == "absent"


def test_a_run_past_its_limit_is_stopped_and_its_memory_read(job: Job, tmp_path: Path) -> None:
    outcome = child.run(OURS, job, tmp_path / "log", 0.5)
    assert outcome.problem == "over 0 s"
    assert outcome.peak > 1e6


def test_a_run_that_fails_says_its_last_line(job: Job, tmp_path: Path) -> None:
    outcome = child.run(OURS, dataclasses.replace(job, model=str(tmp_path)), tmp_path / "log", 100)
    assert outcome.problem.startswith("failed: ")
    assert str(tmp_path) in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_a_kill_loses_no_finished_layer(job: Job, tmp_path: Path) -> None:
    found = measure_resume(job, tmp_path, 200, moments=(0.5,))
    assert found["layers"] == 8
    assert found["finished layers lost"] == 0
    assert found["same bytes"] is True
