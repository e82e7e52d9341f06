from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework import Data, Plugin, Recipe, fit, validate
from framework import test as evaluate
from framework.engine.modes import Modes


class ScheduleFree(torch.optim.Optimizer):
    r"""Schedule-free SGD: gradients at :math:`y = (1 - \beta) z + \beta x`, evaluation at the mean :math:`x`."""

    def __init__(self, params: Iterable[Tensor], lr: float = 0.1, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})

    def _each(self) -> Iterable[tuple[dict[str, Any], Tensor, Tensor]]:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if "z" not in state:
                    state["z"] = p.detach().clone()
                yield group, p, state["z"]

    @torch.no_grad()
    def _switch(self, training: bool) -> None:
        for group, p, z in self._each():
            if group["train_mode"] is not training:
                p.lerp_(z, 1 - group["beta"] if training else 1 - 1 / group["beta"])
        for group in self.param_groups:
            group["train_mode"] = training

    def train(self) -> None:
        self._switch(True)

    def eval(self) -> None:
        self._switch(False)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            assert group["train_mode"]
            group["k"] += 1
        for group, y, z in self._each():
            beta, c = group["beta"], 1 / group["k"]
            x = (y - (1 - beta) * z) / beta
            z.sub_(y.grad, alpha=group["lr"])
            x.lerp_(z, c)
            y.copy_((1 - beta) * z + beta * x)


class Free(Plugin):
    def make_optimizer(self, groups: Any) -> Any:
        return ScheduleFree([p for group in groups for p in group["params"]])


def recipe(val: bool = True) -> Recipe:
    torch.manual_seed(0)
    x = torch.randn(32, 3, generator=torch.Generator().manual_seed(1))
    part = (x, x.sum(1, keepdim=True))
    options = {"max_epochs": 3, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    data = Data(part, part if val else None, part, batch_size=8)
    return Recipe(nn.Linear(3, 1), data, nn.functional.mse_loss, plugins=[Free()], trainer=options)


def test_the_mean_is_evaluated_and_handed_back(tmp_path: Path) -> None:
    run = fit(recipe, logs=tmp_path)
    optimizer: Any = run.core.trainer.optimizers[0]
    assert optimizer.param_groups[0]["train_mode"] is False
    loss = run.last["val/loss"]
    x, y = run.recipe.data.val
    assert float(nn.functional.mse_loss(run.core.model(x), y).detach()) == loss
    assert run.best_epoch == 2 and validate(recipe, logs=tmp_path)["val/loss"] == loss
    assert abs(evaluate(recipe, logs=tmp_path, ckpt="last")["test/loss"] - loss) < 1e-6


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    for val in (True, False):
        logs = tmp_path / str(val)
        whole = fit(recipe, logs=None, parameters={"val": val})
        cut = fit(recipe, logs=logs, parameters={"val": val}, trainer={"max_epochs": 2})
        resumed = fit(recipe, logs=logs, resume=cut.folder, trainer={"max_epochs": 3})
        assert torch.equal(whole.core.model.weight, resumed.core.model.weight)
        kept = torch.load(resumed.last_checkpoint, weights_only=True)["state_dict"]["model.weight"]
        assert torch.allclose(kept, resumed.core.model.weight)


def test_weights_for_evaluation_leave_those_for_training(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.tensor([0.3, 0.7]))
    optimizer = ScheduleFree([weight])
    modes = Modes(optimizer)
    modes.train()
    for slope in (1.0, 3.0):
        weight.grad = torch.full((2,), slope)
        optimizer.step()
    before = weight.detach().clone()
    found = modes.for_evaluation({"w": weight})
    assert torch.equal(weight, before) and not torch.equal(found["w"], before) and modes.trains


def test_other_optimizers_are_left_alone() -> None:
    modes = Modes(torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1))
    modes.train()
    assert not modes.present and not modes.trains
