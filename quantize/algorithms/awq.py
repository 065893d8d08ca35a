"""AWQ, activation-aware weight quantization (Lin et al., arXiv 2306.00978), on tensors alone.

Rounding a weight to 4 bits hurts most where the inputs are large. AWQ multiplies each input channel of W
by a factor s > 1 where its inputs x are large and divides x by it: W x = (W diag(s)) (x / s). The product
is unchanged, but the channels that matter now round more finely. s is found by searching a few exponents
of |x|, the loss being the squared error of the layer's output; afterwards each group's range may shrink
("clip") where that lowers the error further.

Where the paper runs the layer again for every candidate, this module uses statistics of x (statistics.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantize.algorithms.integer import (
    Grid,
    GridSpec,
    encode_groups,
    fit_grid,
    in_groups,
    row_blocks,
    sampled_rows,
)

# Exponents are multiples of 1 / _STEPS.
_STEPS = 20
# Parts of a group's range that are tried for all groups, and then beside the best of each.
_CLIP_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.6)
_CLIP_STEP = 0.05
# A channel that never fires, or always does, must not take the scale of the others out of range.
_LARGEST_SCALE = 1e4
# Output rows of each weight that the search for the scale looks at.
_SEARCHED_ROWS = 256


@dataclass(frozen=True)
class ScaleSearch:
    """The outcome of `search_scale`.

    Attributes:
        scale: float32 [in], the factor of each input channel of W.
        alpha: the exponent of |x|; 0 means no scaling.
        duo: whether the weights' magnitudes entered with exponent 1 - alpha.
    """

    scale: Tensor
    alpha: float
    duo: bool


def search_scale(
    weights: Sequence[Tensor], magnitude_I: Tensor, sketch_SI: Tensor, spec: GridSpec
) -> ScaleSearch:
    """Find the factor of each input channel that loses least of the output of linears with one input.

    The candidates are s = |x|^a and s = |x|^a / |w|^(1 - a), a in steps of 1/20; a = 0 is no scaling. Of
    linears with many outputs, a sample of the outputs decides.

    Args:
        weights: each [out, in]; the linears that read the same x, e.g. q, k and v.
        magnitude_I: float32 [in], the mean of |x|.
        sketch_SI: float32 [rows, in] with sketch^T sketch ~ X^T X.
        spec: the grid that the weights will be rounded to.
    """
    weights = [sampled_rows(weight_OI, _SEARCHED_ROWS) for weight_OI in weights]
    x_I = magnitude_I.float().clamp_min(1e-8)
    w_I = _relative_magnitude(weights, spec.group_size)

    def scale_of(step: int, duo: bool) -> Tensor:
        alpha = step / _STEPS
        return _centred(x_I.pow(alpha) / (w_I.pow(1 - alpha) if duo else 1.0))

    errors: dict[tuple[int, bool], float] = {}

    def evaluate(choices: Sequence[tuple[int, bool]]) -> tuple[int, bool]:
        """Fill in the errors of new choices; return the best so far."""
        new = [choice for choice in choices if choice not in errors and 0 <= choice[0] <= _STEPS]
        found = candidate_errors(weights, [scale_of(*choice) for choice in new], sketch_SI, spec)
        errors.update(zip(new, found, strict=True))
        return min(errors, key=errors.__getitem__)

    # The error is smooth in alpha: every other step, then the neighbours of the best.
    coarse = [(step, duo) for step in range(0, _STEPS + 1, 2) for duo in (False, True)]
    step, duo = evaluate(coarse)
    step, duo = evaluate([(step - 1, duo), (step + 1, duo)])
    return ScaleSearch(scale_of(step, duo), step / _STEPS, duo)


def candidate_errors(
    weights: Sequence[Tensor], candidates: Sequence[Tensor], sketch_SI: Tensor, spec: GridSpec
) -> list[float]:
    """AWQ's objective, || (Q(W diag(s)) diag(s)^-1 - W) X^T ||^2 over all weights, for each s [in]."""
    errors = torch.zeros(len(candidates), dtype=torch.float64, device=sketch_SI.device)
    for index, scale_I in enumerate(candidates):
        # (D / s) S^T = D (S / s)^T, and the sketch is smaller than the weights: divide that.
        sketch_IS = (sketch_SI / scale_I).t()
        for weight_OI in weights:
            for rows_OI in row_blocks(weight_OI):
                groups_OGI = in_groups(rows_OI * scale_I, spec.group_size)
                grid = spec.grid(*spec.extents(groups_OGI)).each()
                change_OGI = grid.nearest(groups_OGI).sub_(groups_OGI)
                change_OS = (change_OGI.flatten(1) @ sketch_IS).flatten()
                errors[index] += change_OS.dot(change_OS)
    return [float(error) for error in errors.tolist()]


def search_clip(weight_OI: Tensor, blocks_GII: Tensor, spec: GridSpec) -> Tensor:
    """Find how much of its range each group should keep.

    The loss of a group is e^T G_bb e, e being what rounding does to the group and G_bb its block of
    X^T X: the squared error of the output in so far as it arises within the group.

    Args:
        weight_OI: [out, in], already scaled.
        blocks_GII: float32 [in / group_size, group_size, group_size], of the inputs divided by the scale.
        spec: the grid that the weight will be rounded to.

    Returns:
        float32 [out, in / group_size], between 0.55 and 1.
    """
    return torch.cat(
        [
            _clip_of_rows(in_groups(rows_OI, spec.group_size), blocks_GII, spec)
            for rows_OI in row_blocks(weight_OI)
        ]
    )


