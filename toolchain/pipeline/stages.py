"""The stages of a build: source -> quantize -> gate -> convert -> engine -> repository -> smoke.

gate and smoke are there if the recipe has gates that need them, convert on the tensorrt flavour.

Each function here says what one stage depends on and wraps the package that does the work. A stage's run
reads only its context, so a value that matters is in its config, and so in its key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from toolchain.engine import flavour
from toolchain.pipeline.conversion import convert_stages
from toolchain.pipeline.gates import baseline_stage, gate_stages, simulates, smoke_stages
from toolchain.pipeline.quantization import quantize_config
from toolchain.pipeline.stage import MODEL_FILES, Source, Stage, StageContext, versions
from toolchain.pipeline.texts import CALIBRATION, read_text, text_config, text_source
from toolchain.recipe.section import size_bytes

if TYPE_CHECKING:
    from toolchain.recipe import Recipe
    from toolchain.text.files import TextFiles

STAGES = ("source", "quantize", "gate", "convert", "engine", "repository", "smoke")


def build_stages(
    recipe: Recipe, model: Path, revision: str | None, texts: Mapping[str, TextFiles]
) -> list[Stage]:
    """The stages of `recipe`, whose model's files lie in `model`.

    Args:
        recipe: a valid recipe.
        model: the directory with the source model.
        revision: the commit that the recipe's revision resolved to; None for a local directory.
        texts: the data sets, as `toolchain.pipeline.texts` finds them.
    """
    converted = convert_stages(recipe, model)
    return [
        _source(model, revision),
        _quantize(recipe, model, texts),
        *gate_stages(recipe, model, texts),
        *converted,
        _engine(recipe, "convert" if converted else "quantize"),
        _repository(recipe),
        *smoke_stages(recipe),
    ]


def _source(model: Path, revision: str | None) -> Stage:
    return Stage(
        name="source",
        version=2,
        run=_check_source,
        sources={"model": Source(model, MODEL_FILES)},
        config={"revision": revision},
    )


def _check_source(context: StageContext) -> None:
    """Check the tokenizer and read every weight once: a broken model is refused before hours go into it."""
    from quantize.formats.checkpoint import QuantizedCheckpoint
    from toolchain.model.spec import load_spec

    directory = context.inputs["model"]
    spec = load_spec(directory)
    _check_tokenizer(directory, spec.vocab_size)
    source = QuantizedCheckpoint.open(directory)
    source.verify(spec)
    checkpoint = source.checkpoint
    checkpoint.check_finite(context.progress)
    facts = {"revision": context.config["revision"], "spec": asdict(spec), "tensors": len(checkpoint.names)}
    (context.out_dir / "source.json").write_text(json.dumps(facts, indent=2, default=str) + "\n")
    context.facts["architecture"] = spec.architecture


def _check_tokenizer(directory: Path, vocab_size: int) -> None:
    """Make sure of a `tokenizer.json` that loads and whose tokens the model knows: the server has no other.

    Raises:
        ModelError: it is missing, broken, or belongs to a model with more tokens.
    """
    from toolchain.errors import ModelError
    from toolchain.model.tokenizer import load_tokenizer

    file = directory / "tokenizer.json"
    if not file.is_file() and (directory / "tokenizer.model").is_file():
        raise ModelError(
            "the model has no tokenizer.json, only a tokenizer.model",
            where=str(directory),
            why="that is SentencePiece's form, which the server does not read",
            fix="convert it in Python: transformers.AutoTokenizer.from_pretrained(DIRECTORY, use_fast=True)"
            ".save_pretrained(DIRECTORY); it needs the package sentencepiece",
        )
    if not file.is_file():
        raise ModelError(
            "the model has no tokenizer.json",
            where=str(directory),
            why="the server turns text into tokens with it",
            fix="copy it from where the model was published",
        )
    tokenizer = load_tokenizer(directory)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= vocab_size:
        raise ModelError(
            f"the tokenizer has token {largest}, but the model's vocabulary ends at {vocab_size - 1}",
            where=str(file),
            fix="put the tokenizer.json of this very model into its directory",
        )


def _quantize(recipe: Recipe, model: Path, texts: Mapping[str, TextFiles]) -> Stage:
    quant, calibration = recipe.quantization, recipe.quantization.calibration
    sources = {"model": Source(model, MODEL_FILES)}
    config = quantize_config(quant, recipe.engine.flavour) | {"dtype": recipe.model.dtype}
    if calibration is not None and CALIBRATION in texts:
        sources[CALIBRATION] = text_source(texts[CALIBRATION])
        config["calibration"] = text_config(texts[CALIBRATION]) | {
            "samples": calibration.samples,
            "seq_len": calibration.seq_len,
            "seed": calibration.seed,
        }
    measured = {}
    if "kl" in texts and quant.search is not None and quant.search.max_kl is not None:
        held_out = recipe.gates.kl
        assert held_out is not None  # the recipe's rules see to it
        config["simulate"] = simulates(recipe)
        measured["baseline"] = baseline_stage(
            model,
            texts["kl"],
            windows=held_out.windows,
            window=held_out.window,
            stride=held_out.stride,
            device=quant.device,
        )
    memory = quant.hidden_states_memory
    return Stage(
        name="quantize",
        version=2,
        run=partial(_run_quantize, hidden_memory=None if memory is None else size_bytes(memory)),
        inputs=("source",),
        sources=sources,
        config=config,
        tools=versions(
            "torch",
            *(["tokenizers"] if CALIBRATION in sources else []),
            *(["nvidia-modelopt", "transformers"] if "provider" in config else []),
        ),
        intermediates=measured,
    )


def _run_quantize(context: StageContext, hidden_memory: int | None) -> None:
    from quantize.run import quantize_checkpoint

    text = None
    if CALIBRATION in context.inputs:
        text = read_text(context.inputs[CALIBRATION], context.config["calibration"])
    report = quantize_checkpoint(
        context.inputs["model"],
        context.out_dir,
        context.work_dir,
        config=context.config,
        calibration_text=text,
        hidden_memory=hidden_memory,
        divergence=partial(_divergence, context) if "baseline" in context.inputs else None,
        progress=context.progress,
    )
    context.facts["method"] = context.config["method"]
    if search := report.get("search"):
        context.facts["bits_per_weight"] = search["bits_per_weight"]
    if linears := report.get("linears"):
        errors = [facts["relative_error"] for facts in linears.values() if "relative_error" in facts]
        if errors:
            context.facts["mean_relative_error"] = round(sum(errors) / len(errors), 6)
        context.facts["calibration_tokens"] = report["calibration_tokens"]
        context.facts["calibration_sha256"] = report["calibration"]
        context.facts["calibration_documents"] = report["calibration_documents"]
    if text is not None and text.commit is not None:
        context.facts["calibration_commit"] = text.commit


def _divergence(context: StageContext, checkpoint: Path) -> float:
    """The mean KL divergence from the source of a model that a search has made."""
    from toolchain.gate.baseline import Baseline
    from toolchain.gate.evaluate import evaluate

    baseline = Baseline.load(context.inputs["baseline"])
    device, simulate = context.config["device"], context.config["simulate"]
    return evaluate(context.inputs["model"], checkpoint, baseline, device=device, simulate=simulate).kl


def _engine(recipe: Recipe, checkpoint: str) -> Stage:
    """The engine, built from the output of stage `checkpoint`."""
    chosen = flavour(recipe.engine.flavour)
    inputs = chosen.inputs(recipe)

    def run(context: StageContext) -> None:
        context.facts.update(
            chosen.build(
                context.inputs[checkpoint],
                context.out_dir,
                context.config,
                context.progress,
                work_dir=context.work_dir,
                inputs=inputs,
            )
        )

    return Stage(
        name="engine",
        version=2,
        run=run,
        inputs=(checkpoint,),
        sources={name: Source(path, ("**/*",)) for name, path in inputs.files.items()},
        config={"flavour": chosen.name, **chosen.engine_config(recipe)},
        tools=chosen.tools(recipe),
        arch=inputs.arch,
    )


def _repository(recipe: Recipe) -> Stage:
    chosen = flavour(recipe.engine.flavour)

    def run(context: StageContext) -> None:
        inputs = context.inputs
        context.facts.update(
            chosen.render(inputs["engine"], inputs["quantize"], context.out_dir, context.config)
        )

    return Stage(
        name="repository",
        version=1,
        run=run,
        inputs=("quantize", "engine"),
        config={"flavour": chosen.name, **chosen.repository_config(recipe)},
        tools=versions("llmbuild"),
    )
