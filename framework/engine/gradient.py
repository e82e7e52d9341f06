"""The gradient of one optimizer step, over all its micro-batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from framework.data.batch import Outcome, size_of
from framework.data.loaders import Window
from framework.engine.nonfinite import tell
from framework.engine.sharding import check_shards
from framework.errors import NonFiniteError, UserError
from framework.ops.shards import is_sharded

if TYPE_CHECKING:
    from framework.engine.core import Core


class Gradient:
    r"""Adds the gradient of :math:`\sum_m s_m (J_m + \sum_i \alpha_i\Omega_{i,m})` to the weights' ``grad``.

    :math:`s_m` is micro-batch m's share of the step's samples (times the number of ranks, by which
    ``DistributedDataParallel`` divides), so that k micro-batches, or ranks, give the gradient of one batch, a short
    last window included. A rank whose micro-batch is left out adds zeros.

    Args:
        core: whose objective it is.

    Attributes:
        watch: called with each micro-batch as the network gets it, None for nobody.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self.watch: Callable[[Any], None] | None = None
        self._transform_batch = core.answers.calls("transform_batch")
        self._edit = core.answers.calls("edit_weights")
        self._penalties = [(plugin.name, plugin.penalty) for plugin in core.answers.of("penalty")]
        self._autocast: Callable[[], AbstractContextManager[Any]] | None = None
        self._wrapper: DistributedDataParallel | None = None
        self._sharded = False
        self._buffers: list[Tensor] = []
        self._backward: Callable[[Tensor], None] = core.manual_backward
        self._counts_samples = True

    def prepare(self) -> None:
        """Find out how this run does backward; once training starts."""
        from framework.engine.core import Core

        core, trainer = self._core, self._core.trainer
        precision = trainer.precision_plugin
        self._counts_samples = type(core).count is Core.count
        self._stream = core.at.stream("model")
        self._autocast = precision.forward_context if isinstance(precision, MixedPrecision) else None
        wrapped = trainer.strategy.model
        self._wrapper = wrapped if isinstance(wrapped, DistributedDataParallel) else None
        check_shards(core)
        self._sharded = any(is_sharded(parameter) for parameter in core.model.parameters())
        self._buffers = list(core.model.buffers()) if self._sharded and core.at.world > 1 else []
        self._backward = core.manual_backward
        hooks = ("on_before_backward", "on_after_backward", "backward")
        watched = any(has_own(one, hook) for one in listeners(core) for hook in hooks)
        if type(trainer.strategy) is SingleDeviceStrategy and not getattr(precision, "scaler", None) and not watched:
            self._backward = _backward  # what manual_backward comes to here, less some 30 microseconds of asking

    def __call__(self, window: Window) -> Tensor | None:
        r"""Add the gradient of one window; asked again for the same window it takes the same draws.

        Returns:
            :math:`\sum_m s_m\tilde J_m` without a graph, None where every micro-batch was left out.
        """
        step, skips = self._core.at, self._core.skips
        counts = [size_of(batch) for batch in window.batches]
        shares, sizes = self._shares(window, counts)
        last = len(window.batches) - 1
        step.micros, step.start, step.samples = last + 1, window.start, window.total
        total: Tensor | None = None
        for micro, batch in enumerate(window.batches):
            step.micro, step.count = micro, counts[micro]
            if self._wrapper is not None and micro < last:
                with self._wrapper.no_sync():
                    value = self._micro_batch(batch, shares[micro], sizes[micro])
            else:
                value = self._micro_batch(batch, shares[micro], sizes[micro])
            if value is not None:
                total = value if total is None else total + value
            step.start += step.count
            if skips is not None and skips.spoiled and self._wrapper is None:
                break
        for buffer in self._buffers:  # running statistics are those of rank zero's samples, as under ddp
            torch.distributed.broadcast(buffer, 0)
        return total

    def _shares(self, window: Window, counts: list[int]) -> tuple[list[float], list[float]]:
        core, world = self._core, self._core.at.world
        if self._counts_samples:
            if sum(counts) != window.samples:
                told = " and ".join(map(str, counts))
                raise UserError(
                    f"step {core.at.index}: micro-batches of {told} come of {window.samples} samples; where J is a mean"
                    " over something else than samples, override count in a subclass of Core"
                )
            sizes, total = [float(count) for count in counts], float(window.total)
        else:
            sizes = [float(core.count(batch)) for batch in window.batches]
            total = sum(sizes)
            if world > 1:
                reduced = torch.tensor(total, dtype=torch.float64, device=core.device)
                torch.distributed.all_reduce(reduced)
                total = float(reduced)
        return [size * world / (total or 1.0) for size in sizes], sizes

    def _micro_batch(self, raw: Any, share: float, size: float) -> Tensor | None:
        core, step, batch = self._core, self._core.at, raw
        for transform in self._transform_batch:
            batch = transform(batch, step)
        step.batch = batch
        if self.watch is not None:
            self.watch(batch)
        core.observers.live = True  # through backward: activation checkpointing runs parts of forward again there
        try:
            if self._edit:
                with torch.no_grad():
                    for edit in self._edit:
                        edit(step)
            outcome = self.outcome(batch)
            if outcome.loss is not None:
                objective = self._objective(outcome.loss, size, raw)
            elif self._sharded:
                raise UserError(
                    f"step {step.index}: a batch cannot be left out (a loss of None) where ranks share the parameters"
                    " out and wait for one another; use strategy='ddp', or return a loss of 0 that has a graph"
                )
            elif self._wrapper is None:
                return None
            else:  # the other ranks wait for this one's gradient
                objective = torch.stack([p.sum() for p in core.parameters() if p.requires_grad]).sum() * 0.0
            if share != 1.0:
                objective = objective * share
            self._backward(objective)
        finally:
            core.observers.live = False
            step.batch = None
            if self._edit:
                core.edits.undo()
        core.recorder.see(outcome)
        return objective.detach()

    def outcome(self, batch: Any, *, full_precision: bool = False) -> Outcome:
        """Return what the network gives for a micro-batch; asked again it draws the same."""
        core, step = self._core, self._core.at
        _seed_global_generator(self._stream.key(step.index, step.micro, step.rank) >> 1, core.device)
        if self._autocast is None or full_precision:
            outcome = core.compute_loss(batch)
        else:
            with self._autocast():
                outcome = core.compute_loss(batch)
        return Outcome.of(outcome, f"step {step.index}")

    def _objective(self, loss: Tensor, size: float, raw: Any) -> Tensor:
        core, skips = self._core, self._core.skips
        objective = loss
        terms: dict[str, Tensor] = {"loss": loss}
        for name, penalty in self._penalties:
            for tag, term in named_terms(name, penalty(core.at)).items():
                if term.numel() != 1:
                    raise UserError(f"step {core.at.index}: {tag} has shape {tuple(term.shape)}, not one number")
                if is_sharded(term):
                    raise UserError(
                        f"step {core.at.index}: {tag} is a term on sharded weights, of whose gradient no rank has the"
                        " whole; give it by weight_penalty and weight_penalty_gradient, or use strategy='ddp'"
                    )
                terms[tag] = term
                objective = objective + term
        if not objective.requires_grad:
            raise UserError(f"step {core.at.index}: the loss has no gradient: it does not depend on a trainable weight")
        core.recorder.add(terms, size)
        # on an accelerator reading a number every step would make every step wait for it
        reads = skips is not None or loss.device.type == "cpu" or core.at.logged
        if reads and not math.isfinite(objective.item()):
            if skips is None:
                raise NonFiniteError(tell(core, raw, terms, objective))
            skips.spoil(lambda: tell(core, raw, terms, objective))
            # backward all the same: other ranks may wait for this one's gradient, and nothing of the step is kept
        return objective


