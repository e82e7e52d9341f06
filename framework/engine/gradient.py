"""The gradient of one optimizer step, over all its micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from framework.data.batch import weight_of
from framework.data.loaders import Window
from framework.data.means import is_uneven, may_be_uneven
from framework.data.outcome import Outcome
from framework.engine.forward import Forward
from framework.engine.nonfinite import explain_nonfinite
from framework.engine.objective import Objective
from framework.engine.recorder import Recorder
from framework.engine.sharding import check_shards
from framework.engine.skips import Skips
from framework.errors import NonFiniteError, UserError
from framework.ops.shards import is_sharded


class Gradient:
    r"""Adds the gradient of :math:`\sum_m s_m (J_m + \sum_i \alpha_i\Omega_{i,m})` to the weights' ``grad``.

    :math:`s_m` is micro-batch m's share of the step's samples (times the number of ranks, by which
    ``DistributedDataParallel`` divides), so that k micro-batches, or ranks, give the gradient of one batch, also in a
    short last window. If J is a mean over something other than samples (``Core.count``), its share is of that. A rank
    whose micro-batch is skipped adds zeros.

    Args:
        objective: the objective to differentiate.
        forward: evaluates J of a micro-batch.
        recorder: receives the terms and predictions of each micro-batch.
        skips: skips steps that are not finite; None to raise an error instead.

    Attributes:
        watch: function called with each micro-batch after the plugins' transforms, or None.
    """

    def __init__(self, objective: Objective, forward: Forward, recorder: Recorder, skips: Skips | None) -> None:
        self._objective, self._forward, self._recorder, self._skips = objective, forward, recorder, skips
        self.watch: Callable[[Any], None] | None = None
        self._edits = bool(objective.answers.of("edit_weights"))
        self._wrapper: DistributedDataParallel | None = None
        self._shared: set[Tensor] | None = None
        self._sharded = False
        self._buffers: list[Tensor] = []
        self._backward: Callable[[Tensor], None] = objective.manual_backward
        self._counts, self._checks, self._weighs = "samples", True, False

    def prepare(self) -> None:
        """Choose how to run backward under the run's strategy; called once training starts."""
        objective, trainer = self._objective, self._objective.trainer
        precision = trainer.precision_plugin
        # with one micro-batch on one rank only logs depend on what an uneven loss is a mean over
        own = type(objective).count is not Objective.count
        several = objective.at.world > 1 or getattr(objective, "accumulate", 1) > 1
        # a network that returns its loss may average it over the targets that are not ignored
        uneven = is_uneven(objective.loss) or (several and (objective.loss is None or may_be_uneven(objective.loss)))
        self._counts = "own" if own else "uneven" if uneven else "samples"
        self._checks = not own
        self._weighs = not own and type(objective).compute_loss is Objective.compute_loss
        wrapped = trainer.strategy.model
        self._wrapper = wrapped if isinstance(wrapped, DistributedDataParallel) else None
        check_shards(trainer, objective.model, type(objective).__name__)
        if self._wrapper is not None:
            facts: Any = self._wrapper._get_ddp_logging_data()  # type: ignore[no-untyped-call]
            self._shared = {p for p in objective.parameters() if p.requires_grad}
            if facts["num_parameter_tensors"] != len(self._shared):
                self._wrap_again()
        self._sharded = any(is_sharded(parameter) for parameter in objective.model.parameters())
        self._buffers = list(objective.model.buffers()) if self._sharded and objective.at.world > 1 else []
        self._backward = objective.manual_backward
        hooks = ("on_before_backward", "on_after_backward", "backward")
        watched = any(has_own(one, hook) for one in listeners(objective) for hook in hooks)
        if type(trainer.strategy) is SingleDeviceStrategy and not getattr(precision, "scaler", None) and not watched:
            self._backward = _backward  # here manual_backward does the same and takes 30 microseconds longer

    def follow(self) -> None:
        """Let ddp share the gradients of the weights that train now; called on every rank at the same step."""
        if self._wrapper is not None and {p for p in self._objective.parameters() if p.requires_grad} != self._shared:
            self._wrap_again()

    def _wrap_again(self) -> None:
        """Wrap the network for ddp again, which shares the gradients of those parameters only that train when it wraps.

        It would wait forever for the gradient of one that was frozen since, and leave out one that was thawed.
        """
        strategy: Any = self._objective.trainer.strategy
        strategy.model = strategy._setup_model(self._objective)
        strategy._register_ddp_hooks()
        self._wrapper = strategy.model
        self._shared = {p for p in self._objective.parameters() if p.requires_grad}

    def __call__(self, window: Window) -> Tensor | None:
        r"""Add the gradient of one window to ``grad``; repeated calls for a window make the same random draws.

        Args:
            window: the micro-batches of the step.

        Returns:
            :math:`\sum_m s_m\tilde J_m` without a graph, or None if every micro-batch was skipped.
        """
        objective, skips = self._objective, self._skips
        step = objective.at
        counts = [objective.samples(batch) for batch in window.batches]
        if window.total is None:
            window = self._placed(window, sum(counts))
        shares, sizes, ratios = self._shares(window, counts)
        last = len(window.batches) - 1
        step.micros, step.start, step.samples = last + 1, window.start, window.total or 0
        total: Tensor | None = None
        for micro, batch in enumerate(window.batches):
            step.micro, step.count = micro, counts[micro]
            if self._wrapper is not None and micro < last:
                with self._wrapper.no_sync():
                    value = self._micro_batch(batch, shares[micro], sizes[micro], ratios[micro])
            else:
                value = self._micro_batch(batch, shares[micro], sizes[micro], ratios[micro])
            if value is not None:
                total = value if total is None else total + value
            step.start += step.count
            if skips is not None and skips.spoiled and self._wrapper is None:
                break
        for buffer in self._buffers:  # as under ddp, rank zero's running statistics count
            torch.distributed.broadcast(buffer, 0)
        return total

    def through(self, window: Window, backward: Callable[[Tensor], None]) -> None:
        """Evaluate one window with a backward pass of the caller's, once for each micro-batch's share of the sum."""
        kept, self._backward = self._backward, backward
        try:
            self(window)
        finally:
            self._backward = kept

    def _placed(self, window: Window, samples: int) -> Window:
        """Return a window of a user's loader with its place among the samples of all ranks, which only they know."""
        step = self._objective.at
        counts = [samples]
        if step.world > 1:
            every = [torch.zeros(1, dtype=torch.int64, device=self._objective.device) for _ in range(step.world)]
            torch.distributed.all_gather(every, torch.tensor([samples], device=self._objective.device))
            counts = [int(one) for one in every]
        return window._replace(start=sum(counts[: step.rank]), total=sum(counts), samples=samples)

    def _shares(self, window: Window, counts: list[int]) -> tuple[list[float], list[float], list[float]]:
        """Return each micro-batch's share of the samples, what its J is a mean over, and the share of J over that."""
        objective, world = self._objective, self._objective.at.world
        if self._checks and sum(counts) != window.samples:
            sizes_seen = " and ".join(map(str, counts))
            raise UserError(
                f"step {objective.at.index}: micro-batches of {sizes_seen} are made of {window.samples} samples; if"
                " J is a mean over something other than samples, override count in a subclass of Core"
            )
        shares = [count * world / (window.total or 1) for count in counts]
        weighted = self._weighs and weight_of(window.batches[0]) is not None
        if not weighted and (self._counts == "samples" or (self._counts == "uneven" and len(counts) == world == 1)):
            return shares, [float(count) for count in counts], [1.0] * len(counts)
        sizes = [float(objective.count(batch)) for batch in window.batches]
        total = sum(sizes)
        if world > 1:
            reduced = torch.tensor(total, dtype=torch.float64, device=objective.device)
            torch.distributed.all_reduce(reduced)
            total = float(reduced)
        own = [size * world / (total or 1.0) for size in sizes]
        return shares, sizes, [one / share for one, share in zip(own, shares, strict=True)]

    def _micro_batch(self, raw: Any, share: float, size: float, ratio: float) -> Tensor | None:
        objective, step, answers = self._objective, self._objective.at, self._objective.answers
        batch = answers.fold("transform_batch", raw, step)
        step.batch = batch
        if self.watch is not None:
            self.watch(batch)
        # until after backward, in which activation checkpointing runs parts of forward again
        objective.observers.live = True
        try:
            if self._edits:
                with torch.no_grad():
                    answers.notify("edit_weights", step)
            outcome = self._forward(batch)
            if outcome.loss is not None and size:
                total = self._total(outcome.loss, outcome, size, ratio, raw)
            elif (zeros := self._left_out(outcome)) is None:
                return None
            else:
                total = zeros
            if share != 1.0:
                total = total * share
            self._backward(total)
        finally:
            objective.observers.live = False
            step.batch = step.outcome = None
            if self._edits:
                objective.edits.undo()
        self._recorder.see(outcome)
        return total.detach()

    def _left_out(self, outcome: Outcome) -> Tensor | None:
        """Return what takes the place of J in a micro-batch without a loss: zeros where other ranks wait, else None."""
        step = self._objective.at
        if not step.again:
            self._recorder.uncounted.see("train", outcome.loss)
        if self._sharded:
            raise UserError(
                f"step {step.index}: a batch cannot be skipped (a loss of None) if parameters are sharded across"
                " ranks, which wait for one another; use strategy='ddp', or return a loss of 0 that has a graph"
            )
        if self._wrapper is None:
            return None
        return torch.stack([p.sum() for p in self._objective.parameters() if p.requires_grad]).sum() * 0.0

    def _total(self, loss: Tensor, outcome: Outcome, size: float, ratio: float, raw: Any) -> Tensor:
        """Return J plus the plugins' terms, after checking them and adding them to the recorder.

        The sum is to be weighted by the micro-batch's share of the samples, of which terms are means; ``ratio`` makes
        that the share of J.
        """
        objective, step, skips = self._objective, self._objective.at, self._skips
        total = loss if ratio == 1.0 else loss * ratio
        shown = {f"train/{name}": term for name, term in outcome.terms.items()}
        terms: dict[str, Tensor] = {"loss": loss}
        step.outcome, step.ratio = outcome, ratio
        for tag, term in objective.answers.sum("penalty", step).items():
            if not isinstance(term, Tensor):
                raise UserError(
                    f"step {step.index}: {tag} is a {type(term).__name__}; return a tensor that depends on weights or"
                    " activations, or None"
                )
            if term.numel() != 1:
                raise UserError(
                    f"step {step.index}: {tag} has shape {tuple(term.shape)}, not one number; reduce it to a scalar"
                )
            if is_sharded(term):
                raise UserError(
                    f"step {step.index}: {tag} is a term on sharded weights, whose whole gradient no rank has;"
                    " implement weight_penalty and weight_penalty_gradient, or use strategy='ddp'"
                )
            terms[tag] = term
            total = total + term
        if not total.requires_grad:
            raise UserError(f"step {step.index}: the loss has no gradient: it must depend on a trainable weight")
        if size == step.count:
            self._recorder.add({**terms, **shown}, size)
        else:
            self._recorder.add({"loss": terms.pop("loss"), **shown}, size)
            self._recorder.add(terms, float(step.count))
            terms = {"loss": loss, **terms}
        # on an accelerator, reading the value would make every step synchronize
        reads = skips is not None or loss.device.type == "cpu" or step.logged
        if reads and not math.isfinite(total.item()):
            if skips is None:
                raise NonFiniteError(explain_nonfinite(objective, self._forward, raw, terms, total))
            skips.spoil(lambda: explain_nonfinite(objective, self._forward, raw, terms, total))
            # backward runs all the same: other ranks may wait for this gradient, and the whole step is discarded
        return total


def without_autocast(objective: Objective) -> AbstractContextManager[Any]:
    """Return a context without autocast, which Lightning enables for all of ``training_step``, including backward."""
    if isinstance(objective.trainer.precision_plugin, MixedPrecision):
        return torch.autocast(objective.device.type, enabled=False)
    return nullcontext()


def _backward(total: Tensor) -> None:
    total.backward()  # type: ignore[no-untyped-call]


def listeners(objective: Objective) -> list[Any]:
    """Return the objects whose hooks Lightning calls: the Trainer's callbacks and the objective."""
    callbacks: list[pl.Callback] = objective.trainer.callbacks  # type: ignore[attr-defined] # set outside of __init__
    return [*callbacks, objective]


def has_own(one: Any, hook: str) -> bool:
    """Return whether a callback or module overrides a hook of Lightning."""
    base = pl.LightningModule if isinstance(one, pl.LightningModule) else pl.Callback
    empty = getattr(base, hook, None)
    return hook in vars(one) or getattr(type(one), hook, empty) is not empty
