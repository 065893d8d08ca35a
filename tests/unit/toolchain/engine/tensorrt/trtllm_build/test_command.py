"""trtllm-build's command line: golden for shipped recipes, and what a recipe's words become."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolchain.engine.tensorrt.trtllm_build.command import build_command, engine_flags
from toolchain.plan.build_flags import build_flags
from toolchain.recipe import Recipe, load_recipe
from toolchain.recipe.catalog import configs_dir

GOLDEN = Path(__file__).parents[5] / "golden" / "trtllm_build"
sys.path.insert(0, str(Path(__file__).parent / "stand_in"))
from trtllm_build import parser  # noqa: E402


def recipe(build: dict[str, Any] | None = None, **engine: Any) -> Recipe:
    engine = {"flavour": "tensorrt", "build": build or {}, **engine}
    return Recipe.model_validate({"schema": 1, "name": "r", "model": {"source": "o/n"}, "engine": engine})


def command(of: Recipe, **more: Any) -> list[str]:
    return build_command(Path("/ranks"), Path("/engine"), engine_flags(of), workers=1, **more)


@pytest.mark.parametrize("name", ["llama70b-int4", "llama8b-fp8-h100", "llama70b-nvfp4-b200"])
def test_the_command_of_a_shipped_recipe_is_the_golden_one(name: str) -> None:
    words = command(load_recipe(configs_dir() / f"{name}.yaml"))
    shown = " ".join(words).replace(" --", " \\\n    --") + "\n"
    assert shown == (GOLDEN / f"{name}.sh").read_text()


def test_only_what_a_recipe_says_is_given() -> None:
    given = {word for word in command(recipe()) if word.startswith("--")}
    assert given == {
        "--checkpoint_dir", "--output_dir", "--output_timing_cache", "--max_batch_size", "--max_num_tokens",
        "--kv_cache_type", "--workers", "--log_level", "--gemm_plugin", "--use_paged_context_fmha",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ({"context_fmha": False}, ["--context_fmha", "disable"]),
        ({"reduce_fusion": True}, ["--reduce_fusion", "enable"]),
        ({"fast_build": True}, ["--fast_build"]),
        ({"gemm_plugin": "disable"}, ["--gemm_plugin", "disable"]),
        ({"lora_target_modules": ["attn_q", "attn_v"]}, ["--lora_target_modules", "attn_q", "attn_v"]),
        ({"max_draft_len": 0}, ["--max_draft_len", "0"]),
    ],
)
def test_each_kind_of_flag(build: dict[str, Any], words: list[str]) -> None:
    found = command(recipe(build))
    start = found.index(words[0])
    assert found[start : start + len(words)] == words


def test_files_are_arguments_and_no_values_of_the_key() -> None:
    of = recipe({"input_timing_cache": "/t", "lora_dir": ["/a", "/b"], "lora_plugin": "auto", "workers": 3})
    assert not {"input_timing_cache", "lora_dir", "workers"} & engine_flags(of).keys()
    found = command(of, input_timing_cache=Path("/t"), lora_dirs=(Path("/a"), Path("/b")))
    assert found[found.index("--lora_dir") :][1:3] == ["/a", "/b"]
    assert found[found.index("--input_timing_cache") + 1] == "/t"


def test_a_cache_that_is_not_paged() -> None:
    found = command(recipe(kv_cache={"paged": False, "reuse": False}))
    assert found[found.index("--kv_cache_type") + 1] == "continuous"
    assert found[found.index("--use_paged_context_fmha") + 1] == "disable"


_VALUES = {
    "number": st.integers(1, 64),
    "switch": st.booleans(),
    "flag": st.booleans(),
    "words": st.lists(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), min_size=1, max_size=3).map(tuple),
}
_USERS = [f for f in build_flags().values() if f.set_by is None and f.unused is None and "path" not in f.kind]


@settings(deadline=None, max_examples=25)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            flag.name: st.sampled_from(flag.choices) if flag.choices else _VALUES[flag.kind]
            for flag in _USERS
        },
    )
)
def test_the_parser_reads_back_what_the_recipe_says(build: dict[str, Any]) -> None:
    of = recipe(build)
    read = vars(parser().parse_args(command(of)[1:]))
    for name, value in engine_flags(of).items():
        if build_flags()[name].kind == "switch":
            value = "enable" if value else "disable"
        assert read[name] == (list(value) if isinstance(value, tuple) else value)
