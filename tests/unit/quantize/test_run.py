from collections.abc import Callable
from pathlib import Path

import pytest

from quantize.formats.checkpoint import QuantizedCheckpoint
from quantize.run import planned_scheme, quantize_checkpoint
from toolchain.errors import QuantizeError
from toolchain.text.files import TextFiles


def test_a_recipes_values_reach_the_checkpoint(save_model: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "c.txt"
    text.write_text("some text to calibrate with\n" * 20)
    report = quantize_checkpoint(
        save_model(),
        tmp_path / "out",
        tmp_path / "work",
        config={
            "method": "awq",
            "dtype": "bfloat16",
            "group_size": 16,
            "exclude": ["lm_head", "*.down_proj"],
            "calibration": {"samples": 5, "seq_len": 32, "seed": 3},
        },
        calibration_text=TextFiles.local(text),
    )
    assert report["calibration_tokens"] == 160
    assert report["seed"] == 3
    checkpoint = QuantizedCheckpoint.open(tmp_path / "out")
    assert checkpoint.group_size == 16
    assert "model.layers.1.mlp.down_proj" in checkpoint.exclude_modules


def test_overrides_share_the_fields_of_the_whole(save_model: Callable[..., Path], tmp_path: Path) -> None:
    text = tmp_path / "c.txt"
    text.write_text("some text to calibrate with\n" * 20)
    report = quantize_checkpoint(
        save_model(),
        tmp_path / "out",
        tmp_path / "work",
        config={
            "method": "awq",
            "group_size": 16,
            "clip": False,
            "damp": 0.1,
            "overrides": [
                {"modules": "*.down_proj", "method": "gptq", "group_size": 32},
                {"modules": "*.o_proj", "method": "none", "group_size": None},
            ],
            "device": "cpu",
            "calibration": {"samples": 5, "seq_len": 32, "seed": 3},
        },
        calibration_text=TextFiles.local(text),
        hidden_memory=1,
    )
    down = report["methods"]["model.layers.1.mlp.down_proj"]
    assert (down["method"], down["group_size"], down["clip"], down["damp"]) == ("gptq", 32, False, 0.1)
    assert report["methods"]["model.layers.0.mlp.up_proj"]["method"] == "awq"
    assert "model.layers.0.self_attn.o_proj" in report["excluded"]


def test_none_needs_nothing(save_model: Callable[..., Path], tmp_path: Path) -> None:
    quantize_checkpoint(save_model(), tmp_path / "out", tmp_path / "work", config={"method": "none"})
    assert QuantizedCheckpoint.open(tmp_path / "out").quant_algo is None


def test_another_dtype_than_the_stored_is_refused(save_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match="stored as bfloat16, not as float16"):
        quantize_checkpoint(
            save_model(), tmp_path / "out", tmp_path / "work", config={"method": "none", "dtype": "float16"}
        )


@pytest.mark.parametrize("method", ["none", "int4_wo", "int8_wo", "fp8_rowwise", "gptq"])
def test_the_scheme_is_known_beforehand(method: str, save_model: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("some text to calibrate with\n" * 20)
    config = {
        "method": method,
        "group_size": 32,
        "exclude": ["lm_head"],
        "overrides": [{"modules": "*.down_proj", "method": "none", "group_size": None}],
        "calibration": {"samples": 5, "seq_len": 32, "seed": 3},
    }
    model, text = save_model(), TextFiles.local(tmp_path / "c.txt")
    planned = planned_scheme(model, config)
    quantize_checkpoint(model, tmp_path / "out", tmp_path / "work", config=config, calibration_text=text)
    assert planned is not None
    assert planned.linears == QuantizedCheckpoint.open(tmp_path / "out").scheme.linears
    # Taken as it is, what was quantized stays as it is.
    again = planned_scheme(tmp_path / "out", {"method": "none"})
    assert again is not None
    assert again.linears == planned.linears
