"""The draft model of speculative decoding, in a directory of its own inside the engine's.

GenAI wants to know both models' tokenizers then. Requests still carry token ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolchain.engine.openvino.export import build_ir
from toolchain.engine.openvino.tokenizer import write_tokenizer
from toolchain.errors import ModelError
from toolchain.model.spec import load_spec
from toolchain.model.tokenizer import load_tokenizer
from toolchain.progress import Progress


def build_draft(
    draft: Path, checkpoint: Path, out_dir: Path, max_seq_len: int | None, progress: Progress
) -> dict[str, Any]:
    """Write the draft's IR to `out_dir`/draft, and the tokenizers beside both models.

    Args:
        draft: the draft in Hugging Face layout, plain or quantized.
        checkpoint: the model that it guesses for.
        out_dir: the model's IR.
        max_seq_len: as for `build_ir`.
        progress: told the bytes of weights written.

    Returns:
        facts for the manifest.

    Raises:
        ModelError: the draft is damaged, of another vocabulary, or too short of context.
        PlanError: the openvino flavour does not run such a model.
    """
    target, spec = load_spec(checkpoint), load_spec(draft)
    ours, theirs = load_tokenizer(checkpoint), load_tokenizer(draft)
    if spec.vocab_size != target.vocab_size or ours.get_vocab() != theirs.get_vocab():
        raise ModelError(
            f"the draft has another vocabulary: {spec.vocab_size} tokens, the model {target.vocab_size}"
            if spec.vocab_size != target.vocab_size
            else "the draft's tokenizer has another vocabulary",
            where=str(draft),
            why="the model checks the very tokens that the draft guesses",
            fix="set engine.speculative.source to a small model of the same family",
        )
    longest = max_seq_len or target.max_position_embeddings
    if spec.max_position_embeddings < longest:
        raise ModelError(
            f"the draft reads {spec.max_position_embeddings} tokens, sequences may have {longest}",
            where=str(draft),
            fix=f"set engine.max_seq_len to {spec.max_position_embeddings}, or take another draft",
        )
    facts = build_ir(draft, out_dir / "draft", max_seq_len=longest, events=progress)
    for source, directory in ((checkpoint, out_dir), (draft, out_dir / "draft")):
        write_tokenizer(source, directory)
    return {"draft_weight_bytes": facts["weight_bytes"]}
