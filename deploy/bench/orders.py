"""What is asked of a server: prompts of a length, answers of a length, and when."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.bench.lengths import Lengths
from toolchain.errors import UsageError, combined, file_error

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Prompts = Callable[[random.Random, int], "tuple[str, int | None]"]
"""Makes a prompt of about so many tokens; returns it and how many it has, if that is known."""

_TRIES = 4


@dataclass(frozen=True)
class Order:
    """One request.

    Args:
        prompt: the text.
        output_tokens: how long the answer is to be.
        input_tokens: of the prompt; None where no tokenizer is at hand.
        arrival_s: seconds after the start at which it is sent; None: when there is room.
    """

    prompt: str
    output_tokens: int
    input_tokens: int | None = None
    arrival_s: float | None = None


def vocabulary_prompts(tokenizer: Tokenizer) -> Prompts:
    """Prompts of random words, each of them one token: no two begin alike, so that no cache helps."""
    words = [
        text
        for number in range(tokenizer.get_vocab_size())
        if (text := tokenizer.decode([number])).strip().isalpha() and text.isascii() and text[0] == " "
    ]
    if not words:  # no byte-level or SentencePiece vocabulary: take what makes words by itself
        words = [f" {text}" for text in tokenizer.get_vocab() if text.isascii() and text.isalpha()]
    if not words:
        raise UsageError("the tokenizer has no words to make prompts of", fix="give a text with --text")

    def make(source: random.Random, tokens: int) -> tuple[str, int]:
        found = ("", 0)
        wanted = tokens
        for _ in range(_TRIES):
            text = "".join(source.choices(words, k=max(1, wanted))).removeprefix(" ")
            count = len(tokenizer.encode(text).ids)
            if not found[0] or abs(count - tokens) < abs(found[1] - tokens):
                found = (text, count)
            if count == tokens:
                break
            wanted += tokens - count
        return found

    return make


def text_prompts(text: str, tokenizer: Tokenizer | None = None) -> Prompts:
    """Prompts cut from `text`, each from another place; without a tokenizer a word counts as a token.

    Raises:
        UsageError: the text is empty; when a prompt is made, that it is shorter than the prompt.
    """
    pieces: list[Any] = tokenizer.encode(text).ids if tokenizer else text.split()
    if not pieces:
        raise UsageError("the text for the prompts is empty")

    def make(source: random.Random, tokens: int) -> tuple[str, int | None]:
        if tokens > len(pieces):
            raise UsageError(
                f"the text is too short for a prompt of {tokens} tokens",
                why=f"it has {len(pieces)} {'tokens' if tokenizer else 'words'}",
                fix="give a longer text, or ask for shorter prompts",
            )
        at = source.randrange(len(pieces) - tokens + 1)
        cut = pieces[at : at + tokens]
        if tokenizer is None:
            return " ".join(cut), None
        prompt = tokenizer.decode(cut)
        return prompt, len(tokenizer.encode(prompt).ids)

    return make


def make_orders(prompts: Prompts, inputs: Lengths, outputs: Lengths, seed: int) -> Iterator[Order]:
    """Orders without end; the same seed gives the same ones."""
    source = random.Random(seed)
    while True:
        prompt, tokens = prompts(source, inputs.draw(source))
        yield Order(prompt, outputs.draw(source), tokens)


def poisson_arrivals(rate: float, seed: int) -> Iterator[float]:
    """Times, in seconds, of events that come independently of each other, `rate` a second; without end."""
    source = random.Random(seed)
    at = 0.0
    while True:
        at += source.expovariate(rate)
        yield at


def arriving(orders: Iterator[Order], arrivals: Iterator[float]) -> Iterator[Order]:
    """`orders`, each at the next of `arrivals`."""
    for order, at in zip(orders, arrivals, strict=False):
        yield replace(order, arrival_s=at)


def read_trace(path: Path, prompts: Prompts | None, seed: int) -> list[Order]:
    """Read a recorded trace, JSON Lines: `arrival_s`, `prompt` or `input_tokens`, and `output_tokens`.

    Args:
        path: the file.
        prompts: makes the prompts of lines that tell only how long theirs was.
        seed: of these prompts.

    Returns:
        The orders by arrival.

    Raises:
        UsageError: it cannot be read, or lines are not as described; it tells all of them.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise file_error(error, "read the trace") from None
    except UnicodeDecodeError as error:
        raise UsageError("the trace is not UTF-8 text", where=str(path), why=str(error)) from None
    source = random.Random(seed)
    orders: list[Order] = []
    problems: list[UsageError] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            orders.append(_traced(json.loads(line), prompts, source))
        except ValueError as error:
            problems.append(
                UsageError("this is no line of a trace", where=f"{path}:{number}", why=str(error))
            )
    if problems:
        raise combined(problems)
    if not orders:
        raise UsageError("the trace is empty", where=str(path))
    return sorted(orders, key=lambda order: order.arrival_s or 0.0)


def _traced(facts: Any, prompts: Prompts | None, source: random.Random) -> Order:
    """The order of one line. Raises ValueError with what is wrong with it."""
    if not isinstance(facts, dict):
        raise ValueError("it is not a JSON object")
    arrival = facts.get("arrival_s")
    if isinstance(arrival, bool) or not isinstance(arrival, int | float) or not 0 <= arrival < 1e9:
        raise ValueError(f"arrival_s must be a number of seconds, 0 or more, not {arrival!r}")
    outputs = _count(facts, "output_tokens")
    prompt = facts.get("prompt")
    if prompt is None:
        inputs = _count(facts, "input_tokens")
        if prompts is None:
            raise ValueError("it has no prompt, and there is neither a tokenizer nor a text to make one of")
        prompt, tokens = prompts(source, inputs)
        return Order(prompt, outputs, tokens, float(arrival))
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("prompt must be text that is not empty")
    known = _count(facts, "input_tokens") if "input_tokens" in facts else None
    return Order(prompt, outputs, known, float(arrival))


def _count(facts: dict[str, Any], name: str) -> int:
    value = facts.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number, 1 or more, not {value!r}")
    return value
