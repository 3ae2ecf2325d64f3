"""Running sums are those of all rows at once, in memory that does not grow with them."""

from __future__ import annotations

import pytest
import torch

from emoreg.moments import Means, Projections, Scatter

BLOCKS, WIDTH = 2, 6


def rows(number: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(number)
    shape = torch.randn(WIDTH, WIDTH, generator=draw, dtype=torch.float64)
    return torch.randn(number, BLOCKS, WIDTH, generator=draw, dtype=torch.float64) @ shape + 5


@pytest.mark.parametrize("number", [2, 5, 60])
@pytest.mark.parametrize("variance", [0.3, 0.5, 0.9])
def test_the_components_are_those_of_a_centred_decomposition(number: int, variance: float) -> None:
    found, every = Scatter(), rows(number)
    for row in every:
        found.add(row)
    for block, components in enumerate(found.components(variance)):
        centred = every[:, block] - every[:, block].mean(0)
        _, size, axes = torch.linalg.svd(centred, full_matrices=False)
        share = size.square().cumsum(0) / size.square().sum()
        wanted = axes[: int((share < variance).sum()) + 1]
        assert components.shape == wanted.shape
        torch.testing.assert_close(components.T @ components, wanted.T @ wanted)
    torch.testing.assert_close(found.mean, every.mean(0))


def test_memory_does_not_grow_with_the_number_of_rows() -> None:
    found = Scatter()
    for row in rows(500):
        found.add(row)
        assert found.rows is not None
        assert found.rows.shape[1] <= 2 * WIDTH + 1
    assert found.number == 500


def test_no_variance_asks_for_no_component() -> None:
    found = Scatter()
    for row in rows(9):
        found.add(row)
    assert [c.shape for c in found.components(0.0)] == [(0, WIDTH)] * BLOCKS


def test_means_are_weighted_and_by_label() -> None:
    found = Means()
    one, two = torch.ones(1, 2), 4 * torch.ones(1, 2)
    found.add("calm", one, 3)
    found.add("calm", two, 1)
    found.add("afraid", two)
    labels, stacked = found.stacked()
    assert labels == ("afraid", "calm")
    assert stacked[:, 0, 0].tolist() == [4.0, 1.75]


def test_the_spread_is_that_of_all_values() -> None:
    found, values = Projections(), rows(50).mT
    for part in values.split(7):
        found.add(part)
    torch.testing.assert_close(found.mean(), values.mean(0))
    torch.testing.assert_close(found.deviation(), values.std(0, unbiased=False))
