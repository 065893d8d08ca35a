"""Figures against thresholds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolchain.errors import GateError
from toolchain.gate.result import Evaluation, Floor, LayerError, LinearError, Measured
from toolchain.gate.verdict import judge, read_measured, wanted, worst_linears, write_measured
from toolchain.recipe.schema import Gates

OWN = [0.01, 0.05, 0.001, 0.03, 0.0, 0.02, 0.01]
FIGURES = Evaluation(
    window=16, stride=16, windows=4, tokens=60, source_perplexity=10.0, quantized_perplexity=10.4,
    increase=0.04, increase_error=0.004, kl=0.02, kl_error=0.001, top1=0.9, top1_error=0.02,
    simulated=("activations as FP8",), floor=Floor("bfloat16", 0.0001, 0.0004, 0.99),
    layers=tuple(LayerError(i, 0.1, own) for i, own in enumerate(OWN)),
)  # fmt: skip


LINEARS = (LinearError("model.layers.1.mlp.down_proj", 0.2), LinearError("model.layers.3.mlp.up_proj", 0.1))


def figures(**texts: Evaluation) -> Measured:
    return Measured(texts, LINEARS)


def gates(perplexity: dict[str, Any] | None = None, kl: dict[str, Any] | None = None) -> Gates:
    text = {"dataset": "file:/heldout.txt"}
    given = {"perplexity": perplexity and text | perplexity, "kl": kl and text | kl}
    return Gates.model_validate({name: gate for name, gate in given.items() if gate})


@pytest.mark.parametrize(
    "thresholds", [{"max": 10.4}, {"max_increase": "4%"}, {"max": 11.0, "max_increase": "5%"}]
)
def test_passing_figures_are_told_with_their_thresholds(thresholds: dict[str, Any]) -> None:
    passed = judge(gates(thresholds, {"max": 0.02}), figures(perplexity=FIGURES))
    assert passed["perplexity"]["passed"] is passed["kl"]["passed"] is True
    assert passed["perplexity"]["quantized"] == 10.4
    assert passed["kl"]["kl"] == 0.02


def test_no_gates_judge_nothing() -> None:
    assert judge(Gates(), Measured({})) == {}


def test_a_failure_tells_figures_and_worst_layers() -> None:
    with pytest.raises(
        GateError, match=r"perplexity rises by 4\.00%, from 10 to 10\.4; the recipe allows 1\.00%"
    ) as e:
        judge(gates({"max_increase": "1%"}), figures(perplexity=FIGURES))
    lines = str(e.value).splitlines()
    assert lines[0].startswith("gates.perplexity.max_increase: ")
    assert lines[2].split() == ["layer", "1", "5.00%", "by", "itself", "10.00%", "after", "it"]
    assert [line.split()[1] for line in lines[2:7]] == ["1", "3", "5", "0", "6"]
    assert '"model.layers.1.*"' in lines[-1]
    assert e.value.exit_code == 4


def test_an_excess_within_the_noise_is_said_to_be() -> None:
    with pytest.raises(GateError, match="two standard errors"):
        judge(gates({"max_increase": "3.5%"}), figures(perplexity=FIGURES))
    with pytest.raises(GateError, match="two standard errors"):
        judge(gates(kl={"max": 0.019}), figures(kl=FIGURES))


def test_all_failures_are_told() -> None:
    with pytest.raises(GateError, match="perplexity rises") as caught:
        judge(gates({"max_increase": "1%", "max": 10.0}, {"max": 0.001}), figures(perplexity=FIGURES))
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
        judge(chosen, figures(perplexity=FIGURES, kl=other))


def test_the_likeliest_token_and_the_floor_can_be_bounds() -> None:
    kl = {"max_over_floor": 50.0, "min_top1": "90%"}
    assert judge(gates(kl=kl), figures(kl=FIGURES))["kl"]["kl_over_floor"] == pytest.approx(50)
    with pytest.raises(
        GateError, match=r"50 times that of bfloat16 arithmetic; the recipe allows 40 times"
    ) as caught:
        judge(gates(kl={"max_over_floor": 40.0}), figures(kl=FIGURES))
    assert "two standard errors" not in str(caught.value)
    with pytest.raises(GateError, match=r"in 90\.00% of the places; the recipe wants 99\.00%"):
        judge(gates(kl={"min_top1": "99%"}), figures(kl=FIGURES))
    with pytest.raises(GateError, match="two standard errors"):
        judge(gates(kl={"min_top1": "92%"}), figures(kl=FIGURES))


def test_a_float32_source_has_no_floor_to_compare_with() -> None:
    exact = replace(FIGURES, floor=None)
    with pytest.raises(GateError, match="no arithmetic floor") as caught:
        judge(gates(kl={"max_over_floor": 5.0}), figures(kl=exact))
    assert "gates.kl.max" in str(caught.value.fix)


def test_the_linears_that_changed_most_and_the_floor_are_told() -> None:
    with pytest.raises(GateError, match="perplexity rises") as caught:
        judge(gates({"max_increase": "1%"}), figures(perplexity=FIGURES))
    lines = [line.split() for line in str(caught.value).splitlines()]
    assert ["model.layers.1.mlp.down_proj", "20.00%"] in lines
    assert "bfloat16 arithmetic alone: perplexity +0.010%, KL 0.0004" in str(caught.value)


def test_the_worst_linears_come_from_the_quantizers_report(tmp_path: Path) -> None:
    assert worst_linears(tmp_path) == ()
    linears = {f"layer.{i}": {"relative_error": i / 100} for i in range(20)} | {"other": {"alpha": 1}}
    (tmp_path / "quantization_report.json").write_text(json.dumps({"linears": linears}))
    assert worst_linears(tmp_path, 2) == (LinearError("layer.19", 0.19), LinearError("layer.18", 0.18))


def test_figures_are_read_as_written(tmp_path: Path) -> None:
    write_measured(tmp_path / "gate.json", {"perplexity": FIGURES}, LINEARS)
    assert read_measured(tmp_path / "gate.json") == figures(perplexity=FIGURES)
