"""J of one batch: by the recipe's loss of prediction and target, or by the network itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from framework.data.batch import has_target, input_of, size_of, target_of, weight_of
from framework.data.data import Data
from framework.data.listed import hint_of
from framework.data.means import counted, is_elementwise, may_be_uneven, total_weight, weighted_mean, why_not_alike
from framework.data.mixed import MixedTarget, clean_target, loss_of
from framework.data.outcome import Outcome
from framework.data.trees import fields_of
from framework.engine.calls import Call, in_words, losses_of, prediction_of
from framework.errors import UserError


class Loss:
    """The default of ``Core.compute_loss`` and ``Core.count``.

    Args:
        loss: the recipe's ``loss(prediction, target)``; None if the network returns its own loss.
        model: the network, whose ``forward`` is called with the batch's input.
        who: the name of the core's class, for errors.
        data: the recipe's data, for errors.
    """

    def __init__(
        self, loss: Callable[[Any, Any], Tensor] | None, model: nn.Module, who: str, data: Data | None = None
    ) -> None:
        self._loss, self._who = loss, who
        self._hint = "" if data is None else hint_of(data.train)
        self._network = type(model).__name__
        self._compares_shapes = is_elementwise(loss)
        function = getattr(loss, "func", loss)
        home = getattr(function, "__module__", "") if not isinstance(loss, nn.Module) else type(loss).__module__
        # torch's own losses take tensors; another loss may read all that the network returns
        self._takes_tensors = str(home).startswith("torch.")
        self.call = Call(model)

    def of(self, batch: Any, network: Callable[..., Any], forward: Callable[[Any], Any]) -> Outcome:
        """Compute J of a batch.

        Args:
            batch: the batch.
            network: the network, compiled or not.
            forward: calls it with a batch's input.
        """
        if type(batch) in (tuple, list) and len(batch) > 3:
            raise UserError(
                f"a batch has {len(batch)} parts, of which only input, target and sample weights are read; name the"
                " parts by Data(input=..., target=...), or override compute_loss in a subclass of Core"
            )
        if self._loss is None:
            return self._own(batch, network)
        output = forward(input_of(batch))
        target, weight, prediction = target_of(batch), weight_of(batch), prediction_of(output)
        loss = self.data(prediction if self._takes_tensors else output, target, weight)
        return Outcome(loss, prediction, clean_target(target))

    def data(self, prediction: Any, target: Any, weight: Tensor | None = None) -> Tensor:
        """Compute the recipe's loss; for a mixed target, the weighted mean of the losses of its pairs."""
        loss = self._loss
        if loss is None:
            raise UserError(f"{self._who} has no loss: give Recipe(loss=...), or override compute_loss in a subclass")
        if self._compares_shapes and (problem := why_not_alike(prediction, target)):
            raise UserError(f"{problem}: give both the same shape, such as y[:, None]{self._hint}")
        try:
            if weight is None:
                return loss_of(loss, prediction, target)
            return loss_of(lambda output, one: weighted_mean(loss, output, one, weight)[0], prediction, target)
        except (TypeError, AttributeError) as error:  # afterwards, to save every step the check
            if self._takes_tensors and (problem := self._no_tensor(prediction, clean_target(target))):
                raise UserError(problem) from error
            raise

    def _no_tensor(self, prediction: Any, target: Any) -> str:
        """Return what is no tensor, though torch's losses take only tensors; empty if both are."""
        name = getattr(self._loss, "__name__", type(self._loss).__name__)
        if not isinstance(prediction, Tensor):
            return (
                f"{self._network} returned {in_words(prediction)}, and the loss {name} takes a tensor: return the"
                " prediction alone or as the entry 'logits' of a mapping, or give Recipe(loss=...) that takes it apart"
            )
        if not isinstance(target, Tensor):
            return (
                f"the target is {in_words(target)}, and the loss {name} takes a tensor: name the target by"
                " Data(target=...), or give Recipe(loss=...) that takes it apart"
            )
        return ""

    def count(self, batch: Any) -> int | Tensor:
        """Return what J of a batch divides by: its samples, or the weights that count."""
        weight = weight_of(batch)
        target = clean_target(target_of(batch)) if may_be_uneven(self._loss) else None
        if weight is not None:
            each = None if target is None else counted(self._loss, target)
            if each is None:
                return weight.sum()
            return (weight * (each.flatten(1).sum(1) if each.ndim > 1 else each).to(weight.dtype)).sum()
        if self._loss is None and has_target(batch):
            # networks of libraries average over the targets that are not -100, as torch's cross-entropy does
            target = target_of(batch)
            total = total_weight(F.cross_entropy, target) if isinstance(target, Tensor) and target.ndim else None
            return size_of(batch) if total is None else total
        total = None if target is None else total_weight(self._loss, target)
        return size_of(batch) if total is None else total

    def _own(self, batch: Any, network: Callable[..., Any]) -> Outcome:
        """Compute J by a network that returns it."""
        x, target = input_of(batch), target_of(batch) if has_target(batch) else None
        if isinstance(target, MixedTarget):
            raise UserError(
                f"{self._network} computes the loss itself, which takes no mixed targets; give Recipe(loss=...), or"
                " leave out the plugin that mixes"
            )
        if weight_of(batch) is not None:
            raise UserError(f"{self._network} computes the loss itself, which takes no sample weights; leave them out")
        arguments = self.call.arguments(x) if target is None else self.call.with_target(x, target)
        if arguments is None:
            raise UserError(
                f"{self._who} has no loss, and {self._network} cannot return it, since its forward takes no target"
                f" (it takes {self.call.describe()}): give Recipe(loss=...), or override compute_loss in a subclass"
            )
        output = network(*arguments[0], **arguments[1])
        losses = losses_of(output)
        if not losses:
            if getattr(network, "training", True):
                given = type(output).__name__ + (f" of {', '.join(names)}" if (names := fields_of(output)) else "")
                raise UserError(
                    f"{self._network} returned no loss ({given}): return a mapping with 'loss', or give"
                    " Recipe(loss=...)"
                )
            return Outcome(None, prediction_of(output), target)
        loss = losses.pop("loss", None)
        total = sum(losses.values()) if loss is None else loss
        prediction = prediction_of(output)
        return Outcome(
            total if isinstance(total, Tensor) else None,
            prediction if isinstance(prediction, Tensor) and prediction.ndim else None,
            target,
            losses,
        )
