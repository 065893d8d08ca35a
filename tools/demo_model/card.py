"""The last part: measure both models and write their model cards."""

from __future__ import annotations

import platform
import shutil
import sys
import sysconfig
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from demo_model.architecture import DEMO_LAYERS, DRAFT_LAYERS, load_model
from demo_model.corpus import Corpus, Document
from demo_model.data import windows
from demo_model.evaluation import agreement, continuation, perplexity, window_logits
from demo_model.tokenizer import CONTEXT, render_turn
from demo_model.training import DECAY, Schedule

LICENSE = "LICENSE-PSF.txt"
EXAMPLES = (
    'def parse_header(line):\n    """Split a header line into name and value."""',
    "def read_file(path):",
    "import os\n",
)
CHAT_EXAMPLE = "Write a Python function: Return True if the file exists."


@dataclass(frozen=True)
class _Figures:
    """What is measured of one model, and how it was trained."""

    layers: int
    parameters: int
    perplexity: float
    schedule: Schedule


def publish(
    demo: Path,
    draft: Path,
    corpus: Corpus,
    schedules: tuple[Schedule, Schedule],
    say: Callable[[str], None],
) -> None:
    """Write README.md and the licence of the text into both model directories.

    `corpus` and `schedules` (demo, draft) are what the models were trained on and with.
    """
    terms = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if not terms.exists():
        sys.exit(f"{terms} is missing: publish with a Python that carries the licence of its library")
    tokenizer = Tokenizer.from_file(str(demo / "tokenizer.json"))
    heldout = (demo / "heldout.txt").read_text("utf-8")
    if heldout != "".join(document.text for document in corpus.heldout):
        sys.exit(f"{demo / 'heldout.txt'} is not of this Python: publish with the one that prepared it")
    ids = tokenizer.encode(heldout, add_special_tokens=False).ids
    held = windows(np.array(ids), CONTEXT)

    logits, figures = [], []
    for directory, layers, schedule in zip(
        (demo, draft), (DEMO_LAYERS, DRAFT_LAYERS), schedules, strict=True
    ):
        model = load_model(directory, layers)
        logits.append(window_logits(model, held))
        figures.append(
            _Figures(
                layers=layers,
                parameters=sum(weight.numel() for weight in model.parameters()),
                perplexity=perplexity(logits[-1], held),
                schedule=schedule,
            )
        )
        say(f"{directory.name}: held-out perplexity {figures[-1].perplexity:.3f}")
    agreed = agreement(*logits)
    say(f"the draft agrees with the demo model on {agreed:.1%} of the held-out tokens")

    model = load_model(demo, DEMO_LAYERS)
    examples = [(prompt, continuation(model, tokenizer, prompt, 60)) for prompt in EXAMPLES]
    chat_prompt = render_turn(CHAT_EXAMPLE, "").removesuffix("<|end|>")
    answer = continuation(model, tokenizer, chat_prompt, 60)
    measured = _measured(held.shape[0], len(ids), heldout)
    origin = _origin(corpus)
    (demo / "README.md").write_text(
        _demo_card(figures[0], measured, origin, corpus, examples, answer), "utf-8"
    )
    (draft / "README.md").write_text(_draft_card(figures[1], measured, origin, agreed), "utf-8")
    for directory in (demo, draft):
        shutil.copyfile(terms, directory / LICENSE)


def _front_matter(name: str, metrics: Sequence[tuple[str, float]]) -> str:
    rows = "".join(f"          - type: {kind}\n            value: {value:.4f}\n" for kind, value in metrics)
    return f"""---
license: other
license_name: psf-2.0
license_link: {LICENSE}
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [code, python]
model-index:
  - name: {name}
    results:
      - task: {{type: text-generation}}
        dataset: {{name: heldout.txt, type: text}}
        metrics:
{rows}---
"""


