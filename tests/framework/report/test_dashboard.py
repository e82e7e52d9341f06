from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from framework.data import Data
from framework.engine.core import Core
from framework.plugin import Plugin
from framework.plugin.step import Step
from framework.recipe.recipe import Recipe
from framework.report.dashboard import Dashboard, histogram, hyperparameters, layout
from framework.run.fit import fit


class Brighten(Plugin):
    """Add to every input, in the worker and on the device."""

    by: float
    twice: bool = False
    layers: str = "*"

    def transform_sample(self, sample: Any, rng: np.random.Generator) -> Any:
        return (sample[0] + self.by * rng.random(dtype=np.float32), *sample[1:])

    def transform_batch(self, batch: Any, step: Step) -> Any:
        return (batch[0] + step.uniform(self, batch[0]) * self.by, *batch[1:])


class Shrink(Plugin):
    """A term on weights and one on activations, by hand."""

    alpha: float = 0.01

    def attach(self, core: Core) -> None:
        self.weight_ = next(core.model.parameters())

    def penalty(self, step: Step) -> Tensor:
        if step.logged:
            step.record("sparsity/0", 0.25)
        return self.alpha * self.weight_.square().sum()


def written(folder: Path) -> EventAccumulator:
    """Return all that was written for TensorBoard."""
    (file,) = folder.rglob("events.out.tfevents.*")
    return EventAccumulator(
        str(file), size_guidance={"histograms": 0, "tensors": 0, "scalars": 0, "images": 0}
    ).Reload()


@pytest.fixture
def images(digits: tuple[Tensor, Tensor]) -> Data:
    """Return the digits as pictures."""
    x, y = digits
    x = x.view(-1, 1, 8, 8)
    return Data((x[:100], y[:100]), (x[100:141], y[100:141]), batch_size=40)


@pytest.fixture
def dash(
    core_of: Callable[..., Core],
    mlp: Callable[..., nn.Sequential],
    images: Data,
    tmp_path: Path,
    train: Callable[..., Any],
) -> Callable[..., EventAccumulator]:
    """Return a function that trains with a dashboard and returns what it wrote."""

    def run(*plugins: Plugin, board: Dashboard | None = None, core: Core | None = None, **options: Any) -> Any:
        core = core or core_of(*plugins, data=images, model=nn.Sequential(nn.Flatten(), *mlp()))
        options = {"logger": TensorBoardLogger(tmp_path), "max_epochs": 2, **options}
        train(core, callbacks=[Dashboard() if board is None else board], **options)
        return written(tmp_path)

    return run


# ---- charts ---------------------------------------------------------------------------------------------------------


def charts(events: EventAccumulator) -> dict[str, dict[str, list[str]]]:
    (event,) = events.Tensors("custom_scalars__config__")
    read = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    return {one.title: {chart.title: list(chart.multiline.tag) for chart in one.chart} for one in read.category}


def test_charts_hold_training_against_validation(core_of: Callable[..., Core], dash: Callable[..., Any]) -> None:
    core = core_of(Shrink(), metrics={"accuracy": MulticlassAccuracy(10, average="micro")})
    found = charts(dash(core=core))
    assert found == {
        "1 Training and validation": {"loss": ["^(train|val)/loss$"], "accuracy": ["^(train|val)/accuracy$"]},
        "2 Objective": {"J and objective": ["^train/(loss|objective)$"], "penalties": ["^penalty/"]},
        "3 Validation minus training": {"gap in loss": ["^gap/loss$"], "gap in accuracy": ["^gap/accuracy$"]},
        "4 Optimization": {"learning rate": ["^lr(/|$)"], "gradient norm": ["^grad_norm$"]},
        "5 Sparsity": {"sparsity by layer": ["^sparsity/"]},
    }


