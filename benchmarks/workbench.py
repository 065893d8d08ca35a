"""What the serving benchmarks share: a model of useful size, built and served as a user would."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.model import DEMO, random_llama
from toolchain.pipeline.build import build_recipe
from toolchain.pipeline.store import Store
from toolchain.recipe import load_recipe

SHAPE = {"hidden": 1024, "layers": 12, "heads": 16, "kv_heads": 4, "intermediate": 2816}
MODEL = "random Llama, 144 M parameters (hidden 1024, 12 layers, 16 heads, 4 KV heads), AWQ int4"
CACHE = Path(os.environ.get("LLMBUILD_BENCH", Path.home() / ".cache" / "llmbuild-bench"))

RECIPE = """
schema: 1
name: {name}
model: {{source: {model}}}
quantization:
  method: awq
  calibration: {{dataset: "file:{calibration}", samples: 8, seq_len: 128}}
engine: {{max_batch_size: 32, max_seq_len: 1024, max_num_tokens: 512, kv_cache: {{reuse: false}}}}
deploy: {{max_queue_size: 0}}
"""


def repository(name: str, *overrides: str) -> Path:
    """The Triton repository of the benchmark model, built if it is not in the benchmarks' own store."""
    model = CACHE / "model"
    if not (model / "model.safetensors.index.json").is_file():
        random_llama(model, **SHAPE)
    recipe = CACHE / f"{name}.yaml"
    recipe.write_text(RECIPE.format(name=name, model=model, calibration=DEMO / "calibration.jsonl"))
    built = build_recipe(
        load_recipe(recipe, overrides), out=CACHE / "artifacts", store=Store.open(CACHE / "store")
    )
    return (built.artifact / "repository").resolve()


def prompts(count: int, tokens: int, seed: int) -> list[tuple[str, list[int]]]:
    """`count` prompts of exactly `tokens` tokens, as text and as the ids that the text encodes to.

    Windows of the demo model's held-out text, another place for each: no two begin alike, so that a prefix
    cache has nothing to offer.
    """
    import random

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    ids = tokenizer.encode((DEMO / "heldout.txt").read_text()).ids
    draw = random.Random(seed)
    found: list[tuple[str, list[int]]] = []
    while len(found) < count:
        at = draw.randrange(len(ids) - tokens)
        text = tokenizer.decode(ids[at : at + tokens])
        encoded = tokenizer.encode(text).ids
        if len(encoded) == tokens:
            found.append((text, encoded))
    return found
