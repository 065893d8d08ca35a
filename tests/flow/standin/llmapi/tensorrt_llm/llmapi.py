"""See `tensorrt_llm`, the stand-in."""

from dataclasses import dataclass


@dataclass
class GuidedDecodingParams:
    json: str | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | None = None
