from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.model_helpers import is_overridden

from framework.engine.layer_modes import LayerModes
from framework.foreign.hooks import pass_on, tell


class Module(pl.LightningModule):
    told: tuple[Any, ...] = ()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return batch

    def on_fit_start(self) -> None:
        self.told = ("fit",)

    def on_validation_model_eval(self) -> None:
        self.eval()


class Core(pl.LightningModule):
    def validation_step(self, batch: Any, batch_idx: int) -> Any: ...

    def val_dataloader(self) -> Any: ...

    def __init__(self) -> None:
        super().__init__()
        self.layer_modes = LayerModes(self)


def test_lightning_sees_the_hooks_that_the_module_has() -> None:
    core, module = Core(), Module()
    pass_on(core, module)
    assert is_overridden("test_step", core) and is_overridden("on_fit_start", core)
    assert not is_overridden("validation_step", core) and not is_overridden("val_dataloader", core)
    assert not is_overridden("on_fit_end", core)
    core.on_fit_start()
    assert module.told == ("fit",)


def test_the_mode_of_the_core_follows() -> None:
    core, module = Core(), Module()
    pass_on(core, module)
    core.on_validation_model_eval()
    assert not core.training and not module.training


def test_a_hook_that_nobody_has_tells_nothing() -> None:
    assert tell(Module(), "on_train_start") is None
    assert tell(Module(), "test_step", 3, 0) == 3