def named_terms(name: str, answer: Tensor | Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Return a plugin's answer as terms by tag: ``penalty/<plugin>`` or ``penalty/<plugin>/<term>``."""
    if answer is None:
        return {}
    if isinstance(answer, Mapping):
        return {f"penalty/{name}/{term}": value for term, value in answer.items()}
    return {f"penalty/{name}": answer}


def without_autocast(core: Core) -> AbstractContextManager[Any]:
    """Return a context without autocast: Lightning has it on for all of ``training_step``, backward and update too."""
    if isinstance(core.trainer.precision_plugin, MixedPrecision):
        return torch.autocast(core.device.type, enabled=False)
    return nullcontext()


def _backward(objective: Tensor) -> None:
    objective.backward()  # type: ignore[no-untyped-call]


def listeners(core: Core) -> list[Any]:
    """Return whom Lightning notifies: the Trainer's callbacks and the core."""
    callbacks: list[pl.Callback] = core.trainer.callbacks  # type: ignore[attr-defined] # set outside of __init__
    return [*callbacks, core]


def has_own(one: Any, hook: str) -> bool:
    """Tell whether a callback or module has a hook that is not Lightning's empty one."""
    base = pl.LightningModule if isinstance(one, pl.LightningModule) else pl.Callback
    empty = getattr(base, hook, None)
    return hook in vars(one) or getattr(type(one), hook, empty) is not empty


def _seed_global_generator(seed: int, device: torch.device) -> None:
    # torch.manual_seed seeds every backend there is and takes some 0.3 ms; the model draws from one
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
