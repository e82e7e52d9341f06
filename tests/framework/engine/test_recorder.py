"""What is logged: J, each term and J~ apart, epoch means, history; over ranks as in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import DummyLogger
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from framework.data import Data
from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]


class Lines(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert all(type(value) is float for value in metrics.values())
        self.lines.append((step, dict(metrics)))

    def of(self, tag: str) -> list[tuple[int, float]]:
        return [(step, line[tag]) for step, line in self.lines if tag in line]


class Still(Plugin):
    """Never moves the weights, so that every mean can be computed afterwards."""

    def make_optimizer(self, groups: Any) -> Any:
        return torch.optim.SGD(groups, lr=0.0)


class Terms(Plugin):
    """Terms that can be computed by hand."""

    def penalty(self, step: Any) -> Any:
        return {"index": torch.tensor(float(step.index)), "size": torch.tensor(float(step.count))}

    def weight_penalty(self, step: Any) -> Tensor:
        return torch.tensor(100.0)

    def weight_penalty_gradient(self, step: Any) -> None:
        step.record("told", step.index)


def logged(train: Train, core: Core, **options: Any) -> Lines:
    lines = Lines()
    train(core, **{"logger": lines, "log_every_n_steps": 1, **options})
    return lines


def losses(data: Data, core: Core, epoch: int = 0) -> list[tuple[float, int]]:
    loader = data.train_loader(seed=0)
    loader.set_epoch(epoch)
    with torch.no_grad():
        return [(cross_entropy(core.model(x), y).item(), len(y)) for w in loader for x, y in w.batches]


def test_loss_terms_and_objective_are_logged_apart(core_of: CoreOf, train: Train, data: Data) -> None:
    core = core_of(Still(), Terms())
    lines = logged(train, core, max_steps=3)
    expected = losses(data, core)
    for step, line in lines.lines[:3]:
        assert line["train/loss"] == pytest.approx(expected[step - 1][0], rel=1e-5)
        assert line["penalty/terms/index"] == step - 1
        assert line["penalty/terms/size"] == 16
        assert line["penalty/terms"] == 100
        assert line["train/objective"] == pytest.approx(line["train/loss"] + step - 1 + 16 + 100)
        assert line["told"] == step - 1
        assert line["lr"] == 0.0
        assert line["grad_norm"] > 0
    assert [step for step, _ in lines.of("train/loss")] == [1, 2, 3]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_entries_are_means_over_the_samples_since_the_last(
    core_of: CoreOf, train: Train, data: Data, accumulate: int
) -> None:
    cut = Data(data.train, data.val, batch_size=16 // accumulate)
    core = core_of(Still(), Terms(), accumulate=accumulate, data=cut)
    lines = logged(train, core, log_every_n_steps=3)
    expected = losses(data, core)
    assert [step for step, _ in lines.of("train/loss")] == [3, 6]
    for step, value in lines.of("train/loss"):
        part = expected[step - 3 : step]
        assert value == pytest.approx(sum(v * n for v, n in part) / sum(n for _, n in part), rel=1e-5)
    assert lines.of("penalty/terms/index") == [(3, 1.0), (6, 4.0)]


def test_an_epochs_mean_counts_each_sample_once(core_of: CoreOf, train: Train, data: Data) -> None:
    metrics = {"accuracy": MulticlassAccuracy(10, average="micro")}
    core = core_of(Still(), metrics=metrics)
    trainer = train(core, max_epochs=2)
    x, y = data.train
    with torch.no_grad():
        expected = cross_entropy(core.model(x), y).item(), (core.model(x).argmax(1) == y).float().mean().item()
    got = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert (got["train/loss"], got["train/accuracy"]) == pytest.approx(expected, rel=1e-5)
    assert got["gap/loss"] == pytest.approx(got["val/loss"] - got["train/loss"], rel=1e-4)
    assert got["gap/accuracy"] == pytest.approx(got["val/accuracy"] - got["train/accuracy"], rel=1e-4)


def test_validation_loss_is_the_data_loss_alone(core_of: CoreOf, train: Train) -> None:
    with_terms = train(core_of(Still(), Terms())).callback_metrics["val/loss"]
    assert with_terms == train(core_of(Still())).callback_metrics["val/loss"]


def test_a_short_epoch_is_still_logged_once(core_of: CoreOf, train: Train) -> None:
    assert logged(train, core_of(), log_every_n_steps=50, max_epochs=2).of("train/loss") != []


def test_validation_is_logged_at_the_steps_done(core_of: CoreOf, train: Train) -> None:
    lines = logged(train, core_of(), val_check_interval=3, max_epochs=2)
    assert [step for step, _ in lines.of("val/loss")] == [3, 6, 10, 13]


def test_history_has_an_entry_a_validation_and_an_epoch(core_of: CoreOf, train: Train) -> None:
    core = core_of()
    train(core, max_epochs=2, val_check_interval=3)
    assert [(e.epoch, e.step) for e in core.recorder.history] == [(0, 3), (0, 6), (0, 7), (1, 10), (1, 13), (1, 14)]
    core = core_of()
    train(core, max_epochs=2)
    assert [(e.epoch, e.step) for e in core.recorder.history] == [(0, 7), (1, 14)]
    assert all({"val/loss", "train/loss", "gap/loss"} <= set(e.metrics) for e in core.recorder.history)


def test_the_sanity_check_leaves_no_trace(core_of: CoreOf, train: Train) -> None:
    plain, checked = Lines(), Lines()
    train(core_of(), logger=plain, log_every_n_steps=2)
    train(core_of(), logger=checked, log_every_n_steps=2, num_sanity_val_steps=2)
    assert plain.lines == checked.lines


def test_logging_changes_no_bit(core_of: CoreOf, train: Train, weights: Callable[[Core], Tensor]) -> None:
    silent, told = core_of(Terms()), core_of(Terms())
    train(silent, max_epochs=2)
    logged(train, told, max_epochs=2)
    assert torch.equal(weights(silent), weights(told))


def test_values_of_weights_are_computed_on_logged_steps_only(core_of: CoreOf, train: Train) -> None:
    class Costly(Terms):
        asked_ = 0

        def weight_penalty(self, step: Any) -> Tensor:
            self.asked_ += 1
            return torch.tensor(0.0)

    plugin = Costly()
    logged(train, core_of(plugin), log_every_n_steps=3)
    assert plugin.asked_ == 2


def test_groups_of_several_rates(core_of: CoreOf, train: Train) -> None:
    class Two(Plugin):
        def group_parameters(self, groups: Any) -> Any:
            (group,) = groups
            return [{"params": group["params"][:2], "lr": 0.1}, {"params": group["params"][2:], "lr": 0.2}]

    lines = logged(train, core_of(Two()), max_steps=1)
    assert lines.of("lr/0") == [(1, 0.1)]
    assert lines.of("lr/1") == [(1, 0.2)]


class RankByRank(pl.Callback):
    """Compares callback metrics with those expected, in each rank."""

    def __init__(self, expected: Mapping[str, Any]) -> None:
        self.expected = {name: value.item() for name, value in expected.items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        got = {name: value.item() for name, value in trainer.callback_metrics.items()}
        assert got == pytest.approx(self.expected, rel=1e-5), trainer.global_rank


def test_two_ranks_log_what_one_process_logs(core_of: CoreOf, train: Train, data: Data) -> None:
    """41 validation samples on two ranks: the mean counts each once, which a mean of the ranks' means would not."""
    metrics = {"accuracy": MulticlassAccuracy(10, average="micro")}
    whole = Data(data.train, data.val, batch_size=32)
    one = train(core_of(Still(), metrics=metrics, data=whole))
    half = Data(data.train, data.val, batch_size=16)
    check = RankByRank(one.callback_metrics)
    train(core_of(Still(), metrics=metrics, data=half), callbacks=[check], strategy="ddp_fork", devices=2)


