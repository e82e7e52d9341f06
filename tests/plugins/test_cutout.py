from __future__ import annotations

import copy

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from framework import Data, Recipe, UserError, fit
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.cutout import Cutout

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 3
Y = torch.arange(64) % 4


def train(plugins=(), batch_size=16, **trainer):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    recipe = Recipe(model, Data((X, Y), (X, Y), batch_size=batch_size), functional.cross_entropy, plugins=list(plugins))
    return fit(
        recipe, seed=3, trainer={"max_epochs": 2, "enable_progress_bar": False, "logger": False, **trainer}, logs=None
    )


def weights_of(run) -> torch.Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def cover(plugin: Cutout, x: torch.Tensor, index: int = 0) -> torch.Tensor:
    step = Step(3, WeightEdits())
    step.index, step.count = index, len(x)
    batch = plugin.transform_batch((x, "target"), step)
    assert batch[1] == "target"
    return batch[0]


def test_each_image_has_one_square_at_a_place_of_its_own():
    holes = cover(Cutout(3), torch.ones(4000, 2, 9, 9)) == 0
    assert torch.equal(holes[:, 0], holes[:, 1])
    hole = holes[:, 0]
    rows, columns = hole.any(2), hole.any(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None, :])
    # two of three wide where the centre is on the border
    assert set(rows.sum(1).tolist()) == set(columns.sum(1).tolist()) == {2, 3}
    counts = torch.unique(hole.flatten(1), dim=0, return_counts=True)[1]
    assert len(counts) == 81
    assert stats.chisquare(counts.numpy()).pvalue > 0.01


def test_squares_move_from_step_to_step():
    x = torch.ones(16, 1, 8, 8)
    assert torch.equal(cover(Cutout(3), x, 0), cover(Cutout(3), x, 0))
    assert not torch.equal(cover(Cutout(3), x, 0), cover(Cutout(3), x, 1))


def test_a_lower_probability_leaves_the_other_squares_where_they_were():
    x = torch.ones(100, 1, 8, 8)
    some, every = cover(Cutout(3, 0.5), x), cover(Cutout(3), x)
    hit = (some == 0).flatten(1).any(1)
    assert 30 < hit.sum() < 70
    assert torch.equal(some[hit], every[hit])


def test_micro_batches_equal_one_batch():
    one = weights_of(train([Cutout(4)], batch_size=64))
    four = weights_of(train([Cutout(4)], batch_size=16, accumulate_grad_batches=4))
    torch.testing.assert_close(four, one, rtol=0, atol=1e-6)
    assert not torch.allclose(one, weights_of(train(batch_size=64)), atol=1e-4)


@pytest.mark.parametrize("plugin", [Cutout(0), Cutout(4, 0.0)])
def test_strength_zero_is_absent_bit_for_bit(plugin):
    assert torch.equal(weights_of(train([copy.deepcopy(plugin)])), weights_of(train()))


def test_evaluation_sees_whole_images():
    run = train([Cutout(8)])
    whole = functional.cross_entropy(run.core.model(X), Y).item()
    assert run.last["val/loss"] == pytest.approx(whole, abs=1e-5)


@pytest.mark.parametrize("x", [torch.ones(4, 8), None])
def test_inputs_that_are_no_images_are_refused(x):
    with pytest.raises(UserError, match="needs images"):
        Cutout(2).transform_batch((x, None), Step(0, WeightEdits()))


def covered(plugin: Cutout, x: torch.Tensor, target):
    step = Step(3, WeightEdits())
    step.count = len(x)
    return plugin.transform_batch((x, target), step)


def test_a_mask_needs_a_word_on_the_square():
    x = torch.arange(1, 4 * 64 + 1).view(4, 1, 8, 8)
    with pytest.raises(UserError, match=r"the target \(4, 8, 8\) has the image's size.*target='keep'"):
        covered(Cutout(3), x, x[:, 0])
    hidden, mask = covered(Cutout(3, target=-100), x, x[:, 0])
    assert torch.equal(mask, torch.where(hidden[:, 0] == 0, -100, x[:, 0]))
    hidden, mask = covered(Cutout(3, target=0), x, {"mask": x[:, 0], "label": Y[:4]})
    assert torch.equal(mask["mask"], hidden[:, 0])
    whole = x[:, 0]
    assert covered(Cutout(3, target="keep"), x, whole)[1] is whole
    assert covered(Cutout(3), x, torch.zeros(4, 5, 4))[1].shape == (4, 5, 4)  # boxes are where they were


def test_bytes_and_booleans_are_covered_and_channels_last_refused():
    for x in (torch.full((4, 1, 8, 8), 200, dtype=torch.uint8), torch.ones(4, 1, 8, 8, dtype=torch.bool)):
        hidden = covered(Cutout(3), x, None)[0]
        expected = covered(Cutout(3), x.float(), None)[0].to(x.dtype)
        assert torch.equal(hidden, expected)
    with pytest.raises(UserError, match="layout"):
        covered(Cutout(3), torch.zeros(4, 9, 9, 1), None)
