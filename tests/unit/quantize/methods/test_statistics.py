import pytest
import torch

from quantize.methods.statistics import GramStatistics, InputStatistics


def observed(x: torch.Tensor, group_size: int, batches: int = 1) -> InputStatistics:
    statistics = InputStatistics(x.shape[1], group_size, seed=3)
    for batch in x.chunk(batches):
        statistics.update(batch)
    return statistics


def test_blocks_and_magnitude_are_exact() -> None:
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(0))
    statistics = observed(x, 4, batches=3)
    gram = x.t() @ x
    for group in range(3):
        rows = slice(4 * group, 4 * group + 4)
        torch.testing.assert_close(statistics.blocks[group], gram[rows, rows])
    torch.testing.assert_close(statistics.magnitude, x.abs().mean(dim=0))
    assert statistics.tokens == 50


def test_the_sketch_preserves_output_errors() -> None:
    random = torch.Generator().manual_seed(1)
    x = torch.randn(4096, 64, generator=random) * torch.logspace(-1, 1, 64)
    change = torch.randn(200, 64, generator=random)
    exact = (change @ x.t()).square().sum()
    sketched = (change @ observed(x, 32).sketch.t()).square().sum()
    assert abs(float(sketched / exact) - 1) < 0.05


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_the_gram_matrix_of_few_channels_is_exact_too(columns: int) -> None:
    x = torch.randn(20, columns, generator=torch.Generator().manual_seed(5))
    statistics = GramStatistics(columns, columns, seed=0)
    statistics.update(x)
    torch.testing.assert_close(statistics.gram, x.t() @ x)


def test_the_sketch_is_of_rows_however_they_come() -> None:
    x = torch.randn(1700, 8, generator=torch.Generator().manual_seed(6))
    whole, parts = observed(x, 4), InputStatistics(8, 4, seed=3)
    for part in x.split([1, 511, 600, 588]):
        parts.update(part)
    torch.testing.assert_close(parts.sketch, whole.sketch)


def test_a_seed_gives_one_sketch() -> None:
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(2))
    assert torch.equal(observed(x, 4, batches=2).sketch, observed(x, 4, batches=2).sketch)


def test_the_gram_matrix_is_exact_and_leaves_the_inputs_alone() -> None:
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(4)).bfloat16()
    statistics = GramStatistics(12, 4, seed=3)
    before = x.clone()
    for batch in x.chunk(3):
        statistics.update(batch)
    torch.testing.assert_close(statistics.gram, x.float().t() @ x.float())
    assert torch.equal(statistics.gram, statistics.gram.t())
    assert torch.equal(statistics.inputs.sketch, observed(x, 4, batches=3).sketch)
    assert torch.equal(x, before)
