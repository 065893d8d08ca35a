"""What a request may ask its answer to look like, checked before the engine sees it.

xgrammar inside OpenVINO GenAI 2026.4 leaves some keywords of JSON Schema out without an error, and computes
bounds of `number` wrongly. A schema that needs one of them is refused: an answer that only might be valid is
worth less than an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 256 * 1024
KINDS = ("json", "json_schema", "regex", "ebnf_grammar")

_IGNORED = frozenset(
    {
        *("not", "if", "then", "else", "contains", "minContains", "maxContains", "multipleOf"),
        *("dependentRequired", "dependentSchemas", "dependencies", "propertyNames", "$dynamicRef"),
        *("unevaluatedProperties", "unevaluatedItems"),
    }
)
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
# Keywords whose value is not a schema, or a mapping or list of them: nothing below is a keyword.
_DATA = frozenset({"const", "enum", "default", "examples", "required", "type"})
_NAMED = frozenset({"properties", "patternProperties", "$defs", "definitions"})


class InvalidGuideError(ValueError):
    """The guide cannot be followed; the message says why."""


@dataclass(frozen=True)
class Guide:
    """What the answer must match.

    Args:
        kind: json_schema, regex or ebnf_grammar.
        text: the schema, the expression, or the grammar with a rule `root`.
    """

    kind: str
    text: str


def parse_guide(kind: str, text: str) -> Guide:
    """The guide of `guided_decoding_guide_type` and `guided_decoding_guide`, upstream's words.

    `json` asks for any JSON object. Raises InvalidGuideError. Only the engine knows whether it compiles.
    """
    if kind not in KINDS:
        raise InvalidGuideError(f"guided_decoding_guide_type is {kind!r}: it must be {', '.join(KINDS)}")
    if kind == "json":
        return Guide("json_schema", '{"type": "object"}')
    if not text:
        raise InvalidGuideError(f"guided_decoding_guide is missing: it is the {kind}")
    if len(text.encode()) > MAX_BYTES:
        raise InvalidGuideError(
            f"guided_decoding_guide is too long: at most {MAX_BYTES // 1024} KiB are taken"
        )
    if kind == "json_schema":
        _check_schema(text)
    return Guide(kind, text)


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidGuideError(f"guided_decoding_guide is not JSON: {error}") from None
    if not isinstance(schema, dict | bool):
        raise InvalidGuideError("guided_decoding_guide is not a JSON schema: it must be an object")
    try:
        problem = next(_problems(schema, "#"), None)
    except RecursionError:
        problem = "it is nested too deeply"
    if problem is not None:
        raise InvalidGuideError(f"guided_decoding_guide: {problem}")


def _problems(schema: Any, place: str) -> Iterator[str]:
    """What in a schema would be ignored, or be computed wrongly."""
    if isinstance(schema, list):
        for index, inner in enumerate(schema):
            yield from _problems(inner, f"{place}/{index}")
    if not isinstance(schema, dict):
        return
    for keyword in sorted(_IGNORED & schema.keys()):
        yield f"{place}/{keyword} cannot be enforced; leave it out"
    if schema.get("uniqueItems") is True:
        yield f"{place}/uniqueItems cannot be enforced; leave it out"
    if isinstance(parts := schema.get("allOf"), list) and (len(parts) > 1 or len(schema) > 1):
        yield f"{place}/allOf cannot be enforced; merge its schemas into one"
    if not str(schema.get("$ref", "#")).startswith("#"):
        yield f"{place}/$ref points outside of the schema; put what it names under $defs"
    kinds = schema.get("type", "number")
    if "number" in (kinds if isinstance(kinds, list) else [kinds]):
        for bound in _BOUNDS:
            if bound in schema:
                yield f'{place}/{bound} can be enforced for "type": "integer" only'
    for keyword, value in schema.items():
        if keyword in _NAMED and isinstance(value, dict):
            for name, inner in value.items():
                yield from _problems(inner, f"{place}/{keyword}/{name}")
        elif keyword not in _DATA:
            yield from _problems(value, f"{place}/{keyword}")
