"""Which rank has what, and which cuts are refused."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from toolchain.engine.tensorrt.convert import RankLayout
from toolchain.engine.tensorrt.convert.slices import kv_heads, vocabulary_rows
from toolchain.errors import PlanError
from toolchain.model.spec import ModelSpec


@pytest.fixture
def spec_of(make_config: Callable[..., dict[str, Any]]) -> Callable[..., ModelSpec]:
    return lambda family="llama", **changes: ModelSpec.from_config(make_config(family, **changes), "here")


def test_stages_are_as_even_as_can_be() -> None:
    assert RankLayout(pipeline=3).stages(8) == [range(0, 3), range(3, 6), range(6, 8)]
    assert RankLayout(pipeline=4).stages(4) == [range(0, 1), range(1, 2), range(2, 3), range(3, 4)]


def test_key_value_heads_are_repeated_in_runs() -> None:
    assert [kv_heads(2, 8, rank).start for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [(own.start, own.stop) for own in (kv_heads(8, 4, rank) for rank in range(4))] == [
        (0, 2),
        (2, 4),
        (4, 6),
        (6, 8),
    ]


def test_the_last_ranks_may_have_no_tokens() -> None:
    assert [vocabulary_rows(5, 4, rank) for rank in range(4)] == [
        slice(0, 2),
        slice(2, 4),
        slice(4, 5),
        slice(5, 5),
    ]


@pytest.mark.parametrize(
    ("given", "sizes"),
    [((None, None), (8, 1)), ((2, None), (2, 4)), ((None, 4), (2, 4)), ((1, 8), (1, 8))],
)
def test_expert_parallelism_is_derived(given: tuple[int | None, int | None], sizes: tuple[int, int]) -> None:
    assert RankLayout(tensor=8, moe_tensor=given[0], moe_expert=given[1]).moe_sizes == sizes


def test_expert_groups_vary_faster_than_their_parts() -> None:
    layout = RankLayout(tensor=4, moe_expert=2)
    assert [layout.moe_ranks(rank) for rank in range(4)] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [list(layout.experts(4, rank)) for rank in range(4)] == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_mapping_is_what_tensorrt_llm_reads() -> None:
    layout = RankLayout(tensor=4, pipeline=2, moe_expert=2)
    assert layout.mapping(moe=False) == {"world_size": 8, "tp_size": 4, "pp_size": 2}
    assert layout.mapping(moe=True) == layout.mapping(moe=False) | {"moe_tp_size": 2, "moe_ep_size": 2}
    assert RankLayout(**json.loads(json.dumps(layout.to_json()))) == layout


@pytest.mark.parametrize(
    ("family", "layout", "match"),
    [
        ("llama", {"tensor": 3}, "4 attention heads cannot be split 3 ways"),
        ("llama", {"tensor": 64}, "4 attention heads cannot be split 64 ways"),
        ("llama", {"pipeline": 3}, "2 layers do not make 3 pipeline stages"),
        ("llama", {"tensor": 0}, "at least 1, not 0"),
        ("llama", {"embedding_sharding_dim": 2}, "must be 0 or 1, not 2"),
        ("llama", {"moe_expert": 2}, "no experts"),
        ("mixtral", {"tensor": 4, "moe_tensor": 3}, "moe_tensor 3 times moe_expert 1 is not tensor, 4"),
        ("mixtral", {"tensor": 4, "moe_tensor": 4, "moe_expert": 2}, "4 times moe_expert 2 is not tensor"),
    ],
)
def test_what_cannot_be_cut_is_refused(
    family: str, layout: dict[str, int], match: str, spec_of: Callable[..., ModelSpec]
) -> None:
    with pytest.raises(PlanError, match=match):
        RankLayout(**layout).check(spec_of(family))


@pytest.mark.parametrize(
    ("family", "config", "layout", "match"),
    [
        ("llama", {"num_key_value_heads": 4, "num_attention_heads": 12}, {"tensor": 6}, "4 key-value heads"),
        ("llama", {"intermediate_size": 97}, {"tensor": 2}, "97 channels of an MLP"),
        ("llama", {"hidden_size": 63}, {"tensor": 2, "embedding_sharding_dim": 1}, "63 channels of the emb"),
        ("qwen3_moe", {"moe_intermediate_size": 33}, {"tensor": 2}, "33 channels of an expert"),
        ("qwen3_moe", {"num_experts": 3}, {"tensor": 2, "moe_expert": 2}, "3 experts cannot be split 2"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 7}, {"tensor": 2, "moe_expert": 2}, "7 channels"),
    ],
)
def test_sizes_must_divide(
    family: str, config: dict[str, int], layout: dict[str, int], match: str, spec_of: Callable[..., ModelSpec]
) -> None:
    with pytest.raises(PlanError, match=match):
        RankLayout(**layout).check(spec_of(family, **config))


def test_all_problems_are_told_at_once(spec_of: Callable[..., ModelSpec]) -> None:
    with pytest.raises(PlanError, match="attention heads") as caught:
        RankLayout(tensor=5, pipeline=9).check(spec_of())
    assert caught.value.why is not None or "pipeline" in str(caught.value)
    assert "pipeline stages" in str(caught.value)


def test_an_expert_as_narrow_as_one_rank_is_not_split(spec_of: Callable[..., ModelSpec]) -> None:
    RankLayout(tensor=4, moe_expert=4).check(spec_of("qwen3_moe", moe_intermediate_size=3))