def test_a_monitor_that_is_never_logged_is_reported_with_those_that_are(
    core_of: CoreOf, train: Train, tmp_path: Any
) -> None:
    keep = pl.callbacks.ModelCheckpoint(tmp_path, monitor="val/acc")
    with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="val/loss"):
        train(core_of(), callbacks=[keep], enable_checkpointing=True)


def test_a_metric_that_is_not_one_number_is_reported(core_of: CoreOf, train: Train) -> None:
    with pytest.raises(UserError, match=r"metric 'confusion' gives a tensor of shape \(10, 10\), not one number"):
        train(core_of(metrics={"confusion": MulticlassConfusionMatrix(10)}))


class Pair(Core):
    """Gives the metrics a mapping of predictions."""

    def compute_loss(self, batch: Any) -> Any:
        outcome = super().compute_loss(batch)
        return outcome._replace(prediction=outcome.loss.detach(), target=1.0)


def test_predictions_of_any_kind_reach_the_metrics(core_of: CoreOf, train: Train) -> None:
    trainer = train(core_of(Still(), kind=Pair, metrics={"mean": MeanMetric()}))
    assert trainer.callback_metrics["train/mean"] > 0


def test_a_loss_that_is_not_finite_is_noticed_where_nothing_is_logged(core_of: CoreOf, train: Train) -> None:
    """On an accelerator single steps are not looked at; the epoch's mean is."""
    core = core_of(Still())
    core.recorder.add({"loss": torch.tensor(float("nan"))}, 16.0)
    with pytest.raises(UserError, match="epoch 0: loss is nan"):
        train(core)


