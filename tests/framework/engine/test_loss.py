"""J of a batch: sample weights, several inputs, networks that return their loss, terms that are shown."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

import framework
from framework import Core, Data, Outcome, Recipe, UserError, fit
from framework.data.means import unreduced, weighted_mean
from plugins.mixup import Mixup
from plugins.optimizer import Optimizer

QUICK = {"max_epochs": 2, "logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}
torch.manual_seed(0)
X, Y = torch.randn(30, 5), torch.randint(0, 3, (30,))
W = torch.rand(30) + 0.1
TOKENS = torch.randint(0, 3, (30, 4)).masked_fill(torch.arange(30)[:, None] % 7 == 0, -100)


def linear(inside: int = 5, out: int = 3) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(inside, out)


def trained(train: Any, model: nn.Module, loss: Any, size: int = 30, accumulate: int = 1, **more: Any) -> Any:
    keys = {key: more.pop(key) for key in ("input", "target", "weight") if key in more}
    data = Data(train, train, batch_size=size, eval_batch_size=8, **keys)
    trainer = {**QUICK, "accumulate_grad_batches": accumulate, **more.pop("trainer", {})}
    return fit(
        Recipe(
            model, data, loss, plugins=[Optimizer("SGD", lr=0.5), *more.pop("plugins", [])], trainer=trainer, **more
        ),
        logs=None,
    )


LOSSES = [
    (nn.CrossEntropyLoss(), Y),
    (F.cross_entropy, Y),
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0, 0.5]), ignore_index=1), Y),
    (functools.partial(F.cross_entropy, label_smoothing=0.1), Y),
    (nn.MSELoss(), F.one_hot(Y, 3).float()),
    (lambda prediction, target: (prediction - target).square().mean(1), F.one_hot(Y, 3).float()),
]


@pytest.mark.parametrize(("loss", "y"), LOSSES, ids=range(len(LOSSES)))
def test_whole_weights_are_repeated_samples(loss: Any, y: Tensor) -> None:
    times = torch.arange(30) % 3 + 1
    prediction = linear()(X)
    mean, total = weighted_mean(loss, prediction, y, times)
    repeated = unreduced(loss)(prediction.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    if isinstance(loss, nn.Module) and loss.reduction == "mean":
        repeated = loss(prediction.repeat_interleave(times, 0), y.repeat_interleave(times, 0))
    assert torch.allclose(mean, repeated.mean(), atol=1e-6) and total > 0


@pytest.mark.parametrize(("loss", "y"), LOSSES, ids=range(len(LOSSES)))
def test_weights_are_exact_under_accumulation(loss: Any, y: Tensor) -> None:
    whole, parts = (trained((X, y, W), linear(), loss, size, k) for size, k in ((30, 1), (8, 4)))
    assert torch.allclose(whole.core.model.weight, parts.core.model.weight, atol=1e-6)
    plain = trained((X, y, torch.ones(30)), linear(), loss)
    assert not torch.allclose(whole.core.model.weight, plain.core.model.weight, atol=1e-4)
    assert parts.last["train/loss"] == pytest.approx(whole.last["train/loss"], abs=1e-6)
    assert parts.last["val/loss"] == pytest.approx(
        float(weighted_mean(loss, parts.core.model(X), y, W)[0].detach()), abs=1e-6
    )


def test_weights_of_one_change_nothing() -> None:
    ones = trained((X, Y, torch.ones(30)), linear(), F.cross_entropy, 7)
    plain = trained((X, Y), linear(), F.cross_entropy, 7)
    assert torch.allclose(ones.core.model.weight, plain.core.model.weight, atol=1e-6)


def test_a_micro_batch_without_weight_does_not_count() -> None:
    weight = torch.zeros(30)
    weight[3] = 1.0
    run = trained((X, Y, weight), linear(), F.cross_entropy, 4, 8)
    alone = trained((X[3:4], Y[3:4]), linear(), F.cross_entropy, 1)
    assert torch.allclose(run.core.model.weight, alone.core.model.weight, atol=1e-6)


def test_ignored_entries_are_exact_where_only_some_micro_batches_have_any() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = linear(5, 12)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x).reshape(-1, 3, 4)

    whole, parts = (trained((X, TOKENS), Tagger(), F.cross_entropy, size, k) for size, k in ((30, 1), (4, 8)))
    assert torch.allclose(whole.core.model.net.weight, parts.core.model.net.weight, atol=1e-6)
    assert parts.last["val/loss"] == pytest.approx(
        float(F.cross_entropy(parts.core.model(X), TOKENS).detach()), abs=1e-6
    )


def test_a_loss_that_cannot_be_weighted() -> None:
    with pytest.raises(UserError, match=r"give each sample a weight, but the loss <lambda> returns one number for all"):
        trained((X, Y, W), linear(), lambda p, t: F.cross_entropy(p, t))


def test_mixing_beside_weights() -> None:
    run = trained((X, Y, W), linear(), F.cross_entropy, plugins=[Mixup(alpha=0.4)])
    assert run.last["train/loss"] > 0


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = linear(), linear(5)

    def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
        return self.a(left) + (0 if right is None else self.b(right))


@pytest.mark.parametrize("input", [("left", "right"), {"left": "left", "right": "right"}, None])
def test_several_inputs(input: Any) -> None:
    train = {"left": X, "right": -X, "label": Y}
    run = trained(train, Two(), F.cross_entropy, 8, input=input)
    plain = trained((X, Y), linear(), F.cross_entropy, 8)
    assert not torch.equal(run.core.model.b.weight, linear(5).weight)
    assert not torch.allclose(run.core.model.a.weight, plain.core.model.weight)
    assert run.metrics["val/loss"] < 1.3


class Returns(nn.Module):
    """Returns its loss, as networks of libraries do: as a mapping, in a tuple, several, or alone."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.net, self.how = linear(), how

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.net(x)
        if labels is None:
            return logits
        loss = F.cross_entropy(logits, labels)
        return {
            "mapping": {"loss": loss, "logits": logits},
            "tuple": (logits, loss),
            "alone": loss,
            "several": {"first": loss * 0.25, "second": loss * 0.75},
            "training": {"part": loss} if self.training else [{"scores": logits}],
            "nothing": logits,
        }[self.how]


