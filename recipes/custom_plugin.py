"""A plugin defined in the recipe file: a penalty on confident predictions, for handwritten digits."""

from __future__ import annotations

from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, Host, Plugin, Recipe, Step
from framework.settings import NonNegative
from plugins.optimizer import Optimizer
from plugins.schedule import Schedule
from recipes.digits import read_digits


class ConfidencePenalty(Plugin):
    r"""Penalize confident predictions by their negative entropy.

    .. math:: \Omega = -\frac1N \sum_n H(p_n), \qquad H(p) = -\sum_c p_c \log p_c

    Args:
        logits: name of the layer whose output is the logits.
        alpha: strength; 0.1 to 1.

    Source: Pereyra et al. (2017), Regularizing neural networks by penalizing confident output distributions.
    """

    logits: str
    alpha: NonNegative = 0.1

    def attach(self, core: Host) -> None:
        """Observe the logits."""
        core.observe(self, self.logits)

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        """Store the logits and return them unchanged."""
        self.logits_ = x
        return x

    def penalty(self, step: Step) -> Tensor | None:
        """Return the penalty, a term of the objective."""
        log_p = self.logits_.float().log_softmax(dim=1)
        return self.alpha * (log_p.exp() * log_p).sum(dim=1).mean() if self.alpha else None


def recipe(epochs: int = 60, alpha: float = 0.5) -> Recipe:
    """Classify scikit-learn's handwritten digits with a plugin that this file defines.

    Args:
        epochs: passes over the training part.
        alpha: strength of the penalty on confident predictions.
    """
    train, val, test = read_digits()
    return Recipe(
        model=nn.Sequential(
            nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
        ),
        data=Data(train, val, test, batch_size=64, eval_batch_size=512),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": MulticlassAccuracy(10, average="micro")},
        plugins=[ConfidencePenalty(logits="5", alpha=alpha), Optimizer("AdamW", lr=3e-3), Schedule("one_cycle")],
        trainer={"max_epochs": epochs},
        monitor="val/accuracy",
        mode="max",
    )
