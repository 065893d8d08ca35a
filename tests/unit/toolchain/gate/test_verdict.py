"""Figures against thresholds."""

from pathlib import Path
from typing import Any

import pytest

from toolchain.errors import GateError
from toolchain.gate.result import Evaluation, LayerError
from toolchain.gate.verdict import judge, read_figures, wanted, write_figures
from toolchain.recipe.schema import Gates

OWN = [0.01, 0.05, 0.001, 0.03, 0.0, 0.02, 0.01]
FIGURES = Evaluation(
    window=16, stride=16, windows=4, tokens=60, source_perplexity=10.0, quantized_perplexity=10.4,
    increase=0.04, increase_error=0.004, kl=0.02, kl_error=0.001, top1=0.9,
    layers=tuple(LayerError(i, 0.1, own) for i, own in enumerate(OWN)),
)  # fmt: skip


def gates(perplexity: dict[str, Any] | None = None, kl: dict[str, Any] | None = None) -> Gates:
    text = {"dataset": "file:/heldout.txt"}
    given = {"perplexity": perplexity and text | perplexity, "kl": kl and text | kl}
    return Gates.model_validate({name: gate for name, gate in given.items() if gate})


@pytest.mark.parametrize(
    "thresholds", [{"max": 10.4}, {"max_increase": "4%"}, {"max": 11.0, "max_increase": "5%"}]
)
def test_passing_figures_are_told_with_their_thresholds(thresholds: dict[str, Any]) -> None:
    passed = judge(gates(thresholds, {"max": 0.02}), {"perplexity": FIGURES})
    assert passed["perplexity"]["passed"] is passed["kl"]["passed"] is True
    assert passed["perplexity"]["quantized"] == 10.4
    assert passed["kl"]["kl"] == 0.02


def test_no_gates_judge_nothing() -> None:
    assert judge(Gates(), {}) == {}


def test_a_failure_tells_figures_and_worst_layers() -> None:
    with pytest.raises(
        GateError, match=r"perplexity rises by 4\.00%, from 10 to 10\.4; the recipe allows 1\.00%"
    ) as e:
        judge(gates({"max_increase": "1%"}), {"perplexity": FIGURES})
    lines = str(e.value).splitlines()
    assert lines[0].startswith("gates.perplexity.max_increase: ")
    assert lines[2].split() == ["layer", "1", "5.00%", "by", "itself", "10.00%", "after", "it"]
    assert [line.split()[1] for line in lines[2:7]] == ["1", "3", "5", "0", "6"]
    assert '"model.layers.1.*"' in lines[-1]
    assert e.value.exit_code == 4


def test_an_excess_within_the_noise_is_said_to_be() -> None:
    with pytest.raises(GateError, match="two standard errors"):
        judge(gates({"max_increase": "3.5%"}), {"perplexity": FIGURES})
    with pytest.raises(GateError, match="two standard errors"):
        judge(gates(kl={"max": 0.019}), {"kl": FIGURES})


def test_all_failures_are_told() -> None:
    with pytest.raises(GateError, match="perplexity rises") as caught:
        judge(gates({"max_increase": "1%", "max": 10.0}, {"max": 0.001}), {"perplexity": FIGURES})
    assert "also: the perplexity is 10.4, 10 before quantization; the recipe allows 10" in str(caught.value)
    assert "also: the KL divergence from the source is 0.02; the recipe allows 0.001" in str(caught.value)


def test_gates_of_one_text_are_measured_once() -> None:
    assert list(wanted(gates({"max": 9.0}, {"max": 0.1}))) == ["perplexity"]
    assert list(wanted(gates({"max": 9.0}, {"max": 0.1, "windows": 3}))) == ["perplexity", "kl"]
    assert list(wanted(gates(kl={"max": 0.1}))) == ["kl"]
    assert wanted(Gates()) == {}


def test_a_text_of_its_own_is_judged_by_its_own_figures() -> None:
    other = Evaluation.from_json(FIGURES.to_json() | {"kl": 0.5})
    chosen = gates({"max": 11.0}, {"max": 0.1, "windows": 3})
    with pytest.raises(GateError, match=r"KL divergence from the source is 0\.5"):
        judge(chosen, {"perplexity": FIGURES, "kl": other})


def test_figures_are_read_as_written(tmp_path: Path) -> None:
    write_figures(tmp_path / "gate.json", {"perplexity": FIGURES})
    assert read_figures(tmp_path / "gate.json") == {"perplexity": FIGURES}
