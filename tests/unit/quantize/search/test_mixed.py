"""Budgets kept to the byte and as measured, and the table that the choice was made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from quantize.calibration import Calibration
from quantize.driver import Machine, quantize_model
from quantize.formats.checkpoint import FORMATS, QuantizedCheckpoint
from quantize.layer import DecoderLayer, rotary_tables
from quantize.linear import QuantizedLinear
from quantize.methods.awq import Awq
from quantize.methods.base import Method
from quantize.methods.gptq import Gptq
from quantize.search.mixed import Budget, Search, quantize_searched
from quantize.selection import Override
from toolchain.errors import QuantizeError
from toolchain.model.checkpoint import Checkpoint
from toolchain.model.families import EMBEDDING, layer_prefix, layer_tensors
from toolchain.model.spec import load_spec

CALIBRATION = Calibration("test", torch.randint(96, (6, 24), generator=torch.Generator().manual_seed(0)), 0)
CANDIDATES: Mapping[str, Method | None] = {"awq": Awq(16), "gptq": Gptq(32), "none": None}


def searched(
    source: Path, root: Path, budget: Budget, divergence: Any = None, **changes: Any
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "search": Search(CANDIDATES, budget, divergence),
        "calibration": CALIBRATION,
        "exclude": ["lm_head"],
        "overrides": [],
        "kv_cache": None,
        "form": FORMATS["modelopt"],
        "machine": Machine("cpu"),
    }
    return quantize_searched(source, root / "out", root / "work", **settings | changes)


def stored_bytes(directory: Path) -> int:
    checkpoint = Checkpoint.open(directory)
    return sum(checkpoint.location(name).nbytes for name in checkpoint.names)


def linear_bytes(directory: Path) -> int:
    checkpoint = Checkpoint.open(directory)
    return sum(checkpoint.location(name).nbytes for name in checkpoint.names if "_proj." in name)


def test_a_budget_in_bytes_is_kept_and_used(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source = save_model()
    limit = int(stored_bytes(source) * 0.6)
    report = searched(source, tmp_path, Budget(max_bytes=limit))
    stored = stored_bytes(tmp_path / "out")
    smallest = min(unit["weights"] for unit in report["search"]["units"])
    assert limit - 2 * smallest < stored <= limit  # no unit could have been left plain beside
    assert report["search"]["bytes"] == linear_bytes(tmp_path / "out")
    written = json.loads((tmp_path / "out/quantization_report.json").read_text("utf-8"))
    assert written["search"] == report["search"]
    assert {unit["kind"] for unit in written["search"]["units"]} == {"qkv", "o", "gate_up", "down"}


def test_a_budget_in_bits_counts_the_searched_linears(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model()
    fixed = [Override("*.o_proj", Awq(16))]
    report = searched(
        source, tmp_path, Budget(max_bits=9.0), exclude=["model.layers.0.self_attn.[qkv]_proj"],
        overrides=fixed,
    )  # fmt: skip
    found = report["search"]
    weights = sum(unit["weights"] for unit in found["units"])
    assert 8 * found["bytes"] / weights <= 9
    assert found["bits_per_weight"] == pytest.approx(8 * found["bytes"] / weights, abs=1e-6)
    names = {name for unit in found["units"] for name in unit["linears"]}
    assert not any("o_proj" in name for name in names)
    assert "model.layers.0.self_attn.q_proj" not in names
    assert "model.layers.1.self_attn.q_proj" in names
    chosen = {name: unit["chosen"] for unit in found["units"] for name in unit["linears"]}
    for name, method in chosen.items():
        assert (name in report["excluded"]) == (method == "none")


@pytest.mark.parametrize("form", ["modelopt", "compressed-tensors"])
def test_errors_are_those_of_the_layer_as_it_is_stored(
    form: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The pass says of every group alone what the driver then writes of it alone."""
    source, methods = save_model(), {"awq": Awq(16), "none": None}
    report = searched(
        source, tmp_path, Budget(max_bits=16.0), search=Search(methods, Budget(max_bits=16.0)),
        form=FORMATS[form],
    )  # fmt: skip
    spec = load_spec(source)
    hidden = torch.nn.functional.embedding(
        CALIBRATION.tokens, Checkpoint.open(source).view(EMBEDDING)
    ).float()
    rotary = rotary_tables(spec, hidden.shape[1], torch.float32)
    right = DecoderLayer(spec, 0, plain_layer(source)).forward(hidden, rotary)
    for unit in report["search"]["units"][:4]:
        out = tmp_path / unit["kind"]
        quantize_model(
            source, out, tmp_path / f"{unit['kind']}-work", method=None, calibration=CALIBRATION,
            overrides=[Override(name, Awq(16)) for name in unit["linears"]], form=FORMATS[form],
            machine=Machine("cpu"),
        )  # fmt: skip
        moved = DecoderLayer(spec, 0, plain_layer(out)).forward(hidden, rotary) - right
        error = float((moved.square().sum(-1) / right.square().sum(-1)).mean())
        assert unit["candidates"]["awq"]["error"] == pytest.approx(error, rel=0.15), unit["kind"]


