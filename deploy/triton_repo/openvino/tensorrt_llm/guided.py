"""A guide in GenAI's terms."""

from __future__ import annotations

import openvino_genai

_FIELDS = {"json_schema": "json_schema", "regex": "regex", "ebnf_grammar": "grammar"}


def structured_output(kind: str, text: str) -> openvino_genai.StructuredOutputConfig:
    """The configuration for a guide of `kind`, as `guides.Guide` has it."""
    config = openvino_genai.StructuredOutputConfig()
    setattr(config, _FIELDS[kind], text)
    return config
