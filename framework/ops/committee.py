"""Committees of networks: how their predictions are combined, and who is chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

Outputs = Literal["softmax", "bernoulli", "normal"]


def combined(predictions: Sequence[Tensor], weights: Sequence[float], outputs: Outputs) -> Tensor:
    r"""Return the prediction of a committee, as one network would return it.

    .. math::
        \log \sum_m w_m\,\mathrm{softmax}(a_m) \;\text{(softmax)}, \qquad
        \operatorname{logit} \sum_m w_m\,\sigma(a_m) \;\text{(bernoulli)}, \qquad
        \sum_m w_m\,a_m \;\text{(normal)}

    Args:
        predictions: :math:`a_m`, shaped alike; of classes ``(samples, classes, …)``.
        weights: :math:`w_m`, which sum to one.
        outputs: what the outputs are: logits of classes, logits of yes or no, or values.

    Example:
        >>> sure, unsure = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> combined([sure, unsure], [0.5, 0.5], "softmax").softmax(1)
        tensor([[0.7000, 0.3000]])
    """
    chosen = [(one, weight) for one, weight in zip(predictions, weights, strict=True) if weight]
    if outputs == "normal":
        return torch.stack([one * weight for one, weight in chosen]).sum(0)
    log_weights = torch.tensor([weight for _, weight in chosen]).log().tolist()
    if outputs == "softmax":
        return torch.stack([one.log_softmax(1) + w for (one, _), w in zip(chosen, log_weights, strict=True)]).logsumexp(
            0
        )
    yes, no = (
        torch.stack(
            [torch.nn.functional.logsigmoid(sign * one) + w for (one, _), w in zip(chosen, log_weights, strict=True)]
        ).logsumexp(0)
        for sign in (1, -1)
    )
    return yes - no


def choose(count: int, loss_of: Callable[[Sequence[float]], float], rounds: int) -> list[float]:
    r"""Choose a committee one member at a time, a member as often as it helps, and return the members' weights.

    Starting with none, each round adds the member with which the committee's loss is lowest; the best of the committees
    seen counts, with weights :math:`w_m = k_m / \sum_j k_j` by how often each was added.

    Args:
        count: number of candidates.
        loss_of: returns the loss of a committee by its weights.
        rounds: number of rounds.

    Example:
        >>> choose(3, lambda w: (w[0] - 0.5) ** 2 + (w[2] - 0.5) ** 2, rounds=4)
        [0.5, 0.0, 0.5]

    Source: Caruana, Niculescu-Mizil, Crew and Ksikes (2004), Ensemble selection from libraries of models.
    """
    taken, best, chosen = [0] * count, float("inf"), [1.0 / count] * count
    for size in range(1, rounds + 1):
        tried = [[(k + (m == one)) / size for m, k in enumerate(taken)] for one in range(count)]
        losses = [loss_of(weights) for weights in tried]
        first = min(range(count), key=lambda one: losses[one])
        taken[first] += 1
        if losses[first] < best:
            best, chosen = losses[first], tried[first]
    return chosen
