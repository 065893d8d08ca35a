"""Every recipe in broken/ gives exactly the message beside it: all problems, at their places, with a fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolchain.errors import LlmbuildError, RecipeError
from toolchain.recipe import load_recipe

BROKEN = Path(__file__).parent / "broken"


@pytest.mark.parametrize("name", sorted(path.stem for path in BROKEN.glob("*.yaml")))
def test_message_of_a_broken_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)
    with pytest.raises(RecipeError, match=":") as caught:
        load_recipe(f"{name}.yaml")
    assert str(caught.value) + "\n" == (BROKEN / f"{name}.txt").read_text("utf-8")


def test_every_message_belongs_to_a_recipe() -> None:
    assert {path.stem for path in BROKEN.glob("*.txt")} == {path.stem for path in BROKEN.glob("*.yaml")}


def test_problems_are_errors_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(BROKEN)
    with pytest.raises(RecipeError, match=r"engine\.max_bach_size") as caught:
        load_recipe("unknown_keys.yaml", ["engine.max_seq_len=long"])
    problems = caught.value.problems
    assert all(isinstance(problem, LlmbuildError) and problem.exit_code == 2 for problem in problems)
    assert [problem.where for problem in problems][-1] == "--set engine.max_seq_len=long"
    facts = caught.value.to_json()["problems"][1]
    assert facts["where"] == "unknown_keys.yaml:7:3"
    assert facts["fix"] == "write `max_batch_size`"
