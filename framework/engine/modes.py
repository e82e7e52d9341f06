"""Optimizers with a mode for training and one for evaluation, such as schedule-free ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Modes:
    """Calls an optimizer's ``train()`` before steps and its ``eval()`` before evaluation.

    The weights of such an optimizer differ between its modes: those that gradients are taken at, and those that are
    evaluated. All other optimizers are left alone.

    Args:
        optimizer: the optimizer, None before there is one.

    Source: Defazio et al. (2024), The Road Less Scheduled.
    """

    def __init__(self, optimizer: Optimizer | None = None) -> None:
        self._optimizer: Any = optimizer
        self.present = all(callable(getattr(optimizer, mode, None)) for mode in ("train", "eval"))
        self.trains = False

    def train(self) -> None:
        """Switch to the weights for training."""
        if self.present and not self.trains:
            self._optimizer.train()
            self.trains = True

    def eval(self) -> None:
        """Switch to the weights for evaluation."""
        if self.present and self.trains:
            self._optimizer.eval()
            self.trains = False

    @torch.no_grad()
    def for_evaluation(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the weights for evaluation, by name; those for training stay as they are, bit for bit."""
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        self.eval()
        found = {name: weight.detach().clone() for name, weight in weights.items()}
        self.train()
        for name, weight in weights.items():
            weight.copy_(before[name])
        return found
