"""Tables with numbers and categories: a multilayer perceptron with several plugins.

A table is a folder with ``data.csv.gz`` (UTF-8, with a header, the last column ``target``, an empty field for a missing
value) and ``meta.json``, whose ``categorical`` lists the columns that are text even if they look like numbers.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.compose import ColumnTransformer
from sklearn.feature_selection import VarianceThreshold
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch import Tensor, nn
from torchmetrics import Metric

from framework import Data, Recipe
from framework.data.fetch import DataFile, fetch
from framework.data.split import parts
from plugins.hidden_noise import HiddenNoise
from plugins.mixup import Mixup
from plugins.number_encoding import NumberEncoding
from plugins.optimizer import Optimizer
from plugins.schedule import Schedule
from plugins.weight_average import WeightAverage


def read_table(name: str, data: Path | None) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Return features, classes from 0, and the names of the categorical columns."""
    path, meta = fetch([DataFile(f"tabular/{name}/data.csv.gz"), DataFile(f"tabular/{name}/meta.json")], data)
    categorical = json.loads(meta.read_text(encoding="utf-8"))["categorical"]
    text = dict.fromkeys([*categorical, "target"], str)
    table = pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])
    return table.drop(columns="target"), pd.factorize(table["target"], sort=True)[0], categorical


def preprocessing(numeric: list[str], categorical: list[str], rare: int) -> Pipeline:
    """Return the pipeline that turns columns into features; fit it on the training part only.

    Numbers: missing values become the median, with an indicator feature, then mean 0 and variance 1. Categories:
    one-hot; a missing value is a category, and those seen fewer than ``rare`` times share one with the unseen. Constant
    features are dropped.
    """
    numbers = make_pipeline(
        SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
    )
    categories = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="(missing)", keep_empty_features=True),
        OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=rare, sparse_output=False),
    )
    columns = ColumnTransformer([("numbers", numbers, numeric), ("categories", categories, categorical)])
    return make_pipeline(columns, VarianceThreshold())


def divided(
    table: pd.DataFrame, y: np.ndarray, categorical: list[str], split: int = 0, fold: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """Return features and classes of the three parts, stratified: 60 %, 20 % and 20 %, or by folds."""
    # not by the run's seed: runs with different seeds are compared on the same test part
    train, val, test = parts(len(y), fold=fold, stratify=y, seed=split)
    numeric = [column for column in table if column not in categorical]
    features = preprocessing(numeric, categorical, rare=max(2, len(train) // 2000)).fit(table.iloc[train])
    return [
        (torch.tensor(features.transform(table.iloc[part]), dtype=torch.float32), torch.tensor(y[part]))
        for part in (train, val, test)
    ]


class BalancedCrossEntropy(nn.Module):
    r"""Cross-entropy in which each of C classes has the same total weight.

    .. math:: J = -\frac1N \sum_n w_{y_n} \log p_{n y_n}, \qquad w_c = \frac{N}{C N_c}

    Args:
        y: classes of the training part.
    """

    outputs = "softmax"

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        counts = torch.bincount(y)
        self.register_buffer("weights", len(y) / (len(counts) * counts))

    def forward(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return J as a mean over samples whatever their classes, so that micro-batches add up."""
        return (F.cross_entropy(logits, y, reduction="none") * self.weights[y]).mean()


def balanced_accuracy(hits: Tensor, counts: Tensor) -> Tensor:
    r"""Return the mean, over the classes that occur, of the share of a class's rows that are predicted as it.

    .. math:: \frac{1}{|\{c : N_c > 0\}|} \sum_{c : N_c > 0} \frac{h_c}{N_c}

    A class that is predicted but has no rows does not count, as in scikit-learn; torchmetrics' macro average counts it
    as 0.

    Args:
        hits: rows predicted rightly, by class.
        counts: rows by class.
    """
    occurs = counts > 0
    return (hits[occurs] / counts[occurs]).mean()


class BalancedAccuracy(Metric):
    """Metric of :func:`balanced_accuracy` over all rows.

    Args:
        classes: the number of classes.
    """

    full_state_update = False
    higher_is_better = True
    hits: Tensor
    counts: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("hits", "counts"):
            self.add_state(name, torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, y: Tensor) -> None:
        """Add rows; predictions are logits, or classes."""
        predicted = logits.argmax(1) if logits.ndim > 1 else logits
        self.counts += torch.bincount(y, minlength=len(self.counts))
        self.hits += torch.bincount(y[predicted == y], minlength=len(self.counts))

    def compute(self) -> Tensor:
        """Return the balanced accuracy."""
        return balanced_accuracy(self.hits, self.counts)


def recipe(
    name: str = "Australian",
    data: Path | None = None,
    epochs: int = 150,
    steps: int = 3000,
    batch_size: int = 128,
    width: int = 256,
    lr: float = 2e-3,
    weight_decay: float = 0.1,
    dropout: float = 0.3,
    mixup: float = 0.2,
    decay: float = 0.99,
    bins: int = 0,
    split: int = 0,
    fold: int | None = None,
) -> Recipe:
    """Classify the rows of a table; the metric is balanced accuracy, the mean of the classes' accuracies.

    Args:
        name: the table, a folder below ``tabular`` in the data folder.
        data: data folder, by default FRAMEWORK_DATA or a cache folder.
        epochs: largest number of passes over the training part.
        steps: optimizer steps after which to stop on large tables, but not before 3 epochs.
        batch_size: rows per optimizer step.
        width: units of each of the three hidden layers.
        lr: highest learning rate of the one-cycle schedule.
        weight_decay: decoupled decay of weights.
        dropout: share of hidden units that are masked.
        mixup: alpha of mixup, which mixes pairs of rows, see plugins/mixup.py.
        decay: decay of the moving average of weights that is evaluated.
        bins: bins of the piecewise-linear encoding of numbers with more than 8 values, 12 for instance; 0 for none.
        split: number of the random division into parts.
        fold: which of five folds validates, instead of a fixed part.
    """
    table, y, categorical = read_table(name, data)
    train, val, test = divided(table, y, categorical, split, fold)
    widths, classes = [train[0].shape[1], width, width, width], int(y.max()) + 1
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    numbers = [one for one in range(widths[0]) if len(train[0][:, one].unique()) > 8]
    encoding = [NumberEncoding(bins, columns=numbers)] if bins and numbers else []
    steps_an_epoch = -(-len(train[1]) // batch_size)
    return Recipe(
        model=nn.Sequential(*layers, nn.Linear(width, classes)),
        data=Data(train, val, test, batch_size=batch_size, eval_batch_size=4096),
        loss=BalancedCrossEntropy(train[1]),
        metrics={"balanced_accuracy": BalancedAccuracy(classes)},
        plugins=[
            *encoding,
            Mixup(mixup),
            HiddenNoise("ReLU", kind="masking", rate=dropout),
            WeightAverage(decay=decay),
            Optimizer("AdamW", lr=lr, weight_decay=weight_decay),
            Schedule("one_cycle"),
        ],
        trainer={"max_epochs": min(epochs, max(3, steps // steps_an_epoch))},
    )
