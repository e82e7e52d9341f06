"""Sharded parameters: what is refused, what a rank holds, and that a run is the same as with whole ones."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.errors import UserError
from framework.ops.shards import is_sharded, locals_of, whole
from framework.plugin import Plugin
from framework.plugin.step import Step
from framework.recipe.recipe import Recipe
from framework.run import evaluate
from framework.run.fit import fit
from framework.run.trainer import refusals
from framework.testing import Case, Status, cases_of, check_named
from framework.testing.invariance import ForkedShards, sharded
from framework.testing.result import Failed
from plugins.activation_sparsity import ActivationSparsity
from plugins.early_stopping import EarlyStopping
from plugins.hidden_noise import HiddenNoise
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise

check = check_named("sharded")


# ---- in parts --------------------------------------------------------------------------------------------------------


class HoldsAPart(Plugin):
    """Fails where a rank holds more than its part."""

    def begin_step(self, step: Step) -> None:
        assert step.optimizer is not None
        for group in step.optimizer.param_groups:
            for weight in group["params"]:
                assert is_sharded(weight)
                assert locals_of([weight])[0].numel() <= -(-weight.shape[0] // 2) * (weight.numel() // weight.shape[0])

    def after_update(self, step: Step) -> None:
        assert step.optimizer is not None
        for state in step.optimizer.state.values():
            assert all(is_sharded(value) for value in state.values() if isinstance(value, Tensor) and value.ndim)


def test_a_rank_holds_a_part_of_weights_and_of_the_optimizers_state() -> None:
    Case(HoldsAPart).fit(HoldsAPart, trainer={"devices": 2, "strategy": ForkedShards()})


@pytest.mark.parametrize(
    "kind", [WeightNoise, WeightAverage, NormPenalty, Optimizer, EarlyStopping], ids=lambda k: k.__name__
)
def test_sharded_is_whole(kind: type[Plugin]) -> None:
    result = check(cases_of(kind)[0])
    assert result.status is Status.HOLDS, result.text


@pytest.mark.parametrize("groups", ["rows", "columns"])
@pytest.mark.parametrize("proximal", [False, True])
def test_groups_that_cross_the_parts(groups: Any, proximal: bool) -> None:
    result = check(Case(lambda: NormPenalty(0.05, groups=groups, proximal=proximal)))
    assert result.status is Status.HOLDS, result.text


class Blocks(Core):
    """Gathers one layer at a time."""

    def shard(self, model: nn.Module, mesh: Any) -> None:
        from torch.distributed.fsdp import fully_shard

        for layer in model.children():
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=mesh)
        super().shard(model, mesh)


class LooksAtTerms(NormPenalty):
    """Has the values of its term compared: they end in the weights."""

    def after_update(self, step: Step) -> None:
        value = whole(self.weight_penalty(step))
        for weight in self.core_.model.parameters():
            locals_of([weight.detach()])[0].add_(value * 1e-3)

    def attach(self, core: Core) -> None:
        super().attach(core)
        self.core_ = core


@pytest.mark.parametrize("settings", [{}, {"p": 1}, {"p": 3}, {"groups": "rows"}, {"groups": "columns"}], ids=str)
def test_values_of_norms_are_those_over_all_parts(settings: dict[str, Any]) -> None:
    result = check(Case(lambda: LooksAtTerms(0.05, **settings)))
    assert result.status is Status.HOLDS, result.text


class Checkpoints(Core):
    """Runs the network again in backward."""

    def forward(self, x: Any) -> Any:
        return checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("kind", [WeightNoise, HiddenNoise, ActivationSparsity], ids=lambda k: k.__name__)
def test_activation_checkpointing(kind: type[Plugin]) -> None:
    sharded(cases_of(kind)[0], kind=Checkpoints)


@pytest.mark.parametrize("how", [{"kind": Blocks}, {"noisy": True}, {"compile": {"backend": "aot_eager"}}], ids=str)
def test_units_of_the_users_running_statistics_and_compile(how: dict[str, Any]) -> None:
    sharded(cases_of(WeightNoise)[0], **how)


# ---- what is logged --------------------------------------------------------------------------------------------------


class RecordsANorm(Plugin):
    """Records what torch gives for sharded weights: a sharded number."""

    def attach(self, core: Core) -> None:
        self.weights_ = list(core.model.parameters())

    def after_update(self, step: Step) -> None:
        step.record("norm", torch.nn.utils.get_total_norm(self.weights_))


@pytest.mark.parametrize(
    ("clip", "limit"), [({"clip_norm": 0.1}, None), ({"clip_value": 0.01}, None), ({}, 0.1), ({}, None)], ids=str
)
def test_a_logged_step_is_that_of_whole_weights(tmp_path: Path, clip: dict[str, float], limit: float | None) -> None:
    def beside() -> list[Plugin]:
        return [NormPenalty(0.05, p=1, name="lasso"), Optimizer("SGD", lr=0.1, **clip), RecordsANorm()]

    case = Case(lambda: NormPenalty(0.1, around="start"), companions=beside)

    def logged(strategy: Any) -> Any:
        folder = tmp_path / type(strategy).__name__
        trainer = {"devices": 2, "strategy": strategy, "max_epochs": 1, "log_every_n_steps": 1}
        case.fit(case.make, trainer={**trainer, "logger": CSVLogger(folder)}, noisy=False, clip=(limit, None))
        (file,) = folder.rglob("metrics.csv")
        return pd.read_csv(file).dropna(subset="train/loss").to_dict("records")

    held, parts = logged(DDPStrategy(start_method="fork", process_group_backend="gloo")), logged(ForkedShards())
    terms = {"penalty/norm_penalty", "penalty/lasso", "grad_norm", "norm", "lr"}
    assert len(held) == 2
    for one, other in zip(held, parts, strict=True):
        assert all(one[tag] > 0 for tag in terms)
        assert other == pytest.approx(one, rel=1e-5, nan_ok=True)


# ---- resume ----------------------------------------------------------------------------------------------------------


class Ends(pl.Callback):
    """Rank zero's record of the validations, for the process that started it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Core)
        end = {name: tensor.clone() for name, tensor in whole(dict(pl_module.model.state_dict())).items()}
        states = whole([plugin.state_dict() for plugin in pl_module.plugins if not isinstance(plugin, EarlyStopping)])
        if trainer.is_global_zero:
            torch.save({"weights": end, "states": states, "last": pl_module.recorder.history[-1].metrics}, self._file)


