"""From paths and plain values to figures: reads the text, measures; asks, and looks at the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from quantize.device import choose_device
from toolchain.gate.baseline import Baseline, make_baseline
from toolchain.gate.result import Answer
from toolchain.gate.smoke import Tokens, encode, generate, hold_against
from toolchain.gate.streamed import StreamedModel
from toolchain.gate.text import load_windows
from toolchain.model.spec import load_spec
from toolchain.progress import Progress
from toolchain.text.files import TextFiles


def baseline_of(
    source_dir: Path,
    text: TextFiles,
    *,
    window: int | None = None,
    stride: int | None = None,
    limit: int | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Baseline:
    """What the source model makes of held-out text. See `load_windows` and `make_baseline`."""
    spec = load_spec(source_dir)
    windows = load_windows(
        text,
        source_dir,
        vocab_size=spec.vocab_size,
        context=spec.max_position_embeddings,
        window=window,
        stride=stride,
        limit=limit,
    )
    return make_baseline(source_dir, windows, device=device, progress=progress)


def ask_checkpoint(
    source_dir: Path,
    quantized_dir: Path,
    prompts: Sequence[str],
    max_tokens: int,
    *,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[Answer, ...]:
    """The checkpoint's greedy answers, held against the source."""
    chosen = choose_device(device)
    encoded = encode(prompts, source_dir)
    answers = generate(StreamedModel(quantized_dir, device=chosen), encoded, max_tokens, progress)
    source = StreamedModel(source_dir, device=chosen)
    return hold_against(source, prompts, encoded, answers, source_dir)


def ask_engine(
    quantized_dir: Path,
    prompts: Sequence[str],
    answer: Callable[[Sequence[Tokens], Tokens], Sequence[Tokens]],
    *,
    device: str = "auto",
) -> tuple[Answer, ...]:
    """An engine's greedy answers, held against the checkpoint that it was built from.

    Args:
        quantized_dir: the checkpoint.
        prompts: what to ask.
        answer: from the prompts' tokens and the tokens that end a text to the answers' tokens.
        device: where the checkpoint computes.
    """
    encoded = encode(prompts, quantized_dir)
    checkpoint = StreamedModel(quantized_dir, device=choose_device(device))
    answers = answer(encoded, checkpoint.spec.eos_token_ids)
    return hold_against(checkpoint, prompts, encoded, answers, quantized_dir)
