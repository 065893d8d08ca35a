"""OpenVINO's form of a tokenizer, beside an IR: what GenAI needs for drafts and for guided decoding.

Written by openvino-tokenizers 2026.4. Text is encoded and decoded by Hugging Face's tokenizer all the same.
"""

from __future__ import annotations

from pathlib import Path


def write_tokenizer(source: Path, out_dir: Path) -> None:
    """Write OpenVINO's form of the tokenizer in `source`: openvino_(de)tokenizer.xml and .bin."""
    import openvino
    import openvino_tokenizers
    from transformers import PreTrainedTokenizerFast

    from toolchain.model.spec import load_spec
    from toolchain.model.tokenizer import load_tokenizer

    ends = load_spec(source).eos_token_ids
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(source / "tokenizer.json"),
        eos_token=load_tokenizer(source).id_to_token(ends[0]) if ends else None,  # with which a guide ends
    )
    parts = openvino_tokenizers.convert_tokenizer(tokenizer, with_detokenizer=True)
    for part, name in zip(parts, ("openvino_tokenizer.xml", "openvino_detokenizer.xml"), strict=True):
        openvino.save_model(part, out_dir / name)
