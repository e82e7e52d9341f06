"""Edits of weights are undone bit for bit."""

from __future__ import annotations

import pytest
import torch

from framework.plugin.edits import WeightEdits


@pytest.fixture
def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(3, 4, generator=generator) * 10**k) for k in range(-3, 4)]


def test_undo_restores_every_bit(weights: list[torch.nn.Parameter]) -> None:
    edits, before = WeightEdits(), [w.detach().clone() for w in weights]
    with torch.no_grad():
        for w in edits.save(weights):
            w.add_(0.1234567).mul_(1e-3)
    assert edits.open
    edits.undo()
    assert not edits.open
    assert all(torch.equal(w, b) for w, b in zip(weights, before, strict=True))


def test_a_weight_saved_twice_goes_back_to_its_first_value(weights: list[torch.nn.Parameter]) -> None:
    edits, first = WeightEdits(), weights[0].detach().clone()
    with torch.no_grad():
        edits.save(weights[:2])[0].add_(1)
        saved = edits.save([weights[0], weights[0]])
        saved[0].add_(1)
    assert len(saved) == 1
    edits.undo()
    assert torch.equal(weights[0], first)


def test_undo_goes_to_the_value_at_the_last_save_not_an_older_one(weights: list[torch.nn.Parameter]) -> None:
    edits = WeightEdits()
    for value in (1.0, 2.0):
        with torch.no_grad():
            weights[0].fill_(value)
            edits.save(weights)[0].zero_()
        edits.undo()
        assert weights[0].unique().item() == value


def test_levels_are_undone_from_the_inside(weights: list[torch.nn.Parameter]) -> None:
    edits, w = WeightEdits(), weights[0]
    with torch.no_grad():
        w.fill_(1.0)
        edits.save([w])[0].fill_(2.0)
        with edits.nested():
            edits.save([w])[0].fill_(3.0)
            assert w.unique().item() == 3.0
        assert w.unique().item() == 2.0
        assert edits.open
    edits.undo()
    assert w.unique().item() == 1.0


def test_a_level_is_undone_on_an_error(weights: list[torch.nn.Parameter]) -> None:
    edits, before = WeightEdits(), weights[0].detach().clone()

    def interrupted() -> None:
        with edits.nested(), torch.no_grad():
            edits.save(weights)[0].zero_()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(weights[0], before)
    assert not edits.open


def test_weights_that_changed_dtype_are_saved_again(weights: list[torch.nn.Parameter]) -> None:
    edits, w = WeightEdits(), weights[0]
    edits.save([w])
    edits.undo()
    w.data = w.data.double()
    before = w.detach().clone()
    with torch.no_grad():
        edits.save([w])[0].mul_(3.0)
    edits.undo()
    assert w.dtype == torch.float64
    assert torch.equal(w, before)


def test_weights_saved_under_inference_mode_can_be_saved_again_in_training(weights: list[torch.nn.Parameter]) -> None:
    """Lightning evaluates under inference mode; copies made there could not be written to later."""
    edits, before = WeightEdits(), weights[0].detach().clone()
    with torch.inference_mode():
        edits.save(weights)
        edits.undo()
    with torch.no_grad():
        edits.save(weights)[0].add_(1.0)
    edits.undo()
    assert torch.equal(weights[0], before)


def test_restored_weights_still_take_gradients(weights: list[torch.nn.Parameter]) -> None:
    edits, w = WeightEdits(), weights[3]
    with torch.no_grad():
        edits.save([w])[0].fill_(2.0)
    (w**2).sum().backward()
    edits.undo()
    assert torch.equal(w.grad, torch.full_like(w, 4.0))


@pytest.mark.parametrize("rare", [False, True])
def test_a_rare_level_gives_its_memory_back(rare: bool) -> None:
    edits, weight = WeightEdits(), torch.ones(3)
    with edits.nested(rare=rare):
        edits.save([weight])[0].zero_()
    assert weight.tolist() == [1.0, 1.0, 1.0]
    assert bool(edits._copies[1]) != rare
