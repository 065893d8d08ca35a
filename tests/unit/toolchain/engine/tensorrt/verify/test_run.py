"""Real processes, each with its own rank file. They are forked from one that has torch, hence fast."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from toolchain.engine.tensorrt.verify.run import verify_ranks
from toolchain.errors import BuildError, ModelError, ToolchainError, UsageError

Tensors = dict[str, torch.Tensor]
QKV = "transformer.layers.{}.attention.qkv.weight"
HEAD_DIM = 16


def edit(ranks: Path, rank: int, change: Callable[[Tensors], None]) -> None:
    file = ranks / f"rank{rank}.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)


@pytest.mark.parametrize(
    ("family", "tp", "pp", "ep", "changes"),
    [
        ("Llama", 1, 1, 1, {"attention_bias": True, "mlp_bias": True}),
        ("Llama", 2, 1, 1, {"attention_bias": True, "mlp_bias": True}),
        ("Mistral", 1, 2, 1, {"num_hidden_layers": 3, "sliding_window": 5}),
        ("Qwen2", 4, 2, 1, {}),
        ("Qwen3", 4, 1, 1, {"num_key_value_heads": 1}),
        ("Mixtral", 4, 1, 2, {}),
        ("Qwen2Moe", 2, 2, 1, {}),
        ("Qwen3Moe", 2, 1, 2, {}),
    ],
)
def test_ranks_are_their_source(
    make_ranks: Any, family: str, tp: int, pp: int, ep: int, changes: dict[str, Any]
) -> None:
    """Sums of a few hundred products in another order: no channel is off by more than 1e-5."""
    source, ranks = make_ranks(family, tp, pp, ep=ep, **changes)
    found = verify_ranks(ranks, source)
    assert found.problem is None
    assert [layer.layer for layer in found.layers] == list(range(changes.get("num_hidden_layers", 2)))
    assert found.layers[-1].stage == pp - 1
    assert max(max(layer.attention, layer.mlp, layer.after) for layer in found.layers) < 1e-5
    assert (found.embedding, found.top1) == (0.0, 1.0)
    assert found.max_logit_difference < 1e-5
    assert found.differences == []


def test_float32_agrees_with_transformers(make_ranks: Any) -> None:
    """The reference itself, so that the two sides are not wrong together."""
    import transformers

    from toolchain.engine.tensorrt.verify.reference import read_ends, write_reference
    from toolchain.gate.streamed import StreamedModel
    from toolchain.progress import Silent

    source, ranks = make_ranks("Qwen2", 2, 1, dtype=torch.float32)
    model = StreamedModel(source, device=torch.device("cpu"), simulate=False)
    tokens = torch.arange(20)
    write_reference(model, tokens, ranks, Silent())
    expected = transformers.AutoModelForCausalLM.from_pretrained(source)(tokens[None]).logits[0]
    torch.testing.assert_close(read_ends(ranks)["logits"], expected, rtol=1e-4, atol=1e-5)


def swap_gate_and_fc(tensors: Tensors) -> None:
    first, second = (f"transformer.layers.1.mlp.{name}.weight" for name in ("fc", "gate"))
    tensors[first], tensors[second] = tensors[second], tensors[first]


def other_key_head(tensors: Tensors) -> None:
    """The second rank's query heads with the first's keys."""
    weight = tensors[QKV.format(0)]
    keys = slice(2 * HEAD_DIM, 3 * HEAD_DIM)
    weight[keys] = weight[keys].roll(HEAD_DIM // 2, 0)


def one_wrong_row(tensors: Tensors) -> None:
    tensors["transformer.layers.1.attention.dense.weight"][7] *= 1.01


def wrong_norm(tensors: Tensors) -> None:
    tensors["transformer.ln_f.weight"][:] = 1


@pytest.mark.parametrize(
    ("ranks_changed", "change", "where"),
    [
        ([1], swap_gate_and_fc, "layer 1, its MLP"),
        ([1], other_key_head, "layer 0, its attention"),
        ([0], one_wrong_row, "layer 1, its attention"),
        ([0, 1], wrong_norm, "the output layer"),
    ],
)
def test_a_wrong_rank_is_caught_and_its_layer_named(
    make_ranks: Any, ranks_changed: list[int], change: Callable[[Tensors], None], where: str
) -> None:
    source, ranks = make_ranks("Llama", 2, 1)
    for rank in ranks_changed:
        edit(ranks, rank, change)
    found = verify_ranks(ranks, source)
    assert found.diverging == [where]
    assert found.problem == f"{where} diverges first"
    assert found.to_json()["passed"] is False


def test_layers_that_are_shifted_are_all_wrong(make_ranks: Any) -> None:
    source, ranks = make_ranks("Llama", 1, 2, num_hidden_layers=4)

    def shift(tensors: Tensors) -> None:
        first, second = "transformer.layers.0.", "transformer.layers.1."
        for name in [name for name in tensors if name.startswith(first)]:
            other = name.replace(first, second)
            tensors[name], tensors[other] = tensors[other], tensors[name]

    edit(ranks, 1, shift)
    found = verify_ranks(ranks, source)
    assert found.diverging[0] == "layer 2, its attention"
    assert [name.split(",")[0] for name in found.diverging] == ["layer 2"] * 2 + ["layer 3"] * 2


def test_other_arithmetic_is_told(make_ranks: Any) -> None:
    source, ranks = make_ranks("Llama", 1, 1)
    config = json.loads((ranks / "config.json").read_text())
    (ranks / "config.json").write_text(json.dumps(config | {"rotary_base": 500000.0}))
    found = verify_ranks(ranks, source)
    assert found.problem == "layer 0, its attention diverges first, then 1 more"
    assert found.differences == ["rope.theta is 500000.0, and 10000.0 in the source"]


def test_a_dtype_that_rounds_is_allowed_for(make_ranks: Any) -> None:
    source, ranks = make_ranks("Llama", 2, 1, dtype=torch.float32)
    config = json.loads((ranks / "config.json").read_text())
    (ranks / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    for rank in range(2):
        edit(ranks, rank, lambda tensors: tensors.update({n: t.bfloat16() for n, t in tensors.items()}))
    found = verify_ranks(ranks, source)
    assert found.problem is None
    assert found.allowed.value == 2.0**-6
    assert max(layer.mlp for layer in found.layers) > 1e-3


def test_what_cannot_be_run(make_ranks: Any, tmp_path: Path) -> None:
    source, ranks = make_ranks("Llama", 2, 1)
    other, _ = make_ranks("Llama", 1, 1, intermediate_size=64)
    with pytest.raises(ModelError, match="were not made from this model") as raised:
        verify_ranks(ranks, other)
    assert "intermediate_size is 96, not 64" in str(raised.value)
    with pytest.raises(UsageError, match="98 is no token"):
        verify_ranks(ranks, source, tokens=[1, 98])
    with pytest.raises(UsageError, match="65 tokens are more than the model's context of 64"):
        verify_ranks(ranks, source, tokens=[1] * 65)
    if torch.cuda.device_count() < 2:
        with pytest.raises(ToolchainError, match="nccl needs a GPU for each of the 2 ranks"):
            verify_ranks(ranks, source, backend="nccl")
    (ranks / "rank1.safetensors").unlink()
    with pytest.raises(ModelError, match="the checkpoint has 1 error"):
        verify_ranks(ranks, source)


def test_a_rank_that_dies_is_told_with_its_last_lines(make_ranks: Any, monkeypatch: Any) -> None:
    from toolchain.engine.tensorrt.verify import launch, rank_process

    source, ranks = make_ranks("Llama", 2, 1)
    monkeypatch.setattr(launch.rank_process, "main", _die)
    with pytest.raises(BuildError, match=r"the process of rank 1 of 2 ended with exit code 7") as raised:
        verify_ranks(ranks, source)
    assert "out of luck" in str(raised.value)
    monkeypatch.setattr(rank_process, "main", _kill)
    with pytest.raises(BuildError, match="rank 1 of 2 was killed by SIGKILL"):
        verify_ranks(ranks, source)


def _die(job: Any, rank: int, report: Any) -> None:
    if rank == 1:
        job.log(rank).write_text("out of luck\n")
        os._exit(7)
    time.sleep(60)


def _kill(job: Any, rank: int, report: Any) -> None:
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


HANG = """
import os, sys
from pathlib import Path
from toolchain.engine.tensorrt.rank_config import load_rank_config
from toolchain.engine.tensorrt.verify.launch import Job, run_ranks
if __name__ == "__main__":
    ranks, work = map(Path, sys.argv[1:])
    job = Job(ranks, work, load_rank_config(ranks).spec, 2, "gloo")
    (ranks / "config.json").unlink()
    os.mkfifo(ranks / "config.json")  # the ranks wait there for ever
    run_ranks(job, print)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_one_that_started_it(
    make_ranks: Any, tmp_path: Path, signum: signal.Signals
) -> None:
    _, ranks = make_ranks("Llama", 2, 1)
    script, work = tmp_path / "hang.py", tmp_path / "work"
    script.write_text(HANG)
    work.mkdir()
    starter = subprocess.Popen(
        [sys.executable, str(script), str(ranks), str(work)], start_new_session=True, cwd=Path.cwd(),
        env=os.environ | {"PYTHONPATH": str(Path.cwd())}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        # The starter, multiprocessing's tracker and fork server, two ranks.
        wait_until(lambda: len(members(starter.pid)) == 5)
        starter.send_signal(signum)
        starter.wait(30)
        wait_until(lambda: not members(starter.pid))
    finally:
        for pid in members(starter.pid):
            os.kill(pid, signal.SIGKILL)


def members(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
