"""The check that evaluation with a plugin equals that of the bare network with the same weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from framework.engine.core import Core
from framework.errors import one_line
from framework.testing.case import Case, isolated
from framework.testing.compare import demand_same_bits, same_bits
from framework.testing.result import Failed


def _copied(core: Core) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in core.model.state_dict().items()}


class _Validations(pl.Callback):
    """Records the weights and the loss of each validation."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, Tensor], float]] = []
        self._before: dict[str, Tensor] = {}

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Core)
        self._before = _copied(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Core)
        after = _copied(pl_module)
        demand_same_bits(self._before, after, "validation changes the weights", excusable=False)
        self.seen.append((after, float(trainer.callback_metrics["val/loss"])))


def evaluation(case: Case) -> str:
    """Compare validation after every step, and test and predict at the end, with the bare network."""
    seen = _Validations()
    core = case.fit(case.make, trainer={"val_check_interval": 1, "max_epochs": 1, "callbacks": [seen]})
    for weights, loss in seen.seen:
        bare = _bare(case, weights)
        expected = _evaluate(bare, "validate")["val/loss"]
        if not same_bits(loss, expected):
            raise Failed(f"val/loss is {loss!r}, that of the bare network {expected!r}")
    bare = _bare(case, _copied(core))
    for kind in ("test", "predict"):
        if not same_bits(_evaluate(core, kind), _evaluate(bare, kind)):
            raise Failed(f"{kind} differs from the bare network")
    return f"{len(seen.seen)} validations, test and predict: the same bits"


def _bare(case: Case, weights: dict[str, Tensor]) -> Core:
    core = Core(case.task.model(torch.float32, True), case.task.loss, data=case.task.data(torch.float32, 16))
    try:
        core.model.load_state_dict(weights)
    except RuntimeError as error:
        raise Failed(f"the bare network does not take the weights: {one_line(error)}") from None
    return core


def _evaluate(core: Core, kind: str) -> Any:
    with isolated():
        quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = pl.Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, **quiet)
        if kind == "predict":
            return trainer.predict(core)
        (trainer.validate if kind == "validate" else trainer.test)(core, verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}
