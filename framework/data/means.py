"""What a loss is a mean over: samples, the weights of the targets that count, or pairs that nobody meant."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from framework.errors import UserError

_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_FUNCTIONS = (F.cross_entropy, F.nll_loss)
_ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
_ELEMENTWISE_FUNCTIONS = (F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss)
_IGNORED = -100  # torch's default of ignore_index


def option_of(loss: Any, name: str, default: Any = None) -> Any:
    """Return an option of a loss: the attribute of a module, or the keyword of a ``functools.partial``.

    Example:
        >>> option_of(nn.MSELoss(reduction="sum"), "reduction"), option_of(F.mse_loss, "reduction")
        ('sum', None)
    """
    if isinstance(loss, functools.partial):
        return loss.keywords.get(name, default)
    return getattr(loss, name, default)


def may_be_uneven(loss: Any) -> bool:
    """Return whether a loss may be a mean over something other than samples: cross-entropy of classes, a mean.

    Args:
        loss: the recipe's loss, None if a core has its own.
    """
    function = loss.func if isinstance(loss, functools.partial) else loss
    known = isinstance(function, _CLASSES) or any(function is one for one in _FUNCTIONS)
    return known and option_of(loss, "reduction", "mean") == "mean"


def is_uneven(loss: Any) -> bool:
    """Return whether a loss surely is such a mean: with class weights, or with a class that is ignored."""
    if not may_be_uneven(loss):
        return False
    return option_of(loss, "weight") is not None or option_of(loss, "ignore_index", _IGNORED) != _IGNORED


def total_weight(loss: Any, target: Any) -> Tensor | None:
    r"""Return what a cross-entropy with class weights or ignored targets divides by, None if that is the samples.

    .. math:: J = \frac{1}{\sum_n w_{y_n}} \sum_n w_{y_n} \ell_n, \qquad w_{y_n} = 0 \text{ if } y_n \text{ is ignored}

    Args:
        loss: the loss.
        target: class indices of any shape; for probabilities of classes torch divides by the samples.

    Example:
        >>> total_weight(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])), torch.tensor([0, 1, 1]))
        tensor(7.)
        >>> total_weight(nn.CrossEntropyLoss(ignore_index=1), torch.tensor([0, 1, 1]))
        tensor(1)
    """
    mask = counted(loss, target)
    if mask is None:
        return None
    if mask.ndim == 1 and mask.dtype == torch.bool and bool(mask.all()):
        return None
    return mask.sum()


def counted(loss: Any, target: Any) -> Tensor | None:
    """Return how much each target counts in a cross-entropy: its class weight, or whether it is not ignored.

    Args:
        loss: the loss.
        target: class indices of any shape.

    Returns:
        A tensor of the target's shape; None if all samples count the same, as for probabilities of classes.
    """
    if not may_be_uneven(loss) or not isinstance(target, Tensor) or target.is_floating_point() or target.is_complex():
        return None
    counts = target != option_of(loss, "ignore_index", _IGNORED)
    weight: Tensor | None = option_of(loss, "weight")
    return counts if weight is None else weight.to(target.device)[target.where(counts, 0)].where(counts, 0.0)


def weighted_mean(loss: Any, prediction: Any, target: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return a loss as a mean over weighted samples, and what it divides by.

    .. math:: J = \frac{\sum_n w_n \sum_t c_{nt}\,\ell_{nt}}{\sum_n w_n \sum_t c_{nt}}

    with the loss :math:`\ell_{nt}` of entry t of sample n, and :math:`c_{nt}` as :func:`counted` gives it, 1 for other
    losses, whose entries are averaged over t first.

    Args:
        loss: a loss of torch's or another that takes ``reduction="none"``, or one that returns a value per sample.
        prediction: the network's output.
        target: the target.
        weight: the samples' weights w, ``(samples,)``.

    Raises:
        UserError: if the loss gives one number for all samples.

    Example:
        >>> x, y = torch.tensor([1.0, 2.0]), torch.zeros(2)
        >>> weighted_mean(nn.MSELoss(), x, y, torch.tensor([3.0, 1.0]))
        (tensor(1.7500), tensor(4.))
    """
    values = unreduced(loss)(prediction, target)
    if not isinstance(values, Tensor) or not values.ndim or len(values) != len(weight):
        name = getattr(loss, "__name__", type(loss).__name__)
        raise UserError(
            f"the data give each sample a weight, but the loss {name} returns one number for all; let it take"
            " reduction='none', or return a value per sample"
        )
    values, weight = values.flatten(1) if values.ndim > 1 else values[:, None], weight.to(values.dtype)
    counts = counted(loss, target)
    if counts is None:
        total = weight.sum()
        return torch.dot(weight, values.mean(1)) / total, total
    # with class weights torch has multiplied each value by its own already
    total = torch.dot(weight, counts.flatten(1).sum(1).to(weight.dtype) if counts.ndim > 1 else counts.to(weight.dtype))
    return torch.dot(weight, values.sum(1)) / total, total


