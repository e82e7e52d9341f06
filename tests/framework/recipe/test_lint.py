"""What is wrong or odd about a recipe is found before training, and reported with its reason."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from framework.data import Data
from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.errors import UserError
from framework.plugin import Plugin
from framework.plugin.finding import Finding, LintWarning
from framework.plugin.plan import Plan
from framework.recipe.lint import lint, raise_or_warn
from framework.recipe.recipe import Recipe
from framework.report.explain import explain
from framework.run.fit import fit
from plugins.activation_sparsity import ActivationSparsity
from plugins.adversarial import Adversarial
from plugins.augmentation import Augmentation
from plugins.cut_mix import CutMix
from plugins.early_stopping import EarlyStopping
from plugins.hidden_noise import HiddenNoise
from plugins.input_noise import InputNoise
from plugins.mixup import Mixup
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.sam import SAM
from plugins.schedule import Schedule
from plugins.strength_schedule import StrengthSchedule
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise
from recipes import digits as digits_recipe


def findings(recipe: Recipe) -> list[Finding]:
    core = recipe.make_core(0, recipe.trainer)
    core.attach_plugins()
    return lint(recipe, core, recipe.trainer)


def told(recipe: Recipe) -> list[str]:
    """Return each finding as ``severity about: message``."""
    return [f"{one.severity} {one}" for one in findings(recipe)]


@pytest.fixture
def tell(recipe: Callable[..., Recipe]) -> Callable[..., list[str]]:
    """Return what lint reports of the digits with these plugins, trained for ten epochs."""

    def ask(*plugins: Callback, epochs: int | None = 10, **changes: Any) -> list[str]:
        options = {"max_epochs": epochs, **changes.pop("trainer", {})}
        made = recipe(plugins, trainer=options)
        for name, value in changes.items():
            setattr(made, name, value)
        return told(made)

    return ask


Tell = Callable[..., list[str]]

# ---- no findings -----------------------------------------------------------------------------------------------------


def test_the_digits_recipe_is_clean() -> None:
    assert told(digits_recipe.recipe()) == []


@pytest.mark.parametrize(
    "plugins",
    [
        [],
        [NormPenalty(1e-4), Optimizer(lr=1e-2)],
        [NormPenalty(1e-5, p=1), NormPenalty(1e-4, name="l2")],
        [NormPenalty(1e-5, p=1), Optimizer(weight_decay=1e-2)],
        [NormPenalty(1e-5, l1_ratio=1.0), Optimizer(weight_decay=1e-2)],
        [NormPenalty(1e-5, groups="rows"), Optimizer(weight_decay=1e-2)],
        [NormPenalty({"0": 1e-4}), NormPenalty({"2": 1e-4}, name="head")],
        [NormPenalty({"0": 1e-4}), Optimizer(weight_decay=0.1, groups={"0": {"decay_scale": 0.0}})],
        [Augmentation(batch=[torch.neg]), Mixup(), InputNoise(), HiddenNoise("Tanh")],
        [EarlyStopping(patience=3), WeightAverage(), Optimizer(), Schedule("constant", warmup=2)],
        [EarlyStopping(patience=10), Optimizer(), Schedule("cosine")],
        [EarlyStopping(patience=9), WeightAverage("swa", start=0.9)],
        [EarlyStopping(patience=5), WeightAverage("swa", start=0.5)],
        [StrengthSchedule("norm_penalty.alpha", end=1e-3), NormPenalty(0.0)],
        [StrengthSchedule("optimizer.clip_norm", end=1.0), Optimizer(clip_norm=2.0)],
        [Optimizer(), Schedule("plateau", monitor="train/accuracy", options={"mode": "max"})],
    ],
    ids=lambda plugins: " + ".join(plugin.describe() for plugin in plugins) or "none",
)
def test_what_is_sound_is_not_reported(plugins: Sequence[Plugin], tell: Tell) -> None:
    assert tell(*plugins) == []


# ---- double counting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", ["SGD", "AdamW"])
@pytest.mark.parametrize(("penalty", "alpha"), [(NormPenalty(0.01), 0.01), (NormPenalty(0.04, l1_ratio=0.75), 0.01)])
def test_l2_beside_decay_of_the_optimizer(cls: str, penalty: NormPenalty, alpha: float, tell: Tell) -> None:
    (line,) = tell(penalty, Optimizer(cls, weight_decay=0.05))
    assert line.startswith(
        f"warning norm_penalty: L2 of strength {alpha:g} and the optimizer's weight_decay of 0.05 both"
    )
    assert "both shrink 0.weight and 1 more: " in line
    assert f"one L2 of {alpha + 0.05:g} in all where decay joins the gradient" in line


def test_l2_beside_decay_is_reported_for_the_weights_that_have_both(tell: Tell) -> None:
    penalty = NormPenalty({"0": 0.5, "2": 0.0})
    (line,) = tell(penalty, Optimizer(weight_decay=0.1, groups={"2": {"decay_scale": 0.5}}))
    assert "L2 of strength 0.5 and the optimizer's weight_decay of 0.1 both shrink 0.weight: " in line


def test_l2_around_the_start_beside_decay(tell: Tell) -> None:
    (line,) = tell(NormPenalty(0.5, around="start"), Optimizer(weight_decay=0.1))
    assert "pull 0.weight and 1 more to two places, the start and zero" in line


def test_decay_of_a_users_own_groups_counts(tell: Tell) -> None:
    class Groups(Plugin):
        def group_parameters(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{**group, "weight_decay": 0.1} for group in groups]

    l2, biases = sorted(tell(NormPenalty(0.01), Groups()), reverse=True)
    assert l2.startswith(
        "warning norm_penalty: L2 of strength 0.01 and the optimizer's weight_decay of 0.1 both shrink"
    )
    assert biases.startswith("warning groups: weight_decay on biases and norm gains (0.bias and 1 more)")


def test_decay_of_biases_and_norm_gains(tell: Tell) -> None:
    model = nn.Sequential(nn.Linear(64, 12), nn.LayerNorm(12), nn.Linear(12, 10, bias=False))
    (line,) = tell(Optimizer(weight_decay=0.1, decay_biases=True), model=model)
    assert line.startswith("warning optimizer: weight_decay on biases and norm gains (0.bias and 2 more)")
    assert tell(Optimizer(weight_decay=0.1), model=model) == []
    assert tell(Optimizer(decay_biases=True), model=model) == []


def test_the_same_norm_twice_on_the_same_weights(tell: Tell) -> None:
    (line,) = tell(NormPenalty(0.1), NormPenalty(0.2, weights="2", name="head"))
    assert line.startswith("warning head: the same norm as norm_penalty on 2.weight: strengths add up")


# ---- mixing ----------------------------------------------------------------------------------------------------------


def test_two_that_mix_targets(tell: Tell) -> None:
    (line,) = tell(Mixup(), CutMix())
    assert line.startswith("warning mixup and cut_mix: both mix targets")
    assert len(tell(Mixup(), CutMix(0.0))) == 1  # that CutMix changes nothing


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(label_smoothing=0.1), functools.partial(cross_entropy, label_smoothing=0.1)]
)
def test_a_loss_that_smooths_labels_which_are_mixed(loss: Callable[..., Tensor], tell: Tell) -> None:
    assert tell(loss=loss) == []
    (line,) = tell(Mixup(), loss=loss)
    assert line.startswith("warning mixup: mixes targets that the loss smooths as well (label_smoothing=0.1)")


# ---- a stop too early ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "share"),
    [
        (WeightAverage("swa", start=0.75), "75%"),
        (WeightAverage("swa", start=0.5), "50%"),
        (Schedule("cosine"), "100%"),
        (Schedule("linear"), "100%"),
        (Schedule("one_cycle"), "100%"),
        (Schedule("OneCycleLR", options={"max_lr": 0.1}), "100%"),
        (Schedule("CosineAnnealingLR"), "100%"),
    ],
    ids=lambda one: one.describe() if isinstance(one, Plugin) else one,
)
def test_early_stopping_before_others_have_what_they_are_for(plugin: Plugin, share: str, tell: Tell) -> None:
    (line,) = tell(EarlyStopping(patience=4), plugin)
    wanted = "warning early_stopping: may end training after 5 of 10 validations, while "
    assert line.startswith(f"{wanted}{plugin.describe()} needs {share} of the run")


def test_a_share_of_a_run_without_end(tell: Tell) -> None:
    (line,) = tell(WeightAverage("swa", start=0.75), epochs=-1)
    assert line.startswith("error weight_average: start=0.75 is a share of a run that has no end")
    assert tell(WeightAverage("swa"), epochs=-1) == []


# ---- metrics that are never logged -----------------------------------------------------------------------------------


def test_a_monitor_that_is_never_logged(tell: Tell) -> None:
    (line,) = tell(EarlyStopping("val_loss", patience=3))
    assert line == (
        "error early_stopping: monitor='val_loss': never logged; did you mean 'val/loss'? (logged are: val/loss,"
        " val/accuracy)"
    )
    (line,) = tell(Optimizer(), Schedule("plateau", monitor="val/acuracy"))
    assert line.startswith("error schedule: monitor='val/acuracy': never logged; did you mean 'val/accuracy'?")
    (line,) = tell(monitor="val/f1")
    assert line == "error recipe: monitor='val/f1': never logged; known: gap/accuracy, gap/loss, " + (
        "train/accuracy, train/loss, val/accuracy, val/loss"
    )
    # a first validation comes before the training part's means
    assert len(tell(EarlyStopping("train/loss", patience=3))) == 1


@pytest.mark.parametrize("plugins", [[EarlyStopping(patience=3)], [Optimizer(), Schedule("plateau")]])
def test_a_monitor_without_a_validation(
    plugins: Sequence[Plugin], digits: tuple[Tensor, Tensor], recipe: Callable[..., Recipe], tell: Tell
) -> None:
    data = Data(digits)
    (line,) = told(recipe(plugins, data=data))
    assert line.startswith(
        f"error {plugins[-1].name}: monitor='val/loss': the run has no validation; give Data(val=...)"
    )
    assert told(recipe(data=data)) == []
    assert len(tell(*plugins, trainer={"limit_val_batches": 0})) == 1


def test_what_a_core_or_callback_of_the_users_logs_is_not_known(tell: Tell) -> None:
    class Own(Core):
        def compute_loss(self, batch: Any) -> Outcome:
            outcome = super().compute_loss(batch)
            self.log("val/own", 1.0)
            return outcome

    class Logs(Callback):
        def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.log("val/own", 1.0)

    stop = EarlyStopping("val/own", patience=3)
    assert len(tell(stop)) == 1
    for lines in (tell(stop, core=Own), tell(stop, Logs()), tell(stop, trainer={"callbacks": [Logs()]})):
        (line,) = lines
        assert line.startswith("warning early_stopping: monitor='val/own', while the recipe's is 'val/loss'")


# ---- without effect --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plugin", "settings"),
    [
        (SAM(0.0), "rho=0.0"),
        (NormPenalty(0.0, p=1), "alpha=0.0"),
        (WeightNoise(0.0), "std=0.0"),
        (InputNoise(0.0, kind="multiplicative"), "std=0.0"),
        (HiddenNoise("Tanh", kind="masking", rate=0.0), "rate=0.0"),
        (Mixup(0.0), "alpha=0.0"),
        (ActivationSparsity(0.0, "Tanh"), "alpha=0.0"),
        (Adversarial(0.1, "vat", alpha=0.0), "alpha=0.0"),
    ],
    ids=lambda one: one.describe() if isinstance(one, Plugin) else one,
)
def test_strength_zero(plugin: Plugin, settings: str, tell: Tell) -> None:
    name = plugin.name
    assert tell(plugin) == [f"warning {name}: changes nothing with {settings}; remove it (--without {name})"]


def test_the_strength_of_another_kind_is_not_meant(tell: Tell) -> None:
    assert tell(HiddenNoise("Tanh", std=0.0, kind="masking", rate=0.2)) == []


@pytest.mark.parametrize(
    ("strength", "plugin"),
    [
        ("optimizer.lr", Optimizer()),
        ("optimizer.weight_decay", Optimizer()),
        ("schedule.end", Schedule()),
        ("early_stopping.min_delta", EarlyStopping(patience=20)),
        ("activation_sparsity.k", ActivationSparsity(kind="k_winners", k=0.5, layers="Tanh")),
    ],
)
def test_moving_what_is_read_once(strength: str, plugin: Plugin, tell: Tell) -> None:
    (line,) = tell(StrengthSchedule(strength, end=0.1), plugin)
    assert line.startswith(f"error strength_schedule: moves {strength}, which is read only before the first step")


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm])
def test_gaussian_noise_that_weights_can_outgrow(norm: type[nn.Module], tell: Tell) -> None:
    model = nn.Sequential(nn.Linear(64, 12), norm(12), nn.Tanh(), nn.Linear(12, 10))
    (line,) = tell(WeightNoise(0.1), model=model)
    assert line.startswith("warning weight_noise: gaussian noise on 0.weight in front of a norm layer")
    for sound in (
        [WeightNoise(0.1), NormPenalty(1e-3)],
        [WeightNoise(0.1), Optimizer(weight_decay=0.1)],
        [WeightNoise(0.1, kind="relative")],
        [WeightNoise(0.1, weights="3")],
    ):
        assert tell(*sound, model=model) == []


# ---- plugins of others -----------------------------------------------------------------------------------------------


class Wary(Plugin):
    """Finds what a test gives it."""

    found: list[str]

    def lint(self, plan: Plan) -> Iterator[Finding]:
        assert plan.core.plugins[0] is self
        for severity in self.found:
            yield Finding(severity, self.name, f"this is a matter of {severity}")


def test_errors_come_first_and_keep_the_run_from_starting(tmp_path: Path, recipe: Callable[..., Recipe]) -> None:
    made = recipe([Wary(["warning", "error", "error"])])
    assert [one.severity for one in findings(made)] == ["error", "error", "warning"]
    with pytest.raises(UserError) as caught:
        fit(made, logs=tmp_path)
    assert str(caught.value) == "wary: this is a matter of error (the first of 2 errors: see explain)"
    assert not list(tmp_path.iterdir())


def test_a_warning_is_one_line_and_can_be_filtered(recipe: Callable[..., Recipe]) -> None:
    made = recipe([Wary(["warning"])], trainer={"logger": False})
    with pytest.warns(LintWarning, match="^wary: this is a matter of warning$") as caught:
        run = fit(made, logs=None)
    assert run.status == "finished"
    (warning,) = (one for one in caught if one.category is LintWarning)
    line = warnings.formatwarning(str(warning.message), LintWarning, warning.filename, warning.lineno)
    assert line == "recipe:1: LintWarning: wary: this is a matter of warning\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", LintWarning)
        raise_or_warn(findings(made), "recipe")


def test_ranks_above_zero_keep_quiet(recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_lightning.utilities import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        raise_or_warn([Finding("warning", "wary", "odd")], "recipe")
        with pytest.raises(UserError, match="wary: wrong"):
            raise_or_warn([Finding("error", "wary", "wrong")], "recipe")


def test_explain_shows_errors_and_warnings(recipe: Callable[..., Recipe]) -> None:
    text = explain(recipe([Wary(["warning", "error"])])).split("\n\n")[-1]
    assert text == "Findings\n  error    wary  this is a matter of error\n  warning  wary  this is a matter of warning"
    assert explain(recipe()).endswith("Findings\n  none")


def test_a_pattern_that_matches_nothing_is_an_error_before_any_of_this(recipe: Callable[..., Recipe]) -> None:
    for plugin in (HiddenNoise("Tahn"), NormPenalty(0.1, weights="Liner")):
        with pytest.raises(UserError, match=r"matches no (layer|weight) of Sequential; (did you mean|known)"):
            fit(recipe([plugin]), logs=None)


# ---- right, and not reported: an optimizer with a closure sees the whole window, with the same draws -----------------


@pytest.mark.parametrize("noise", [[], [WeightNoise(0.05), InputNoise(0.2)]], ids=["clean", "noise"])
def test_lbfgs_with_accumulation_is_right(
    noise: Sequence[Plugin],
    digits: tuple[Tensor, Tensor],
    recipe: Callable[..., Recipe],
    weights: Callable[[Core], Tensor],
) -> None:
    x, y = digits
    ends = []
    for batch, accumulate in ((48, 1), (16, 3)):
        options = {"lr": 0.5, "options": {"max_iter": 4, "history_size": 4}}
        made = recipe(
            [*noise, Optimizer("LBFGS", **options)],
            data=Data((x[:96].double(), y[:96]), batch_size=batch),
            trainer={"accumulate_grad_batches": accumulate, "max_epochs": 2, "precision": "64-true"},
        )
        assert told(made) == []
        ends.append(weights(fit(made, logs=None).core))
    assert (ends[0] - ends[1]).abs().max() < 1e-9
    assert ends[0].abs().max() > 0.1


def test_losses_that_are_no_mean_over_samples(tell: Tell) -> None:
    (line,) = tell(loss=nn.CrossEntropyLoss(reduction="sum"))
    assert line.startswith("warning loss: reduction='sum'")
    (line,) = tell(Mixup(), loss=nn.CrossEntropyLoss(ignore_index=3))
    assert line.startswith("warning mixup: mixes targets of a loss with class weights")