def test_no_chart_stays_empty() -> None:
    found = layout(["train/loss", "train/objective", "val/F1 (macro)", "lr/0", "lrx"])
    assert found == {
        "1 Training and validation": {
            "loss": ["Multiline", ["^(train|val)/loss$"]],
            "F1 (macro)": ["Multiline", [r"^(train|val)/F1\ \(macro\)$"]],
        },
        "2 Objective": {"J and objective": ["Multiline", ["^train/(loss|objective)$"]]},
        "4 Optimization": {"learning rate": ["Multiline", ["^lr(/|$)"]]},
    }


def test_charts_of_a_run_cut_short(core_of: Callable[..., Core], tmp_path: Path, train: Callable[..., Any]) -> None:
    class Fails(Core):
        def compute_loss(self, batch: Any) -> Any:
            if self.at.index == 3:
                raise RuntimeError("on purpose")
            return super().compute_loss(batch)

    with pytest.raises(RuntimeError, match="on purpose"):
        train(core_of(kind=Fails), callbacks=[Dashboard()], logger=TensorBoardLogger(tmp_path), log_every_n_steps=1)
    events = written(tmp_path)
    assert "loss" in charts(events)["1 Training and validation"]
    assert metadata.SESSION_END_INFO_TAG not in events.summary_metadata


# ---- weights --------------------------------------------------------------------------------------------------------


def test_histograms_of_weights_every_few_epochs(dash: Callable[..., Any]) -> None:
    events = dash(board=Dashboard(histogram_every_n_epochs=2), max_epochs=5)
    assert sorted(events.Tags()["histograms"]) == ["weights/1", "weights/3"]  # no biases
    # three steps an epoch: at the start, after epochs 2 and 4, and at the end
    assert [event.step for event in events.Histograms("weights/1")] == [0, 6, 12, 15]


def test_histograms_are_of_the_weights(core_of: Callable[..., Core], dash: Callable[..., Any]) -> None:
    core = core_of()
    first = core.model.get_parameter("0.weight").detach().clone()
    events = dash(core=core)
    for event, weight in zip(
        (events.Histograms("weights/0")[0], events.Histograms("weights/0")[-1]),
        (first, core.model.get_parameter("0.weight").detach()),
        strict=True,
    ):
        value = event.histogram_value
        assert value.num == weight.numel()
        assert (value.min, value.max) == pytest.approx((weight.min().item(), weight.max().item()))
        assert value.sum == pytest.approx(weight.double().sum().item(), rel=1e-4)


def test_a_large_weight_is_sampled(core_of: Callable[..., Core], dash: Callable[..., Any]) -> None:
    core = core_of(model=nn.Sequential(nn.Linear(64, 3000), nn.Linear(3000, 10)))
    value = dash(core=core, max_epochs=1).Histograms("weights/0")[0].histogram_value
    assert 1 << 15 <= value.num <= 1 << 16


def test_weights_that_are_not_finite_are_left_out(core_of: Callable[..., Core], dash: Callable[..., Any]) -> None:
    core = core_of()
    core.model[2].register_parameter("spare", nn.Parameter(torch.full((2, 2), torch.nan)))
    core.model[0].register_parameter("infinite", nn.Parameter(torch.tensor([[1.0, torch.inf]])))
    events = dash(core=core, max_epochs=1)
    assert "weights/2.spare" not in events.Tags()["histograms"]
    assert events.Histograms("weights/0.infinite")[0].histogram_value.num == 1


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [-2.0], [0.0, 1.0, 1.0, 64.0], list(range(640))])
def test_a_histogram_counts_as_numpy_does(values: list[float]) -> None:
    found = histogram(torch.tensor(values))
    counts, edges = np.histogram(np.array(values, dtype=np.float64), bins=64)
    assert found["bucket_counts"] == [0, *counts.tolist()]
    assert found["bucket_limits"] == pytest.approx(edges.tolist())
    assert (found["min"], found["max"], found["num"]) == (min(values), max(values), len(values))
    assert found["sum"] == sum(values)
    assert found["sum_squares"] == sum(value**2 for value in values)


