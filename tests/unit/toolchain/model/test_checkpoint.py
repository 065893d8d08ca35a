"""Lazy weights: what is read back, what is refused, and that memory stays flat."""

from __future__ import annotations

import gc
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from toolchain.errors import ModelError
from toolchain.model.checkpoint import TORCH_DTYPES, Checkpoint, weight_files
from toolchain.model.safetensors_file import ITEM_SIZES
from toolchain.model.spec import load_spec

INDEX = "model.safetensors.index.json"


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal to the bit, NaN included."""
    if (left.dtype, left.shape) != (right.dtype, right.shape):
        return False
    flat = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return torch.equal(*flat)


@pytest.fixture
def single(llama_dir: Path, tmp_path: Path) -> Path:
    """A copy of the single-file model that a test may damage."""
    return Path(shutil.copytree(llama_dir, tmp_path / "model"))


@pytest.fixture
def sharded(sharded_dir: Path, tmp_path: Path) -> Path:
    """A copy of the sharded model that a test may damage."""
    return Path(shutil.copytree(sharded_dir, tmp_path / "model"))


def rewrite(model_dir: Path, **changes: torch.Tensor | None) -> None:
    """Replace, add or (with None) drop tensors of a single-file model."""
    path = model_dir / "model.safetensors"
    tensors = load_file(path) | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_dtype_tables_agree() -> None:
    assert TORCH_DTYPES.keys() == ITEM_SIZES.keys()
    for name, dtype in TORCH_DTYPES.items():
        assert getattr(torch, dtype).itemsize == ITEM_SIZES[name]


@pytest.mark.parametrize("fixture", ["llama_dir", "sharded_dir"])
def test_reads_what_was_saved(fixture: str, request: pytest.FixtureRequest, make_model) -> None:
    model_dir = request.getfixturevalue(fixture)
    checkpoint = Checkpoint.open(model_dir)
    state = make_model("llama").state_dict()
    assert set(checkpoint.names) == set(state)
    assert len(checkpoint) == len(state)
    assert len(checkpoint.files) == (1 if fixture == "llama_dir" else len(set(checkpoint.files)))
    assert set(checkpoint.files) == set(weight_files(model_dir))
    for name, tensor in state.items():
        assert checkpoint.dtype(name) == "BF16"
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert same_bytes(checkpoint.read(name), tensor)
        assert same_bytes(checkpoint.view(name), tensor)
        where = checkpoint.location(name)
        content = where.file.read_bytes()[where.offset :][: where.nbytes]
        assert content == bytes(tensor.contiguous().view(torch.uint8).numpy().data)
    checkpoint.verify(load_spec(model_dir))
    checkpoint.check_finite()


def test_sharded_model_really_is(sharded_dir: Path) -> None:
    assert len(Checkpoint.open(sharded_dir).files) > 2


DTYPES = sorted(TORCH_DTYPES)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__"),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    ),
    st.randoms(use_true_random=False),
)
def test_any_tensors_round_trip(tmp_path_factory: pytest.TempPathFactory, layout, random) -> None:
    tensors = {}
    for name, (dtype, shape) in layout.items():
        count = int(torch.Size(shape).numel())
        raw = torch.tensor(list(random.randbytes(count * ITEM_SIZES[dtype])), dtype=torch.uint8)
        if dtype == "BOOL":
            raw &= 1
        tensors[name] = raw.view(getattr(torch, TORCH_DTYPES[dtype])).reshape(shape)
    directory = tmp_path_factory.mktemp("round-trip")
    save_file(tensors, directory / "model.safetensors")
    checkpoint = Checkpoint.open(directory)
    assert set(checkpoint.names) == set(tensors)
    for name, tensor in load_file(directory / "model.safetensors").items():
        assert same_bytes(checkpoint.read(name), tensor)
        assert same_bytes(checkpoint.view(name), tensor)


def test_unaligned_tensors_are_copied(tmp_path: Path) -> None:
    header = json.dumps({"t": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    header += b" " * ((5 - len(header)) % 8)  # the data begin at an odd byte
    values = torch.tensor([1.5, -2.0])
    (tmp_path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(values.view(torch.uint8).numpy().data)
    )
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.location("t").offset % 4
    assert torch.equal(checkpoint.view("t"), values)
    assert torch.equal(checkpoint.read("t"), values)


def test_writing_to_a_view_never_reaches_the_file(single: Path) -> None:
    before = (single / "model.safetensors").read_bytes()
    view = Checkpoint.open(single).view("model.norm.weight")
    view.fill_(7)
    assert view[0] == 7
    assert (single / "model.safetensors").read_bytes() == before


def test_tensors_outlive_the_checkpoint(llama_dir: Path) -> None:
    view = Checkpoint.open(llama_dir).view("model.norm.weight")
    gc.collect()
    assert torch.equal(view, torch.ones(32, dtype=torch.bfloat16))


def resident_bytes() -> int:
    """All of this process's resident memory, mapped files included."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_reading_does_not_grow_resident_memory(tmp_path: Path) -> None:
    each = 4 << 20
    tensors = {f"t{i}": torch.full((each,), i, dtype=torch.uint8) for i in range(24)}
    save_file(tensors, tmp_path / "model.safetensors")
    del tensors
    checkpoint = Checkpoint.open(tmp_path)
    checkpoint.read("t0")
    before = resident_bytes()
    for index in range(24):
        assert checkpoint.read(f"t{index}")[-1] == index
    checkpoint.check_finite()
    assert resident_bytes() - before < 4 * each


