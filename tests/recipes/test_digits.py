"""The default recipe: its data, its augmentation, and what it has to reach."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from framework import fit
from framework import test as evaluate
from recipes.digits import jitter, read_digits, recipe

QUIET = {"enable_progress_bar": False}


class Fixed:
    """Draws that are given: turn, scale, right, down, each from 0 to 1."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = torch.tensor([numbers])

    def uniform(self, x: Tensor, numbers: int) -> Tensor:
        assert numbers == self.numbers.shape[1]
        return self.numbers.repeat(len(x), 1)


def test_parts_are_disjoint_and_have_the_same_shares_of_classes() -> None:
    parts = read_digits()
    assert [len(y) for _, y in parts] == [1077, 360, 360]
    images = torch.cat([x for x, _ in parts]).flatten(1)
    assert images.shape == (1797, 64)
    assert 0 == images.min() < images.max() == 1
    whole = torch.bincount(torch.cat([y for _, y in parts])) / 1797
    for _, y in parts:
        assert torch.allclose(torch.bincount(y) / len(y), whole, atol=0.003)


def test_splits_and_folds() -> None:
    whole = read_digits()
    assert not torch.equal(whole[0][1], read_digits(split=1)[0][1])
    folds = [read_digits(fold=fold) for fold in range(5)]
    assert sum(len(one[1][1]) for one in folds) == 1437
    assert all(torch.equal(one[2][0], whole[2][0]) for one in folds)


def test_middle_draws_leave_images_as_they_are() -> None:
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(jitter(x, Fixed(0.5, 0.5, 0.5, 0.5)), x)  # type: ignore[arg-type]


def test_jitter_moves_by_at_most_three_quarters_of_a_pixel() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    moved = jitter(ramp, Fixed(0.5, 0.5, 1.0, 0.5))  # type: ignore[arg-type]
    torch.testing.assert_close(moved[..., 1:-1], ramp[..., 1:-1] + 0.75)


def test_jitter_scales_by_at_most_fifteen_percent_about_the_centre() -> None:
    ramp = (torch.arange(8.0) - 3.5).expand(1, 1, 8, 8)
    scaled = jitter(ramp, Fixed(0.5, 0.0, 0.5, 0.5))  # type: ignore[arg-type]
    torch.testing.assert_close(scaled, 0.85 * ramp)


def test_jitter_turns() -> None:
    across = (torch.arange(8.0) - 3.5).expand(1, 1, 8, 8)
    down = across.transpose(2, 3)
    turned = jitter(across, Fixed(1.0, 0.5, 0.5, 0.5))[..., 2:6, 2:6]  # type: ignore[arg-type]
    angle = torch.tensor(0.26)
    expected = torch.cos(angle) * across - torch.sin(angle) * down
    torch.testing.assert_close(turned, expected[..., 2:6, 2:6])


def test_a_short_run_learns() -> None:
    run = fit(recipe, parameters={"epochs": 15}, trainer=QUIET, logs=None)
    assert run.metrics["val/accuracy"] > 0.9
    assert {plugin.name for plugin in run.core.plugins} == {
        "augmentation",
        "mixup",
        "hidden_noise",
        "norm_penalty",
        "optimizer",
        "schedule",
        "early_stopping",
    }


@pytest.mark.slow
def test_accuracy_of_three_seeds() -> None:
    results = [evaluate(fit(recipe, seed=seed, trainer=QUIET, logs=None))["test/accuracy"] for seed in range(3)]
    assert sum(results) / 3 >= 0.98
