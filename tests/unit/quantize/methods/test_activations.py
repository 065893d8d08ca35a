import torch

from quantize.formats.base import FP8, INT8_WO
from quantize.linear import QuantizedLinear
from quantize.methods.activations import ActivationStatistics, output_errors, weight_errors


def observed(x: torch.Tensor, pieces: int, seed: int = 0) -> ActivationStatistics:
    statistics = ActivationStatistics(x.shape[1], seed)
    for piece in x.chunk(pieces):
        statistics.update(piece)
    return statistics


def test_the_range_is_that_of_every_token() -> None:
    x = torch.randn(3000, 5).bfloat16()
    assert torch.equal(observed(x, 7).amax, x.float().abs().amax(dim=0))


def test_few_tokens_are_all_kept_in_order() -> None:
    x = torch.arange(300.0).view(100, 3)
    assert torch.equal(observed(x, 9).sample, x)


def test_many_tokens_are_drawn_evenly_and_once() -> None:
    x = torch.arange(20_000.0).unsqueeze(1)
    sample = observed(x, 40).sample.flatten()
    assert len(sample) == 512
    assert bool((sample.diff() > 0).all())
    quarters = torch.histc(sample, bins=4, min=0, max=20_000)
    assert float(quarters.min()) > 90  # 128 expected, standard deviation 10
    assert torch.equal(observed(x, 40).sample.flatten(), sample)
    assert not torch.equal(observed(x, 40, seed=1).sample.flatten(), sample)


def test_errors_of_exact_codes_are_those_of_the_inputs() -> None:
    weight = torch.eye(2) * 2
    codes = torch.eye(2).to(torch.float8_e4m3fn)
    linear = QuantizedLinear(codes, torch.tensor([[2.0]]), bits=8, input_scale=torch.tensor(1.0))
    x = torch.tensor([[17.0, 0.0], [0.0, 16.0]])  # 17 lies between 16 and 18
    errors = output_errors({"a": weight}, {"a": linear}, FP8, x)["a"]
    assert errors == {
        "relative_error": float(f"{1 / (17**2 + 16**2) ** 0.5:.6g}"),
        "relative_error_of_weight": 0,
    }
    assert output_errors({"a": weight}, {"a": linear}, INT8_WO, x)["a"]["relative_error"] == 0
    assert weight_errors({"a": 2 * weight}, {"a": linear}) == {"a": {"relative_error": 0.5}}
    assert weight_errors({"a": 0 * weight}, {"a": linear}) == {"a": {"relative_error": 0}}