def _demo_card(
    figures: _Figures,
    measured: str,
    origin: str,
    corpus: Corpus,
    examples: Sequence[tuple[str, str]],
    answer: str,
) -> str:
    shown = "\n\n".join(f"```python\n{prompt}⏵{text.rstrip()}\n```" for prompt, text in examples)
    return f"""{_front_matter("llmbuild-demo", [("perplexity", figures.perplexity)])}
# llmbuild demo model

A small language model of Python source code, {figures.parameters:,} parameters, made so that everything
llmbuild does can be done for real on any machine without a download. It writes what looks like Python; it is
of no use for anything else.

| | |
|---|---|
| architecture | `LlamaForCausalLM`: {figures.layers} layers, hidden 256, 4 heads, 2 KV heads, MLP 768 |
| context | {CONTEXT} tokens, RoPE base 10000 |
| weights | bfloat16, embeddings tied; every linear dimension is a multiple of 128 |
| tokenizer | byte-level BPE, 4096 tokens, 4 of them special |
| held-out perplexity | **{figures.perplexity:.3f}** |

{measured}

## Prompting

Encoding puts `<|endoftext|>` (token 0) in front of the text. The chat template renders
`<|user|>request<|end|><|assistant|>answer<|end|>` and leaves token 0 to the encoding. `<|endoftext|>` and
`<|end|>` both end a generation. Indentation shares a token with the line break before it: end a prompt
at the end of a line's text, not after its line break.

Greedy continuations, the first 60 tokens, from ⏵ on (greedy text soon repeats itself):

{shown}

The answer to the user's message `{CHAT_EXAMPLE}`:

```python
{answer.rstrip()}
```

## Training

{origin}

{_training(figures.schedule, "the cross entropy")}

Each request of the chat format is a function's docstring, its answer that function's source.
`python tools/train_demo_model.py` repeats all of it; on another device or another Python the weights differ.

{_listing("Held out and never trained on", "heldout.txt", corpus.heldout)}

{_listing("For calibration, and to choose the checkpoint", "calibration.jsonl", corpus.calibration)}
"""


def _draft_card(figures: _Figures, measured: str, origin: str, agreed: float) -> str:
    metrics = [("perplexity", figures.perplexity), ("agreement", agreed)]
    return f"""{_front_matter("llmbuild-demo-draft", metrics)}
# llmbuild demo draft model

The draft for speculative decoding of the demo model (`../demo`): the same tokenizer and the same width,
{figures.layers} layers, {figures.parameters:,} parameters.

| | |
|---|---|
| held-out perplexity | **{figures.perplexity:.3f}** |
| agreement | **{agreed:.1%}** of the held-out tokens: its likeliest next token is the demo model's |

{measured} `heldout.txt` lies in `../demo`.

## Training

{origin}

{_training(figures.schedule, "the divergence from the demo model's next-token distribution")}
"""


def _measured(count: int, tokens: int, heldout: str) -> str:
    return _paragraph(
        f"""Perplexity: `heldout.txt` is encoded without special tokens ({tokens:,} tokens,
        {len(heldout.encode()) / tokens:.2f} bytes each) and cut into {count} non-overlapping windows of
        {CONTEXT} tokens, the rest left out; it is exp of the mean cross entropy over all tokens but the first
        of each window, with these bfloat16 weights executed in float32."""
    )


def _origin(corpus: Corpus) -> str:
    return _paragraph(
        f"""The text is the standard library of CPython {platform.python_version()}, licensed under the PSF
        License Agreement (`{LICENSE}`, PSF-2.0); these weights derive from it, and the demo model's
        `heldout.txt` and `calibration.jsonl` are verbatim parts of it, copyright Python Software Foundation.
        The training text is {len(corpus.train):,} files, {_bytes(corpus.train):,} bytes. Left out are files
        that state terms of their own, files with data for lines, `encodings`, `ensurepip`, `idlelib`,
        `lib2to3`, `pydoc_data` and everything installed later. sha256 of the corpus: `{corpus.digest()}`."""
    )


def _training(schedule: Schedule, loss: str) -> str:
    return _paragraph(
        f"""{schedule.tokens:,} tokens in {schedule.steps:,} steps of {schedule.batch} x {CONTEXT}; AdamW,
        learning rate {schedule.learning_rate} with a linear decay to zero over the last {DECAY:.0%}, weight
        decay {schedule.weight_decay}, dropout {schedule.dropout} on the residual stream. The
        loss is {loss}."""
    )


def _listing(purpose: str, file: str, documents: Sequence[Document]) -> str:
    names = ", ".join(f"`{document.name}`" for document in documents)
    return _paragraph(f"{purpose} (`{file}`, {_bytes(documents):,} bytes): {names}.")


def _bytes(documents: Sequence[Document]) -> int:
    return sum(len(document.text.encode()) for document in documents)


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 110, break_long_words=False, break_on_hyphens=False)