@pytest.mark.parametrize("how", ["mapping", "tuple", "alone", "several", "training"])
def test_a_network_that_returns_its_loss(how: str) -> None:
    monitor = "train/loss" if how == "training" else "val/loss"
    run = trained({"x": X, "labels": Y}, Returns(how), None, 8, monitor=monitor)
    plain = trained((X, Y), linear(), F.cross_entropy, 8)
    assert torch.allclose(run.core.model.net.weight, plain.core.model.weight, atol=1e-6)
    if how == "several":
        for stage in ("train", "val"):
            loss, first = run.last[f"{stage}/loss"], run.last[f"{stage}/first"]
            assert first == pytest.approx(loss * 0.25, rel=1e-5)
    assert ("val/loss" in run.last) == (how != "training")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"model": Returns("nothing")}, "Returns returned no loss"),
        ({"plugins": [Mixup(alpha=0.4)]}, "computes the loss itself, which takes no mixed targets"),
        ({"train": {"x": X, "labels": Y, "weight": W}}, "takes no sample weights"),
        ({"model": linear()}, "Linear cannot return it, since its forward takes no target"),
    ],
)
def test_what_such_a_network_cannot_do(more: dict[str, Any], words: str) -> None:
    given = {"train": {"x": X, "labels": Y}, "model": Returns("mapping"), **more}
    with pytest.raises(UserError, match=words):
        trained(given.pop("train"), given.pop("model"), None, **given)


def test_parts_of_a_batch_that_nobody_reads() -> None:
    with pytest.raises(UserError, match="a batch has 4 parts"):
        trained((X, Y, W, W), linear(), F.cross_entropy)


class Terms(Core):
    def compute_loss(self, batch: Any) -> Outcome:
        x, y = batch
        fit, size = F.cross_entropy(self(x), y), self.model.weight.square().mean()
        return Outcome(fit + 0.1 * size, terms={"fit": fit, "size": size})


