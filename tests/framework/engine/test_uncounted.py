"""Runs in which no batch gives a loss, or shown terms are not finite, say so and why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework import Core, Data, Outcome, Recipe, UserError, fit
from framework.engine.uncounted import Uncounted
from framework.errors import NonFiniteError

OPTIONS = {"max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
X, Y = torch.randn(12, 3), torch.arange(12) % 3
NOTHING, TOKENS = torch.zeros(12), torch.full((12,), -100)


class Nothing(Core):
    def compute_loss(self, batch: Any) -> Any:
        return None


class Skips(Core):
    def compute_loss(self, batch: Any) -> Outcome:
        return Outcome(None, self(batch[0]), batch[1])


class Shows(Core):
    """Has a term that is not finite in the second batch of training, and in validation."""

    value, calls = math.nan, 0

    def compute_loss(self, batch: Any) -> Outcome:
        self.calls += 1
        term = torch.tensor(self.value if self.calls == 2 or not self.training else 1.0)
        return Outcome(F.cross_entropy(self(batch[0]), batch[1]), terms={"kl": term})


class ShowsInfinity(Shows):
    value = math.inf


def run(train: Any, val: Any = None, *, logs: Any = None, core: Any = Core, **options: Any) -> Any:
    data = Data(train, val, batch_size=4)
    trainer = {**OPTIONS, **options}
    return fit(Recipe(nn.Linear(3, 3), data, F.cross_entropy, core=core, trainer=trainer), logs=logs)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("core", [Nothing, Skips])
def test_no_step_has_a_loss(core: Any, accumulate: int) -> None:
    with pytest.raises(UserError, match=r"^epoch 0: nothing was trained: the loss of each of 3 batches was None"):
        run((X, Y), core=core, accumulate_grad_batches=accumulate)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_no_sample_has_a_weight(accumulate: int, tmp_path: Path) -> None:
    for logs in (None, tmp_path):
        with pytest.raises(
            UserError, match=r"^epoch 0: nothing was trained: the sample weights, .*3 batches add up to 0"
        ):
            run((X, Y, NOTHING), logs=logs, accumulate_grad_batches=accumulate)


def test_why_the_monitored_loss_is_never_logged(tmp_path: Path) -> None:
    words = (
        r"^monitor='val/loss': never logged, since the sample weights, or the targets .* of each of 3 batches add up"
    )
    with pytest.raises(UserError, match=words):
        run((X, Y), (X, Y, NOTHING), logs=tmp_path)
    with pytest.raises(
        UserError, match=r"^monitor='val/loss': never logged, since the loss of each of 3 batches was None"
    ):
        run((X, Y), (X, Y), logs=tmp_path, core=Skips)


def test_some_batches_without_weight_are_left_out() -> None:
    weights = torch.tensor([0.0] * 4 + [1.0] * 8)
    done = run((X, Y, torch.ones(12)), (X, Y, weights))
    expected = F.cross_entropy(done.core.model(X[4:]), Y[4:])
    assert done.last["val/loss"] == pytest.approx(expected.item(), abs=1e-6)
    assert done.core.recorder.uncounted.why("val") == "" == done.core.recorder.uncounted.why("train")


def test_ignored_targets_are_told() -> None:
    with pytest.raises(NonFiniteError, match=r"no target of micro-batch 0 counts: all are ignored.*; correct the data"):
        run((X, TOKENS))


@pytest.mark.parametrize(("core", "value"), [(Shows, "nan"), (ShowsInfinity, "inf")])
def test_a_term_is_blamed_for_itself(core: Any, value: str) -> None:
    with pytest.raises(NonFiniteError, match=rf"^epoch 0: 'kl' of Outcome.* train/kl, is {value}, .*look at") as caught:
        run((X, Y), core=core)
    assert "learning rate" not in str(caught.value)
    with (
        pytest.warns(UserWarning, match=rf"^validation: 'kl' of Outcome.* val/kl, is {value}"),
        pytest.raises(NonFiniteError, match="train/kl"),
    ):
        run((X, Y), (X, Y), core=core)


class Weighs(Core):
    """Reads the weights itself."""

    def compute_loss(self, batch: Any) -> Tensor:
        return (F.cross_entropy(self(batch[0]), batch[1], reduction="none") * batch[2]).mean()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_are_blamed_for_themselves(value: float) -> None:
    weights = torch.ones(12)
    weights[7] = value
    words = rf"must be finite numbers of 0 or more; that of row \d is {value}: correct the weights"
    for train, val in (((X, Y, weights), None), ((X, Y, weights), (X, Y)), ((X, Y), (X, Y, weights))):
        with pytest.raises(UserError, match=words):
            run(train, val)
    with pytest.raises(
        NonFiniteError, match="the weight of training sample 7 is not finite; correct the data"
    ) as caught:
        run((X, Y, weights), core=Weighs)
    assert "learning rate" not in str(caught.value)
    with (
        pytest.warns(UserWarning, match="as long as it is not finite, there is no best epoch"),
        pytest.warns(UserWarning, match=r"^validation: the loss is .*: the weight of row 3 of its batch is not finite"),
    ):
        run((X, Y, torch.ones(12)), (X, Y, weights), core=Weighs)


def test_reasons() -> None:
    uncounted = Uncounted()
    uncounted.close("train", counted=False)
    assert uncounted.why("train") == "" == uncounted.why("val")
    uncounted.see("val", None)
    uncounted.see("val", torch.tensor(1.0))
    uncounted.close("val", counted=False)
    assert uncounted.why("val").startswith("the loss of the one batch was None (compute_loss returned none) and the")
    uncounted.see("val", None)
    uncounted.close("val", counted=True)
    assert uncounted.why("val") == ""
