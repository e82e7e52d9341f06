"""The small network trained by other libraries in their usual setup, with progress bar, logs and checkpoints.

Install them by ``pip install -r benchmarks/requirements.txt``; missing ones are left out. fastai and Composer need
torchvision, which has no build for every machine.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from benchmarks.measure import alternate
from benchmarks.step import BATCH, EPOCHS, Loop, cocktail, compared, network, ours, samples
from benchmarks.versus import Row
from plugins.optimizer import Optimizer

STEPS = EPOCHS * (6400 // BATCH)


class Noisy(nn.Module):
    """The network with noise on its inputs while it trains, and the L1 norm of its hidden units kept."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.hidden: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        hidden = torch.relu(self.inner[0](x))
        self.hidden = hidden
        return self.inner[2](hidden)  # type: ignore[no-any-return]

    def terms(self) -> Tensor:
        """Return L2 of the weights and L1 of the hidden units, as they are commonly added to the loss."""
        assert self.hidden is not None
        l2 = sum(layer.weight.pow(2).sum() / 2 for layer in (self.inner[0], self.inner[2]))
        return 1e-4 * l2 + 1e-4 * self.hidden.abs().sum() / len(self.hidden)


def parts() -> tuple[TensorDataset, TensorDataset]:
    """Return training and validation part."""
    x, y = samples()
    return TensorDataset(x, y), TensorDataset(x[:BATCH], y[:BATCH])


class Module(pl.LightningModule):
    """A typical LightningModule."""

    def __init__(self, cocktail: bool) -> None:
        super().__init__()
        self.cocktail = cocktail
        self.model = Noisy() if cocktail else network()
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the objective, and log loss and accuracy."""
        x, y = batch
        prediction = self.model(x)
        loss = cross_entropy(prediction, y)
        self.accuracy(prediction, y)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        return loss + self.model.terms() if isinstance(self.model, Noisy) else loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss."""
        self.log("val/loss", cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.0, fused=True)


def lightning(mixed: bool, logs: Path) -> int:
    """Train by Lightning."""
    train, val = (DataLoader(part, batch_size=BATCH, shuffle=not i) for i, part in enumerate(parts()))
    more = [EarlyStopping("val/loss", patience=1000), EMAWeightAveraging(decay=0.99)] if mixed else []
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        check_val_every_n_epoch=EPOCHS,
        logger=TensorBoardLogger(logs),
        gradient_clip_val=1.0 if mixed else None,
        callbacks=[ModelCheckpoint(logs, save_top_k=1), *more],
    )
    trainer.fit(Module(mixed), train, val)
    return trainer.global_step


def keras(mixed: bool, logs: Path) -> int:
    """Train by Keras on torch; its TensorBoard callback needs TensorFlow and stays off."""
    os.environ["KERAS_BACKEND"] = "torch"
    import keras as k

    layers = [
        k.Input((64,)),
        *([k.layers.GaussianNoise(0.1)] if mixed else []),
        k.layers.Dense(
            128,
            "relu",
            kernel_regularizer=k.regularizers.L2(5e-5) if mixed else None,
            activity_regularizer=k.regularizers.L1(1e-4) if mixed else None,
        ),
        k.layers.Dense(10, kernel_regularizer=k.regularizers.L2(5e-5) if mixed else None),
    ]
    model = k.Sequential(layers)
    more: dict[str, Any] = {"use_ema": True, "ema_momentum": 0.99, "global_clipnorm": 1.0} if mixed else {}
    model.compile(
        k.optimizers.AdamW(1e-3, weight_decay=0.0, **more),
        k.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    x, y = (part.numpy() for part in samples())
    callbacks = [k.callbacks.ModelCheckpoint(str(logs / "keras.keras"))]
    callbacks += [k.callbacks.EarlyStopping("val_loss", patience=1000)] if mixed else []
    model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=EPOCHS,
        validation_data=(x[:BATCH], y[:BATCH]),
        validation_freq=EPOCHS,
        callbacks=callbacks,
    )
    return STEPS


