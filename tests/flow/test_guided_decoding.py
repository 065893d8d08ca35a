"""Guided decoding from the recipe to a real Triton: answers match, and a bad guide harms nobody else."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from deploy.client import Chunk, Client, Summary
from deploy.server import TritonServer
from toolchain.errors import LlmbuildError
from toolchain.pipeline.build import build_recipe
from toolchain.pipeline.store import Store
from toolchain.recipe import load_recipe

pytestmark = [pytest.mark.triton, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    root = tmp_path_factory.mktemp("guided")
    file = root / "guided.yaml"
    source = Path(__file__).parents[2] / "models/demo"
    file.write_text(
        f"schema: 1\nname: guided\nmodel: {{source: {source}}}\nquantization: {{method: none}}\n"
        "engine: {guided_decoding: true, max_seq_len: 512, max_batch_size: 8}\n"
    )
    with Store.open(root / "store") as store:
        repository = build_recipe(load_recipe(file), out=root, store=store).artifact / "repository"
    with TritonServer.start(repository) as started:
        yield started


def ask(server: TritonServer, guide: tuple[str, str], **options: Any) -> tuple[str, str | None]:
    """The answer's text, and why it ended."""
    with Client(server.endpoints.grpc) as client:
        options = {"max_tokens": 96, "temperature": 1.0, "top_k": 40} | options
        *chunks, summary = client.generate("value = ", guide=guide, **options)
    assert isinstance(summary, Summary)
    return "".join(chunk.text for chunk in chunks if isinstance(chunk, Chunk)), summary.finish_reason


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    """A schema whose answers can be short."""
    kinds = ["integer", "string", "boolean", "enum", "date", "pattern"] + ["object", "array"] * (depth > 0)
    match rng.choice(kinds):
        case "integer":
            low = rng.randrange(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(90)}
        case "string":
            return {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 7)}
        case "enum":
            return {"enum": rng.sample(["red", "green", 1, 2.5, None, True, "\u00fc"], 3)}
        case "date":
            return {"type": "string", "format": "date"}
        case "pattern":
            return {"type": "string", "pattern": "^[a-c]{2,4}-[0-9]{2}$"}
        case "array":
            low = rng.randrange(3)
            items = random_schema(rng, depth - 1)
            return {"type": "array", "items": items, "minItems": low, "maxItems": low + 1}
        case "object":
            names = rng.sample("abcdef", rng.randrange(1, 4))
            return {
                "type": "object",
                "properties": {name: random_schema(rng, depth - 1) for name in names},
                "required": names,
                "additionalProperties": False,
            }
    return {"type": "boolean"}


def test_every_answer_is_what_its_schema_describes(server: TritonServer) -> None:
    schemas = [random_schema(random.Random(seed)) for seed in range(200)]

    def answered(seed: int) -> bool:
        schema = schemas[seed]
        text, reason = ask(server, ("json_schema", json.dumps(schema)), seed=seed)
        if reason != "stop":
            return False  # cut off, in white space mostly, which the model likes
        jsonschema.validate(json.loads(text), schema)
        return True

    with ThreadPoolExecutor(8) as pool:
        ended = sum(pool.map(answered, range(len(schemas))))
    assert ended > 0.8 * len(schemas)


def test_expressions_grammars_and_any_json(server: TritonServer) -> None:
    expression = "[a-f]{3}-[0-9]{1,2}"
    assert re.fullmatch(expression, ask(server, ("regex", expression))[0])
    grammar = 'root ::= pair ("," pair)? \npair ::= [a-z] "=" [0-9]'
    assert re.fullmatch(r"[a-z]=[0-9](,[a-z]=[0-9])?", ask(server, ("ebnf_grammar", grammar))[0])
    assert ask(server, ("json", ""), max_tokens=4)[0].lstrip()[:1] in ("{", "")


@pytest.mark.parametrize(
    ("guide", "message"),
    [
        (("json_schema", "{nope"), "guided_decoding_guide is not JSON"),
        (("json_schema", '{"type": "strin"}'), 'cannot be followed: Unsupported type "strin"'),
        (("json_schema", '{"$ref": "#/$defs/a"}'), "cannot be followed: .*Cannot find field"),
        (("json_schema", '{"not": {}}'), "#/not cannot be enforced"),
        (("json_schema", '{"type": "number", "minimum": 1}'), "can be enforced for .*integer.* only"),
        (("json_schema", '{"$ref": "https://example.com/a"}'), "points outside of the schema"),
        (("regex", "(("), "The parenthesis is not closed"),
        (("ebnf_grammar", 'rot ::= "a"'), 'root rule with name "root" is not found'),
        (("xml", "<a/>"), "guided_decoding_guide_type is 'xml'"),
    ],
)
def test_a_bad_guide_is_an_error_of_its_request_alone(
    server: TritonServer, guide: tuple[str, str], message: str
) -> None:
    with Client(server.endpoints.grpc) as client:
        other = client.generate("def main(", max_tokens=40, end_id=-1)
        next(other)
        with pytest.raises(LlmbuildError, match=message):
            ask(server, guide)
        assert isinstance(list(other)[-1], Summary)
