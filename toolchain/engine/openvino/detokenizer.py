"""The vocabulary in the form in which OpenVINO GenAI's structured output reads it."""

from __future__ import annotations

from pathlib import Path

from openvino_tokenizers import convert_tokenizer
from transformers import AutoTokenizer

from toolchain.engine.openvino.irfile import Constants


def write_detokenizer(checkpoint_dir: Path, out_dir: Path) -> None:
    """Convert the checkpoint's tokenizer and write `openvino_detokenizer.xml` and `.bin`."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint_dir, padding_side="left", local_files_only=True)
    _, detokenizer = convert_tokenizer(tokenizer, with_detokenizer=True)
    xml, binary = out_dir / "openvino_detokenizer.xml", out_dir / "openvino_detokenizer.bin"
    Constants().write(detokenizer, xml, binary, lambda nbytes: None)
