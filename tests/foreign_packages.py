"""Train LightningModules of other packages, with and without plugins, and print a table: ``make foreign``.

The packages stand in an environment of their own. For each: whether a run without plugins has the bits of Lightning's
own Trainer, what plugins do, whether a run that was interrupted goes on to the same bits, whether the package's class
reads what ``export`` writes, and the time of a fit relative to Lightning's.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from framework import Data, Interrupted, Recipe, Run, export, fit
from plugins.early_stopping import EarlyStopping
from plugins.norm_penalty import NormPenalty
from plugins.sam import SAM
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise

Made = tuple[Any, dict[str, Any], dict[str, Any]]  # module, arguments of Trainer.fit, options of the Trainer
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "max_epochs": 3}


def chemprop() -> Made:
    """A message-passing network on molecules; its sampler shuffles in place, epoch after epoch."""
    from chemprop import data, models, nn

    texts = ["C" * length + end for length in range(1, 9) for end in ("O", "N", "C(=O)O", "c1ccccc1")]
    points = [data.MoleculeDatapoint.from_smi(text, [len(text) / 10]) for text in texts]
    module = models.MPNN(
        nn.BondMessagePassing(d_h=32), nn.MeanAggregation(), nn.RegressionFFN(input_dim=32), warmup_epochs=1
    )
    train, val = data.MoleculeDataset(points[:24]), data.MoleculeDataset(points[24:])
    return (
        module,
        {
            "train_dataloaders": data.build_dataloader(train, batch_size=8, seed=0, shuffle=True),
            "val_dataloaders": data.build_dataloader(val, batch_size=8, shuffle=False),
        },
        {},
    )


def darts() -> Made:
    """A convolutional network on a series in double precision, with a data module."""
    import numpy as np
    import pandas as pd
    from darts import TimeSeries
    from darts.models import TCNModel

    days = pd.date_range("2020-01-01", periods=120, freq="D")
    series = TimeSeries.from_times_and_values(days, np.sin(np.arange(120) / 5))
    model = TCNModel(16, 4, num_filters=4, dropout=0.1, batch_size=16, random_state=0)
    _, parameters = model._setup_for_fit_from_dataset(series[:90], val_series=series[74:])
    made = model._setup_for_train(**parameters)
    return made["model"], {"datamodule": made["datamodule"]}, {"precision": "64-true"}


def neuralforecast() -> Made:
    """A network that draws windows within its step, and validates every few steps."""
    import numpy as np
    import pandas as pd
    from neuralforecast.models import NHITS
    from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

    days = pd.date_range("2020-01-01", periods=80, freq="D")
    frames = [pd.DataFrame({"unique_id": i, "ds": days, "y": np.sin(np.arange(80) / (3 + i)) + i}) for i in range(6)]
    module = NHITS(h=4, input_size=12, max_steps=9, windows_batch_size=32, mlp_units=[[16, 16]] * 3)
    module.val_size, module.test_size = 8, 0
    data = TimeSeriesDataModule(TimeSeriesDataset.from_df(pd.concat(frames))[0], batch_size=2, shuffle_train=True)
    options = {"max_epochs": None, "max_steps": 9, "val_check_interval": 3, "check_val_every_n_epoch": None}
    return module, {"datamodule": data}, options


def pytorch_tabular() -> Made:
    """A perceptron on a table, with BatchNorm and a plateau schedule."""
    import numpy as np
    import pandas as pd
    from pytorch_tabular import TabularModel
    from pytorch_tabular.config import DataConfig, OptimizerConfig, TrainerConfig
    from pytorch_tabular.models import CategoryEmbeddingModelConfig

    draws = np.random.default_rng(0)
    x = draws.normal(size=(160, 2))
    table = pd.DataFrame(x, columns=["a", "b"]).assign(k=draws.choice(list("uvw"), 160), y=(x.sum(1) > 0).astype(int))
    model = TabularModel(
        data_config=DataConfig(target=["y"], continuous_cols=["a", "b"], categorical_cols=["k"], num_workers=0),
        model_config=CategoryEmbeddingModelConfig(task="classification", layers="16-8", dropout=0.1),
        optimizer_config=OptimizerConfig(lr_scheduler="ReduceLROnPlateau", lr_scheduler_params={"patience": 0}),
        trainer_config=TrainerConfig(batch_size=32, accelerator="cpu", progress_bar="none"),
        verbose=False,
    )
    data = model.prepare_dataloader(train=table[:120], validation=table[120:], seed=0)
    loaders = {"train_dataloaders": data.train_dataloader(), "val_dataloaders": data.val_dataloader()}
    return model.prepare_model(data), loaders, {"gradient_clip_val": 1.0}


PACKAGES: dict[str, tuple[Callable[[], Made], str, str]] = {
    "chemprop": (chemprop, "lightning.pytorch", "val_loss"),
    "darts": (darts, "pytorch_lightning", "val_loss"),
    "neuralforecast": (neuralforecast, "pytorch_lightning", "valid_loss"),
    "pytorch_tabular": (pytorch_tabular, "pytorch_lightning", "valid_loss"),
}


class _Interrupt:
    """Makes a callback that sends Ctrl-C after a step."""

    def __new__(cls, step: int) -> Any:
        from pytorch_lightning.callbacks import LambdaCallback

        def end(trainer: Any, *args: Any) -> None:
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGINT)

        return LambdaCallback(on_train_batch_end=end)


def made(name: str) -> Made:
    make, package, _ = PACKAGES[name]
    importlib.import_module(package).seed_everything(0, verbose=False)
    return make()


def bare(name: str, **more: Any) -> tuple[Any, float]:
    """Train under Lightning's own Trainer."""
    module, data, options = made(name)
    trainer = importlib.import_module(PACKAGES[name][1]).Trainer(
        **{**QUIET, "logger": False, "enable_checkpointing": False, **options, **more}
    )
    began = time.perf_counter()
    trainer.fit(module, **data)
    return module, time.perf_counter() - began