def test_a_resumed_run_continues_with_the_same_bits(tmp_path: Path) -> None:
    def plugins() -> list[Plugin]:
        return [WeightAverage(decay=0.9), EarlyStopping(patience=9)]

    case = Case(lambda: NormPenalty(0.1, around="start"), companions=plugins)

    def end(name: str, **options: Any) -> Any:
        callbacks = [Ends(tmp_path / name)]
        if "ckpt_path" not in options:
            callbacks.append(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True))
        two = {"devices": 2, "strategy": ForkedShards(), "max_epochs": 3, "callbacks": callbacks}
        case.fit(case.make, trainer={**two, "enable_checkpointing": "ckpt_path" not in options, **options})
        return torch.load(tmp_path / name)

    one, other = end("whole"), end("resumed", ckpt_path=tmp_path / "epoch=0.ckpt")
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    kept = torch.load(tmp_path / "epoch=2.ckpt")
    assert not any(is_sharded(tensor) for tensor in kept["state_dict"].values())
    averages = kept["callbacks"]["plugins/0"]["weight_average"]["averages"]
    weights = dict(case.core(case.make).model.named_parameters())
    assert {name: t.shape for name, t in averages.items()} == {name: t.shape for name, t in weights.items()}


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Optimizer("Muon"), "Muon needs each weight whole"),
        (lambda: Optimizer("LBFGS"), "LBFGS needs each weight whole"),
        (lambda: Optimizer("Adafactor"), "Adafactor needs each weight whole"),
        (lambda: WeightNoise(0.1, fresh="sequence"), "draws for each rank"),
        (lambda: EarlyStopping(then="retrain"), "then='retrain' continues with an unsharded network"),
    ],
)
def test_what_cannot_be_right_is_refused(make: Any, reason: str) -> None:
    result = check(Case(make))
    assert result.status is Status.REFUSED
    assert reason in result.text
    assert result.text.endswith("use strategy='ddp'")


def refusal(**how: Any) -> str:
    trainer = {"devices": 2, "strategy": ForkedShards(), **how.pop("trainer", {})}
    with pytest.raises(Exception, match="UserError: ") as error:
        Case(HoldsAPart).fit(None, trainer=trainer, **how)
    return str(error.value)


def test_tensor_parallelism_is_refused() -> None:
    strategy = ForkedShards(data_parallel_size=1, tensor_parallel_size=2)
    assert "tensor_parallel_size=2" in refusal(trainer={"strategy": strategy})


def test_a_scaler_is_refused() -> None:
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    assert "would check only its own shards for overflow" in refusal(trainer={"plugins": [half]})


class LeavesOut(Core):
    """Rank one leaves its second batch out."""

    def compute_loss(self, batch: Any) -> Outcome:
        outcome = super().compute_loss(batch)
        return Outcome(None) if self.training and self.at.index == 1 and self.at.rank == 1 else outcome


def test_a_batch_left_out_is_refused() -> None:
    assert "a batch cannot be skipped" in refusal(kind=LeavesOut)