def test_no_histograms(dash: Callable[..., Any]) -> None:
    assert dash(board=Dashboard(histogram_every_n_epochs=0)).Tags()["histograms"] == []


# ---- inputs ---------------------------------------------------------------------------------------------------------


def shown(events: EventAccumulator, tag: str) -> np.ndarray:
    (event,) = events.Images(tag)
    assert event.step == 0
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("L"))


def test_inputs_are_those_of_the_first_step(dash: Callable[..., Any], images: Data) -> None:
    seen: list[Tensor] = []

    class Looks(Core):
        def compute_loss(self, batch: Any) -> Any:
            if self.training:
                seen.append(batch[0].clone())
            return super().compute_loss(batch)

    plugin = Brighten(0.5)
    core = Looks(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.functional.cross_entropy, None, [plugin], data=images
    )
    events = dash(core=core)
    assert sorted(events.Tags()["images"]) == ["inputs/augmented", "inputs/raw"]
    augmented, raw = shown(events, "inputs/augmented"), shown(events, "inputs/raw")
    # the digits are from 0 to 1 and 8 pixels wide: six pixels of the sheet for one
    first = core.trainer.train_dataloader
    first.epoch, first.start = 0, 0
    order = first.permutation()[:32]
    for picture in (0, 9, 31):
        top, left = picture // 8 * 50, picture % 8 * 50
        tile = np.s_[top : top + 48 : 6, left : left + 48 : 6]
        assert np.allclose(augmented[tile] / 255, seen[0][picture, 0].clamp(0, 1), atol=1 / 200)
        assert np.allclose(raw[tile] / 255, images.train[0][order[picture], 0], atol=1 / 200)  # type: ignore[index]


def test_inputs_that_nobody_changes_are_shown_once(dash: Callable[..., Any]) -> None:
    assert dash().Tags()["images"] == ["inputs/raw"]


def test_flat_inputs_are_not_shown(core_of: Callable[..., Core], dash: Callable[..., Any]) -> None:
    assert dash(core=core_of(Brighten(0.5))).Tags()["images"] == []


def test_no_images(dash: Callable[..., Any]) -> None:
    assert dash(board=Dashboard(images=False)).Tags()["images"] == []


# ---- hyperparameters and best metrics -------------------------------------------------------------------------------


def session_of(events: EventAccumulator) -> dict[str, Any]:
    content = events.summary_metadata[metadata.SESSION_START_INFO_TAG].plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}


def test_hyperparameters_stand_in_the_run_itself(dash: Callable[..., Any], tmp_path: Path) -> None:
    events = dash(Brighten(0.5), Shrink(), board=Dashboard({"width": 12, "kind": "mlp", "sizes": [1, 2], "none": None}))
    assert session_of(events) == {
        "width": 12,
        "kind": "mlp",
        "sizes": "[1, 2]",
        "none": "None",
        "seed": 0,
        "plugins": "brighten, shrink",
        "brighten.by": 0.5,
    }
    assert metadata.SESSION_END_INFO_TAG in events.summary_metadata
    # one run, and no summary that would hide other runs' columns
    assert metadata.EXPERIMENT_TAG not in events.summary_metadata
    assert len(list(tmp_path.rglob("events.out.tfevents.*"))) == 1


def test_hyperparameters_are_those_declared(core_of: Callable[..., Core]) -> None:
    plugin = Shrink(0.5)
    core = core_of(plugin)
    plugin.alpha = 7.0  # as a schedule would
    assert hyperparameters(core, {"seed": 9}) == {"seed": 0, "plugins": "shrink", "shrink.alpha": 0.5}


