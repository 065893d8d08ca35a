"""Streamed greedy answers, and their marks, against transformers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantize.device import choose_device
from toolchain.errors import GateError
from toolchain.gate.prompts import PROMPTS
from toolchain.gate.result import Answer
from toolchain.gate.run import ask_checkpoint, ask_engine
from toolchain.gate.smoke import encode, generate
from toolchain.gate.streamed import StreamedModel
from toolchain.gate.verdict import judge_answers, read_measured, write_measured
from toolchain.recipe.schema import SmokeGate

DEMO = Path(__file__).parents[4] / "models" / "demo"
CPU = choose_device("cpu")


def test_answers_are_those_of_transformers(save_model: Callable[..., Path]) -> None:
    source = save_model(eos_token_id=5)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    prompts = [[1, 2, 3], [7], [9, 8, 7, 6, 5, 4]]
    answers = generate(StreamedModel(source, device=CPU), prompts, 12)
    for prompt, answer in zip(prompts, answers, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert answer == theirs[0, len(prompt) :].tolist()


def test_an_answer_ends_with_the_end_of_text(save_model: Callable[..., Path]) -> None:
    free = generate(StreamedModel(save_model(eos_token_id=None), device=CPU), [[1, 2, 3]], 8)[0]
    stopped = generate(StreamedModel(save_model(eos_token_id=free[3]), device=CPU), [[1, 2, 3]], 8)[0]
    assert stopped == free[: free.index(free[3]) + 1]


@pytest.mark.slow
def test_the_demo_model_answers_as_it_would_itself() -> None:
    answers = ask_checkpoint(DEMO, DEMO, PROMPTS[:2], 6, device="cpu")
    assert [answer.gap for answer in answers] == [0, 0]
    assert [answer.same for answer in answers] == [1, 1]
    passed = judge_answers(SmokeGate(), answers, "source")
    assert (passed["passed"], passed["prompts"]) == (True, 2)


@pytest.mark.slow
def test_an_engine_that_talks_at_random_fails_with_prompt_and_answer() -> None:
    tokens = torch.randint(4096, (8,), generator=torch.Generator().manual_seed(0)).tolist()
    answers = ask_engine(DEMO, PROMPTS[1:2], lambda prompts, eos: [tokens], device="cpu")
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()
    asked = encode(PROMPTS[1:2], DEMO)[0]
    with torch.no_grad():
        logs = model(torch.tensor([asked + tokens])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
    gap = (logs.amax(-1) - logs[range(8), tokens]).mean().item()
    assert answers[0].gap == pytest.approx(gap, rel=1e-4)
    with pytest.raises(GateError, match=r"nats less likely than the checkpoint's own choices") as caught:
        judge_answers(SmokeGate(), answers, "checkpoint")
    assert "prompt: 'def fibonacci(n):'" in str(caught.value)
    assert f"tokens: {tokens[0]} {tokens[1]}" in str(caught.value)
    assert caught.value.exit_code == 4


GOOD = Answer("Hello", " world", (1, 2), gap=0.01, same=0.5, foreign=0)


def test_what_is_judged() -> None:
    assert judge_answers(SmokeGate(), [GOOD], "source")["same"] == 0.5
    with pytest.raises(GateError, match="no prompt gets an answer"):
        judge_answers(SmokeGate(), [Answer("Hello", "", (), 0, 1, 0)], "source")
    with pytest.raises(GateError, match="has 3 tokens that the tokenizer does not know"):
        judge_answers(SmokeGate(), [GOOD, Answer("Hello", "x", (1,), 0, 1, 3)], "source")
    with pytest.raises(GateError, match=r"0\.01 nats less likely.*\s.*allows 0\.005"):
        judge_answers(SmokeGate(max_gap=0.005), [GOOD], "source")


def test_answers_are_read_as_written(tmp_path: Path) -> None:
    write_measured(tmp_path / "gate.json", {}, (), (GOOD,))
    assert read_measured(tmp_path / "gate.json").answers == (GOOD,)


def test_the_recipe_can_ask_for_every_built_in_prompt() -> None:
    assert SmokeGate(prompts=len(PROMPTS)).prompts == 16
