from __future__ import annotations

import pytorch_lightning as pl

from framework.foreign.view import TrainerView


def test_it_is_the_trainer_but_for_its_own_numbers() -> None:
    trainer = pl.Trainer(max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    view = TrainerView(trainer, "module", "data module", 4, (0.5, "value"))
    assert isinstance(view, pl.Trainer)
    assert (view.lightning_module, view.datamodule) == ("module", "data module")
    assert (view.accumulate_grad_batches, view.gradient_clip_val, view.gradient_clip_algorithm) == (4, 0.5, "value")
    assert view.max_epochs == 3
    view.should_stop = True
    assert trainer.should_stop