class SumsSquares(Plugin):
    """A differentiable term on weights."""

    def attach(self, core: Core) -> None:
        self.weights_ = list(core.model.parameters())

    def penalty(self, step: Step) -> Tensor:
        return torch.stack([(weight**2).sum() for weight in self.weights_]).sum()


def test_a_differentiable_term_on_weights_is_refused() -> None:
    result = check(Case(SumsSquares))
    assert result.status is Status.REFUSED
    assert "penalty/sums_squares is a term on sharded weights" in result.text


class ShardsTheHead(Core):
    """Leaves the rest of the network to each rank."""

    def shard(self, model: nn.Module, mesh: Any) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(model.get_submodule("head"), mesh=mesh)


class ShardsNothing(Core):
    """Forgets the core's own."""

    def configure_model(self) -> None:
        pass


@pytest.mark.parametrize("kind", [ShardsTheHead, ShardsNothing])
def test_weights_that_would_be_each_ranks_own_are_refused(kind: type[Core]) -> None:
    assert f"{kind.__name__}: " in (told := refusal(kind=kind))
    assert "left unsharded, so each rank would train its own copy" in told


def test_the_check_can_fail() -> None:
    class Alone(Plugin):
        def transform_gradients(self, step: Step) -> None:
            assert step.optimizer is not None
            weights = [weight for group in step.optimizer.param_groups for weight in group["params"]]
            torch._foreach_div_(locals_of(w.grad for w in weights), [g.norm() + 1 for g in locals_of(weights)])

    with pytest.raises(Failed, match="not ranks that hold"):
        sharded(Case(Alone))


# ---- through fit -----------------------------------------------------------------------------------------------------

SCRIPT = """
import json, os
import torch
from torch import nn
from framework import Data, Recipe, fit, test
from plugins.early_stopping import EarlyStopping
from plugins.norm_penalty import NormPenalty
from plugins.weight_average import WeightAverage

def recipe(batch_size: int = 8):
    x = torch.randn(48, 6, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    data = Data((x[:32], y[:32]), (x[32:40], y[32:40]), (x[40:], y[40:]), batch_size=batch_size)
    plugins = [NormPenalty(0.1, around="start"), WeightAverage(decay=0.9), EarlyStopping(patience=3)]
    options = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False}
    return Recipe(network, data, loss=nn.CrossEntropyLoss(), plugins=plugins, trainer=options)

if __name__ == "__main__":
    run = fit(recipe, trainer={"strategy": "fsdp2", "devices": 2})
    metrics = {**run.metrics, **test(run)}
    if os.environ.get("LOCAL_RANK", "0") == "0":
        with open("metrics.json", "w") as file:
            json.dump(metrics, file)
"""


@pytest.mark.slow
def test_a_script_on_two_processes_gives_what_one_gives_and_one_can_evaluate_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    for name in ("LOCAL_RANK", "MASTER_PORT", "FRAMEWORK_RUN_FOLDER"):
        environment.pop(name, None)
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder,) = tmp_path.glob("lightning_logs/*/version_*")
    metrics = json.loads((tmp_path / "metrics.json").read_text())

    recipe = runpy.run_path(str(script))["recipe"]
    alone = fit(recipe, parameters={"batch_size": 16}, trainer={"devices": 1}, logs=None)
    # float32, whose roundings of 1e-7 grow over four steps of AdamW
    assert metrics["val/loss"] == pytest.approx(alone.metrics["val/loss"], rel=1e-5)
    assert metrics["test/loss"] == pytest.approx(evaluate.test(alone)["test/loss"], rel=1e-5)
    assert evaluate.test(recipe, run=folder, trainer={"devices": 1})["test/loss"] == pytest.approx(
        metrics["test/loss"], rel=1e-5
    )


class Fails(Core):
    """Rank one fails in its second step."""

    def compute_loss(self, batch: Any) -> Outcome:
        if self.training and self.at.index == 1 and self.at.rank == 1:
            raise ValueError("rank one alone")
        return super().compute_loss(batch)


def test_an_error_of_one_rank_ends_the_run_and_writes_no_half_of_a_checkpoint(tmp_path: Path) -> None:
    task = Case(HoldsAPart).task
    recipe = Recipe(task.model(torch.float32, False), task.data(torch.float32, 4), loss=task.loss, core=Fails)
    options = {"accelerator": "cpu", "devices": 2, "strategy": ForkedShards(), "max_epochs": 1}
    with pytest.raises(Exception, match=r"rank one alone|Connection|closed"):
        fit(recipe, trainer={**options, "enable_progress_bar": False}, logs=tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_checkpoint_in_parts_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a sharded checkpoint"), refusals():
        torch.load(tmp_path)