def test_unknown_tensor(llama_dir: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no tensor lm_tail\.weight"):
        Checkpoint.open(llama_dir).read("lm_tail.weight")


class TestNoWeights:
    def test_empty_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=f"there is neither model.safetensors nor {INDEX}"):
            Checkpoint.open(tmp_path)

    def test_absent_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="there is no such model directory"):
            Checkpoint.open(tmp_path / "absent")

    def test_pickles_only(self, tmp_path: Path) -> None:
        (tmp_path / "pytorch_model.bin").touch()
        with pytest.raises(ModelError, match=r"(?s)pytorch_model\.bin: a pickle.*save_pretrained"):
            Checkpoint.open(tmp_path)

    def test_shards_without_index(self, sharded: Path) -> None:
        (sharded / INDEX).unlink()
        with pytest.raises(ModelError, match=r"(?s)no index says how they belong together.*download model"):
            Checkpoint.open(sharded)


class TestIndex:
    def change(self, model_dir: Path, **changes: str | None) -> None:
        path = model_dir / INDEX
        index = json.loads(path.read_text())
        index["weight_map"] |= changes
        index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v is not None}
        path.write_text(json.dumps(index))

    def test_missing_file(self, sharded: Path) -> None:
        names = sorted(path.name for path in sharded.glob("*.safetensors"))[:2]
        for name in names:
            (sharded / name).unlink()
        with pytest.raises(ModelError, match=f"(?s)names 2 files that are not there.*{names[0]}, {names[1]}"):
            Checkpoint.open(sharded)

    def test_tensor_that_its_file_lacks(self, sharded: Path) -> None:
        name = weight_files(sharded)[0].name
        self.change(sharded, **{"model.ghost.weight": name})
        with pytest.raises(ModelError, match=f"{name} lacks model.ghost.weight"):
            Checkpoint.open(sharded)

    def test_tensor_that_it_does_not_list(self, sharded: Path) -> None:
        self.change(sharded, **{"model.norm.weight": None})
        with pytest.raises(ModelError, match=r"holds model\.norm\.weight, which the index does not list"):
            Checkpoint.open(sharded)

    def test_tensor_in_two_files(self, sharded: Path) -> None:
        first, *_, last = weight_files(sharded)
        tensors = load_file(last)
        name = next(iter(load_file(first)))
        save_file(tensors | {name: load_file(first)[name]}, last)
        with pytest.raises(ModelError, match=f"{last.name} holds {name}, which the index assigns to another"):
            Checkpoint.open(sharded)

    @pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "", "a\0b", 3, None, []])
    def test_only_names_of_files_beside_it(self, tmp_path: Path, name: object) -> None:
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"t": name}}))
        with pytest.raises(ModelError, match=r"assigns t to .*, which is not a file name"):
            Checkpoint.open(tmp_path)

    @pytest.mark.parametrize("content", ["{}", '{"weight_map": []}', '{"weight_map": {}}', "[]", "{", ""])
    def test_damaged(self, tmp_path: Path, content: str) -> None:
        (tmp_path / INDEX).write_text(content)
        with pytest.raises(ModelError, match=r"no `weight_map`|must hold a JSON object|not valid JSON"):
            Checkpoint.open(tmp_path)

    def test_truncated_shard(self, sharded: Path) -> None:
        shard = weight_files(sharded)[1]
        shard.write_bytes(shard.read_bytes()[:-1])
        with pytest.raises(ModelError, match=f"(?s){shard.name}: the weights file is truncated"):
            Checkpoint.open(sharded)

    def test_single_file_wins(self, single: Path) -> None:
        (single / INDEX).write_text("{}")
        assert Checkpoint.open(single).files == (single / "model.safetensors",)