def mean_as_in(loss: Any, values: Tensor, target: Any, weight: Tensor | None = None) -> Tensor:
    r"""Return the mean of a value per target, in which each target weighs as it does in a loss.

    .. math:: \frac{\sum_n w_n \sum_t c_{nt}\,v_{nt}}{\sum_n w_n \sum_t c_{nt}}

    Args:
        loss: the loss.
        values: v, ``(samples, …)``, shaped like a target of classes.
        target: the target.
        weight: the samples' weights w, ``(samples,)``; None for 1.

    Example:
        >>> mean_as_in(nn.CrossEntropyLoss(ignore_index=1), torch.tensor([2.0, 7.0, 4.0]), torch.tensor([0, 1, 2]))
        tensor(3.)
    """
    counts = counted(loss, target)
    if counts is None and weight is None:
        return values.mean()
    each = torch.ones_like(values) if counts is None else counts.to(values.dtype)
    if weight is not None:
        each = each * weight.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
    return (values * each).sum() / each.sum()


@functools.lru_cache(maxsize=8)
def unreduced(loss: Any) -> Any:
    """Return a loss that gives a value per sample or entry: by ``reduction="none"``, if it has that.

    Example:
        >>> unreduced(F.mse_loss)(torch.ones(2), torch.zeros(2))
        tensor([1., 1.])
    """
    if isinstance(loss, nn.Module):
        if not hasattr(loss, "reduction"):
            return loss
        alone: Any = copy.copy(loss)
        alone.reduction = "none"
        return alone
    try:
        takes = "reduction" in inspect.signature(loss).parameters
    except (TypeError, ValueError):
        takes = False
    return functools.partial(loss, reduction="none") if takes else loss


def is_elementwise(loss: Any) -> bool:
    """Return whether a loss compares prediction and target entry by entry, such as torch's squared error."""
    function = loss.func if isinstance(loss, functools.partial) else loss
    return isinstance(function, _ELEMENTWISE) or any(function is one for one in _ELEMENTWISE_FUNCTIONS)


def why_not_alike(prediction: Any, target: Any) -> str:
    """Return why an element-wise loss cannot compare a prediction with a target, empty if it can.

    Torch would broadcast different shapes, and compare each prediction with every target.

    Args:
        prediction: the network's output.
        target: the target.

    Example:
        >>> why_not_alike(torch.zeros(8, 1), torch.zeros(8))
        'the prediction has shape (8, 1) and the target (8,), which the loss would broadcast to (8, 8)'
    """
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor) or prediction.shape == target.shape:
        return ""
    problem = f"the prediction has shape {tuple(prediction.shape)} and the target {tuple(target.shape)}"
    try:
        whole = tuple(torch.broadcast_shapes(prediction.shape, target.shape))  # type: ignore[no-untyped-call]
    except RuntimeError:
        return problem
    return f"{problem}, which the loss would broadcast to {whole}"