def accelerated(mixed: bool, logs: Path) -> int:
    """Train by pytorch-accelerated; it does not log to TensorBoard by itself."""
    from pytorch_accelerated import Trainer
    from pytorch_accelerated.callbacks import EarlyStoppingCallback, ModelEmaCallback, SaveBestModelCallback
    from pytorch_accelerated.trainer import DEFAULT_CALLBACKS

    class Sums(Trainer):
        def calculate_train_batch_loss(self, batch: Any) -> dict[str, Any]:
            given = super().calculate_train_batch_loss(batch)
            if mixed:
                given["loss"] = given["loss"] + model.terms()
            return given

    model: Any = Noisy() if mixed else network()
    best = SaveBestModelCallback(save_path=str(logs / "best.pt"), watch_metric="train_loss_epoch")
    callbacks = [
        *DEFAULT_CALLBACKS,
        best,
    ]
    if mixed:
        callbacks += [
            ModelEmaCallback(decay=0.99, save_path=str(logs / "average.pt")),
            EarlyStoppingCallback(early_stopping_patience=1000),
        ]
    trainer = Sums(
        model,
        nn.CrossEntropyLoss(),
        torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True),
        callbacks=callbacks,
    )
    train, val = parts()
    trainer.train(
        train,
        num_epochs=EPOCHS,
        eval_dataset=val,
        per_device_batch_size=BATCH,
        gradient_clip_value=1.0 if mixed else None,
        train_dataloader_kwargs={"num_workers": 0},
        eval_dataloader_kwargs={"num_workers": 0},
    )
    return STEPS


def skorch(mixed: bool, logs: Path) -> int:
    """Train by skorch; its TensorBoard callback logs once an epoch."""
    from skorch import NeuralNetClassifier
    from skorch import callbacks as given
    from torch.utils.tensorboard import SummaryWriter

    class Sums(NeuralNetClassifier):  # type: ignore[misc] # the library has no types
        def get_loss(self, y_pred: Tensor, y_true: Tensor, *args: Any, **kwargs: Any) -> Any:
            loss = super().get_loss(y_pred, y_true, *args, **kwargs)
            return loss + self.module_.terms() if mixed and kwargs.get("training") else loss

    class Average(given.Callback):  # type: ignore[misc]
        def on_train_begin(self, net: Any, **_: Any) -> None:
            self.kept = [p.detach().clone() for p in net.module_.parameters()]

        @torch.no_grad()
        def on_batch_end(self, net: Any, training: bool, **_: Any) -> None:
            if training:
                torch._foreach_lerp_(self.kept, list(net.module_.parameters()), 0.01)

    more = [given.GradientNormClipping(1.0), Average(), given.EarlyStopping("train_loss", patience=1000)]
    net = Sums(
        Noisy if mixed else network,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.AdamW,
        optimizer__weight_decay=0.0,
        optimizer__fused=True,
        lr=1e-3,
        max_epochs=EPOCHS,
        batch_size=BATCH,
        iterator_train__shuffle=True,
        train_split=None,
        callbacks=[
            given.EpochScoring("accuracy", on_train=True, lower_is_better=False),
            given.ProgressBar(),
            given.TensorBoard(SummaryWriter(str(logs / "skorch"))),
            given.Checkpoint(monitor="train_loss_best", dirname=str(logs / "skorch_kept")),
            *(more if mixed else []),
        ],
    )
    x, y = samples()
    net.fit(np.asarray(x), np.asarray(y))
    return STEPS


_RUNS = {
    "Lightning": ("pytorch_lightning", lightning),
    "Keras": ("keras", keras),
    "pytorch-accelerated": ("pytorch_accelerated", accelerated),
    "skorch": ("skorch", skorch),
}


def peers(mixed: bool, logs: Path) -> Iterator[tuple[str, Loop]]:
    """Yield the libraries that are installed, each with a function that trains and returns the number of steps."""
    for name, (package, run) in _RUNS.items():
        if importlib.util.find_spec(package) is not None:
            yield name, _silenced(run, mixed, logs)


def _silenced(run: Callable[[bool, Path], int], mixed: bool, logs: Path) -> Loop:
    def silent() -> int:
        with _nowhere():
            return run(mixed, logs)

    return silent


@contextmanager
def _nowhere() -> Iterator[None]:
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def rows(rounds: int = 5) -> list[Row]:
    """Return ours over each installed library, with the plain network and with the same terms added."""
    found: list[Row] = []
    for title, mixed in (("tiny", False), ("cocktail", True)):
        with tempfile.TemporaryDirectory() as folder:
            logs = Path(folder)
            plugins = (lambda: cocktail(False)) if mixed else (lambda: [Optimizer("AdamW", lr=1e-3)])
            contenders = {title: ours(plugins, logs), **dict(peers(mixed, logs))}
            times = alternate(contenders, rounds)
        found += compared(times, {(title, other): "< 1" for other in contenders if other != title})
    return found