def test_terms_are_curves_of_their_own(tmp_path: Any) -> None:
    recipe = Recipe(
        linear(),
        Data((X, Y), (X, Y), (X, Y), batch_size=8),
        plugins=[Optimizer("SGD", lr=0.1)],
        core=Terms,
        trainer={"max_epochs": 3, "enable_progress_bar": False},
        monitor="val/fit",
    )
    run = fit(recipe, logs=tmp_path)
    for stage in ("train", "val"):
        values = [run.last[f"{stage}/{name}"] for name in ("loss", "fit", "size")]
        assert values[0] == pytest.approx(values[1] + 0.1 * values[2], rel=1e-5)
    assert run.best_epoch == 2 and "gap/fit" in run.last
    assert run.core.recorder.latest["train/objective"] == pytest.approx(run.core.recorder.latest["train/loss"])
    assert framework.test(run)["test/fit"] == pytest.approx(run.last["val/fit"])
    assert framework.predict(run).shape == (30, 3)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = linear(5, 12)

    def forward(self, x: Tensor, labels: Tensor) -> Any:
        return {"loss": F.cross_entropy(self.net(x).reshape(-1, 3, 4), labels)}


def test_a_networks_own_mean_over_targets_that_count_is_exact_under_accumulation() -> None:
    runs = [trained({"x": X, "labels": TOKENS}, Tagger(), None, size, k) for size, k in ((30, 1), (4, 8))]
    assert torch.allclose(*(run.core.model.net.weight for run in runs), atol=1e-6)
    assert runs[0].last["val/loss"] == pytest.approx(runs[1].last["val/loss"], abs=1e-6)


class Named(Core):
    name = "loss"

    def compute_loss(self, batch: Any) -> Outcome:
        prediction = self(batch[0])
        return Outcome(F.cross_entropy(prediction, batch[1]), prediction, batch[1], {self.name: prediction.mean()})


def test_terms_do_not_take_the_names_of_others() -> None:
    with pytest.raises(UserError, match="'loss' is a value of the run's own; rename the term"):
        trained((X, Y), linear(), None, core=Named)
    metrics = {"acc": MulticlassAccuracy(3)}
    with pytest.raises(UserError, match="'acc' is the name of a metric too"):
        trained((X, Y), linear(), None, core=type("Other", (Named,), {"name": "acc"}), metrics=metrics)


@pytest.mark.parametrize("bad", [-0.5, float("nan"), float("inf")])
def test_weights_are_not_negative(bad: float) -> None:
    weight = torch.ones(30)
    weight[4] = bad
    with pytest.raises(UserError, match=rf"finite numbers of 0 or more; that of row \d+ is {bad}: correct"):
        trained((X, Y, weight), linear(), F.cross_entropy)


class Gives(nn.Module):
    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer, self.make = linear(), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.layer(x))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), F.cross_entropy, nn.MSELoss(), F.smooth_l1_loss])
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda z: (z, z), r"a tuple of 2 \(Tensor \(2 times\)\)"),
        (lambda z: [z, None], r"a list of 2 \(Tensor, NoneType\)"),
        (lambda z: {"foo": z, "bar": z}, "a dict with 'foo', 'bar'"),
        (lambda z: {0: z, ("a", 1): z}, r"a dict with 0, \('a', 1\)"),
        (lambda z: None, "None"),
        (lambda z: 1.5, "a float"),
    ],
)
def test_outputs_that_torchs_losses_do_not_take(make: Any, words: str, loss: Any) -> None:
    y = Y if loss in (F.cross_entropy,) or isinstance(loss, nn.CrossEntropyLoss) else F.one_hot(Y, 3).float()
    name = getattr(loss, "__name__", type(loss).__name__)
    for train in ((X, y), (X, y, W)):
        with pytest.raises(UserError, match=rf"^Gives returned {words}, and the loss {name} takes a tensor: return"):
            trained(train, Gives(make), loss)


def test_targets_that_torchs_losses_do_not_take() -> None:
    for loss, name in ((nn.MSELoss(), "MSELoss"), (F.cross_entropy, "cross_entropy")):
        with pytest.raises(UserError, match=rf"^the target is a dict with 'a', and the loss {name} takes a tensor"):
            trained((X, {"a": Y}), linear(), loss)


def test_errors_of_torchs_losses_on_tensors_stay() -> None:
    with pytest.raises(UserError, match="the loss was given a target of the wrong type"):
        trained((X, Y.float()), linear(), F.cross_entropy)
