"""Objectives and limits."""

import pytest

from deploy.bench.figures import summarize
from deploy.bench.load import Record
from deploy.bench.slo import Objective, parse_limits
from toolchain.errors import UsageError

FIGURES = summarize(
    [
        Record(4, 0.0, 0.0, 8, 4, True, [0.1, 0.2, 0.4], is_done=True),
        Record(4, 0.0, error="no", is_done=True),
    ]
)


@pytest.mark.parametrize(
    ("given", "is_met"),
    [
        ("ttft_p95=100ms", True),
        ("ttft_p95=99.9ms", False),
        ("tpot_mean=0.11s", True),
        ("tpot_max=99000us", False),
        ("output_tokens_per_s=10", True),
        ("output_tokens_per_s=10.1", False),
        ("errors=50%", True),
        ("errors=0", False),
        ("goodput_requests_per_s=1", False),  # not measured without limits
    ],
)
def test_an_objective_is_met_or_not(given: str, is_met: bool) -> None:
    objective = Objective.parse(given)
    figure = objective.figure(FIGURES)
    assert objective.is_met(figure) is is_met
    assert given.partition("=")[2] in str(objective)


def test_figures_are_shown_in_their_units() -> None:
    assert Objective.parse("ttft_p50=1s").show(0.0123) == "12.3 ms"
    assert Objective.parse("errors=1%").show(0.5) == "50.00%"
    assert Objective.parse("requests_per_s=1").show(None) == "not measured"


@pytest.mark.parametrize("given", ["ttft=1s", "ttft_p94=1s", "ttft_p95", "ttft_p95=5", "speed=5", "errors=x"])
def test_refuses_what_is_no_objective(given: str) -> None:
    with pytest.raises(UsageError, match=r"is no objective|has no time"):
        Objective.parse(given)


def test_limits_are_in_seconds() -> None:
    assert parse_limits(["ttft=200ms", "tpot=0.05s"]) == {"ttft_s": 0.2, "tpot_s": 0.05}
    with pytest.raises(UsageError, match="limits no request"):
        parse_limits(["itl=3ms"])
