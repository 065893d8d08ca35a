"""A search on the demo model: better than one method for all, and than other choices of the same size."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from quantize.calibration import Calibration, load_calibration
from quantize.driver import Machine, quantize_model
from quantize.formats.checkpoint import FORMATS
from quantize.methods.base import Method
from quantize.methods.registry import make_method
from quantize.search.mixed import Budget, Search, methods_of, quantize_searched, within_bytes
from quantize.search.sensitivity import Unit, measure_sensitivity
from quantize.selection import Override
from toolchain.gate.evaluate import evaluate
from toolchain.gate.run import baseline_of
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.selection import modules
from toolchain.model.spec import load_spec
from toolchain.text.files import TextFiles

DEMO = Path(__file__).resolve().parents[2] / "models/demo"
CANDIDATES: Mapping[str, Method | None] = {
    name: make_method(name, clip=False) for name in ("awq", "int8_wo", "none")
}
BITS = 5.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return load_calibration(
        TextFiles.local(DEMO / "calibration.jsonl", None),
        DEMO,
        vocab_size=load_spec(DEMO).vocab_size,
        samples=16,
        seq_len=128,
        seed=0,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def units(calibration: Calibration, work: Path) -> list[Unit]:
    return measure_sensitivity(
        DEMO,
        work / "sensitivity",
        candidates=CANDIDATES,
        searched=set(modules(load_spec(DEMO))[1]),
        calibration=calibration,
        form=FORMATS["modelopt"],
        machine=Machine("cpu"),
    )


@pytest.fixture(scope="module")
def divergence() -> Callable[[Path], float]:
    """A function (checkpoint directory) -> mean KL divergence from the source on held-out text."""
    text = TextFiles.local(DEMO / "heldout.txt", None)
    baseline = baseline_of(DEMO, text, window=256, limit=8, device="cpu")
    return lambda directory: evaluate(DEMO, directory, baseline, device="cpu").kl


def size(units: Sequence[Unit], methods: Sequence[str]) -> int:
    return sum(unit.costs[method].nbytes for unit, method in zip(units, methods, strict=True))


def at_random(units: Sequence[Unit], limit: float) -> list[str]:
    """Every unit in awq, then one after the other, drawn at random, in a larger method while that fits."""
    drawn = random.Random(0)
    methods = ["awq"] * len(units)
    for at in drawn.sample(range(len(units)), len(units)):
        for larger in drawn.sample(["int8_wo", "none"], 2):
            tried = [*methods[:at], larger, *methods[at + 1 :]]
            if size(units, tried) <= limit:
                methods = tried
                break
    return methods


def test_the_choice_beats_one_method_and_a_random_choice_of_its_size(
    units: list[Unit], calibration: Calibration, work: Path, divergence: Callable[[Path], float]
) -> None:
    limit = sum(unit.weights for unit in units) * BITS / 8
    choices = {
        "one": ["awq"] * len(units),
        "random": at_random(units, limit),
        "searched": methods_of(units, within_bytes(units, limit)),
    }
    assert size(units, choices["random"]) > 0.99 * limit
    assert size(units, choices["searched"]) <= limit
    found = {}
    for name, methods in choices.items():
        chosen = [
            Override(linear, CANDIDATES[method])
            for unit, method in zip(units, methods, strict=True)
            for linear in unit.linears
        ]
        quantize_model(
            DEMO, work / name, work / f"{name}-work", method=None, calibration=calibration, overrides=chosen,
            machine=Machine("cpu"),
        )  # fmt: skip
        stored = Checkpoint.open(work / name)
        nbytes = sum(stored.location(tensor).nbytes for tensor in stored.names if "_proj." in tensor)
        assert nbytes == size(units, methods)
        found[name] = divergence(work / name)
    assert found["searched"] < 0.85 * found["random"], found
    assert found["searched"] < 0.85 * found["one"], found


def test_a_budget_of_divergence_is_kept_on_held_out_text(
    units: list[Unit], calibration: Calibration, work: Path, divergence: Callable[[Path], float]
) -> None:
    assert len(units) == 32
    shutil.copytree(work / "sensitivity", work / "kl/sensitivity")  # as an interrupted search leaves it
    report = quantize_searched(
        DEMO,
        work / "within",
        work / "kl",
        search=Search(CANDIDATES, Budget(max_kl=0.04), divergence),
        calibration=calibration,
        exclude=["lm_head"],
        overrides=[],
        kv_cache=None,
        form=FORMATS["modelopt"],
        machine=Machine("cpu"),
    )
    measured = divergence(work / "within")
    assert measured == pytest.approx(report["search"]["kl"], rel=1e-6)
    assert measured <= 0.04
    assert report["search"]["bits_per_weight"] < 8
