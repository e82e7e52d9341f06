"""One number or one class for each sample: as a user gives them, or as the samples' own target tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from framework.data.batch import has_target, target_of
from framework.data.parts import Columns, is_held, length_of
from framework.data.roles import TARGETS, Roles
from framework.errors import UserError, brief


def labels_of(part: Any, given: Any, roles: Roles, who: str) -> Tensor:
    """Return the class of each sample of a part, as whole numbers, ``(samples,)``.

    Args:
        part: tensors, or a data set with ``targets`` or ``labels``.
        given: ``"class"`` for the part's own target, or a class per sample: numbers, texts or truth values.
        roles: where the target stands in a batch.
        who: what errors name, such as ``"Data(balance"``.

    Raises:
        UserError: if they are not known.
    """
    if not isinstance(given, str):
        return _classes(given, length_of(part), who)
    if given != "class":
        raise UserError(f"{who}={brief(given)}): must be 'class', or the class of each sample")
    labels, why = _own_labels(part, roles)
    if labels is None:
        raise UserError(f"{who}='class'): {why}; give {who}=labels), the class of each sample")
    return labels


def per_sample(name: str, given: Any, length: int) -> Tensor:
    """Return one number per sample as a tensor, ``(length,)``.

    Args:
        name: the argument, which errors name.
        given: a tensor, an array or a sequence.
        length: number of samples.

    Raises:
        UserError: if it is not of that length, or has a number that is negative or not finite.
    """
    try:
        values = given if isinstance(given, Tensor) else torch.from_numpy(np.asarray(given))
    except (TypeError, ValueError) as error:
        raise UserError(f"Data({name}=...): must be one number per sample; received {type(given).__name__}") from error
    if values.shape != (length,):
        raise UserError(
            f"Data({name}=...): must be one number per training sample, ({length},); received {tuple(values.shape)}"
        )
    if not torch.isfinite(values).all() or (values < 0).any():
        raise UserError(f"Data({name}=...): must be finite numbers of 0 or more")
    return values.cpu()


def _classes(given: Any, length: int, who: str) -> Tensor:
    try:
        labels = np.asarray(given.cpu() if isinstance(given, Tensor) else given)
        shape = labels.shape
        if shape == (length,):
            return torch.from_numpy(np.unique(labels, return_inverse=True)[1])
    except (TypeError, ValueError) as error:
        raise UserError(f"{who}=...): must be one class per sample; received {type(given).__name__}") from error
    raise UserError(f"{who}=...): must be one class per sample, ({length},); received {shape}")


def _own_labels(part: Any, roles: Roles) -> tuple[Tensor | None, str]:
    """Return the target of a part if it is a class per sample, else None and the reason why it is none."""
    if is_held(part):
        tree = part.tree if isinstance(part, Columns) else part
        batch = roles(tree) if roles else tree
        if not has_target(batch):
            return None, "the data have no target"
        found = target_of(batch)
    else:
        names = [name for name in TARGETS if isinstance(getattr(part, name, None), (list, tuple, np.ndarray, Tensor))]
        if not names:
            return None, f"a {type(part).__name__} tells no classes without reading all of its samples"
        found = getattr(part, names[0])
    try:
        labels = torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return None, f"the target is a {type(found).__name__}, not a tensor of classes"
    if labels.shape != (length_of(part),):
        return None, f"the target has shape {tuple(labels.shape)}, not one class per sample"
    if labels.is_floating_point() or labels.is_complex():
        kind = str(labels.dtype).removeprefix("torch.")
        return None, f"the target holds real numbers ({kind}), not classes, which are whole numbers"
    return labels, ""
