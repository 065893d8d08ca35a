"""Rank files against nvidia-modelopt itself, and against what an older one wrote.

ModelOpt 0.47 runs here: each algorithm on a tiny model of each family that it exports, in a process of its
own (`tools/rank_fixtures.py`). It quantizes once and writes a Hugging Face checkpoint and rank files; ours
come from that checkpoint. The files of 0.37, which TensorRT-LLM 1.1 pins and which has Mixtral too, lie in
tests/data/ranks.

`DIFFERENCES` is everything in which ours are not theirs.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from toolchain.engine.tensorrt.checklist import check_checkpoint
from toolchain.engine.tensorrt.convert import RankLayout, convert
from toolchain.progress import Silent

torch.set_num_threads(1)

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "tests/data/ranks/modelopt-0.37"
ABSENT = "absent"

ALGOS = (
    "none",
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "W4A16_AWQ",
    "W4A8_AWQ",
    "W8A8_SQ_PER_CHANNEL",
    "NVFP4",
)
FAMILIES = ("Llama", "Qwen2", "Qwen3")
VOCABULARY = 130  # no multiple of 4, nor of the 64 that ModelOpt pads to


@dataclass(frozen=True)
class Case:
    """One comparison: a model of ModelOpt's, cut one way.

    Args:
        family, algo: what it is.
        tensor, pipeline: how it is cut.
        theirs, ours: config.json.
    """

    family: str
    algo: str
    tensor: int
    pipeline: int
    theirs: dict[str, Any]
    ours: dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Where our files are not ModelOpt's.

    Args:
        what: a key of config.json, or a property of tensors.
        theirs, ours: the values, or a function from the case to the value.
        why: why.
    """

    what: str
    theirs: Any
    ours: Any
    why: str

    def of(self, side: str, case: Case) -> Any:
        value = getattr(self, side)
        return value(case) if callable(value) else value


def is_qwen(case: Case) -> bool:
    return case.family.startswith("Qwen")


def theta(case: Case) -> float:
    """The base of the rotary embedding: what ModelOpt says, if it finds it in its model's configuration."""
    return float(case.theirs.get("rotary_base", 10000.0))


def expected_exclusions(case: Case) -> Any:
    if case.ours["quantization"]["quant_algo"] is None:
        return ABSENT
    more = ["*router", "*shared_expert_gate"] if "moe" in case.ours else []
    return ["lm_head", *more, *(["*ln_f", "*ln_embed"] if case.algo.startswith("FP8_PER") else [])]


INFORMATIVE = "told for people by ModelOpt; no key of TensorRT-LLM's PretrainedConfig"
DEFAULTED = "a key of the model's class, which ModelOpt leaves at its default"
NO_QWEN = "ModelOpt without TensorRT-LLM beside it writes Llama's keys for every family"

SCALARS = "the shape of NVFP4's scalar scales"
FP8_CODES = "codes of FP8"
KV_SCALES = "FP8 scales of the KV cache"
SMOOTHED = "qkv's pre-quant scale, fc, gate, and the norms before them, of AWQ"