class Recorded(Plugin):
    """Records one value by one tag."""

    def __init__(self, tag: str, value: Any) -> None:
        super().__init__()
        self.tag_, self.value_ = tag, value

    def after_update(self, step: Any) -> None:
        step.record(self.tag_, self.value_)


@pytest.mark.parametrize(
    ("tag", "value", "told"),
    [
        ("mine", torch.ones(3), r"step.record\('mine', ...\) gives a tensor of shape \(3,\), not one number"),
        ("mine", torch.ones(0), r"'mine', ...\) gives a tensor of shape \(0,\)"),
        ("mine", torch.tensor(1j), "gives a tensor complex"),
        ("mine", np.ones(2), r"of type ndarray of shape \(2,\)"),
        ("mine", None, "of type NoneType"),
        ("mine", [1.0], "of type list"),
        ("train/loss", 1.0, r"'train/loss', ...\): the run logs another value by this tag"),
        ("train/objective", 1.0, "another value"),
        ("val/accuracy", 1.0, "another value"),
        ("lr", 1.0, "another value"),
    ],
)
def test_a_record_that_is_not_one_number_of_its_own_is_refused(
    core_of: CoreOf, train: Train, tag: str, value: Any, told: str
) -> None:
    metrics = {"accuracy": MulticlassAccuracy(10, average="micro")}
    with pytest.raises(UserError, match=told):
        train(core_of(Recorded(tag, value), metrics=metrics), logger=Lines(), log_every_n_steps=1)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2), torch.tensor([[2.0]]), torch.tensor(2)])
def test_one_number_of_any_kind_is_recorded(core_of: CoreOf, train: Train, value: Any) -> None:
    lines = Lines()
    train(core_of(Recorded("mine", value)), logger=lines, log_every_n_steps=1)
    assert {value for _, value in lines.of("mine")} == {2.0}


class Plain(MeanMetric):
    """Gives its mean as a number of some kind other than a tensor."""

    def __init__(self, kind: Callable[[float], Any]) -> None:
        super().__init__()
        self.kind = kind

    def update(self, prediction: Tensor, target: Tensor) -> None:
        super().update(target.float().mean())

    def compute(self) -> Any:
        return self.kind(float(super().compute()))


@pytest.mark.parametrize("kind", [float, round, np.float32, np.array, lambda value: torch.tensor([value])])
def test_a_metric_may_be_a_number_of_any_kind(core_of: CoreOf, train: Train, kind: Any, data: Data) -> None:
    core = core_of(metrics={"plain": Plain(kind)})
    train(core)
    assert data.val is not None
    means = [float(data.val[1][first : first + 16].float().mean()) for first in range(0, 41, 16)]
    right = float(torch.tensor(means).mean())  # MeanMetric weighs batches alike
    assert core.recorder.history[-1].metrics["val/plain"] == pytest.approx(float(kind(right)), rel=1e-5)


@pytest.mark.parametrize("kind", [str, complex, lambda value: [value], lambda value: None, lambda value: {"a": value}])
def test_a_metric_that_is_no_number_is_refused(core_of: CoreOf, train: Train, kind: Any) -> None:
    with pytest.raises(UserError, match=r"metric 'plain' gives a value of type .*, not one number"):
        train(core_of(metrics={"plain": Plain(kind)}))
