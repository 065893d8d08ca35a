"""The draft model of speculative decoding, in a directory of its own inside the engine's.

GenAI wants to know both models' tokenizers then. Requests still carry token ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolchain.engine.openvino.export import build_ir
from toolchain.engine.openvino.tokenizer import write_tokenizer
from toolchain.errors import ModelError, combined
from toolchain.model.spec import load_spec
from toolchain.model.tokenizer import load_tokenizer
from toolchain.plan.compat import draft_problems
from toolchain.progress import Progress


def build_draft(
    draft: Path, checkpoint: Path, out_dir: Path, max_seq_len: int | None, progress: Progress
) -> dict[str, Any]:
    """Write the draft's IR to `out_dir`/draft, and its tokenizer beside it.

    Args:
        draft: the draft in Hugging Face layout, plain or quantized.
        checkpoint: the model that it guesses for.
        out_dir: the model's IR, with the model's tokenizer.
        max_seq_len: as for `build_ir`.
        progress: told the bytes of weights written.

    Returns:
        facts for the manifest.

    Raises:
        ModelError: the draft is damaged, or its tokenizer is another one.
        PlanError: it cannot guess for the model, or the openvino flavour does not run it.
    """
    target = load_spec(checkpoint)
    if problems := draft_problems(load_spec(draft), target, max_seq_len):
        raise combined(problems)
    if load_tokenizer(draft).get_vocab() != load_tokenizer(checkpoint).get_vocab():
        raise ModelError(
            "the draft's tokenizer has another vocabulary",
            where=str(draft),
            why="the model checks the very tokens that the draft guesses",
            fix="set engine.speculative.source to a small model of the same family",
        )
    longest = max_seq_len or target.max_position_embeddings
    facts = build_ir(draft, out_dir / "draft", max_seq_len=longest, events=progress)
    write_tokenizer(draft, out_dir / "draft")
    return {"draft_weight_bytes": facts["weight_bytes"]}
