"""How far a correct rank checkpoint may be from its source, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quantize.formats.base import FP8, FP8_ROWWISE, INT8_SQ, MIXED, NVFP4, W4A8_AWQ, W4A16, W4A16_AWQ
from quantize.formats.checkpoint import QuantizedCheckpoint
from toolchain.engine.tensorrt.decode import SQ_PLUGINS
from toolchain.engine.tensorrt.rank_config import PLAIN_ALGOS, RankConfig
from toolchain.model.checkpoint import TORCH_DTYPES
from toolchain.model.families import FINAL_NORM, layer_prefix, linear_groups
from toolchain.model.spec import ModelSpec

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
_FORMAT_FACTOR = (
    8  # linears of a half in a row, softmax, and a channel worse than most; without relation it is 1.4
)


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
    stored = W4A16_AWQ if source.quant_algo == W4A16 else source.quant_algo
    if not plain and stored != algo:
        worst = max(_FORMAT.values()) if algo == MIXED else _FORMAT.get(algo or "", 0.13)
        yield Tolerance(
            _FORMAT_FACTOR * worst,
            f"the ranks are {algo}, the source is {stored or 'not quantized'}: quantizing changes "
            f"weights by about {worst:.0%}",
        )
    elif algo in (FP8, MIXED) and _scales_differ(source, config.spec):
        yield Tolerance(
            _FORMAT_FACTOR * _FORMAT[FP8],
            "linears that read one input have FP8 scales of their own in the source, and one in an engine",
        )


def _of_dtype(dtype: str, why: str) -> Tolerance:
    return Tolerance(_DTYPE_FACTOR * _UNIT[dtype], f"the ranks are stored in {dtype}: {why}")


def _stored_dtype(source: QuantizedCheckpoint) -> str:
    return TORCH_DTYPES[source.checkpoint.dtype(FINAL_NORM)]


def _scales_differ(source: QuantizedCheckpoint, spec: ModelSpec) -> bool:
    """Whether FP8 linears that an engine fuses have scales that are not one and the same."""
    for layer in range(spec.num_hidden_layers):
        for group in linear_groups(spec, layer):
            modules = [layer_prefix(layer) + member for member in group.members]
            if not all(_algo(source, module) == FP8 for module in modules):
                continue
            names = [f"{module}.weight_scale" for module in modules]
            if len({float(source.read(name)) for name in names}) > 1:
                return True
    return False


def _algo(source: QuantizedCheckpoint, module: str) -> str | None:
    own = source.scheme.linears.get(module)
    return None if own is None else own.quant_algo
