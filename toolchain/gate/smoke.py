"""The smoke gate: a few prompts answered greedily, and every token of the answers held against a reference.

Shapes: S tokens of one prompt and its answer; H hidden_size; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from toolchain.gate.result import Answer
from toolchain.gate.streamed import StreamedModel
from toolchain.model.tokenizer import load_tokenizer
from toolchain.progress import Progress, Silent

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Tokens = Sequence[int]


def encode(prompts: Sequence[str], model_dir: Path) -> list[list[int]]:
    """The tokens of each prompt, with what the tokenizer puts before a text."""
    tokenizer = load_tokenizer(model_dir)
    return [list(tokenizer.encode(prompt).ids) for prompt in prompts]


@torch.inference_mode()
def generate(
    model: StreamedModel, prompts: Sequence[Tokens], max_tokens: int, progress: Progress | None = None
) -> list[list[int]]:
    """Greedy answers, one pass through the layers a token: slow, and possible wherever one layer fits.

    An answer ends with the model's end of text.
    """
    progress = progress or Silent()
    progress.start("generate", max_tokens, "tokens")
    answers: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    while not all(ended):
        open_ = [number for number, over in enumerate(ended) if not over]
        texts = [[*prompts[number], *answers[number]] for number in open_]
        logs = _log_probs(model, texts, [1] * len(open_))
        for number, logs_1V in zip(open_, logs, strict=True):
            token = int(logs_1V[-1].argmax())
            answers[number].append(token)
            ended[number] = token in model.spec.eos_token_ids or len(answers[number]) == max_tokens
        progress.advance()
    return answers


@torch.inference_mode()
def hold_against(
    reference: StreamedModel,
    prompts: Sequence[str],
    encoded: Sequence[Tokens],
    answers: Sequence[Tokens],
    model_dir: Path,
) -> tuple[Answer, ...]:
    """Each answer, with what the reference thinks of its tokens, in one pass through the layers.

    Args:
        reference: the model that should have answered alike.
        prompts, encoded: what was asked, and its tokens.
        answers: the tokens that came.
        model_dir: whose tokenizer shows them.
    """
    tokenizer = load_tokenizer(model_dir)
    known = [[token for token in answer if token < reference.spec.vocab_size] for answer in answers]
    texts = [[*tokens, *answer] for tokens, answer in zip(encoded, known, strict=True)]
    logs = _log_probs(reference, texts, [len(answer) + 1 for answer in known])
    found = []
    for prompt, answer, kept, logs_SV in zip(prompts, answers, known, logs, strict=True):
        logs_SV = logs_SV[:-1]
        own_S = logs_SV.gather(1, torch.tensor(kept, dtype=torch.int64).view(-1, 1)).view(-1)
        gaps_S = logs_SV.amax(-1) - own_S if kept else torch.zeros(0)
        found.append(
            Answer(
                prompt=prompt,
                text=tokenizer.decode(list(kept), skip_special_tokens=False),
                tokens=tuple(answer),
                gap=float(gaps_S.mean()) if kept else 0.0,
                same=float((gaps_S == 0).float().mean()) if kept else 1.0,
                foreign=_foreign(answer, tokenizer),
            )
        )
    return tuple(found)


def _foreign(answer: Tokens, tokenizer: Tokenizer) -> int:
    """How many tokens the tokenizer does not know."""
    return sum(tokenizer.id_to_token(token) is None for token in answer)


def _log_probs(model: StreamedModel, texts: Sequence[Tokens], last: Sequence[int]) -> list[Tensor]:
    """Log probabilities at the `last` places of each text, float32 [last, V] in host memory."""
    hidden = [
        model.enter(torch.tensor([list(text)], dtype=torch.int64)).values.to(model.device) for text in texts
    ]
    for index in range(model.spec.num_hidden_layers):
        forward = model.layer(index)
        hidden = [forward(x_1SH) for x_1SH in hidden]
        del forward
    head = model.head()
    return [head.log_probs(x_1SH[0, -count:]).cpu() for x_1SH, count in zip(hidden, last, strict=True)]