def plain_layer(directory: Path) -> dict[str, torch.Tensor]:
    """The tensors of layer 0 in float32, dequantized."""
    checkpoint, prefix = QuantizedCheckpoint.open(directory), layer_prefix(0)
    tensors = {}
    for name in layer_tensors(load_spec(directory), 0):
        module = name.removesuffix(".weight")
        linear = checkpoint.linear(prefix + module) if "_proj" in name else checkpoint.read(prefix + name)
        tensors[name] = linear.dequantize() if isinstance(linear, QuantizedLinear) else linear.float()
    return tensors


def test_errors_grow_with_coarseness_and_are_none_without_rounding(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    candidates = {"fine": Awq(16, clip=False), "coarse": Awq(32, clip=False), "none": None}
    report = searched(
        save_model(), tmp_path, Budget(max_bits=16.0), search=Search(candidates, Budget(max_bits=16.0))
    )
    for unit in report["search"]["units"]:
        assert unit["chosen"] == "none"
        found = unit["candidates"]
        assert found["none"]["error"] == 0 < found["fine"]["error"]
        assert found["fine"]["bytes"] > found["coarse"]["bytes"]
    total = {
        name: sum(u["candidates"][name]["error"] for u in report["search"]["units"]) for name in candidates
    }
    assert total["fine"] < total["coarse"]


def test_states_on_the_disk_measure_the_same(save_model: Callable[..., Path], tmp_path: Path) -> None:
    source, budget = save_model(), Budget(max_bits=8.0)
    here = searched(source, tmp_path / "here", budget)
    disk = searched(source, tmp_path / "disk", budget, machine=Machine("cpu", hidden_memory=1))
    assert disk["search"] == here["search"]


def test_what_cannot_be_that_small_is_refused(save_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"take .* bytes at least, and the budget leaves them"):
        searched(save_model(), tmp_path, Budget(max_bits=3.0))
    assert not (tmp_path / "out").exists()


def test_an_interrupted_search_goes_on_and_ends_the_same(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_model()
    whole = searched(source, tmp_path / "whole", Budget(max_bits=8.0))

    class KilledError(Exception):
        pass

    class Dying:
        advanced = 0

        def start(self, label: str, total: int, unit: str = "steps", done: int = 0) -> None:
            self.done = done

        def advance(self, amount: int = 1) -> None:
            self.advanced += 1
            if self.advanced == 1:
                raise KilledError

        def note(self, text: str) -> None:
            pass

    with pytest.raises(KilledError):
        searched(source, tmp_path / "again", Budget(max_bits=8.0), events=Dying())
    assert (tmp_path / "again/work/sensitivity/units-00000.json").exists()
    again = searched(source, tmp_path / "again", Budget(max_bits=8.0))
    assert again["search"] == whole["search"]
    one, other = (tmp_path / name / "out/model.safetensors" for name in ("whole", "again"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("factor", [0.3, 40.0])
def test_a_budget_of_divergence_is_kept_as_measured(
    factor: float, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    """Divergence here is a known function of what was quantized, not quite that which the search assumes."""
    measured: list[tuple[int, float]] = []

    def divergence(directory: Path) -> float:
        report = json.loads((directory / "quantization_report.json").read_text("utf-8"))
        found: float = factor * report["search"]["error"] ** 1.1
        measured.append((linear_bytes(directory), found))
        return found

    report = searched(save_model(), tmp_path, Budget(max_kl=0.02), divergence)
    kl = report["search"]["kl"]
    assert kl <= 0.02
    within = [size for size, found in measured if found <= 0.02]
    assert linear_bytes(tmp_path / "out") == min(within)
    assert len(measured) == len(report["search"]["rounds"]) <= 4
    assert measured[0][1] <= 0.02 or kl > 0.005  # not all at once left plain


def test_candidates_that_cannot_reach_the_divergence(save_model: Callable[..., Path], tmp_path: Path) -> None:
    candidates = {"awq": Awq(16), "coarse": Awq(32)}
    search = Search(candidates, Budget(max_kl=1e-9), lambda directory: 1.0)
    with pytest.raises(QuantizeError, match="no choice among the candidates keeps the KL divergence"):
        searched(save_model(), tmp_path, search.budget, search=search)
