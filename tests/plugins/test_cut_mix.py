from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional

from framework import Data, Recipe, UserError, fit
from framework.ops.keyed import Stream
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.cut_mix import CutMix, box_of, cut_mix
from plugins.mixup import Mixup

X = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 4


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def train(plugins=(), **trainer):
    recipe = Recipe(make_model(), Data((X, Y), (X, Y), batch_size=16), functional.cross_entropy, plugins=list(plugins))
    return fit(
        recipe, seed=3, trainer={"max_epochs": 2, "enable_progress_bar": False, "logger": False, **trainer}, logs=None
    )


def weights_of(run) -> torch.Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def step_of(count: int, index: int = 0, micro: int = 0, rank: int = 0) -> Step:
    step = Step(3, WeightEdits())
    step.index, step.count, step.micro, step.rank = index, count, micro, rank
    return step


@pytest.mark.parametrize("row", [0.0, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("weight", [0.0, 0.2, 0.75, 1.0])
def test_boxes_have_the_sides_of_the_formula_clipped_at_the_border(row, weight):
    height, width = 12, 20
    rows, columns = box_of(weight, row, 0.5, height, width)
    for side, length, place in ((rows, height, row), (columns, width, 0.5)):
        cut = int(length * np.sqrt(1 - weight))
        covered = [i for i in range(length) if 0 <= i - (int(length * place) - cut // 2) < cut]
        assert list(range(length))[side] == covered


def test_cut_mix_pastes_the_box_and_gives_the_exact_share():
    x = torch.randn(5, 3, 6, 7, generator=torch.Generator().manual_seed(0))
    permutation = torch.tensor([3, 0, 4, 1, 2])
    box = (slice(1, 4), slice(0, 5))
    mixed, share = cut_mix(x, permutation, box)
    inside = torch.zeros(6, 7, dtype=torch.bool)
    inside[box] = True
    assert torch.equal(mixed, torch.where(inside, x[permutation], x))
    assert share == pytest.approx(1 - 15 / 42)


def test_weights_are_shares_of_pixels():
    x = torch.arange(16.0).view(16, 1, 1, 1).expand(-1, 1, 9, 9).contiguous()
    y = torch.arange(16)
    plugin = CutMix()
    for index in range(50):
        batch = plugin.transform_batch((x, y), step_of(16, index))
        if batch[1] is y:
            continue
        (own, weight), (other, rest) = batch[1].pairs
        moved = own != other
        assert (batch[0][moved] == own[moved].view(-1, 1, 1, 1)).float().mean((1, 2, 3)).numpy() == pytest.approx(
            weight
        )
        assert (batch[0][moved] == other[moved].view(-1, 1, 1, 1)).float().mean((1, 2, 3)).numpy() == pytest.approx(
            rest
        )
    assert torch.equal(x[:, 0, 0, 0], torch.arange(16.0))


def test_boxes_follow_the_beta_distribution_and_lie_all_over_the_image():
    x = torch.arange(2.0).view(2, 1, 1, 1).expand(2, 1, 101, 101).contiguous()
    pasted, plugin = torch.zeros(101, 101), CutMix()
    shares = []
    for index in range(600):
        mixed, target = plugin.transform_batch((x, torch.arange(2)), step_of(2, index))
        pasted += mixed[0, 0]
        rng = Stream(3, "cut_mix").numpy(index)
        rng.random()
        shares.append(rng.beta(1.0, 1.0))
        if mixed[0].any():
            assert target.pairs[0][1] >= shares[-1] - 1e-6  # clipping leaves more of the image, never less
    assert stats.kstest(shares, "uniform").pvalue > 0.01
    assert pasted.min() > 0
    quarters = [pasted[:50, :50], pasted[:50, 51:], pasted[51:, :50], pasted[51:, 51:]]
    means = torch.stack([quarter.mean() for quarter in quarters])
    assert means.max() / means.min() < 1.3


def test_a_fit_equals_a_loop_by_hand():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    loader, stream, index = Data((X, Y), batch_size=16).train_loader(seed=3), Stream(3, "cut_mix"), 0
    for epoch in range(2):
        loader.set_epoch(epoch)
        for window in loader:
            x, y = window.batches[0]
            rng = stream.numpy(index)
            rng.random()
            box = box_of(rng.beta(1.0, 1.0), rng.random(), rng.random(), 8, 8)
            partners = torch.randperm(16, generator=stream.torch(index, 0, 0))
            mask = torch.ones(8, 8)
            mask[box] = 0
            weight = mask.mean()
            soft = weight * functional.one_hot(y, 4) + (1 - weight) * functional.one_hot(y[partners], 4)
            optimizer.zero_grad()
            functional.cross_entropy(model(mask * x + (1 - mask) * x[partners]), soft).backward()
            optimizer.step()
            index += 1
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(weights_of(train([CutMix()])), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, weights_of(train()), atol=1e-4)


def test_the_box_is_one_for_the_step_and_partners_are_those_of_the_micro_batch():
    x = torch.arange(32.0).view(32, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    first, micro, rank = (
        CutMix().transform_batch((x, x[:, 0, 0, 0]), step_of(32, micro=m, rank=r)) for m, r in ((0, 0), (1, 0), (0, 1))
    )
    for other in (micro, rank):
        assert other[1].pairs[0][1] == first[1].pairs[0][1] < 1
        assert not torch.equal(other[0], first[0])
        assert torch.equal((other[0] != x).any(0), (first[0] != x).any(0))


def test_after_mixup_the_weights_are_multiplied_out():
    x = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    basis = torch.eye(8)  # the target tells which samples a mixture is made of
    batch = Mixup(1.0).transform_batch((x, basis), step_of(8, index=1))
    mixed, target = CutMix().transform_batch(batch, step_of(8, index=1))
    shares = sum(weight * one for one, weight in target.pairs)
    assert len(target.pairs) == 4
    torch.testing.assert_close(shares.sum(1), torch.ones(8))
    assert torch.equal(target.clean, basis)
    assert not torch.equal(mixed, batch[0])


@pytest.mark.parametrize("plugin", [CutMix(0.0), CutMix(1.0, 0.0)])
def test_strength_zero_is_absent_bit_for_bit(plugin):
    assert torch.equal(weights_of(train([copy.deepcopy(plugin)])), weights_of(train()))


def test_the_probability_is_that_of_steps():
    batch = (torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.ones(4))
    mixed = [CutMix(50.0, 0.3).transform_batch(batch, step_of(4, index)) is not batch for index in range(400)]
    assert stats.binomtest(int(np.sum(mixed)), 400, 0.3).pvalue > 0.01


def test_evaluation_sees_whole_images():
    run = train([CutMix()])
    clean = functional.cross_entropy(run.core.model(X), Y).item()
    assert run.last["val/loss"] == pytest.approx(clean, abs=1e-6)


@pytest.mark.parametrize("x", [torch.ones(4, 2), "text"])
def test_inputs_that_are_no_images_are_refused(x):
    with pytest.raises(UserError, match="needs images"):
        CutMix().transform_batch((x, torch.ones(4)), step_of(4))


# ---- targets with a place in the image -----------------------------------------------------------------------------

NUMBERS = torch.arange(16 * 6 * 8).view(16, 1, 6, 8)


def test_masks_get_the_partners_values_in_the_box_and_are_not_mixed():
    for dtype in (torch.int64, torch.uint8, torch.float32):
        numbers = NUMBERS.to(dtype)
        x, mask = CutMix().transform_batch((numbers, numbers[:, 0]), step_of(16))
        assert not torch.equal(x, numbers)
        assert torch.equal(mask, x[:, 0])


def test_classes_beside_a_mask_are_mixed_and_the_mask_is_in_both_pairs():
    labels = torch.arange(16)
    batch = {"input": NUMBERS, "target": (labels, NUMBERS[:, 0]), "more": NUMBERS.double()}
    changed = CutMix().transform_batch(batch, step_of(16))
    x, target = changed["input"], changed["target"]
    (own, kept), (other, rest) = target.pairs
    assert kept + rest == pytest.approx(1.0)
    assert torch.equal(own[0], labels)
    assert not torch.equal(other[0], labels)
    for mask in (own[1], other[1], target.clean[1]):
        assert torch.equal(mask, x[:, 0])
    assert torch.equal(changed["more"], x.double())
    changed_share = (x != NUMBERS).flatten(1).double().mean(1)
    assert changed_share.max().item() == pytest.approx(rest)


def test_masks_after_mixup_stay_two_masks_with_their_weights():
    x = NUMBERS.float()
    mixed = Mixup(1.0).transform_batch((x, x[:, 0]), step_of(16))
    images, target = CutMix().transform_batch(mixed, step_of(16))
    assert len(target.pairs) == 2
    torch.testing.assert_close(sum(weight * mask for mask, weight in target.pairs), images[:, 0])


def test_boxes_are_refused_unless_the_target_is_fixed():
    boxes = torch.zeros(16, 5, 4)
    with pytest.raises(UserError, match="may have a place in the image"):
        CutMix().transform_batch((NUMBERS, boxes), step_of(16))
    assert len(CutMix(target="fixed").transform_batch((NUMBERS, boxes), step_of(16))[1].pairs) == 2


def test_channels_last_are_refused():
    with pytest.raises(UserError, match=r"layout \(N, C, H, W\), received \(16, 9, 9, 3\)"):
        CutMix().transform_batch((torch.zeros(16, 9, 9, 3), Y[:16]), step_of(16))