class TestVerify:
    def test_every_variant(self, variant: str, make_model, tmp_path: Path) -> None:
        make_model(variant).save_pretrained(tmp_path)
        Checkpoint.open(tmp_path).verify(load_spec(tmp_path))

    def test_every_variant_with_experts(self, moe_variant: str, make_model, tmp_path: Path) -> None:
        make_model(moe_variant).save_pretrained(tmp_path)
        Checkpoint.open(tmp_path).verify(load_spec(tmp_path))

    @pytest.mark.parametrize(
        "name",
        ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "block_sparse_moe.experts.down_proj.weight"],
    )
    def test_fused_experts_are_refused_with_the_way_out(self, make_model, tmp_path: Path, name: str) -> None:
        make_model("mixtral").save_pretrained(tmp_path)
        rewrite(tmp_path, **{f"model.layers.0.{name}": torch.zeros(3, 32, 48)})
        with pytest.raises(ModelError, match=r"(?s)experts are stored fused.*save_pretrained") as caught:
            Checkpoint.open(tmp_path).verify(load_spec(tmp_path))
        assert caught.value.where == f"{tmp_path}: model.layers.0.{name}"

    def test_all_differences_come_together(self, single: Path) -> None:
        rewrite(
            single,
            **{
                "model.norm.weight": None,
                "model.layers.1.mlp.up_proj.weight": torch.zeros(48, 31),
                "model.layers.0.self_attn.q_proj.bias": torch.zeros(32),
                "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),
            },
        )
        with pytest.raises(ModelError, match="not those of the LlamaForCausalLM") as caught:
            Checkpoint.open(single).verify(load_spec(single))
        assert caught.value.why == (
            "1 missing: model.norm.weight; "
            "1 not part of the model: model.layers.0.self_attn.q_proj.bias; "
            "1 of another shape: model.layers.1.mlp.up_proj.weight is [48, 31], expected [48, 32]"
        )

    def test_long_lists_are_cut(self, single: Path) -> None:
        rewrite(single, **{name: None for name in Checkpoint.open(single).names if "layers.1." in name})
        with pytest.raises(ModelError, match=r"9 missing: (model\S+, ){4}model\S+ and 4 more"):
            Checkpoint.open(single).verify(load_spec(single))

    def test_head_of_a_tied_model_may_be_stored(self, make_model, tmp_path: Path) -> None:
        make_model("llama, tied").save_pretrained(tmp_path)
        spec = load_spec(tmp_path)
        assert "lm_head.weight" not in Checkpoint.open(tmp_path)
        Checkpoint.open(tmp_path).verify(spec)
        embedding = Checkpoint.open(tmp_path).read("model.embed_tokens.weight")
        rewrite(tmp_path, **{"lm_head.weight": embedding})
        Checkpoint.open(tmp_path).verify(spec)
        other = embedding.clone()
        other[-1, -1] += 1
        rewrite(tmp_path, **{"lm_head.weight": other})
        with pytest.raises(ModelError, match="the two are stored with different values"):
            Checkpoint.open(tmp_path).verify(spec)
        rewrite(tmp_path, **{"lm_head.weight": embedding.float()})
        with pytest.raises(ModelError, match="the two are stored with different values"):
            Checkpoint.open(tmp_path).verify(spec)
        rewrite(tmp_path, **{"lm_head.weight": embedding[1:].clone()})
        with pytest.raises(ModelError, match=r"1 of another shape: lm_head\.weight"):
            Checkpoint.open(tmp_path).verify(spec)

    def test_head_of_an_untied_model_is_required(self, single: Path) -> None:
        rewrite(single, **{"lm_head.weight": None})
        with pytest.raises(ModelError, match=r"1 missing: lm_head\.weight"):
            Checkpoint.open(single).verify(load_spec(single))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(length=st.integers(0, 3000))
def test_truncated_anywhere_on_opening(tmp_path: Path, length: int) -> None:
    content = save({"t": torch.zeros(2800, dtype=torch.uint8), "u": torch.zeros(16)})
    (tmp_path / "model.safetensors").write_bytes(content[: min(length, len(content) - 1)])
    with pytest.raises(ModelError, match="truncated"):
        Checkpoint.open(tmp_path)
