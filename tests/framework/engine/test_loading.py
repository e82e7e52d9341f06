"""Networks train on whatever data a user has: nested tensors, loaders, streams, data modules; and resume on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler
from torch.utils.data.distributed import DistributedSampler

import framework
from framework import Data, Interrupted, Recipe, Run, UserError, fit
from framework.data.parts import is_ready
from plugins.hidden_noise import HiddenNoise
from plugins.optimizer import Optimizer
from plugins.weight_average import WeightAverage

torch.manual_seed(0)
X, Y = torch.randn(50, 5), torch.randint(0, 3, (50,))
PLAIN = TensorDataset(X, Y)


class Net(nn.Module):
    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Any) -> Tensor:
        return self.net(x["a"] if isinstance(x, dict) else x)


class Noisy(torch.utils.data.Dataset[Any]):
    """Draws from every global generator, as augmentation in a data set does."""

    def __len__(self) -> int:
        return 50

    def __getitem__(self, index: int) -> Any:
        return X[index] + 0.1 * torch.randn(5) + 0.1 * np.random.rand(), Y[index]  # noqa: NPY002


class Samples(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from zip(X, Y, strict=True)


class Batches:
    """Yields batches in an order that it draws itself."""

    def __init__(self, size: int = 8) -> None:
        self.size = size

    def __iter__(self) -> Iterator[Any]:
        for cut in torch.randperm(50).split(self.size):
            yield X[cut], Y[cut]


class Module(pl.LightningDataModule):
    def prepare_data(self) -> None:
        assert PLAIN is not None

    def setup(self, stage: str) -> None:
        self.samples = PLAIN

    def train_dataloader(self) -> Any:
        return DataLoader(self.samples, 8, shuffle=True)

    def val_dataloader(self) -> Any:
        return [DataLoader(self.samples, 16)]

    def test_dataloader(self) -> Any:
        return DataLoader(self.samples, 16)


def shuffled(samples: Any = PLAIN, **options: Any) -> DataLoader[Any]:
    return DataLoader(samples, 8, shuffle=True, **options)


def weighted() -> DataLoader[Any]:
    return DataLoader(PLAIN, 8, sampler=WeightedRandomSampler(torch.arange(50) + 1.0, 50))


def own_generator() -> DataLoader[Any]:
    return shuffled(generator=torch.Generator().manual_seed(3))


KINDS: dict[str, Any] = {
    "tensors": lambda: (X, Y),
    "mapping": lambda: {"x": X, "y": Y},
    "nested": lambda: ({"a": X}, Y),
    "data set": lambda: PLAIN,
    "loader": shuffled,
    "drawing": lambda: shuffled(Noisy()),
    "workers": lambda: shuffled(Noisy(), num_workers=2),
    "weighted": weighted,
    "generator": own_generator,
    "stream": Samples,
    "batches": Batches,
    "module": Module,
}


class Stop(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def trained(
    train: Any, *plugins: Any, logs: Any = None, options: Any = None, epochs: int = 3, norm: bool = True, **more: Any
) -> Run:
    keys = {key: more.pop(key) for key in ("seed", "resume", "weights") if key in more}
    given = {"val": None if isinstance(train, Module) else (X, Y), **more}
    parts = (train, given["val"], given.get("test"))
    if not all(part is None or isinstance(part, Module) or is_ready(part) for part in parts):
        given = {"batch_size": 8, **given}
    trainer = {"max_epochs": epochs, "enable_progress_bar": False, "accumulate_grad_batches": 2, **(options or {})}
    plugins = (Optimizer("SGD", lr=0.1), *plugins)
    net = Net(
        norm="devices" not in trainer and "limit_train_batches" not in trainer
    )  # each rank has its own statistics
    return fit(
        Recipe(net, Data(train, **given), F.cross_entropy, plugins=list(plugins), trainer=trainer), logs=logs, **keys
    )


def vector(run: Run) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.core.model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data_resumes_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    plugins = lambda: (HiddenNoise("net.1", std=0.1), WeightAverage("ema", decay=0.9, warmup=False))  # noqa: E731
    whole = trained(KINDS[kind](), *plugins(), logs=tmp_path / "whole")
    assert whole.steps == 12 and whole.metrics["val/loss"] < 1.2
    with pytest.raises(Interrupted) as caught:
        trained(KINDS[kind](), *plugins(), logs=tmp_path / "cut", options={"callbacks": [Stop(6)]})
    again = trained(KINDS[kind](), *plugins(), logs=tmp_path / "cut", resume=caught.value.run.folder)
    assert torch.equal(vector(whole), vector(again))
    assert whole.last == again.last
    assert torch.equal(vector(trained(KINDS[kind](), *plugins())), vector(whole))
    other = trained(KINDS[kind](), *plugins(), seed=1)
    assert kind == "stream" or not torch.allclose(vector(other), vector(whole), atol=1e-4)


def test_tensors_in_containers_are_the_same_samples() -> None:
    expected = vector(trained((X, Y)))
    for kind in ("mapping", "nested", "data set"):
        assert torch.equal(vector(trained(KINDS[kind]())), expected)
    named = trained({"pixels": X, "species": Y}, input="pixels", target="species", val=None)
    assert torch.equal(vector(named), expected)
    listed = trained([(x, y) for x, y in zip(X, Y, strict=True)])
    assert torch.equal(vector(listed), expected)


def test_evaluation_test_and_predictions(tmp_path: Path) -> None:
    for kind in ("stream", "loader", "module"):
        part = KINDS[kind]()
        run = trained(part, **({} if kind == "module" else {"val": part, "test": part}))
        assert framework.test(run)["test/loss"] == pytest.approx(run.last["val/loss"], abs=1e-6)
        assert framework.predict(run).shape == (50, 3)
        framework.export(run, out=tmp_path / "net.pt2")


def test_the_same_loader_in_training_and_evaluation() -> None:
    loader = shuffled(num_workers=1, persistent_workers=True)
    run = trained(loader, val=loader)
    expected = trained(shuffled(), val=(X, Y))
    assert torch.equal(vector(run), vector(expected))
    assert run.last["val/loss"] == pytest.approx(expected.last["val/loss"], abs=1e-6)


def test_statistics_are_estimated_on_a_loaders_batches() -> None:
    average = lambda: WeightAverage("swa", start=0.0, batches=3)  # noqa: E731
    run, again = trained(shuffled(), average()), trained(shuffled(), average())
    assert torch.equal(vector(run), vector(again))
    less = trained(shuffled(), WeightAverage("swa", start=0.0, batches=1))
    assert torch.equal(vector(run), vector(less)) and run.last["val/loss"] != less.last["val/loss"]


def test_an_iterator_lasts_for_one_epoch() -> None:
    run = trained(iter(Batches()), epochs=1)
    assert run.steps == 4
    with pytest.raises(UserError, match="generator is used up: an iterator yields its batches once"):
        trained(iter(Batches()), epochs=2)


class Empty(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"train": Empty()}, "Empty yielded no batch; give at least one"),
        ({"train": [], "val": None}, r"Data\(train=...\): has no samples"),
        ({"train": (X, Y), "val": Empty()}, r"Data\(val=...\): Empty yielded no batch"),
        ({"train": [torch.zeros(()), torch.zeros(())]}, "a tuple must hold tensors whose first dimension"),
        ({"train": [{"text": "a"}, {"text": "b"}]}, "a batch must hold a tensor with one row per sample"),
        ({"train": shuffled(), "balance": "class"}, "balance=...\\): a loader draws its own samples"),
    ],
)
def test_data_that_cannot_be_used(more: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        trained(more.pop("train"), **more)


def test_transforms_of_samples_need_samples() -> None:
    class Flips(framework.Plugin):
        def transform_sample(self, sample: Any, rng: Any) -> Any:
            return sample

    with pytest.raises(UserError, match=r"flips: changes samples, but Data\(train=...\) is a DataLoader"):
        trained(shuffled(), Flips())


# ---- ranks -----------------------------------------------------------------------------------------------------------


class Seen(pl.Callback):
    """Checks that the ranks' batches are disjoint, and together those of one process."""

    def __init__(self, doubles: bool = False) -> None:
        self.rows: list[float] = []
        self.doubles = doubles

    def on_train_batch_start(self, trainer: pl.Trainer, core: Any, window: Any, index: int) -> None:
        self.rows += [round(float(one), 5) for x, _ in window.batches for one in x[:, 0]]

    def on_train_epoch_end(self, trainer: pl.Trainer, core: Any) -> None:
        every: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(every, self.rows)
        ours, theirs = every
        assert ours and theirs and (bool(set(ours) & set(theirs)) == self.doubles)
        self.rows = []


