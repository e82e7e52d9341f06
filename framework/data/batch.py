"""Input and target of a batch, the outcome of a loss, and mixed targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from framework.data.trees import fields_of, items_of, leaves_of, map_leaves, rebuilt
from framework.errors import UserError

_PARTS = ("input", "target")


class Outcome(NamedTuple):
    """The result of evaluating the network on one batch.

    Args:
        loss: the data loss J, a scalar: a mean over the batch's samples (or over what ``Core.count`` counts); None to
            skip the batch.
        prediction: the prediction for the metrics, None for none.
        target: the clean target for the metrics.
    """

    loss: Tensor | None
    prediction: Any = None
    target: Any = None

    @staticmethod
    def of(answer: Any, where: str) -> Outcome:
        """Convert what ``compute_loss`` returned to an outcome; it may return the loss alone.

        Args:
            answer: an outcome or a loss.
            where: what errors name, such as ``"step 3"``.

        Raises:
            UserError: if the loss is not one number.
        """
        outcome = answer if isinstance(answer, Outcome) else Outcome(answer)
        loss = outcome.loss
        if loss is not None and not isinstance(loss, Tensor):
            kind = type(loss).__name__
            raise UserError(
                f"{where}: the loss is of type {kind}, not a tensor; return Outcome(loss, prediction, target)"
            )
        if loss is not None and loss.numel() != 1:
            shape = tuple(loss.shape)
            raise UserError(f"{where}: the loss has shape {shape}, not one number; return a mean over samples")
        return outcome


@dataclasses.dataclass(frozen=True)
class MixedTarget:
    r"""A mixture of targets with weights; its loss is the weighted mean of the losses.

    .. math:: J = \sum_j w_j\, L(\hat y, y_j), \qquad \sum_j w_j = 1

    so any loss function works, and metrics use the clean target.

    Args:
        pairs: ``(target, weight)`` pairs; each target has the clean target's shape.
        clean: the samples' own target, before any mixing.
    """

    pairs: tuple[tuple[Any, float], ...]
    clean: Any

    def mix(
        self, permutation: Tensor, weight: float, who: str = "MixedTarget", fixed: Collection[int] = ()
    ) -> MixedTarget:
        """Mix again: ``weight`` of each target with ``1 - weight`` of the target at ``permutation``.

        A target of several tensors, such as a tuple or a mapping, keeps its type; each of its tensors is permuted.

        Args:
            permutation: the samples' partners, ``(samples,)``.
            weight: the share of each sample's own target, in [0, 1].
            who: the plugin that errors name.
            fixed: ids of tensors that are not permuted, such as masks that were mixed by pixels.

        Raises:
            UserError: if a part of the target is not a tensor with one row per sample.
        """

        def partner(leaf: Any) -> Any:
            if id(leaf) in fixed:
                return leaf
            if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == len(permutation):
                return leaf[permutation]
            given = f"a tensor of shape {tuple(leaf.shape)}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise UserError(
                f"{who}: mixes targets whose tensors have one row per sample, here {len(permutation)}; received {given}"
                " in the target: leave it out of the target, by Data(collate=...), or leave the plugin out"
            )

        kept = [(target, share * weight) for target, share in self.pairs]
        partners = [(map_leaves(target, partner), share * (1 - weight)) for target, share in self.pairs]
        return MixedTarget((*kept, *partners), self.clean)

    @staticmethod
    def of(target: Any) -> MixedTarget:
        """Return ``target`` as a mixture; a mixture is returned as it is."""
        return target if isinstance(target, MixedTarget) else MixedTarget(((target, 1.0),), target)

    def to(self, device: torch.device | str) -> MixedTarget:
        """Return the mixture with its tensors on ``device``."""

        def moved(leaf: Any) -> Any:
            return leaf.to(device) if isinstance(leaf, Tensor) else leaf

        pairs = tuple((map_leaves(target, moved), weight) for target, weight in self.pairs)
        return MixedTarget(pairs, map_leaves(self.clean, moved))


def loss_of(loss: Callable[[Any, Any], Tensor], prediction: Any, target: Any) -> Tensor:
    """Return ``loss(prediction, target)``, summed over the weighted pairs of a :class:`MixedTarget`."""
    if not isinstance(target, MixedTarget):
        return loss(prediction, target)
    terms = [loss(prediction, one) * weight for one, weight in target.pairs if weight]
    return torch.stack(terms).sum() if len(terms) > 1 else terms[0]


def clean_target(target: Any) -> Any:
    """Return the target before any mixing."""
    return target.clean if isinstance(target, MixedTarget) else target


def input_of(batch: Any) -> Any:
    """Return a batch's input: first item of a tuple or list, entry or field ``"input"``, or the tensor itself.

    A named tuple or dataclass without a field of that name is read by position, as a tuple is.
    """
    return batch if isinstance(batch, Tensor) else _part(batch, "input")


def target_of(batch: Any) -> Any:
    """Return a batch's target: second item of a tuple or list, or entry or field ``"target"``; see :func:`input_of`."""
    return _part(batch, "target")


