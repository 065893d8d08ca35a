from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from deploy.check import check_repository
from deploy.pbtxt import read_config, write_config
from deploy.repositories.openvino import RepositorySettings, render_openvino
from toolchain.errors import PackageError

GOLDEN = Path(__file__).parents[3] / "golden/triton_repo/openvino"
GRAPH = """<?xml version="1.0"?>
<net name="tiny" version="11">
<layers>
<layer id="0" name="input_ids" type="Parameter" version="opset1"/>
<layer id="1" name="logits/sink_port_0" type="Result" version="opset1">
<input><port id="0" precision="FP32"><dim>-1</dim><dim>-1</dim><dim>{vocab_size}</dim></port></input>
</layer>
</layers>
</net>
"""


@pytest.fixture
def settings(tmp_path: Path) -> RepositorySettings:
    """A repository around an engine that has the right shape and nothing inside."""
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "openvino_model.xml").write_text(GRAPH.format(vocab_size=64))
    (engine / "openvino_model.bin").write_bytes(b"weights")
    (engine / "config.json").write_text('{"max_position_embeddings": 512}')
    words = {f"w{index}": index for index in range(60)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(engine / "tokenizer.json"))
    return RepositorySettings(
        engine_dir=engine,
        tokenizer_dir=engine,
        vocab_size=64,
        end_ids=(2, 3),
        pad_id=0,
        max_seq_len=512,
        max_batch_size=4,
        max_queue_size=16,
        plugin_properties={"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"},
    )


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_configurations_are_the_golden_ones(settings: RepositorySettings, tmp_path: Path) -> None:
    render_openvino(tmp_path / "repository", settings)
    for config in sorted((tmp_path / "repository").glob("*/config.pbtxt")):
        golden = GOLDEN / f"{config.parent.name}.pbtxt"
        assert config.read_text() == golden.read_text(), f"{golden.name} differs"


def test_the_same_settings_give_the_same_bytes(settings: RepositorySettings, tmp_path: Path) -> None:
    render_openvino(tmp_path / "one", settings)
    render_openvino(tmp_path / "two", settings)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_it_is_whole_and_takes_no_second_copy(settings: RepositorySettings, tmp_path: Path) -> None:
    render_openvino(tmp_path / "repository", settings)
    engine = tmp_path / "repository/tensorrt_llm/1/engine/openvino_model.bin"
    assert engine.stat().st_ino == (settings.engine_dir / "openvino_model.bin").stat().st_ino
    shutil.move(tmp_path / "repository", tmp_path / "elsewhere")
    shutil.rmtree(settings.engine_dir)
    check_repository(tmp_path / "elsewhere")
    paths = [path for path in tree(tmp_path / "elsewhere") if path.endswith("config.pbtxt")]
    assert len(paths) == 5
    assert not any(str(tmp_path) in (tmp_path / "elsewhere" / path).read_text() for path in paths)


