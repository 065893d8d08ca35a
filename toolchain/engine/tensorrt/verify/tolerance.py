"""How far a correct rank checkpoint may be from its source, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantize.formats.base import FP8, FP8_ROWWISE, INT8_SQ, MIXED, NVFP4, W4A8_AWQ, W4A16_AWQ
from quantize.formats.checkpoint import QuantizedCheckpoint
from toolchain.engine.tensorrt.decode import SQ_PLUGINS
from toolchain.engine.tensorrt.rank_config import PLAIN_ALGOS, RankConfig
from toolchain.model.checkpoint import TORCH_DTYPES
from toolchain.model.families import layer_prefix

ROUNDING = 1e-4
"""For weights that are equal to the bit. float32 keeps 6e-8; sums of some thousand terms in another order
differ by 1e-6 to 1e-5 in the worst channel, and one wrong row of one linear by about 1."""

# Half the distance of two neighbours, relative: what rounding a weight to the dtype may change.
_UNIT = {"bfloat16": 2.0**-9, "float16": 2.0**-12, "float32": 2.0**-25}
_DTYPE_FACTOR = 8  # linears of a half in a row, and a channel worse than most

# What quantizing changes in Gaussian weights, relative; measured with nvidia-modelopt.
_FORMAT = {
    **dict.fromkeys((FP8, FP8_ROWWISE), 0.03),
    **dict.fromkeys((INT8_SQ, *SQ_PLUGINS), 0.02),
    **dict.fromkeys((W4A16_AWQ, W4A8_AWQ), 0.13),
    NVFP4: 0.1,
}
_FORMAT_FACTOR = 5


@dataclass(frozen=True)
class Tolerance:
    """The largest error of a half layer, relative in its worst channel, and what explains so much."""

    value: float
    why: str

    @property
    def is_rounding(self) -> bool:
        """Whether the ranks hold the very weights of the source."""
        return self.value <= ROUNDING


def tolerance(source: QuantizedCheckpoint, config: RankConfig) -> Tolerance:
    """Of a checkpoint with this `config`, made from `source`."""
    return max(_causes(source, config), key=lambda cause: cause.value)


def _causes(source: QuantizedCheckpoint, config: RankConfig) -> Iterator[Tolerance]:
    yield Tolerance(ROUNDING, "both compute in float32 with the same weights, and add in another order")
    dtype, algo = config.spec.dtype, config.quant_algo
    plain = algo is None or algo in PLAIN_ALGOS
    if (plain and source.form is not None) or _stored_dtype(source) not in (dtype, "float16", "bfloat16"):
        yield _of_dtype(dtype, "the source's weights are rounded to it")
    elif _stored_dtype(source) != dtype and dtype != "float32":
        yield _of_dtype(dtype, f"the source's {_stored_dtype(source)} weights are rounded to it")
    if not plain and source.quant_algo != algo:
        worst = max(_FORMAT.values()) if algo == MIXED else _FORMAT.get(algo or "", 0.13)
        yield Tolerance(
            _FORMAT_FACTOR * worst,
            f"the ranks are {algo}, the source is {source.quant_algo or 'not quantized'}: quantizing changes "
            f"weights by about {worst:.0%}",
        )
    elif algo == FP8 and _scales_differ(source):
        yield Tolerance(
            _FORMAT_FACTOR * _FORMAT[FP8],
            "q, k and v of the source have FP8 scales of their own, and an engine has one for all",
        )


def _of_dtype(dtype: str, why: str) -> Tolerance:
    return Tolerance(_DTYPE_FACTOR * _UNIT[dtype], f"the ranks are stored in {dtype}: {why}")


def _stored_dtype(source: QuantizedCheckpoint) -> str:
    return TORCH_DTYPES[source.checkpoint.dtype("model.norm.weight")]


def _scales_differ(source: QuantizedCheckpoint) -> bool:
    """Whether linears that are fused have FP8 scales that are not one and the same."""
    stored = source.checkpoint
    layer = 0
    while f"{layer_prefix(layer)}self_attn.q_proj.weight" in stored:
        names = [f"{layer_prefix(layer)}self_attn.{which}_proj.weight_scale" for which in "qkv"]
        if all(name in stored for name in names) and len({float(stored.read(n).max()) for n in names}) > 1:
            return True
        layer += 1
    return False
