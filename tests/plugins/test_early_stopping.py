from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from framework import Data, Plugin, Recipe, UserError, fit
from framework.engine.core import Core
from framework.run.result import Interrupted, Run
from plugins.early_stopping import Best, EarlyStopping, equivalent_decay

RATE = 0.05  # the level's distance to its target shrinks by 1 - 2 * RATE = 0.9 a step
QUIET = {"logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0, "accelerator": "cpu"}


class Level(nn.Module):
    """Predicts one number, whatever comes in; trained on ones it is 1 - 0.9**t after t steps."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return self.level.expand(len(x))


class Descent(Plugin):
    lr: float = RATE

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=self.lr)


class Raise(pl.Callback):
    """Raises an error or a signal in the middle of an epoch, in the n-th training."""

    def __init__(self, error: BaseException | signal.Signals, step: int, fit: int = 1) -> None:
        self.error, self.step, self.fit = error, step, fit

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.fit -= 1

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.fit == 0 and trainer.global_step == self.step:
            if isinstance(self.error, signal.Signals):
                signal.raise_signal(self.error)
            else:
                raise self.error


@pytest.fixture(autouse=True)
def _keep_sigint() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)  # Lightning ignores the signal after a Ctrl-C
    yield
    signal.signal(signal.SIGINT, handler)


def level(steps: int) -> float:
    return 1 - (1 - 2 * RATE) ** steps


def level_recipe(
    *plugins: pl.Callback, val: float | None = 0.3, batch_size: int = 4, **trainer: Any
) -> Callable[[], Recipe]:
    """Four samples to train on, all ones; by default one step an epoch, best after three: 0.271 of 0.3."""

    def steps() -> Recipe:
        x = torch.zeros(4, 1)
        part = None if val is None else (x, torch.full((4,), val))
        data = Data((x, torch.ones(4)), part, batch_size=batch_size)
        options = {"max_epochs": 30, **QUIET, **trainer}
        return Recipe(Level(), data, mse_loss, plugins=copy.deepcopy([Descent(), *plugins]), trainer=options)

    return steps


def stopping(run: Run) -> EarlyStopping:
    return next(plugin for plugin in run.core.plugins if isinstance(plugin, EarlyStopping))


def assert_handed_back(run: Run, steps: int) -> None:
    assert run.core.model.level.item() == pytest.approx(level(steps), rel=1e-5)
    assert run.core.model.seen.item() == steps


def last_level(run: Run) -> float:
    return float(torch.load(run.last_checkpoint, weights_only=True)["state_dict"]["model.level"])


# ---- every way out ---------------------------------------------------------------------------------------------------


def test_patience_ends_training_and_the_best_comes_back(tmp_path: Path) -> None:
    run = fit(level_recipe(EarlyStopping(patience=2)), logs=tmp_path)
    assert (run.status, run.epochs, run.steps) == ("stopped", 5, 5)
    best = stopping(run).best_
    assert best is not None
    assert (best.epoch, best.step) == (2, 3)
    assert best.metrics["val/loss"] == pytest.approx((0.3 - level(3)) ** 2, rel=1e-4)
    assert_handed_back(run, 3)
    assert last_level(run) == pytest.approx(level(5))  # as training left it, for a resumed run


@pytest.mark.parametrize("end", [{"max_epochs": 4}, {"max_steps": 4, "max_epochs": -1}])
def test_the_best_comes_back_where_the_run_reaches_its_end(end: dict[str, int], tmp_path: Path) -> None:
    run = fit(level_recipe(EarlyStopping(patience=9), **end), logs=tmp_path)
    assert (run.status, run.steps) == ("finished", 4)
    assert_handed_back(run, 3)
    assert last_level(run) == pytest.approx(level(4))


def test_the_best_comes_back_on_ctrl_c(tmp_path: Path) -> None:
    recipe = level_recipe(EarlyStopping(then="retrain"), Raise(signal.SIGINT, 13), val=0.4, batch_size=1)
    with pytest.raises(Interrupted) as interrupted:
        fit(recipe, logs=tmp_path)
    run = interrupted.value.run
    assert run.status == "interrupted"
    assert run.phases == []
    assert_handed_back(run, 4)
    assert last_level(run) == pytest.approx(level(14))


def test_the_best_comes_back_on_errors(tmp_path: Path) -> None:
    kept: list[Core] = []

    class Keep(Plugin):
        def attach(self, core: Core) -> None:
            kept.append(core)

    with pytest.raises(RuntimeError, match="no more"):
        fit(level_recipe(EarlyStopping(), Keep(), Raise(RuntimeError("no more"), 14), val=0.4, batch_size=1), logs=None)
    assert kept[0].model.level.item() == pytest.approx(level(4))
    assert kept[0].model.seen.item() == 4


def test_without_any_validation_yet_there_is_nothing_to_hand_back() -> None:
    with pytest.raises(Interrupted) as interrupted:
        fit(level_recipe(EarlyStopping(), Raise(KeyboardInterrupt(), 2), batch_size=1), logs=None)
    assert_handed_back(interrupted.value.run, 2)


def test_a_run_that_never_came_to_validate_says_so() -> None:
    with pytest.warns(UserWarning, match="no validation in 2 steps"):
        fit(level_recipe(EarlyStopping(), max_epochs=2, check_val_every_n_epoch=5), logs=None)


def test_a_forked_rank_sends_the_best_home(train: Callable[..., pl.Trainer]) -> None:
    core = level_recipe(EarlyStopping(patience=2))().make_core(0, {})
    train(core, max_epochs=30, strategy="ddp_fork", devices=2)
    assert core.model.level.item() == pytest.approx(level(3), rel=1e-5)


# ---- the rule --------------------------------------------------------------------------------------------------------


def test_mode_max_keeps_the_greatest() -> None:
    run = fit(level_recipe(EarlyStopping(mode="max", patience=2)), logs=None)
    assert run.steps == 3
    assert_handed_back(run, 1)
    run = fit(level_recipe(EarlyStopping(mode="max", patience=20), max_epochs=20), logs=None)
    assert_handed_back(run, 20)  # there the level has passed 0.3 and is farther off than at the start


def test_a_change_below_min_delta_is_no_improvement() -> None:
    # the losses: 0.04, 0.0121, 0.0008
    run = fit(level_recipe(EarlyStopping(min_delta=0.02, patience=2)), logs=None)
    assert run.steps == 4
    assert_handed_back(run, 2)


def test_validation_within_an_epoch() -> None:
    run = fit(level_recipe(EarlyStopping(patience=3), val=0.2, batch_size=1, val_check_interval=0.5), logs=None)
    best = stopping(run).best_
    assert best is not None
    assert (best.epoch, best.step) == (0, 2)
    assert run.steps == 8
    assert_handed_back(run, 2)


def test_a_threshold_ends_training_and_counts_as_best() -> None:
    run = fit(level_recipe(EarlyStopping(stopping_threshold=0.02)), logs=None)
    assert run.steps == 2
    assert_handed_back(run, 2)
    assert stopping(run).rule_.best_score.item() == pytest.approx((level(2) - 0.3) ** 2, rel=1e-4)


def test_divergence_ends_training() -> None:
    run = fit(level_recipe(EarlyStopping(divergence_threshold=0.25, patience=30)), logs=None)
    assert run.steps == next(t for t in range(1, 30) if t > 3 and (level(t) - 0.3) ** 2 > 0.25)
    assert_handed_back(run, 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_metric_that_is_no_number(value: float, core_of: Callable[..., Core]) -> None:
    strict, lenient = EarlyStopping(patience=2), EarlyStopping(patience=2, check_finite=False)
    for plugin in (strict, lenient):
        core = core_of(plugin)
        core.attach_plugins()
        assert not plugin.should_stop({"val/loss": 1.0})
        plugin.on_validation_end(pl.Trainer(**QUIET), core)
    assert strict.should_stop({"val/loss": value})
    assert [lenient.should_stop({"val/loss": value}) for _ in range(2)] == [False, True]
    assert strict.improved_ is None
    assert lenient.improved_ is None


@pytest.mark.filterwarnings("ignore:val/loss is nan at the first validation:UserWarning")
def test_a_metric_that_never_was_a_number() -> None:
    never = pytest.raises(UserError, match="nan before it was ever finite")
    with pytest.warns(UserWarning, match="the loss is nan"), never:
        fit(level_recipe(EarlyStopping(), val=math.nan), logs=None)


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("val/los", r"'val/los'\): never logged .* did you mean 'val/loss'\? \(logged are: val/loss"),
        ("perplexity", "never logged at a validation; known: val/loss$"),
    ],
)
def test_a_monitor_that_is_never_logged(monitor: str, message: str, core_of: Callable[..., Core]) -> None:
    plugin = EarlyStopping(monitor=monitor)
    core_of(plugin).attach_plugins()
    with pytest.raises(UserError, match=message):
        plugin.should_stop({"val/loss": 1.0})
    with pytest.raises(UserError, match=f"monitor='{monitor}': never logged"):
        fit(level_recipe(EarlyStopping(monitor=monitor)), logs=None)


def test_no_validation_is_refused() -> None:
    with pytest.raises(UserError, match=r"no validation; give Data\(val=\.\.\.\)"):
        fit(level_recipe(EarlyStopping(), val=None), logs=None)
    with pytest.raises(UserError, match="limit_val_batches"):
        fit(level_recipe(EarlyStopping(), limit_val_batches=0), logs=None)


@pytest.mark.parametrize(
    "settings", [{"patience": 0}, {"min_delta": -1.0}, {"mode": "least"}, {"then": "retrian"}, {"max_extra_epochs": 0}]
)
def test_settings_out_of_bounds(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(settings))):
        EarlyStopping(**settings)


# ---- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["epoch 5", "ctrl-c"])
def test_a_resumed_run_counts_on(after: str, tmp_path: Path, train: Callable[..., pl.Trainer]) -> None:
    stop, options = EarlyStopping(patience=4), {"batch_size": 2, "val": 0.5}
    whole = fit(level_recipe(stop, **options), logs=None)
    if after == "epoch 5":
        first = fit(level_recipe(stop, max_epochs=5, **options), logs=tmp_path)
    else:
        with pytest.raises(Interrupted) as interrupted:
            fit(level_recipe(stop, Raise(KeyboardInterrupt(), 9), **options), logs=tmp_path)
        first = interrupted.value.run
    core = level_recipe(stop, **options)().make_core(0, {})
    trainer = train(core, max_epochs=30, ckpt_path=first.last_checkpoint)
    assert (trainer.current_epoch, trainer.global_step) == (whole.epochs, whole.steps) == (7, 14)
    resumed, alone = core.plugins[1], stopping(whole)
    assert isinstance(resumed, EarlyStopping)
    assert alone.best_ is not None
    assert resumed.best_ == alone.best_ == Best(2, 6, alone.best_.metrics)
    assert resumed.rule_.wait_count == alone.rule_.wait_count == 4
    assert resumed.rule_.best_score == alone.rule_.best_score
    for name, tensor in whole.core.model.state_dict().items():
        assert torch.equal(core.model.state_dict()[name], tensor)
    assert core.model.seen == 6


def test_more_patience_at_a_resumed_run_is_heard(tmp_path: Path, train: Callable[..., pl.Trainer]) -> None:
    first = fit(level_recipe(EarlyStopping(patience=2)), logs=tmp_path)
    core = level_recipe(EarlyStopping(patience=6))().make_core(0, {})
    assert train(core, max_epochs=30, ckpt_path=first.last_checkpoint).current_epoch == 9


def test_a_run_resumed_after_its_end_restores_the_best(tmp_path: Path, train: Callable[..., pl.Trainer]) -> None:
    first = fit(level_recipe(EarlyStopping(), max_epochs=5), logs=tmp_path)
    core = level_recipe(EarlyStopping())().make_core(0, {})
    train(core, max_epochs=5, ckpt_path=first.last_checkpoint)
    assert core.model.seen == 3


def test_a_recipe_object_can_be_fitted_twice() -> None:
    recipe = level_recipe(EarlyStopping(patience=2))()
    fit(recipe, logs=None)
    run = fit(recipe, logs=None)  # goes on from 0.271, where it is best at once or never
    assert run.status == "stopped"


# ---- averaged weights ------------------------------------------------------------------------------------------------


class Average(Plugin):
    """Validates on the mean of the levels so far."""

    def attach(self, core: Core) -> None:
        self.total_, self.count_, self.model_ = torch.zeros(()), 0, core.model

    def after_update(self, step: Any) -> None:
        self.total_ += self.model_.level.detach()
        self.count_ += 1

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        raw = self.model_.level.detach().clone()
        self.model_.level.data.copy_(self.total_ / self.count_)
        yield
        self.model_.level.data.copy_(raw)

    def evaluation_weights(self, core: Core) -> Any:
        return self._swapped()

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total_, "count": self.count_}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total_, self.count_ = state_dict["total"], state_dict["count"]


def test_the_average_comes_back_as_it_was_validated() -> None:
    run = fit(level_recipe(Average(), EarlyStopping(patience=2)), logs=None)
    means = [sum(level(t) for t in range(1, n + 1)) / n for n in range(1, run.steps + 1)]
    best = min(range(len(means)), key=lambda i: abs(means[i] - 0.3)) + 1
    assert 1 < best < run.steps
    average = next(plugin for plugin in run.core.plugins if isinstance(plugin, Average))
    assert average.count_ == best
    assert float(average.total_) / best == pytest.approx(means[best - 1])
    assert_handed_back(run, best)


# ---- all the data ----------------------------------------------------------------------------------------------------


def test_retrain_takes_the_best_number_of_steps_on_all_the_data(tmp_path: Path) -> None:
    run = fit(level_recipe(EarlyStopping(patience=2, then="retrain"), batch_size=8), logs=tmp_path)
    (phase,) = run.phases
    assert (phase.name, phase.status, phase.steps) == ("retrain", "finished", 3)
    # targets are 1 in the training and 0.3 in the validation part: 0.65 on the average, from zero
    assert run.core.model.level.item() == pytest.approx(0.65 * level(3), rel=1e-5)
    assert run.core.model.seen == 3
    # the figures are those of the run that could still validate
    assert run.metrics["val/loss"] == pytest.approx((0.3 - level(3)) ** 2, rel=1e-4)
    assert run.steps == 5
    assert run.best is not None
    best = torch.load(run.best, weights_only=True)["state_dict"]["model.level"]
    before = torch.load(run.best.with_name("before_retrain.ckpt"), weights_only=True)["state_dict"]["model.level"]
    assert best.item() == run.core.model.level.item()
    assert before.item() == pytest.approx(level(3), rel=1e-5)
    assert last_level(run) == pytest.approx(level(5))


def test_retrain_by_passes() -> None:
    run = fit(level_recipe(EarlyStopping(patience=2, then="retrain", count="epochs"), batch_size=4), logs=None)
    (phase,) = run.phases
    assert (phase.epochs, phase.steps) == (3, 6)  # with twice the data a pass has two steps


def test_a_phase_that_ends_within_an_epoch_keeps_its_last_weights(tmp_path: Path) -> None:
    run = fit(level_recipe(EarlyStopping(patience=2, then="retrain")), logs=tmp_path)
    assert (run.phases[0].epochs, run.phases[0].steps) == (2, 3)
    assert run.best is not None
    kept = torch.load(run.best, weights_only=True)["state_dict"]
    assert kept["model.level"] == run.core.model.level
    assert kept["model.seen"] == run.core.model.seen == 3


def test_retrain_starts_from_the_same_initial_parameters(tmp_path: Path) -> None:
    starts = []

    class Start(Plugin):
        def attach(self, core: Core) -> None:
            starts.append(core.model.weight.detach().clone())

    def recipe() -> Recipe:
        x = torch.eye(3)
        data = Data((x, x), (x, 0.5 * x))
        plugins = [Start(), EarlyStopping(then="retrain")]
        return Recipe(nn.Linear(3, 3), data, mse_loss, plugins=plugins, trainer={"max_epochs": 2, **QUIET})

    run = fit(recipe, logs=None, seed=4)
    assert len(starts) == 2
    assert torch.equal(*starts)
    assert not torch.equal(run.core.model.weight, starts[0])


def two_weights(*plugins: pl.Callback, **trainer: Any) -> Callable[[], Recipe]:
    """Only the validation part teaches the second weight, without which its loss stays above 1."""

    def recipe() -> Recipe:
        model = nn.Linear(2, 1, bias=False)
        nn.init.zeros_(model.weight)
        data = Data(
            (torch.tensor([[1.0, 0.0]]), torch.ones(1, 1)), (torch.tensor([[1.0, 1.0]]), torch.full((1, 1), 2.0))
        )
        options = {"max_epochs": 5, **QUIET, **trainer}
        return Recipe(model, data, mse_loss, plugins=copy.deepcopy([Descent(), *plugins]), trainer=options)

    return recipe


def test_continue_trains_until_validation_falls_to_the_training_loss(tmp_path: Path) -> None:
    losses = []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            losses.append(float(trainer.callback_metrics["val/loss"]))

    run = fit(two_weights(EarlyStopping(then="continue", max_extra_epochs=100), Watch()), logs=tmp_path)
    (phase,) = run.phases
    target = stopping(run).train_loss_
    assert target == pytest.approx((1 - level(5)) ** 2, rel=1e-5)
    assert phase.status == "stopped"
    assert 1 < phase.epochs < 100
    assert len(losses) == 5 + phase.epochs
    assert all(loss > target for loss in losses[:-1])
    assert losses[-1] <= target
    assert run.core.model.weight[0, 1] > 0.1
    # by hand: gradient descent from the stopped weights on the mean over both samples
    w = torch.tensor([level(5), 0.0], dtype=torch.float64)
    for _ in range(phase.steps):
        whole = w.sum() - 2
        w = w - RATE * torch.stack([(w[0] - 1) + whole, whole])
    assert torch.allclose(run.core.model.weight[0].double(), w, rtol=1e-5)
    assert run.best is not None
    assert torch.equal(torch.load(run.best, weights_only=True)["state_dict"]["model.weight"], run.core.model.weight)


def test_continue_has_a_cap() -> None:
    run = fit(two_weights(EarlyStopping(then="continue", max_extra_epochs=2)), logs=None)
    assert (run.phases[0].status, run.phases[0].epochs) == ("finished", 2)


def test_continue_has_nothing_to_do_where_validation_is_below_training() -> None:
    run = fit(level_recipe(EarlyStopping(patience=2, then="continue")), logs=None)
    assert run.phases == []
    assert_handed_back(run, 3)


@pytest.mark.filterwarnings("ignore:Found 1 module")
def test_the_training_loss_is_measured_as_in_evaluation() -> None:
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(20, 1)
    stopped: dict[str, Any] = {}

    class Look(Plugin):
        def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            assert isinstance(pl_module, Core)
            stopped.update(model=copy.deepcopy(pl_module.model), modes=[m.training for m in pl_module.model.modules()])

    def recipe() -> Recipe:
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
        model[1].eval()  # what the user froze stays frozen
        data = Data((x, y), (x, y + 9), batch_size=8)
        plugins = [EarlyStopping(then="continue", max_extra_epochs=1), Look()]
        return Recipe(model, data, mse_loss, plugins=plugins, trainer={"max_epochs": 1, **QUIET})

    run = fit(recipe, logs=None)
    assert stopped["modes"] == [True, True, False, True, True]
    with torch.no_grad():
        expected = mse_loss(stopped["model"].eval()(x), y)
    assert stopping(run).train_loss_ == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_the_training_loss_is_measured_in_the_precision_of_the_run(precision: str) -> None:
    x, y = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(20, 1)

    def recipe() -> Recipe:
        plugins = [EarlyStopping(then="continue", max_extra_epochs=1)]
        trainer = {"max_epochs": 1, "precision": precision, **QUIET}
        return Recipe(
            nn.Linear(3, 1), Data((x, y), (x, y + 9), batch_size=8), mse_loss, plugins=plugins, trainer=trainer
        )

    assert [phase.epochs for phase in fit(recipe, logs=None).phases] == [1]


@pytest.mark.parametrize("then", ["retrain", "continue"])
def test_a_phase_cut_off_leaves_the_best_of_the_run(then: Any, tmp_path: Path) -> None:
    cut = Raise(KeyboardInterrupt(), 3, fit=2)  # one for both trainings: it counts them

    def recipe() -> Recipe:
        built = two_weights(EarlyStopping(then=then))()
        built.plugins.append(cut)
        return built

    with pytest.raises(Interrupted) as interrupted:
        fit(recipe, logs=tmp_path)
    run = interrupted.value.run
    assert (run.status, run.phases[0].status, run.phases[0].steps) == ("interrupted", "interrupted", 3)
    assert run.core.model.weight[0].tolist() == pytest.approx([level(5), 0.0], rel=1e-5)


def test_retrain_without_a_best_is_refused() -> None:
    with (
        pytest.warns(UserWarning, match="no validation"),
        pytest.raises(UserError, match="no validation of this process says how long to train"),
    ):
        fit(level_recipe(EarlyStopping(then="retrain"), max_epochs=2, check_val_every_n_epoch=5), logs=None)


# ---- closed form -----------------------------------------------------------------------------------------------------


def test_early_stopping_on_a_quadratic_is_close_to_l2() -> None:
    """Goodfellow et al., section 7.8: on a quadratic both shrink each eigen-direction of the Hessian."""
    eigenvalues = torch.tensor([0.02, 0.05, 0.1, 0.2], dtype=torch.float64)
    optimum = torch.tensor([1.0, -2.0, 3.0, -1.5], dtype=torch.float64)
    rate, size = 0.1, len(eigenvalues)
    x = torch.diag((size * eigenvalues).sqrt())  # ½ mean (xw - y)² = ½ Σ λ (w - w*)²

    def recipe() -> Recipe:
        model = nn.Linear(size, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(model.weight)
        data = Data((x, x @ optimum[:, None]), (x, x @ (0.06 * optimum[:, None])))
        plugins = [Descent(rate), EarlyStopping(patience=1)]
        options = {"max_epochs": 100, "precision": "64-true", **QUIET}
        return Recipe(model, data, lambda a, b: mse_loss(a, b) / 2, plugins=plugins, trainer=options)

    run = fit(recipe, logs=None)
    best = stopping(run).best_
    assert best is not None
    steps = best.step
    assert 2 < steps < 20
    shares = run.core.model.weight[0].detach() / optimum
    assert torch.allclose(shares, 1 - (1 - rate * eigenvalues) ** steps, rtol=1e-9)
    alpha = equivalent_decay(steps, rate)
    assert alpha == pytest.approx(1 / (steps * rate))
    l2 = torch.linalg.solve(torch.diag(eigenvalues + alpha), eigenvalues * optimum) / optimum
    small = steps * rate * eigenvalues
    assert torch.all((shares - l2).abs() < small**2)  # equal to first order
    assert torch.all((shares - l2).abs() < 0.1 * shares)
    for wrong in (alpha / 2, 2 * alpha):
        assert torch.all((shares - eigenvalues / (eigenvalues + wrong)).abs() > 0.3 * shares)
