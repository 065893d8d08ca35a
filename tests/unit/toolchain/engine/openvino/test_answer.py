"""The engine of a real repository answers as its checkpoint would; a damaged one is found out."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from toolchain.engine.openvino.answer import answer
from toolchain.engine.openvino.flavour import OpenVINO
from toolchain.errors import GateError
from toolchain.gate.prompts import PROMPTS
from toolchain.gate.result import Answer
from toolchain.gate.run import ask_engine
from toolchain.gate.verdict import judge_answers
from toolchain.progress import Silent
from toolchain.recipe import load_recipe
from toolchain.recipe.schema import SmokeGate

ROOT = Path(__file__).parents[5]
DEMO = ROOT / "models" / "demo"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Triton repository of the demo model, as a build makes it."""
    directory = tmp_path_factory.mktemp("demo")
    recipe, chosen = load_recipe(ROOT / "configs" / "demo-bf16.yaml"), OpenVINO()
    engine, out = directory / "engine", directory / "repository"
    for made in (engine, out):
        made.mkdir()
    chosen.build(
        DEMO,
        engine,
        chosen.engine_config(recipe),
        Silent(),
        work_dir=directory,
        inputs=chosen.inputs(recipe),
    )
    chosen.render(engine, DEMO, out, {"flavour": chosen.name, **chosen.repository_config(recipe)})
    return out


def ask(repository: Path) -> tuple[Answer, ...]:
    def run(prompts: list[list[int]], eos: list[int]) -> list[list[int]]:
        return answer(repository, prompts, 12, eos)

    return ask_engine(DEMO, PROMPTS[:3], run, device="cpu")


@pytest.mark.slow
def test_the_engine_answers_as_the_checkpoint_would(repository: Path) -> None:
    answers = ask(repository)
    assert [len(one.tokens) for one in answers] == [12, 12, 12]
    assert all(one.gap < 0.02 for one in answers)  # a tie within the arithmetic's rounding at most
    assert judge_answers(SmokeGate(), answers, "checkpoint")["passed"] is True


@pytest.mark.slow
def test_an_engine_with_damaged_weights_fails(repository: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(repository, broken)
    weights = next(broken.rglob("openvino_model.bin"))
    weights.chmod(0o644)
    content = np.fromfile(weights, dtype=np.uint8)
    constants = re.findall(r'offset="(\d+)"[^>]*? size="(\d+)"', weights.with_suffix(".xml").read_text())
    large = [(int(offset), int(size)) for offset, size in constants if int(size) > 50_000]
    assert len(large) > 20
    for offset, size in large:  # every number is there, in another place
        content[offset : offset + size] = np.roll(content[offset : offset + size], 2000)
    content.tofile(weights)
    with pytest.raises(GateError, match=r"nats less likely than the checkpoint's own choices"):
        judge_answers(SmokeGate(), ask(broken), "checkpoint")


@pytest.mark.slow
def test_an_engine_that_does_not_start_is_told_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(GateError, match="the engine does not answer") as caught:
        answer(tmp_path, [[1, 2]], 4, [])
    assert "No such file" in str(caught.value.why)
    assert caught.value.exit_code == 4
