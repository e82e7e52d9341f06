"""How the gradient of a step changes with plugins' strengths, by differentiating it a second time."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from framework.data.batch import input_of, replace
from framework.data.evaluation import EvalLoader, ReadyLoader
from framework.data.loaders import Window
from framework.data.outcome import Outcome
from framework.engine.forward import Forward
from framework.engine.gradient import Gradient
from framework.engine.layer_modes import put
from framework.engine.objective import Objective
from framework.plugin.answers import Call, named_terms


class Sensitivity:
    r"""Differentiates :math:`\langle u, g\rangle`, g the step's gradient, by the logarithm of plugins' strengths.

    What a plugin adds is proportional to its strength s (:attr:`framework.Plugin.proportional`), so it is multiplied by
    a factor m of value 1, whose derivative is that by :math:`\log s`:

    .. math::
        \tilde x = x + m(\tilde x_s - x), \qquad \alpha\Omega \to m\alpha\Omega, \qquad
        \frac{\partial}{\partial m}\langle u, \nabla_\theta J\rangle \;\text{by a second backward pass}

    for batches, activations and terms; an edit of weights :math:`\tilde w = w + \delta` contributes
    :math:`\langle H u, \delta\rangle` with H the Hessian at the edited weights, and a term with a written gradient that
    gradient itself. Draws are those of the step.

    Args:
        core: the objective.
        forward: evaluates J of a micro-batch.
        gradient: evaluates a window.
        names: names of the plugins.
    """

    def __init__(self, core: Objective, forward: Forward, gradient: Gradient, names: Sequence[str]) -> None:
        self._core, self._forward, self._gradient, self._names = core, forward, gradient, names
        self._weights = [weight for weight in core.model.parameters() if weight.requires_grad]
        like = self._weights[0]
        self._factors = {name: torch.ones((), dtype=like.dtype, device=like.device) for name in names}
        for factor in self._factors.values():
            factor.requires_grad_()
        self._edits: dict[str, list[Tensor]] = {}
        self._found = {name: torch.zeros((), dtype=like.dtype, device=like.device) for name in names}

    def __call__(self, window: Window, vector: Sequence[Tensor]) -> dict[str, float]:
        """Return the derivative for each plugin, at the present weights, the mean over ranks.

        Args:
            window: the micro-batches of the step.
            vector: u, a tensor per weight that trains.
        """
        world = self._core.at.world
        with self._forward.untraced(), self._scaled(), torch.enable_grad():
            self._gradient.through(window, lambda total: self._differentiate(total, vector))
        for name in self._names:
            if world > 1:
                torch.distributed.all_reduce(self._found[name])
                self._found[name] /= world
            self._found[name] += self._written(name, vector)
        return {name: float(value) for name, value in self._found.items()}

    def _differentiate(self, total: Tensor, vector: Sequence[Tensor]) -> None:
        gradient = torch.autograd.grad(total, self._weights, create_graph=True, allow_unused=True)
        products = [(u * g).sum() for u, g in zip(vector, gradient, strict=True) if g is not None and g.requires_grad]
        if not products:
            return
        inputs = [*self._factors.values(), *self._weights]
        found = torch.autograd.grad(torch.stack(products).sum(), inputs, allow_unused=True)
        for name, own in zip(self._names, found, strict=False):
            if own is not None:
                self._found[name] += own.detach()
        for name, moved in self._edits.items():
            for second, delta in zip(found[len(self._names) :], moved, strict=True):
                if second is not None:
                    self._found[name] += (second * delta).sum().detach()

    @torch.no_grad()
    def _written(self, name: str, vector: Sequence[Tensor]) -> Tensor:
        """Return the part of a term whose gradient is written down."""
        core, plugin = self._core, self._core.at.plugins[name]
        own: Any = plugin
        if plugin not in core.answers.of("weight_penalty_gradient"):
            return torch.zeros_like(self._found[name])
        kept = [weight.grad for weight in self._weights]
        try:
            for weight in self._weights:
                weight.grad = torch.zeros_like(weight)
            own.weight_penalty_gradient(core.at)
            products = [(u * w.grad).sum() for u, w in zip(vector, self._weights, strict=True) if w.grad is not None]
            return torch.stack(products).sum()
        finally:
            for weight, gradient in zip(self._weights, kept, strict=True):
                weight.grad = gradient

    @contextmanager
    def _scaled(self) -> Iterator[None]:
        """Let what the plugins add be multiplied by their factors."""
        core = self._core
        end = core.answers.pass_through(self._wrap, {})
        changed: list[Any] = [core.at.plugins[name] for name in self._names]
        for plugin in changed:
            vars(plugin)["transform_activation"] = self._blended(plugin.name, plugin.transform_activation)
        try:
            yield
        finally:
            for plugin in changed:
                del vars(plugin)["transform_activation"]
            end()

    def _blended(self, name: str, call: Call) -> Call:
        factor = self._factors[name]

        def blended(x: Tensor, layer: str, step: Any) -> Tensor:
            found: Tensor = _blend(x, call(x, layer, step), factor)
            return found

        return blended

    def _wrap(self, hook: str, name: str, call: Call) -> Call:
        if name not in self._factors:
            return call
        factor = self._factors[name]
        if hook == "transform_batch":
            return lambda batch, step: _blended_batch(batch, call(batch, step), factor)
        if hook == "penalty":
            return lambda step: {tag: term * factor for tag, term in named_terms(name, call(step)).items()}
        return self._edit(name, call) if hook == "edit_weights" else call

    def _edit(self, name: str, call: Call) -> Call:
        def edit(step: Any) -> None:
            before = [weight.detach().clone() for weight in self._weights]
            call(step)
            self._edits[name] = [w.detach() - old for w, old in zip(self._weights, before, strict=True)]

        return edit


def _blend(before: Any, after: Any, factor: Tensor) -> Any:
    """Return ``before + factor * (after - before)`` for tensors that were changed."""
    if after is before or not isinstance(after, Tensor) or not after.is_floating_point():
        return after
    return before + factor.to(after.dtype) * (after - before)


def _blended_batch(before: Any, after: Any, factor: Tensor) -> Any:
    if after is before:
        return after
    return replace(after, input=tree_map(lambda a, b: _blend(a, b, factor), input_of(before), input_of(after)))


def _batches(loader: EvalLoader | ReadyLoader, count_by: Callable[[Any], int], look: int) -> Iterable[Any]:
    """Return the batches of one look, of which few are to be loaded and none is to be held.

    Args:
        loader: the validation loader.
        count_by: returns the number of batches of a look by the first batch.
        look: number of the look.
    """
    if isinstance(loader, EvalLoader):
        count = min(len(loader), max(1, count_by(loader.batch(0))))
        return (loader.batch((look * count + index) % len(loader)) for index in range(count))
    first = list(itertools.islice(loader, 1))
    if not first:  # of fewer batches than ranks
        return []
    count = max(1, count_by(first[0]))
    first = list(itertools.islice(loader, count))
    return first if look == 0 or len(first) < count else itertools.islice(_onwards(loader, look * count), count)


def _onwards(batches: Iterable[Any], skip: int) -> Iterator[Any]:
    """Yield batches from a number on, the first ones again after the last, without end."""
    while True:
        length = 0
        for batch in batches:
            length += 1
            if length > skip:
                yield batch
        skip = 0 if length > skip else skip % length


def validation_gradient(core: Objective, weights: Sequence[Tensor], samples: int, look: int) -> list[Tensor]:
    """Return the gradient of J over validation batches, in evaluation mode, over all ranks' samples.

    Args:
        core: the objective.
        weights: the weights.
        samples: number of samples over all ranks, rounded up to whole batches.
        look: number of this look, from 0: each takes the next batches, and the first ones again after the last.
    """
    data = core.data
    assert data is not None
    loader = data.eval_loader("val", rank=core.at.rank, world=core.at.world)
    chosen = list(_batches(loader, lambda batch: math.ceil(samples / (core.samples(batch) * core.at.world)), look))
    counted = torch.tensor(float(sum(core.samples(batch) for batch in chosen)), device=core.device)
    if core.at.world > 1:
        torch.distributed.all_reduce(counted)
    total = float(counted)
    gradient = [torch.zeros_like(weight) for weight in weights]
    layers = [(layer, layer.training) for layer in core.model.modules()]
    core.model.eval()
    core.at.again += 1
    try:
        with torch.enable_grad():
            for batch in chosen:
                moved = core.trainer.precision_plugin.convert_input(batch)
                moved = core.transfer_batch_to_device(moved, core.device, 0)
                loss = Outcome.of(core.compute_loss(moved), "validation").loss
                if loss is None:
                    continue
                found = torch.autograd.grad(loss * (core.samples(batch) / total), weights, allow_unused=True)
                gradient = [a if b is None else a + b for a, b in zip(gradient, found, strict=True)]
    finally:
        core.at.again -= 1
        put(layers)
    if core.at.world > 1:
        for one in gradient:
            torch.distributed.all_reduce(one)
    return gradient