HALF = {"limit_train_batches": 3}  # batch norm would have statistics of its own on each rank
TWO = {"devices": 2, "strategy": "ddp_fork", "accumulate_grad_batches": 1}


@pytest.mark.parametrize("kind", ["loader", "weighted", "stream", "batches", "module"])
def test_ranks_share_a_loader_without_doubles(kind: str) -> None:
    alone = trained(KINDS[kind](), options=HALF | {"accumulate_grad_batches": 2}, norm=False)
    two = trained(KINDS[kind](), Seen(doubles=kind == "weighted"), options=HALF | TWO, norm=False)
    assert torch.allclose(vector(alone), vector(two), atol=1e-5) and two.steps == alone.steps == 9


def test_a_loader_that_shares_itself() -> None:
    loader = lambda: DataLoader(PLAIN, 8, sampler=DistributedSampler(PLAIN, 2, 0, drop_last=True))  # noqa: E731
    assert trained(loader(), options=TWO).steps == 12


class Uneven:
    def __iter__(self) -> Iterator[Any]:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        for cut in torch.arange(50)[rank::2].split(4 + 3 * rank):
            yield X[cut], Y[cut]


@pytest.mark.filterwarnings("ignore:.*the ranks' loaders yield unequal numbers of batches")
def test_ranks_with_unequal_streams_end_together() -> None:
    run = trained(Uneven(), options=TWO, sharded=True, epochs=1)
    assert run.steps == 4  # rank 1 has four batches, rank 0 seven
