"""`OpenVINO`: the flavour that runs on any x86 CPU, inside a real Triton."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolchain.engine.base import BuildInputs, Config
from toolchain.errors import ToolchainError
from toolchain.progress import Progress

if TYPE_CHECKING:
    from toolchain.recipe import Recipe
    from toolchain.recipe.speculative import Speculative

PACKAGES = ("openvino", "openvino-genai", "openvino-tokenizers")
"""GenAI imports the last when a pipeline is made, even one that is given tokens and gives tokens."""

DRAFT = "draft"
"""The draft model among the inputs."""


class OpenVINO:
    """OpenVINO IR from the quantized checkpoint; GenAI's continuous batching behind Triton."""

    name = "openvino"
    answers_here = True

    def missing(self, recipe: Recipe) -> list[ToolchainError]:
        """The OpenVINO packages, if they are not installed."""
        absent = [name for name, found in self.tools(recipe).items() if found == "absent"]
        if not absent:
            return []
        return [
            ToolchainError(
                f"{', '.join(absent)} not installed",
                where="engine.flavour",
                why="the openvino flavour builds its engine with them",
                fix="pip install 'llmbuild[openvino,triton]'",
            )
        ]

    def tools(self, recipe: Recipe) -> dict[str, str]:
        """Versions of the OpenVINO packages."""
        return {name: _version(name) for name in PACKAGES}

    def engine_config(self, recipe: Recipe) -> Config:
        """The context length, on which some rotary embeddings depend, and whether answers can be guided."""
        engine = recipe.engine
        guided = {"guided_decoding": True} if engine.guided_decoding else {}
        return {"max_seq_len": engine.max_seq_len} | guided

    def inputs(self, recipe: Recipe) -> BuildInputs:
        """The draft model of speculative decoding, if there is one. The IR runs on any CPU."""
        from toolchain.plan.facts import fetch_model

        speculative = recipe.engine.speculative
        if speculative is None or speculative.source is None:
            return BuildInputs()
        draft, _commit = fetch_model(speculative.source, speculative.revision)
        return BuildInputs(files={DRAFT: draft})

    def build(
        self,
        checkpoint: Path,
        out_dir: Path,
        config: Config,
        progress: Progress,
        *,
        work_dir: Path,
        inputs: BuildInputs,
    ) -> dict[str, Any]:
        """Write the IR, and those of the draft and of what tries guides in directories of their own."""
        from toolchain.engine.openvino import build_ir

        facts = build_ir(checkpoint, out_dir, max_seq_len=config["max_seq_len"], events=progress)
        draft, guided = inputs.files.get(DRAFT), config.get("guided_decoding")
        if draft is not None or guided:
            from toolchain.engine.openvino.tokenizer import write_tokenizer

            write_tokenizer(checkpoint, out_dir)
        if draft is not None:
            from toolchain.engine.openvino.draft import build_draft

            facts |= build_draft(draft, checkpoint, out_dir, config["max_seq_len"], progress)
        if guided:
            from toolchain.engine.openvino.guide import build_guide

            build_guide(checkpoint, out_dir)
        return facts

    def repository_config(self, recipe: Recipe) -> Config:
        """Limits, scheduling and arithmetic: everything that a restart can change without a new engine."""
        from toolchain.engine.front import front_config
        from toolchain.engine.openvino import plugin_properties

        engine, deploy = recipe.engine, recipe.deploy
        return {
            **front_config(recipe),
            "precision": engine.precision,
            "plugin_properties": plugin_properties(
                engine.precision, engine.kv_cache.dtype, engine.num_threads
            ),
            "max_seq_len": engine.max_seq_len,
            "max_num_tokens": engine.max_num_tokens,
            "max_tokens_in_paged_kv_cache": engine.kv_cache.max_tokens,
            "enable_kv_cache_reuse": engine.kv_cache.reuse,
            "enable_chunked_context": engine.chunked_prefill,
            "batching": deploy.batching,
            "batch_scheduler_policy": deploy.scheduler,
            "stream_interval": engine.stream_interval,
            "enable_guided_decoding": engine.guided_decoding,
            **_speculation(engine.speculative),
        }

    def render(self, engine: Path, checkpoint: Path, out_dir: Path, config: Config) -> dict[str, Any]:
        """Make the repository; the precision that it runs in is a fact of the manifest."""
        from deploy.repositories.openvino import RepositorySettings, render_openvino
        from toolchain.engine.front import front_facts
        from toolchain.model.spec import load_spec

        spec = load_spec(engine)
        values = dict(config)
        del values["flavour"], values["models"]
        precision = values.pop("precision")
        values["max_seq_len"] = values["max_seq_len"] or spec.max_position_embeddings
        settings = RepositorySettings(
            engine_dir=engine,
            tokenizer_dir=checkpoint,
            **front_facts(spec),
            **values,
        )
        render_openvino(out_dir, settings)
        return {"precision": precision, **config["plugin_properties"]}

    def answer(
        self, repository: Path, prompts: Sequence[Sequence[int]], max_tokens: int, eos: Sequence[int]
    ) -> list[list[int]]:
        """By GenAI alone, in a child process."""
        from toolchain.engine.openvino.answer import answer

        return answer(repository, prompts, max_tokens, eos)


def _speculation(speculative: Speculative | None) -> Config:
    if speculative is None:
        return {}
    drafts = speculative.method == "draft_model"
    return {
        "has_draft": drafts,
        "max_draft_len": speculative.max_draft_len,
        "max_matching_ngram_size": 0 if drafts else speculative.max_matching_ngram_size,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