def ours(
    name: str, *plugins: Any, logs: Path | None = None, resume: Any = False, **options: Any
) -> tuple[Any, Run, float]:
    """Train here."""
    module, data, own = made(name)
    given = data.get("datamodule") or Data(data["train_dataloaders"], data["val_dataloaders"])
    recipe = Recipe(module=module, data=given, plugins=list(plugins), trainer={**QUIET, **own, **options})
    recipe.monitor = PACKAGES[name][2]
    began = time.perf_counter()
    run = fit(recipe, logs=logs, resume=resume)
    return module, run, time.perf_counter() - began


def same(one: Any, other: Any) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a if isinstance(a[n], torch.Tensor))


def all_plugins(name: str) -> list[Any]:
    monitor = PACKAGES[name][2]
    return [NormPenalty(0.01), WeightNoise(0.1), WeightAverage(decay=0.5), EarlyStopping(monitor, patience=9), SAM()]


def resumes(name: str, *plugins: Callable[[], list[Any]], step: int) -> bool:
    """Return whether a run that is interrupted after a step goes on to the bits of one that is not."""
    listed = plugins[0] if plugins else list
    with tempfile.TemporaryDirectory() as folder:
        whole, _, _ = ours(name, *listed(), logs=Path(folder) / "whole")
        try:
            ours(name, *listed(), logs=Path(folder) / "cut", callbacks=[_Interrupt(step)])
        except Interrupted as end:
            resumed, _, _ = ours(name, *listed(), logs=Path(folder) / "cut", resume=end.run.folder)
            return same(whole, resumed)
    return False


def reads_back(name: str) -> str:
    """Return whether the package's class reads what ``export`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        module, run, _ = ours(name)
        path = Path(folder) / "model.ckpt"
        export(run, path)
        for more in ({}, {"weights_only": False}, {"weights_only": False, "config": getattr(module, "hparams", None)}):
            try:
                return "yes" if same(type(module).load_from_checkpoint(path, **more), module) else "other weights"
            except Exception as error:
                reason = type(error).__name__
    return reason


def main(names: list[str]) -> int:
    """Print the table and return the exit code: 1 if a promise is broken."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    broken = False
    words = ("package", "same bits", "SAM of 0", "effect of", "resume", "+ all", "load")
    widths = (16, 11, 10, 36, 8, 7, 16)
    print("".join(map(str.ljust, words, widths)) + "time / Lightning's")
    for name in names or list(PACKAGES):
        plain, _ = bare(name)
        here, _, _ = ours(name)
        effects = {
            "penalty": NormPenalty(0.1),
            "noise": WeightNoise(0.1),
            "SAM": SAM(),
        }
        seen = [label for label, plugin in effects.items() if not same(ours(name, plugin)[0], here)]
        seen += ["clip"] if not same(ours(name, gradient_clip_val=1e-3)[0], here) else []
        longer = {"max_steps": 180, "val_check_interval": 90} if name == "neuralforecast" else {"max_epochs": 60}
        times = [(bare(name, **longer)[1], ours(name, **longer)[2]) for _ in range(5)]
        ratio = min(after for _, after in times) / min(before for before, _ in times)
        columns = {
            "bits": same(plain, here),
            "nothing": same(ours(name, SAM(rho=1e-30))[0], here),
            "resume": resumes(name, step=2) and resumes(name, step=4),
            "all": resumes(name, lambda: all_plugins(name), step=4),  # noqa: B023 - called at once
        }
        words = {key: "yes" if value else "NO" for key, value in columns.items()}
        broken |= not all(columns.values()) or len(seen) < 4
        print(
            f"{name:16}{words['bits']:11}{words['nothing']:10}{', '.join(seen):36}{words['resume']:8}{words['all']:7}"
            f"{reads_back(name):16}{ratio:.2f}",
            flush=True,
        )
    return int(broken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
