"""`RankLayout`: how a model is cut into ranks, and whether it can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from toolchain.engine.tensorrt.convert.slices import block
from toolchain.errors import PlanError, combined
from toolchain.model.families import layer_examples, layer_mlps, mlp_width
from toolchain.model.spec import ModelSpec


@dataclass(frozen=True)
class RankLayout:
    """Which rank holds what, in TensorRT-LLM's words (its `mapping`).

    The file of a rank is number `tp_rank + pp_rank * tensor`: tensor parallelism varies fastest.

    Args:
        tensor: tp_size: ranks that share every layer.
        pipeline: pp_size: groups of consecutive layers.
        moe_tensor: moe_tp_size: ranks that share every expert; None is derived.
        moe_expert: moe_ep_size: groups of experts; None is derived. Together they make up `tensor`, and
            without either every rank has a part of every expert.
        use_parallel_embedding: whether the embedding table is cut as well, or whole on every rank.
        embedding_sharding_dim: 0 cuts the table by tokens, 1 by channels.
    """

    tensor: int = 1
    pipeline: int = 1
    moe_tensor: int | None = None
    moe_expert: int | None = None
    use_parallel_embedding: bool = True
    embedding_sharding_dim: int = 0

    @property
    def world_size(self) -> int:
        """The number of ranks, and of their files."""
        return self.tensor * self.pipeline

    @property
    def moe_sizes(self) -> tuple[int, int]:
        """moe_tp_size and moe_ep_size, derived where they are not given."""
        if self.moe_tensor is not None:
            expert = self.moe_expert if self.moe_expert is not None else self.tensor // self.moe_tensor
            return self.moe_tensor, expert
        expert = self.moe_expert or 1
        return self.tensor // expert, expert

    def moe_ranks(self, tp_rank: int) -> tuple[int, int]:
        """Of a rank among `tensor`: which part of an expert it has, and of which group of experts."""
        expert = self.moe_sizes[1]
        return tp_rank // expert, tp_rank % expert

    def experts(self, count: int, tp_rank: int) -> range:
        """The experts of a rank, of `count`."""
        own = block(count, self.moe_sizes[1], self.moe_ranks(tp_rank)[1])
        return range(own.start, own.stop)

    def stages(self, layers: int) -> list[range]:
        """The layers of each pipeline stage; the first stages have one more where they do not divide."""
        size, more = divmod(layers, self.pipeline)
        starts = [stage * size + min(stage, more) for stage in range(self.pipeline + 1)]
        return [range(start, stop) for start, stop in pairwise(starts)]

    def file(self, tp_rank: int, stage: int) -> int:
        """The number of a rank's file."""
        return tp_rank + stage * self.tensor

    def mapping(self, *, moe: bool) -> dict[str, int]:
        """The `mapping` of config.json."""
        sizes = {"world_size": self.world_size, "tp_size": self.tensor, "pp_size": self.pipeline}
        if moe:
            sizes["moe_tp_size"], sizes["moe_ep_size"] = self.moe_sizes
        return sizes

    def check(self, spec: ModelSpec) -> None:
        """Raise one PlanError that tells everything of the model that cannot be cut this way."""
        found = list(self._problems(spec))
        if found:
            raise combined(found)

    def _problems(self, spec: ModelSpec) -> Iterator[PlanError]:
        sizes = (self.tensor, self.pipeline, self.moe_tensor or 1, self.moe_expert or 1)
        if min(sizes) < 1:
            yield PlanError(f"parallelism must be at least 1, not {min(sizes)}", where="parallelism")
            return
        if self.embedding_sharding_dim not in (0, 1):
            yield PlanError(
                f"embedding_sharding_dim must be 0 or 1, not {self.embedding_sharding_dim}",
                where="parallelism.embedding_sharding_dim",
            )
        if self.pipeline > spec.num_hidden_layers:
            yield PlanError(
                f"{spec.num_hidden_layers} layers do not make {self.pipeline} pipeline stages",
                where="parallelism.pipeline",
                fix=f"set it to {spec.num_hidden_layers} or less",
            )
        yield from self._attention_problems(spec)
        yield from self._mlp_problems(spec)
        if self.use_parallel_embedding and self.embedding_sharding_dim == 1:
            yield from self._indivisible(spec.hidden_size, "channels of the embedding", self.tensor)

    def _attention_problems(self, spec: ModelSpec) -> Iterator[PlanError]:
        yield from self._indivisible(spec.num_attention_heads, "attention heads", self.tensor)
        heads = spec.num_key_value_heads
        if heads % self.tensor and self.tensor % heads:
            yield PlanError(
                f"{heads} key-value heads can neither be split {self.tensor} ways nor repeated",
                where="parallelism.tensor",
                why="a rank has whole key-value heads, and each head is on equally many ranks",
                fix="choose a number that divides them, or that they divide",
            )

    def _mlp_problems(self, spec: ModelSpec) -> Iterator[PlanError]:
        moe = spec.moe
        if moe is None:
            if (self.moe_tensor or 1) > 1 or (self.moe_expert or 1) > 1:
                yield PlanError(
                    "moe_tensor and moe_expert are set, but the model has no experts",
                    where="parallelism",
                    fix="set them to null",
                )
        elif self.moe_sizes[0] * self.moe_sizes[1] != self.tensor:
            yield PlanError(
                f"moe_tensor {self.moe_sizes[0]} times moe_expert {self.moe_sizes[1]} is not tensor, "
                f"{self.tensor}",
                where="parallelism",
                why="the ranks that share the attention share the experts",
                fix="set one of moe_tensor and moe_expert, which gives the other",
            )
            return
        else:
            yield from self._indivisible(
                moe.num_experts, "experts", self.moe_sizes[1], "parallelism.moe_expert"
            )
        for mlp in {mlp for layer in layer_examples(spec) for mlp in layer_mlps(spec, layer)[:2]}:
            if mlp.expert is None:
                yield from self._indivisible(mlp_width(spec, mlp), "channels of an MLP", self.tensor)
            else:
                yield from self._indivisible(
                    mlp_width(spec, mlp), "channels of an expert", self.moe_sizes[0], "parallelism.moe_tensor"
                )

    def _indivisible(
        self, count: int, what: str, parts: int, where: str = "parallelism.tensor"
    ) -> Iterator[PlanError]:
        if count % parts:
            able = ", ".join(str(n) for n in range(1, min(count, 64) + 1) if count % n == 0)
            yield PlanError(
                f"{count} {what} cannot be split {parts} ways", where=where, fix=f"possible are {able}"
            )

    def to_json(self) -> dict[str, Any]:
        """Its fields."""
        return dict(vars(self))
