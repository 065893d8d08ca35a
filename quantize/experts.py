"""The experts of a sparse layer, quantized one at a time, each on the tokens that the router sends to it.

Only one expert's weights and statistics are in memory. What experts read comes from the norm before all of
them, and a scale of AWQ's that goes into that norm must suit everything that reads it. So it is found once a
layer, over all tokens and a sample of every expert's rows, and rounded to powers of two: then norm, routers
and experts take it without any rounding, and not one token goes to another expert than before. The down
projections get no scale, since engines read one pre_quant_scale for all experts of a layer.

Shapes: T tokens of the calibration set; E tokens of one expert; H hidden_size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from quantize.layer import Routing
from quantize.methods.base import Group
from quantize.methods.candidates import Folding
from quantize.methods.statistics import InputStatistics
from quantize.states import States
from toolchain.model.families import Mlp, mlp_groups, routers

if TYPE_CHECKING:
    from quantize.layer_run import LayerRun

# An expert with fewer tokens is quantized on tokens of the whole layer: so few say little of those to come.
FEW_TOKENS = 32
# On so many of them.
_LAYER_TOKENS = 8192
# Rows of all experts together by which the layer's scale is chosen.
_SAMPLED_ROWS = 8192
_NORM = "post_attention_layernorm"


class ExpertsRun:
    """The experts of one layer, on their way to being quantized.

    Args:
        run: the layer, its attention already quantized.
        hidden: what enters the layer.
        spare: other states, at least as wide, whose values nobody needs when the inputs have been read.
    """

    def __init__(self, run: LayerRun, hidden: States, spare: States) -> None:
        self.run, self.hidden, self.spare = run, hidden, spare
        first, length = hidden.batches[0], hidden.values.shape[1]
        self.chunk = (first.stop - first.start) * length
        self.hidden_TH = hidden.values.flatten(0, 1)
        self.scale_facts: dict[str, Any] = {}

    def quantize(self, inputs: Iterator[Tensor]) -> None:
        """Quantize; `hidden` becomes what leaves the layer.

        Args:
            inputs: what the experts read, batch by batch; when they are through, `hidden` is the residual
                stream after the attention.
        """
        run, method = self.run, self._folding_method()
        statistics = None if method is None else self._observe(method)
        parts = []
        for x_BSH in inputs:
            x_EH = x_BSH.flatten(0, 1)
            parts.append(run.layer.route(x_EH).cpu())
            if statistics is not None:
                statistics.update(x_EH)
        routing = Routing.joined(parts)
        self.hidden.settle()
        if method is not None and statistics is not None:
            self._fold(method, statistics)

        # The attention contexts are used up: their memory takes the sum of the experts' answers.
        sum_TH = self.spare.values.view(-1)[: self.hidden_TH.numel()].view(self.hidden_TH.shape).zero_()
        reached: dict[Mlp, int] = {}
        for mlp in run.layer.mlps:
            tokens_E, weights_E = routing.of(mlp)
            reached[mlp] = len(tokens_E)
            with run.holding(mlp):
                self._quantize_mlp(mlp, tokens_E)
                for part in self._parts(tokens_E):
                    own_E = weights_E[part].to(run.settings.device)
                    activated_EF = run.layer.activate(self._input(tokens_E[part]), mlp)
                    answer_EH = run.layer.answer(activated_EF, own_E, mlp)
                    sum_TH.index_add_(0, tokens_E[part], answer_EH.to(sum_TH.device))
        self.hidden_TH += sum_TH
        self._note(reached)

    def _quantize_mlp(self, mlp: Mlp, tokens_E: Tensor) -> None:
        """Quantize the expert on its tokens, or on some of the whole layer where it has too few."""
        run, total = self.run, len(self.hidden_TH)
        few = self._too_few(len(tokens_E))
        seen_E = torch.arange(0, total, max(1, total // _LAYER_TOKENS)) if few else tokens_E
        gate_up, down = mlp_groups(mlp)
        run.quantize_group(gate_up, self._inputs(seen_E))
        run.quantize_group(down, (run.layer.activate(x_EH, mlp) for x_EH in self._inputs(seen_E)))

        told: dict[str, Any] = {"calibration_tokens": len(tokens_E)}
        if few:
            told["calibrated_on_layer"] = True
        for group, scale in ((gate_up, self.scale_facts), (down, {})):
            for name in group.members:
                facts = run.report.get(run.prefix + name)
                if facts is not None:
                    facts |= told | scale
                    if scale:  # of the scaled weight: it says nothing of rounding the weight as it was
                        facts.pop("relative_error_of_rounding", None)

    def _too_few(self, count: int) -> bool:
        return count < min(FEW_TOKENS, len(self.hidden_TH))

    def _parts(self, tokens_E: Tensor) -> Iterator[slice]:
        for start in range(0, len(tokens_E), self.chunk):
            yield slice(start, start + self.chunk)

    def _inputs(self, tokens_E: Tensor) -> Iterator[Tensor]:
        """What an expert reads of these tokens, [E, H], in parts."""
        for part in self._parts(tokens_E):
            yield self._input(tokens_E[part])

    def _input(self, tokens_E: Tensor) -> Tensor:
        return self.run.layer.mlp_input(self.hidden_TH[tokens_E].to(self.run.settings.device))

    def _observe(self, method: Folding) -> InputStatistics:
        width = self.run.settings.spec.hidden_size
        group_size = method.scheme.group_size or width
        return InputStatistics(width, group_size, self.run.seed("gate_up"), self.run.settings.device)

    def _folding_method(self) -> Folding | None:
        """The method of everything that reads the norm, if it is one, and one that puts a scale there."""
        run = self.run
        readers = [run.prefix + name for mlp in run.layer.mlps for name in (mlp.gate, mlp.up)]
        methods = {run.settings.methods.get(name) for name in readers}
        method = methods.pop()
        return method if not methods and isinstance(method, Folding) else None

    def _fold(self, method: Folding, statistics: InputStatistics) -> None:
        """Find the layer's scale, and put it into the norm and whatever reads it."""
        run = self.run
        readers = [name for mlp in run.layer.mlps for name in (mlp.gate, mlp.up)]
        rows = max(1, _SAMPLED_ROWS // len(readers))
        samples = {name: _some_rows(run.weight(name), rows) for name in readers}
        group = Group(samples, {}, run.original[f"{_NORM}.weight"], pre_quant_scale=False)
        scaling = method.fold(group, statistics)
        if scaling is None or scaling.norm is None:
            return
        run.replace(f"{_NORM}.weight", scaling.norm)
        run.expert_scale = scaling.scale
        shared = [name for mlp in run.layer.mlps if mlp.expert is None for name in (mlp.gate, mlp.up)]
        for name in (*routers(run.settings.spec, run.index), *shared):
            run.replace(f"{name}.weight", scaled(run.original[f"{name}.weight"], scaling.scale))
        self.scale_facts = {"alpha": scaling.alpha, "weights_in_scale": scaling.duo}

    def _note(self, reached: dict[Mlp, int]) -> None:
        """Say which experts had too few tokens."""
        routed = [(mlp.expert, count) for mlp, count in reached.items() if mlp.expert is not None]
        none = [str(expert) for expert, count in routed if count == 0]
        few = [str(expert) for expert, count in routed if count and self._too_few(count)]
        for experts, what in ((none, "no calibration token"), (few, f"fewer than {FEW_TOKENS} tokens")):
            if experts:
                self.run.notes.append(
                    f"layer {self.run.index}: {what} reached expert{'s' * (len(experts) > 1)} "
                    f"{', '.join(experts)} of {len(routed)}; quantized on tokens of the whole layer instead"
                )


def scaled(weight_OI: Tensor, scale_I: Tensor) -> Tensor:
    """W diag(s) in the weight's dtype; exact where s is of powers of two."""
    return (weight_OI.float() * scale_I).to(weight_OI.dtype)


def _some_rows(weight_OI: Tensor, count: int) -> Tensor:
    """Up to about `count` rows, evenly spaced."""
    return weight_OI[:: max(1, len(weight_OI) // count)].clone()