@pytest.mark.parametrize("mode", ["min", "max"])
def test_best_metrics_are_those_of_the_best_epoch_so_far(
    mode: str, core_of: Callable[..., Core], dash: Callable[..., Any]
) -> None:
    core = core_of(metrics={"accuracy": MulticlassAccuracy(10, average="micro")}, mode=mode)
    events = dash(core=core, max_epochs=4, num_sanity_val_steps=1)
    losses = [entry.metrics["val/loss"] for entry in core.recorder.history]
    assert losses == sorted(losses, reverse=True)  # the loss falls: the best is the last, or by max the first
    chosen = range(4) if mode == "min" else [0] * 4
    for tag in ("loss", "accuracy"):
        values = [event.value for event in events.Scalars(f"best/{tag}")]
        assert values == pytest.approx([core.recorder.history[i].metrics[f"val/{tag}"] for i in chosen])
    assert [event.step for event in events.Scalars("best/loss")] == [7, 14, 21, 28]


def test_without_a_monitor_there_is_no_best(core_of: Callable[..., Core], dash: Callable[..., Any]) -> None:
    events = dash(core=core_of(monitor="val/f1"))
    assert not [tag for tag in events.Tags()["scalars"] if tag.startswith("best/")]


# ---- it changes nothing ---------------------------------------------------------------------------------------------


class Draws(torch.utils.data.Dataset[Any]):
    """Pictures with noise from the global generators."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + torch.randn(1) + float(np.random.rand()), self.y[index]  # noqa: NPY002


def test_a_run_is_the_same_with_and_without(
    core_of: Callable[..., Core],
    images: Data,
    tmp_path: Path,
    train: Callable[..., Any],
    weights: Callable[[Core], Tensor],
) -> None:
    results = []
    for callbacks in ([], [Dashboard(histogram_every_n_epochs=1)]):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        nn.init.zeros_(model[2].weight)
        nn.init.zeros_(model[2].bias)
        data = dataclasses.replace(images, train=Draws(*images.train))  # type: ignore[misc]
        core = core_of(Brighten(0.5), data=data, model=model)
        train(core, callbacks=callbacks, logger=TensorBoardLogger(tmp_path), max_epochs=2)
        results.append(weights(core))
    assert torch.equal(*results)


def test_it_looks_at_one_batch(core_of: Callable[..., Core], dash: Callable[..., Any]) -> None:
    core = core_of()
    dash(core=core)
    assert core.gradient.watch is None


@pytest.mark.parametrize("kind", ["csv", "none"])
def test_other_loggers_are_left_alone(
    kind: str, core_of: Callable[..., Core], tmp_path: Path, train: Callable[..., pl.Trainer]
) -> None:
    logger = CSVLogger(tmp_path) if kind == "csv" else False
    core = core_of()
    train(core, callbacks=[Dashboard()], logger=logger, max_epochs=2)
    assert core.gradient.watch is None
    assert not list(tmp_path.rglob("events.out.tfevents.*"))


def test_ranks_write_once(
    core_of: Callable[..., Core], images: Data, tmp_path: Path, train: Callable[..., pl.Trainer]
) -> None:
    core = core_of(Brighten(0.5), data=images, model=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    logger = TensorBoardLogger(tmp_path)
    train(core, callbacks=[Dashboard()], logger=logger, max_epochs=2, devices=2, strategy="ddp_fork")
    events = written(tmp_path)
    assert sorted(events.Tags()["images"]) == ["inputs/augmented", "inputs/raw"]
    assert len(events.Scalars("best/loss")) == 2


def test_fit_writes_it_all(recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    run = fit(lambda width=12: recipe([Shrink(0.1)]), parameters={}, seed=5, logs=tmp_path, trainer={"max_epochs": 2})
    assert run.folder is not None
    events = written(run.folder)
    assert session_of(events) == {"width": 12, "seed": 5, "plugins": "shrink", "shrink.alpha": pytest.approx(0.1)}
    assert events.Scalars("best/loss")[-1].value == pytest.approx(run.metrics["val/loss"])
    assert "penalties" in charts(events)["2 Objective"]