def _part(batch: Any, name: str) -> Any:
    try:
        # plain tuples first: isinstance with Mapping takes longer than the rest of this function
        if type(batch) is tuple or type(batch) is list:
            return batch[_PARTS.index(name)]
        if not isinstance(batch, (tuple, list)) and isinstance(batch, Mapping):
            return batch[name]
        key = _key(batch, name)
        return getattr(batch, key) if isinstance(key, str) else batch[key]
    except (LookupError, TypeError, AttributeError) as error:
        have = f"a mapping with {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise UserError(
            f"a batch must be (input, target) or a mapping with 'input' and 'target'; this one is {have}, without"
            f" {name}: change Data(collate=...), or override compute_loss in a subclass of Core"
        ) from error


def _key(batch: Any, name: str) -> str | int:
    """Return where a part stands in a batch that is no mapping: name of an attribute, or position."""
    names = fields_of(batch)
    if name in names or (not names and hasattr(batch, name)):
        return name
    position = _PARTS.index(name)
    return names[position] if names and not isinstance(batch, tuple) else position


def replace(batch: Any, **parts: Any) -> Any:
    """Return a shallow copy of the batch, of the same type, with its ``input`` or ``target`` replaced.

    Raises:
        UserError: if the batch's type cannot be made again with other content.
    """
    if isinstance(batch, Tensor):
        return parts.get("input", batch)
    if type(batch) is tuple:
        changed = list(batch)
        for name, value in parts.items():
            changed[_PARTS.index(name)] = value
        return tuple(changed)
    if type(batch) is dict:
        return {**batch, **parts}
    if isinstance(batch, Mapping):
        return rebuilt(batch, parts)
    return rebuilt(batch, {_key(batch, name): value for name, value in parts.items()})


def map_rest(batch: Any, change: Callable[[Any], Any], whole: Collection[int] = ()) -> Any:
    """Return a batch with ``change`` applied to every leaf beside its input; see :func:`map_leaves`."""
    if isinstance(batch, Tensor):
        return batch
    if type(batch) is tuple and len(batch) == 2:
        target = map_leaves(batch[1], change, whole)
        return batch if target is batch[1] else (batch[0], target)
    key = "input" if isinstance(batch, Mapping) else _key(batch, "input")
    at = fields_of(batch).index(key) if isinstance(batch, tuple) and isinstance(key, str) else key
    changed = {k: new for k, old in items_of(batch) if k != at and (new := map_leaves(old, change, whole)) is not old}
    return rebuilt(batch, changed) if changed else batch


def rest_of(batch: Any, whole: Collection[int] = ()) -> list[Any]:
    """Return every leaf of a batch beside its input; see :func:`map_leaves`."""
    found: list[Any] = []

    def keep(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_rest(batch, keep, whole)
    return found


def size_of(batch: Any) -> int:
    """Return the number of samples in a batch: the length of the first tensor in its input.

    Of a mapping without ``"input"`` it is that of the first tensor in it.

    Raises:
        UserError: if there is no tensor, nor anything else with a length.
    """
    if not isinstance(batch, (tuple, list)) and isinstance(batch, Mapping) and "input" not in batch:
        first = batch
    else:
        first = input_of(batch)
    if isinstance(first, Tensor) and first.ndim:
        return len(first)
    leaves = leaves_of(first)
    tensor = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim), None)
    if tensor is not None:
        return len(tensor)
    try:
        return len(first if isinstance(first, list) else leaves[0])
    except (TypeError, IndexError) as error:
        raise UserError(
            f"a batch must hold a tensor with one row per sample; this one is {type(batch).__name__} without one:"
            " change Data(collate=...), or override count in a subclass of Core"
        ) from error