DIFFERENCES = [
    Difference("producer", lambda c: c.theirs["producer"], {"name": "llmbuild"}, "who wrote it"),
    Difference("logits_dtype", "float16", "float32", "TensorRT-LLM's own default; float16 rounds logits"),
    *(
        Difference(key, lambda c, key=key: c.theirs[key], ABSENT, INFORMATIVE)
        for key in ("bias", "decoder", "lm_head_bias", "rank", "residual_mlp", "rmsnorm", "rotary_pct")
    ),
    Difference("rotary_base", lambda c: c.theirs.get("rotary_base", ABSENT), theta, DEFAULTED),
    Difference("rotary_scaling", ABSENT, None, DEFAULTED),
    Difference("mlp_bias", ABSENT, False, DEFAULTED),
    Difference("tie_word_embeddings", ABSENT, False, DEFAULTED),
    Difference("attn_bias", ABSENT, lambda c: c.family == "Qwen2", NO_QWEN),
    Difference("qk_layernorm", ABSENT, lambda c: c.family == "Qwen3", NO_QWEN),
    Difference("qwen_type", ABSENT, lambda c: c.family.lower() if is_qwen(c) else ABSENT, NO_QWEN),
    *(
        Difference(key, ABSENT, lambda c: 0 if is_qwen(c) else ABSENT, NO_QWEN)
        for key in ("moe_intermediate_size", "moe_shared_expert_intermediate_size")
    ),
    Difference(
        "vocab_size",
        lambda c: -(-c.ours["vocab_size"] // 64) * 64 if "AWQ" in c.algo else c.ours["vocab_size"],
        lambda c: c.ours["vocab_size"],
        "ModelOpt pads the tables to 64 rows for AWQ and counts the padding as tokens, which could be "
        "sampled; here tables are padded to what the ranks need, and the vocabulary stays what it is",
    ),
    Difference(
        "exclude_modules",
        lambda c: c.theirs["quantization"].get("exclude_modules", ABSENT),
        expected_exclusions,
        "patterns in place of names, which mean the same in every pipeline stage; for row-wise FP8 also the "
        "norms that TensorRT-LLM would replace",
    ),
    Difference(
        "moe",
        lambda c: c.theirs.get("moe", ABSENT),
        lambda c: c.theirs["moe"] | {"shared_expert_intermediate_size": 0} if "moe" in c.theirs else ABSENT,
        "said although it is the default",
    ),
    # Of tensors:
    Difference(SCALARS, (), (1,), "older loaders of TensorRT-LLM want the shape of the parameter"),
    Difference(
        FP8_CODES,
        "rounded anew",
        "those of the checkpoint",
        "ModelOpt divides by the scale in one precision for the checkpoint and in another for rank files: "
        "about one code in a hundred is the next",
    ),
    Difference(
        KV_SCALES,
        "1, or the checkpoint's where that is larger",
        "the checkpoint's",
        "what the checkpoint says is what its quality was judged with",
    ),
    Difference(
        SMOOTHED,
        "scales of each linear, beside it",
        "the scale of all that read one input, in the norm before, as in the checkpoint",
        "ModelOpt rounds its AWQ models anew for the checkpoint; what it leaves alone there must be equal",
    ),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ModelOpt makes of every family with every algorithm; FP8 with an FP8 KV cache."""
    pytest.importorskip("modelopt", reason="nvidia-modelopt is not installed", exc_type=ImportError)
    out = tmp_path_factory.mktemp("modelopt")
    command = [sys.executable, ROOT / "tools/rank_fixtures.py", out, "--vocabulary", str(VOCABULARY)]
    command += [word for family in FAMILIES for word in ("--family", family)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return out


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("family", FAMILIES)
def test_ranks_are_those_of_modelopt(family: str, algo: str, exported: Path, tmp_path: Path) -> None:
    compared = 0
    for directory in sorted(exported.glob(f"{family}-{algo}/tp*pp?")):
        ours = tmp_path / directory.parent.name / directory.name
        case = converted(directory.parent, directory.name, ours, json_of(directory / "config.json"))
        compare_config(case)
        for number in range(case.tensor * case.pipeline):
            theirs = load_file(directory / f"rank{number}.safetensors")
            compare_tensors(
                case,
                {name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in theirs.items()},
                load_file(ours / f"rank{number}.safetensors"),
                lambda name, own, theirs=theirs: digest(theirs[name]) == digest(own),
            )
        assert [str(finding) for finding in check_checkpoint(ours)] == []
        compared += 1
    assert compared >= 3


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_modelopt_refuses_only_what_is_known(exported: Path) -> None:
    """It does not repeat KV heads whose scales are per channel; here they are repeated like any other."""
    reasons = {path.read_text().strip() for path in exported.glob("*/*refused.txt")}
    assert reasons <= {"NotImplementedError: Duplicating KV heads per-channel scales is not supported"}


@pytest.mark.parametrize(
    "path", sorted(KEPT.glob("*/tp*.json")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_ranks_are_those_of_an_older_modelopt(path: Path, tmp_path: Path) -> None:
    described = json_of(path)
    case = converted(path.parent, path.stem, tmp_path / "ranks", described["config.json"])
    compare_config(case)
    for number in range(case.tensor * case.pipeline):
        theirs = described[f"rank{number}.safetensors"]
        compare_tensors(
            case,
            {name: (dtype, tuple(shape)) for name, (dtype, shape, _) in theirs.items()},
            load_file(tmp_path / "ranks" / f"rank{number}.safetensors"),
            lambda name, own, theirs=theirs: theirs[name][2] == digest(own),
        )


def converted(directory: Path, layout: str, out: Path, theirs: dict[str, Any]) -> Case:
    """Our ranks of a checkpoint of ModelOpt's."""
    family, algo = directory.name.split("-", 1)
    tensor, pipeline = int(layout[2]), int(layout[5])
    work = out.with_name(f"{out.name}-work")
    convert(
        directory / "checkpoint",
        out,
        work,
        layout=RankLayout(tensor=tensor, pipeline=pipeline),
        progress=Silent(),
    )
    return Case(family, algo, tensor, pipeline, theirs, json_of(out / "config.json"))


def compare_config(case: Case) -> None:
    """Every key is theirs, or in the table with both values."""
    known = {difference.what: difference for difference in DIFFERENCES}
    theirs, ours = flat(case.theirs), flat(case.ours)
    for key in theirs.keys() | ours.keys():
        found = theirs.get(key, ABSENT), ours.get(key, ABSENT)
        if found[0] != found[1] or key in known:
            assert key in known, f"{key}: {found[0]!r} there, {found[1]!r} here"
            assert found == (known[key].of("theirs", case), known[key].of("ours", case)), key


def flat(config: dict[str, Any]) -> dict[str, Any]:
    """config.json with `quantization` spread out."""
    quantization = dict(config["quantization"])
    if quantization["quant_algo"] is None:
        quantization.pop("exclude_modules", None)
        quantization.pop("quantized_layers", None)
    return {key: value for key, value in config.items() if key != "quantization"} | quantization


def compare_tensors(
    case: Case,
    theirs: dict[str, tuple[str, tuple[int, ...]]],
    ours: dict[str, Tensor],
    same: Callable[[str, Tensor], bool],
) -> None:
    """Names, dtypes and shapes are theirs, and values where one follows from the other."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        dtype, shape = theirs[name]
        assert str(tensor.dtype).removeprefix("torch.") == dtype, name
        padded = "AWQ" in case.algo and name in ("lm_head.weight", "transformer.vocab_embedding.weight")
        if padded:
            rows = case.theirs["vocab_size"] // case.tensor
            assert shape == (rows, tensor.shape[1]), name
            assert tensor.shape[0] == -(-case.ours["vocab_size"] // case.tensor), name
        elif shape == ():
            assert tensor.shape == (1,)
            assert case.algo == "NVFP4", SCALARS
        else:
            assert tuple(tensor.shape) == shape, name
        if not padded and equal_in_both_forms(case, name):
            assert same(name, tensor), name


def equal_in_both_forms(case: Case, name: str) -> bool:
    """Whether a tensor of the rank files follows from the checkpoint to the bit."""
    own = name.split(".", 3)[-1]
    if case.algo == "FP8" and own.startswith(("attention.", "mlp.")):
        return "cache_scaling_factor" not in own and not own.endswith(
            ("qkv.weight", "dense.weight", "fc.weight", "gate.weight", "proj.weight")
        )
    if case.algo in ("W4A16_AWQ", "W4A8_AWQ"):
        moved = ("input_layernorm", "post_layernorm", "mlp.fc", "mlp.gate")
        return not own.startswith(moved) and own != "attention.qkv.prequant_scaling_factor"
    return True


def digest(tensor: Tensor) -> str:
    """As `tools/rank_fixtures.py` has it."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(data).hexdigest()[:16]


def json_of(path: Path) -> Any:
    return json.loads(path.read_text())