def absorb(vector_I: Tensor, scale_I: Tensor) -> tuple[Tensor, Tensor]:
    """Divide `vector_I`, which multiplies x, by the scale; keep the arithmetic exact all the same.

    The quotient must be stored in the vector's own dtype and is rounded; the factor that W really needs
    is what this rounding leaves: vector / rounded quotient.

    Returns:
        The rounded quotient in the dtype of `vector_I`, and the effective scale, float32 [in], 1 where the
        quotient is zero or not finite (there the vector is left as it was).
    """
    folded_I = (vector_I.double() / scale_I.double()).to(vector_I.dtype)
    usable_I = folded_I.isfinite() & (folded_I.abs() >= torch.finfo(vector_I.dtype).tiny)
    folded_I = torch.where(usable_I, folded_I, vector_I)
    effective_I = torch.where(usable_I, vector_I.double() / folded_I.double(), 1.0)
    return folded_I, effective_I.float()


def scaled_grid(
    scaled_OI: Tensor, scale_I: Tensor, blocks_GII: Tensor | None, spec: GridSpec
) -> tuple[Grid, Tensor | None]:
    """The grid of W diag(s), and the clip ratios found.

    Args:
        scaled_OI: float32 [out, in], W diag(s).
        scale_I: float32 [in].
        blocks_GII: the diagonal blocks of X^T X of inputs that were not divided by the scale; None leaves out
            the clip search.
        spec: the kind of grid.
    """
    if blocks_GII is None:
        return fit_grid(scaled_OI, spec), None
    scale_GI = scale_I.view(-1, spec.group_size)
    scaled_blocks_GII = blocks_GII / (scale_GI.unsqueeze(1) * scale_GI.unsqueeze(2))
    ratios_OG = search_clip(scaled_OI, scaled_blocks_GII, spec)
    return fit_grid(scaled_OI, spec, ratios_OG), ratios_OG


def quantize_scaled(
    weight_OI: Tensor, scale_I: Tensor, blocks_GII: Tensor | None, spec: GridSpec
) -> tuple[Tensor, Grid, Tensor | None]:
    """Round W diag(s) to the nearest codes, with the clip search when `blocks_GII` is given.

    Returns:
        codes int8 or uint8 [out, in], the grid [out, in / group_size], and the clip ratios, same shape.
    """
    scaled_OI = weight_OI.float() * scale_I
    grid, ratios = scaled_grid(scaled_OI, scale_I, blocks_GII, spec)
    return encode_groups(scaled_OI, grid), grid, ratios


def _relative_magnitude(weights: Sequence[Tensor], group_size: int) -> Tensor:
    """float32 [in]: the mean over all output rows of |w| relative to the largest |w| of its group."""
    total_I = torch.zeros(weights[0].shape[1], device=weights[0].device)
    for weight_OI in weights:
        for rows_OI in row_blocks(weight_OI):
            groups_OGI = in_groups(rows_OI.abs(), group_size)
            largest_OG1 = groups_OGI.amax(dim=2, keepdim=True).clamp_min(1e-30)
            total_I += (groups_OGI / largest_OG1).sum(dim=0).flatten()
    return (total_I / sum(weight.shape[0] for weight in weights)).clamp_min(1e-4)


def _centred(scale_I: Tensor) -> Tensor:
    """The scale with the geometric mean of its extremes at 1, so that neither x nor W drifts in range."""
    scale_I = scale_I / (scale_I.max() * scale_I.min()).sqrt()
    return scale_I.clamp_(1 / _LARGEST_SCALE, _LARGEST_SCALE)


def _clip_of_rows(groups_OGI: Tensor, blocks_GII: Tensor, spec: GridSpec) -> Tensor:
    """`search_clip` for some rows, [out, groups, group_size]."""
    low_OG, high_OG = spec.extents(groups_OGI)
    best_OG = torch.full_like(high_OG, torch.inf)
    ratio_OG = torch.ones_like(high_OG)

    def attempt(tried_OG: Tensor) -> None:
        """Take over the ratios of the groups that lose less with them."""
        grid = spec.grid(low_OG * tried_OG, high_OG * tried_OG).each()
        change_GOI = grid.nearest(groups_OGI).sub_(groups_OGI).transpose(0, 1)
        loss_OG = (torch.bmm(change_GOI, blocks_GII) * change_GOI).sum(dim=2).t()
        better_OG = loss_OG < best_OG
        best_OG.copy_(torch.where(better_OG, loss_OG, best_OG))
        ratio_OG.copy_(torch.where(better_OG, tried_OG, ratio_OG))

    for ratio in _CLIP_RATIOS:
        attempt(torch.full_like(ratio_OG, ratio))
    coarse_OG = ratio_OG.clone()
    attempt(coarse_OG - _CLIP_STEP)
    attempt((coarse_OG + _CLIP_STEP).clamp_max_(1.0))
    return ratio_OG
