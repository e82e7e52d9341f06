"""What is seen equals what is computed by hand, for any micro-batches and ranks, and looking changes no bit."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from framework import Data, Plugin, Recipe, Run, Step, UserError, fit
from framework.checkpoint.file import CheckpointFiles
from framework.engine.attribution import Attribution, shares
from framework.run.summary import summarize
from plugins.activation_sparsity import ActivationSparsity
from plugins.adversarial import Adversarial
from plugins.hidden_noise import HiddenNoise
from plugins.input_noise import InputNoise
from plugins.mixup import Mixup
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.sam import SAM
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise
from tests.children import at_call, in_child


class Decay(Plugin):
    """Half the squared norm, as a term of the loss."""

    def attach(self, core: Any) -> None:
        self.core_ = core

    def penalty(self, step: Step) -> Tensor:
        return 0.1 * sum((p.square().sum() / 2 for p in self.core_.model.parameters()), torch.zeros(()))


class Halve(Plugin):
    def transform_gradients(self, step: Step) -> None:
        for group in step.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.mul_(0.5)


def recipe(digits: Any, *plugins: Any, accumulate: int = 1, **options: Any) -> Recipe:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    x, y = digits
    size = options.pop("batch_size", 32) // accumulate
    trainer = {"max_epochs": 2, "accumulate_grad_batches": accumulate, "enable_progress_bar": False, **options}
    data = Data((x[:128], y[:128]), (x[128:], y[128:]), batch_size=size)
    return Recipe(model, data, cross_entropy, plugins=[*plugins, Optimizer("SGD", lr=0.1)], trainer=trainer)


def means(run: Run) -> dict[str, float]:
    (look,) = [one for one in run.recipe.plugins if isinstance(one, Attribution)]
    return {tag: value for tag, value in look.means.items() if not tag.endswith("/time")}


def test_share_and_cosine_by_hand() -> None:
    data = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    found = shares(data, {"a": [torch.tensor([0.0, 5.0]), torch.tensor([0.0])], "b": [-one for one in data]})
    assert found["a"] == pytest.approx((5 / 15, 0.0))
    assert found["b"] == pytest.approx((5 / 15, -1.0))
    assert shares(data, {"zero": [torch.zeros(2), torch.zeros(1)]}) == {"zero": (0.0, 0.0)}


def test_the_first_look_by_hand(digits: Any) -> None:
    made = recipe(digits, Decay(), NormPenalty(0.05, weights="0"), Halve(), max_epochs=1, limit_train_batches=1)
    net = [p.detach().clone().requires_grad_() for p in made.model.parameters()]
    run = fit(made, attribute=1, logs=None)
    batch = next(iter(made.data.train_loader(seed=0)))
    (x, y), *_ = batch.batches
    hidden = torch.relu(x @ net[0].T + net[1])
    data = torch.autograd.grad(cross_entropy(hidden @ net[2].T + net[3], y), net)
    parts = {
        "decay": [0.1 * p.detach() for p in net],
        "norm_penalty": [0.05 * net[0].detach(), *(torch.zeros_like(p) for p in net[1:])],
    }
    expected = shares(list(data), parts)
    found = means(run)
    for name, (share, cosine) in expected.items():
        assert found[f"attribution/{name}/share"] == pytest.approx(share, rel=1e-5)
        assert found[f"attribution/{name}/cosine"] == pytest.approx(cosine, abs=1e-6)
    assert found["attribution/halve/change"] == pytest.approx(0.5, rel=1e-6)


def test_edits_are_measured_over_the_weights(digits: Any) -> None:
    run = fit(recipe(digits, WeightNoise(0.01)), attribute=1, logs=None)
    size = math.sqrt(sum(p.numel() for p in (run.core.model[0].weight, run.core.model[2].weight)))
    norm = math.sqrt(sum(float(p.detach().square().sum()) for p in run.core.model.parameters()))
    assert means(run)["attribution/weight_noise/edit"] == pytest.approx(0.01 * size / norm, rel=0.1)


@pytest.mark.parametrize(
    "plugins",
    [
        (Decay(), NormPenalty(0.01), WeightNoise(0.05)),
        (InputNoise(0.1), HiddenNoise("1", kind="masking", rate=0.2), ActivationSparsity(1e-3, layers="1")),
        (Mixup(0.2), SAM(0.05), WeightAverage(decay=0.9)),
        (Adversarial(0.05, "fgsm"), Halve()),
    ],
)
@pytest.mark.parametrize("options", [{}, {"accumulate": 2, "precision": "bf16-mixed", "gradient_clip_val": 0.5}])
def test_looking_changes_no_bit(plugins: Any, options: Any, digits: Any) -> None:
    plain = fit(recipe(digits, *plugins, **options), logs=None)
    seen = fit(recipe(digits, *plugins, **options), attribute=2, logs=None)
    assert means(seen)
    for a, b in zip(plain.core.model.parameters(), seen.core.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert plain.metrics == seen.metrics


def test_micro_batches_make_no_difference(digits: Any) -> None:
    plugins = (Decay(), ActivationSparsity(1e-2, layers="1"), NormPenalty(0.01))
    one, four = (means(fit(recipe(digits, *plugins, accumulate=k), attribute=1, logs=None)) for k in (1, 4))
    assert one == pytest.approx(four, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_ranks_make_no_difference(digits: Any, tmp_path: Path) -> None:
    plugins = (Decay(), ActivationSparsity(1e-2, layers="1"), NormPenalty(0.01))
    one = means(fit(recipe(digits, *plugins), attribute=1, logs=None))

    def two() -> None:
        options = {"strategy": "ddp_fork", "devices": 2, "accelerator": "cpu", "batch_size": 16}
        fit(recipe(digits, *plugins, **options), attribute=1, logs=tmp_path)

    assert in_child(two) == 0
    assert _kept(tmp_path) == pytest.approx(one, rel=1e-4, abs=1e-6)


def _kept(logs: Path) -> dict[str, float]:
    """Return the means in the last checkpoint."""
    from framework.checkpoint.file import read_checkpoint

    state = read_checkpoint(next(logs.glob("*/*/checkpoints/last.ckpt")))["callbacks"]["attribution"]
    found = {tag: total / state["looks"][tag] for tag, total in state["sums"].items()}
    return {tag: value for tag, value in found.items() if not tag.endswith("/time")}


def test_a_resumed_run_goes_on_looking(digits: Any, tmp_path: Path) -> None:
    whole = fit(recipe(digits, Decay(), max_epochs=4), attribute=3, logs=tmp_path / "whole")

    def killed() -> None:
        at_call(CheckpointFiles, "save_checkpoint", 3, lambda: os.kill(os.getpid(), signal.SIGKILL))
        fit(recipe(digits, Decay(), max_epochs=4), attribute=3, logs=tmp_path / "logs", checkpoint_seconds=0)

    assert in_child(killed) == -signal.SIGKILL
    again = fit(recipe(digits, Decay(), max_epochs=4), resume=True, logs=tmp_path / "logs")
    assert means(again) == means(whole)
    record = json.loads(next((tmp_path / "logs").glob("*/*/run.json")).read_text())
    assert record["attribute"] == 3


def test_curves_and_summary(digits: Any, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(recipe(digits, Decay()), attribute=4, logs=tmp_path)
    events = EventAccumulator(str(run.folder))
    events.Reload()
    shares_ = events.Scalars("attribution/decay/share")
    assert len(shares_) == 2
    assert means(run)["attribution/decay/share"] == pytest.approx(sum(one.value for one in shares_) / 2, rel=1e-5)
    text = summarize(run)
    assert "plugin" in text
    assert "decay" in text
    assert "plugin" not in summarize(fit(recipe(digits, Decay()), logs=None))


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_steps_between_looks_are_checked(every: Any, digits: Any) -> None:
    with pytest.raises(UserError, match=r"attribute=.*: must be a whole number >= 1, the steps between two looks"):
        fit(recipe(digits), attribute=every, logs=None)


def test_what_cannot_be_looked_into(digits: Any) -> None:
    made = recipe(digits, Decay())
    made.compile = {"backend": "eager"}
    with pytest.raises(UserError, match=r"attribute=1: not possible here: .* compiled network; leave compile out"):
        fit(made, attribute=1, logs=None)
    made = recipe(digits, Decay())
    made.plugins[-1] = Optimizer("LBFGS", lr=0.1)
    with pytest.raises(UserError, match=r"attribute=1: .* evaluates the gradient several times a step"):
        fit(made, attribute=1, logs=None)
