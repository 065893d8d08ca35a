"""Prompts, arrivals and traces."""

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from deploy.bench.lengths import Lengths
from deploy.bench.orders import (
    Order,
    make_orders,
    poisson_arrivals,
    read_trace,
    text_prompts,
    vocabulary_prompts,
)
from toolchain.errors import UsageError

DEMO = Path(__file__).parents[4] / "models" / "demo"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(DEMO / "tokenizer.json"))


@pytest.mark.parametrize("tokens", [1, 17, 300])
def test_words_of_the_vocabulary_make_prompts_of_the_length(tokenizer: Tokenizer, tokens: int) -> None:
    source = random.Random(0)
    prompts = vocabulary_prompts(tokenizer)
    for _ in range(20):
        text, count = prompts(source, tokens)
        assert count == len(tokenizer.encode(text).ids)
        assert count is not None
        assert abs(count - tokens) <= max(1, tokens // 20)


def test_a_text_is_cut_by_tokens_or_by_words(tokenizer: Tokenizer) -> None:
    text = (DEMO / "heldout.txt").read_text()
    prompt, count = text_prompts(text, tokenizer)(random.Random(0), 40)
    assert count == pytest.approx(40, abs=3)
    assert prompt in text
    assert text_prompts("a b c")(random.Random(0), 3) == ("a b c", None)
    with pytest.raises(UsageError, match="too short for a prompt of 4 tokens"):
        text_prompts("a b c")(random.Random(0), 4)
    with pytest.raises(UsageError, match="empty"):
        text_prompts(" \n")


def test_the_seed_decides_the_orders(tokenizer: Tokenizer) -> None:
    def some(seed: int) -> list[Order]:
        lengths = Lengths.parse("uniform:4:30")
        return list(itertools.islice(make_orders(vocabulary_prompts(tokenizer), lengths, lengths, seed), 20))

    assert some(3) == some(3)
    assert some(3) != some(4)
    assert len({order.prompt for order in some(3)}) == 20


def test_poisson_gaps_are_exponential() -> None:
    at = np.array(list(itertools.islice(poisson_arrivals(8.0, 5), 20_000)))
    gaps = np.diff(at)
    assert gaps.min() > 0
    assert gaps.mean() == pytest.approx(1 / 8, rel=0.03)
    assert gaps.std() == pytest.approx(1 / 8, rel=0.03)
    counts = np.bincount(at.astype(int))[:-1]  # in a second: mean and variance are the rate
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.1)
    assert list(itertools.islice(poisson_arrivals(8.0, 5), 3)) == at[:3].tolist()


def test_a_trace_is_read_by_arrival(tmp_path: Path) -> None:
    lines = [
        {"arrival_s": 1.5, "prompt": "late", "output_tokens": 3, "input_tokens": 1},
        {"arrival_s": 0, "input_tokens": 2, "output_tokens": 9},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    assert read_trace(file, text_prompts("a a a a"), 0) == [
        Order("a a", 9, None, 0.0),
        Order("late", 3, 1, 1.5),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting"),
        ("[]", "not a JSON object"),
        ('{"prompt": "x", "output_tokens": 1}', "arrival_s must be a number"),
        ('{"arrival_s": -1, "prompt": "x", "output_tokens": 1}', "arrival_s must be a number"),
        ('{"arrival_s": NaN, "prompt": "x", "output_tokens": 1}', "arrival_s must be a number"),
        ('{"arrival_s": 0, "prompt": "x", "output_tokens": true}', "output_tokens must be a whole number"),
        ('{"arrival_s": 0, "prompt": "", "output_tokens": 1}', "prompt must be text"),
        ('{"arrival_s": 0, "input_tokens": 4, "output_tokens": 1}', "neither a tokenizer nor a text"),
    ],
)
def test_a_bad_line_of_a_trace_is_named(tmp_path: Path, line: str, why: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"arrival_s": 0, "prompt": "x", "output_tokens": 1}\n' + line)
    with pytest.raises(UsageError, match=rf"trace\.jsonl:2: (.|\n)*{why}"):
        read_trace(file, None, 0)


def test_a_trace_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the trace"):
        read_trace(tmp_path / "none", None, 0)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="the trace is empty"):
        read_trace(tmp_path / "empty", None, 0)
