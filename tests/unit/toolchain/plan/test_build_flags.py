"""The table of trtllm-build's flags beside the recipe's section, and which version knows which."""

from __future__ import annotations

import pytest
from packaging.version import Version

from toolchain.plan.build_flags import Flag, asked_flags, build_flags, flag_problems
from toolchain.plan.releases import release
from toolchain.recipe.fields import fragment_at
from toolchain.recipe.trtllm_build import TrtllmBuild

OURS = {"executor", "image", "volume_claim", "timeout_minutes"}
FLAGS = build_flags().values()


def test_the_section_has_exactly_the_flags_that_users_set() -> None:
    users = {flag.name for flag in FLAGS if flag.set_by is None and flag.unused is None}
    assert set(TrtllmBuild.model_fields) == users | OURS
    assert not OURS & set(build_flags())


def test_what_another_field_gives_names_one_that_exists() -> None:
    for flag in FLAGS:
        if flag.set_by not in (None, "llmbuild"):
            assert flag.set_by is not None
            assert fragment_at(tuple(flag.set_by.split("."))) is not None
        assert flag.set_by is None or flag.unused is None


@pytest.mark.parametrize(
    "flag", [f for f in FLAGS if f.name in TrtllmBuild.model_fields], ids=lambda f: f.name
)
def test_the_section_takes_what_the_flag_takes(flag: Flag) -> None:
    fragment = fragment_at(("engine", "build", flag.name))
    assert fragment is not None
    forms = {
        "number": "integer", "path": "string", "paths": "array", "words": "array",
        "choice": "string", "switch": "boolean", "flag": "boolean",
    }  # fmt: skip
    assert fragment["type"] == forms[flag.kind]
    assert tuple(fragment.get("enum", ())) == flag.choices
    default = fragment["default"]
    assert default is False if flag.kind == "flag" else default in (None, [], ())
    assert fragment["description"]


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_rows_are_well_formed(flag: Flag) -> None:
    assert flag.kind in ("number", "path", "paths", "word", "words", "choice", "switch", "flag")
    assert (flag.kind == "choice") == bool(flag.choices)
    if flag.kind == "switch":
        assert flag.default in ("enable", "disable")
    if flag.kind == "choice" and flag.default is not None:
        assert flag.default in flag.choices
    if flag.first is not None:
        assert Version(flag.first) > Version("0.17.0")
        assert release(flag.first) is not None


def test_a_flag_that_the_version_does_not_know() -> None:
    (problem,) = flag_problems({"norm_quant_fusion": True, "max_beam_width": 4}, "0.18.2")
    assert problem.where == "engine.build.norm_quant_fusion"
    assert "trtllm-build of TensorRT-LLM 0.18.2 has no flag --norm_quant_fusion" in problem.what
    assert problem.fix == "remove it, or set engine.version to 0.20.0"
    assert flag_problems({"norm_quant_fusion": True}, "1.2.1") == []


def test_a_flag_that_the_gpu_has_no_kernels_for() -> None:
    (problem,) = flag_problems({"low_latency_gemm_plugin": "fp8"}, "1.2.1", gpu="b200")
    assert problem.what == "trtllm-build refuses --low_latency_gemm_plugin on b200"
    assert "10.0" in str(problem.why)
    assert flag_problems({"low_latency_gemm_plugin": "disable"}, "1.2.1", gpu="b200") == []
    assert flag_problems({"low_latency_gemm_plugin": "fp8"}, "1.2.1", gpu="h100") == []
    assert flag_problems({"low_latency_gemm_plugin": "fp8"}, "1.2.1") == []


def test_a_flag_for_one_model_alone() -> None:
    asked = {"pp_reduce_scatter": True}
    (problem,) = flag_problems(asked, "1.2.1", architecture="LlamaForCausalLM")
    assert problem.what == "trtllm-build refuses --pp_reduce_scatter for LlamaForCausalLM"
    assert flag_problems(asked, "1.2.1", architecture="MixtralForCausalLM") == []
    assert flag_problems({"pp_reduce_scatter": False}, "1.2.1", architecture="LlamaForCausalLM") == []


def test_only_what_says_something_is_asked() -> None:
    assert asked_flags(TrtllmBuild().model_dump()) == {}
    build = TrtllmBuild(
        executor="docker", context_fmha=False, strip_plan=False, fast_build=True, max_draft_len=0
    )
    assert asked_flags(build.model_dump()) == {"context_fmha": False, "fast_build": True, "max_draft_len": 0}
