"""A plugin written in a recipe file."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

from framework import UserError, fit
from recipes import custom_plugin
from recipes.custom_plugin import ConfidencePenalty, recipe

QUIET = {"enable_progress_bar": False, "max_epochs": 3}


def weights_of(**options: object) -> torch.Tensor:
    run = fit(recipe, trainer=QUIET, logs=None, **options)  # type: ignore[arg-type]
    return torch.cat([p.detach().flatten() for p in run.core.model.parameters()])


def test_takes_thirty_lines_at_most() -> None:
    assert len(inspect.getsource(ConfidencePenalty).splitlines()) <= 30


def test_term_is_minus_alpha_times_the_mean_entropy() -> None:
    plugin = ConfidencePenalty("5", alpha=2.0)
    logits = torch.randn(6, 4, requires_grad=True)
    assert plugin.transform_activation(logits, "5", None) is logits  # type: ignore[arg-type]
    term = plugin.penalty(None)  # type: ignore[arg-type]
    assert term is not None
    entropy = torch.distributions.Categorical(logits=logits).entropy().mean()
    torch.testing.assert_close(term, -2.0 * entropy)
    term.backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def test_strength_zero_is_absence() -> None:
    off = weights_of(parameters={"alpha": 0.0})
    assert torch.equal(off, weights_of(without=["confidence_penalty"]))
    assert not torch.equal(off, weights_of())


def test_term_is_logged_apart_and_lowers_confidence() -> None:
    runs = [fit(recipe, parameters={"alpha": alpha}, trainer=QUIET, logs=None) for alpha in (0.0, 1.0)]
    assert runs[1].last["penalty/confidence_penalty"] < 0
    x = runs[0].core.data.test[0]  # type: ignore[union-attr, index]
    calm, sure = (run.core.model.eval()(x).softmax(dim=1).max(dim=1).values.mean() for run in reversed(runs))
    assert calm < sure


def test_command_line_finds_it_by_name() -> None:
    file = Path(custom_plugin.__file__)
    run = fit(file, settings={"confidence_penalty.alpha": 0.3}, trainer=QUIET, logs=None)
    assert run.core.plugins[0].alpha == 0.3  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="must be a number >= 0"):
        fit(file, settings={"confidence_penalty.alpha": -1}, trainer=QUIET, logs=None)