def test_a_directory_in_use_is_refused(settings: RepositorySettings, tmp_path: Path) -> None:
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository/file").touch()
    with pytest.raises(PackageError, match="is not empty"):
        render_openvino(tmp_path / "repository", settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 65}, "vocab_size is 65, that of the engine 64"),
        ({"vocab_size": 50}, "the tokenizer has token 59, the model's vocabulary only 50"),
        ({"max_seq_len": 600}, "max_seq_len 600 exceeds the model's context 512"),
        ({"max_tokens_in_paged_kv_cache": 100}, "is less than one sequence of max_seq_len 512"),
        ({"end_ids": (64,)}, "end or pad id 64 is not in the vocabulary"),
        ({"batch_scheduler_policy": "static_batch"}, "batch_scheduler_policy must be one of"),
        ({"max_num_tokens": 2, "enable_chunked_context": False}, "must be max_batch_size 4 or more"),
        ({"max_num_tokens": 0}, "max_num_tokens must be 1 or more"),
        ({"plugin_properties": {"NUM_STREAMS": 1}}, "must be a JSON object of strings"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    settings: RepositorySettings, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(PackageError) as refused:
        render_openvino(tmp_path / "repository", dataclasses.replace(settings, **change))
    assert message in str(refused.value)


def _edit(model: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def apply(repository: Path) -> None:
        path = repository / model / "config.pbtxt"
        config = read_config(path)
        change(config)
        write_config(config, path)

    return apply


def _remove(path: str) -> Callable[[Path], None]:
    return lambda repository: (repository / path).unlink()


def _write(path: str, text: str) -> Callable[[Path], None]:
    return lambda repository: (repository / path).write_text(text) and None


def _rename_step_input(config: Any) -> None:
    step = config.ensemble_scheduling.step[1]
    step.input_map["runtime_topk"] = step.input_map.pop("runtime_top_k")


def _retype_input(config: Any) -> None:
    next(tensor for tensor in config.input if tensor.name == "max_tokens").data_type = 9


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (_remove("preprocessing/1/model.py"), "preprocessing: 1/model.py is missing"),
    (_remove("postprocessing/config.pbtxt"), "postprocessing: cannot read config.pbtxt"),
    (_remove("tensorrt_llm/1/engine/openvino_model.bin"), "openvino_model.bin missing in"),
    (_remove("preprocessing/1/tokenizer/tokenizer.json"), "there is no tokenizer.json"),
    (_write("tensorrt_llm/1/engine.py", "def ("), "tensorrt_llm: 1/engine.py:1: "),
    (_write("ensemble/config.pbtxt", 'name: "ensemble" max_batch: 3'), "not a Triton model configuration"),
    (_write("preprocessing/1/tokenizer/tokenizer.json", "{"), "the tokenizer cannot be read"),
    (_edit("ensemble", lambda c: setattr(c, "name", "text")), "config.pbtxt is of a model named 'text'"),
    (_edit("ensemble", lambda c: setattr(c, "max_batch_size", 2)), "max_batch_size differs"),
    (_edit("ensemble", lambda c: c.ClearField("model_transaction_policy")), "decoupled differs"),
    (_edit("ensemble", _rename_step_input), "tensorrt_llm has no input 'runtime_topk'"),
    (_edit("ensemble", _retype_input), "preprocessing.REQUEST_OUTPUT_LEN and the source of 'max_tokens'"),
    (
        _edit("ensemble", lambda c: c.ensemble_scheduling.step[0].output_map.pop("INPUT_ID")),
        "tensorrt_llm.input_ids takes '_INPUT_ID', which nothing makes",
    ),
    (
        _edit("ensemble", lambda c: c.ensemble_scheduling.step[1].input_map.pop("input_lengths")),
        "required input tensorrt_llm.input_lengths is not connected",
    ),
    (
        _edit("ensemble", lambda c: setattr(c.ensemble_scheduling.step[0], "model_name", "tokenize")),
        "step 'tokenize' is no model of this repository",
    ),
    (
        _edit("tensorrt_llm", lambda c: setattr(c.parameters["max_seq_len"], "string_value", "${x}")),
        "parameter max_seq_len is '${x}', not a number",
    ),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_damage_is_found(
    settings: RepositorySettings, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    repository = tmp_path / "repository"
    render_openvino(repository, settings)
    damage(repository)
    with pytest.raises(PackageError) as found:
        check_repository(repository)
    assert message in str(found.value)


def test_all_problems_are_told_at_once(settings: RepositorySettings, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    render_openvino(repository, settings)
    _remove("preprocessing/1/model.py")(repository)
    _remove("postprocessing/1/model.py")(repository)
    with pytest.raises(PackageError, match=r"2 problem\(s\)"):
        check_repository(repository)


def test_without_streaming_nothing_is_decoupled(settings: RepositorySettings, tmp_path: Path) -> None:
    render_openvino(tmp_path / "repository", dataclasses.replace(settings, streaming=False))
    for path in (tmp_path / "repository").glob("*/config.pbtxt"):
        assert not read_config(path).model_transaction_policy.decoupled
