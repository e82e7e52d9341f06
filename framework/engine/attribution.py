"""Looks, every so many steps, at what each plugin does to the gradient and the weights, and what time it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from framework.engine.core import Core
from framework.errors import UserError
from framework.ops.clip import total_norm
from framework.ops.shards import is_sharded
from framework.plugin.answers import named_terms

_ON_GRADIENTS = ("weight_penalty_gradient", "transform_gradients", "clip_gradients", "second_gradient")
_TIMED = ("begin_step", "transform_batch", "after_update", "edit_weights", "penalty", *_ON_GRADIENTS)

Parts = dict[str, list[Tensor]]
Call = Callable[..., Any]


def shares(data: list[Tensor], parts: Mapping[str, list[Tensor]]) -> dict[str, tuple[float, float]]:
    r"""Return share and cosine of each part of a gradient.

    .. math:: s_i = \frac{\lVert g_i\rVert}{\lVert g_0\rVert + \sum_j \lVert g_j\rVert}, \qquad
        c_i = \frac{\langle g_i, g_0\rangle}{\lVert g_i\rVert \lVert g_0\rVert}

    Args:
        data: the data's gradient :math:`g_0`, a tensor per parameter.
        parts: the terms' gradients :math:`g_i` by name.

    Returns:
        Share and cosine by name; 0 for a part that is zero.

    Example:
        >>> shares([torch.tensor([3.0, 0.0])], {"l2": [torch.tensor([0.0, 1.0])]})
        {'l2': (0.25, 0.0)}
    """
    own = float(total_norm(data))
    norms = {name: float(total_norm(part)) for name, part in parts.items()}
    whole = own + sum(norms.values())
    found = {}
    for name, part in parts.items():
        inner = sum(float((a.double() * b.double()).sum()) for a, b in zip(part, data, strict=True))
        scale = norms[name] * own
        found[name] = (norms[name] / whole if whole else 0.0, inner / scale if scale else 0.0)
    return found


class Attribution(pl.Callback):
    """Measures plugins in every so many steps; the others run as if it were not there.

    In a step that is looked at, the calls of plugins pass through it: the gradient before and after each call tells
    what the plugin added, terms that are part of the loss are differentiated once more on their own, and copies of the
    weights tell how far an edit moves them. Nothing is changed: the run has the same bits.

    ``attribution/<plugin>/share`` and ``cosine``: of a term's gradient, see :func:`shares`; ``change``: how far a
    plugin that transforms the gradient moves it, over its norm; ``edit``: norm of an edit of weights over the weights'
    norm, the mean over micro-batches; ``time``: share of the step's time, without what is done in forward hooks of
    layers.

    Args:
        every: steps between two looks.

    Raises:
        UserError: if ``every`` is no whole number above 0, or the run cannot be looked into.
    """

    def __init__(self, every: int) -> None:
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise UserError(f"attribute={every!r}: must be a whole number >= 1, the steps between two looks")
        self.every = every
        self._look: _Look | None = None
        self._sums: dict[str, float] = {}
        self._looks: dict[str, int] = {}

    @property
    def state_key(self) -> str:
        """The key in checkpoints."""
        return "attribution"

    @property
    def means(self) -> dict[str, float]:
        """The means over all looks by tag."""
        return {tag: total / self._looks[tag] for tag, total in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return sums and numbers of looks."""
        return {"sums": dict(self._sums), "looks": dict(self._looks)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load sums and numbers of looks."""
        self._sums, self._looks = dict(state_dict["sums"]), dict(state_dict["looks"])

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin to look, if it is time."""
        core = cast(Core, pl_module)
        if core.at.index % self.every == 0:
            if reason := _why_not(core):
                raise UserError(f"attribute={self.every}: not possible here: {reason}")
            self._look = _Look(core)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write what was seen."""
        if self._look is None:
            return
        look, self._look = self._look, None
        found = look.end()
        for tag, value in found.items():
            self._sums[tag] = self._sums.get(tag, 0.0) + value
            self._looks[tag] = self._looks.get(tag, 0) + 1
        for logger in trainer.loggers:
            logger.log_metrics(found, trainer.global_step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let the plugins' calls pass again."""
        if self._look is not None:
            self._look.stop()
            self._look = None


def _why_not(core: Core) -> str | None:
    if type(core).training_step is not Core.training_step:
        return "a LightningModule makes its steps itself"
    if core._compile:
        return "the gradient of a term cannot be taken apart in a compiled network; leave compile out"
    if any(is_sharded(parameter) for parameter in core.model.parameters()):
        return "parameters are sharded across ranks; use strategy='ddp'"
    return "the optimizer evaluates the gradient several times a step" if core.update.needs_closure else None


class _Look:
    """A look at one step."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._weights = [weight for weight in core.model.parameters() if weight.requires_grad]
        self._terms: Parts = {}
        self._added: Parts = {}
        self._whole: list[Tensor] | None = None
        self._changes: dict[str, float] = {}
        self._edits: dict[str, list[float]] = {}
        self._times: dict[str, float] = {}
        self._overhead = 0.0
        self._cuda = core.device.type == "cuda"
        self.stop = core.answers.pass_through(self._wrap, {"weight_penalty_gradient": self._keep_whole})
        self._began = self._now()

    def end(self) -> dict[str, float]:
        """Stop looking and return what was seen by tag."""
        whole_time = self._now() - self._began - self._overhead
        self.stop()
        found = {f"attribution/{name}/edit": sum(seen) / len(seen) for name, seen in self._edits.items()}
        found |= {f"attribution/{name}/change": value for name, value in self._changes.items()}
        terms = self._over_ranks(self._terms)
        if self._whole is not None:
            data = list(self._whole)
            for part in terms.values():
                data = [a - b for a, b in zip(data, part, strict=True)]
            parts = {**terms, **self._added}
            for name, (share, cosine) in shares(data, parts).items():
                found |= {f"attribution/{name}/share": share, f"attribution/{name}/cosine": cosine}
        for name, seconds in self._times.items():
            found[f"attribution/{name}/time"] = seconds / whole_time if whole_time > 0 else 0.0
        return found

    def _wrap(self, hook: str, name: str, call: Call) -> Call:
        if hook not in _TIMED:
            return call

        def timed(*context: Any) -> Any:
            began = self._now()
            result = call(*context)
            self._times[name] = self._times.get(name, 0.0) + self._now() - began
            return result

        measure = {"penalty": self._penalty, "edit_weights": self._edit}.get(hook)
        if hook in _ON_GRADIENTS:
            measure = self._gradient
        return timed if measure is None else lambda *context: measure(hook, name, timed, *context)

    def _penalty(self, hook: str, name: str, call: Call, *context: Any) -> Any:
        terms = call(*context)
        began, step = self._now(), self._core.at
        share = step.count * step.world / step.samples
        for tag, term in named_terms(name, terms).items():
            if not torch.is_grad_enabled() or not isinstance(term, Tensor) or not term.requires_grad:
                continue
            found = torch.autograd.grad(term * share, self._weights, retain_graph=True, allow_unused=True)
            part = [_dense(one, weight) for one, weight in zip(found, self._weights, strict=True)]
            key = tag.removeprefix("penalty/")
            before = self._terms.get(key)
            self._terms[key] = part if before is None else [a + b for a, b in zip(before, part, strict=True)]
        self._overhead += self._now() - began
        return terms

    def _edit(self, hook: str, name: str, call: Call, *context: Any) -> Any:
        began = self._now()
        weights = list(self._core.model.parameters())
        before = [weight.detach().clone() for weight in weights]
        self._overhead += self._now() - began
        result = call(*context)
        began = self._now()
        moved = [weight.detach() - old for weight, old in zip(weights, before, strict=True)]
        size = float(total_norm(before))
        self._edits.setdefault(name, []).append(float(total_norm(moved)) / size if size else 0.0)
        self._overhead += self._now() - began
        return result

    def _gradient(self, hook: str, name: str, call: Call, *context: Any) -> Any:
        began = self._now()
        before = self._gradients()
        if hook == "second_gradient":
            self._terms.clear()  # they are computed again, with the gradient that counts
        self._overhead += self._now() - began
        result = call(*context)
        began = self._now()
        difference = [new - old for new, old in zip(self._gradients(), before, strict=True)]
        if hook == "weight_penalty_gradient":
            self._added[name] = difference
        else:
            size = float(total_norm(before))
            self._changes[name] = float(total_norm(difference)) / size if size else 0.0
        self._overhead += self._now() - began
        return result

    def _keep_whole(self, *context: Any) -> None:
        began = self._now()
        self._whole = self._gradients()
        self._overhead += self._now() - began

    def _gradients(self) -> list[Tensor]:
        return [_dense(weight.grad, weight).clone() for weight in self._weights]

    def _over_ranks(self, parts: Parts) -> Parts:
        """Return the means over ranks, which is what the ranks' gradients are averaged to."""
        world = self._core.at.world
        if world == 1:
            return parts
        names: list[Any] = [None] * world
        torch.distributed.all_gather_object(names, sorted(parts))
        mean = {}
        for name in sorted({one for found in names for one in found}):
            own = parts.get(name) or [torch.zeros_like(weight) for weight in self._weights]
            mean[name] = [part / world for part in own]
            for part in mean[name]:
                torch.distributed.all_reduce(part)
        return mean

    def _now(self) -> float:
        if self._cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def _dense(gradient: Tensor | None, weight: Tensor) -> Tensor:
    if gradient is None:
        return torch.zeros_like(weight)
    return gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
