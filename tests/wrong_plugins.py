"""Plugins that are wrong on purpose, each in one way, and the check that is to catch it.

A table of who is caught by what: ``python -m tests.wrong_plugins``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from framework import Host, Phase, Plugin, Step
from framework.data.batch import input_of, replace, target_of
from framework.data.mixed import clean_target
from framework.ops.shards import locals_of
from framework.settings import NonNegative
from framework.testing import CHECKS, Status, cases_of


class Wrong(Plugin):
    """Keeps the weights at hand."""

    alpha: NonNegative = 0.1

    absent = ({"alpha": 0.0},)

    def attach(self, core: Host) -> None:
        self.core_ = core
        self.weights_ = [p for p in core.model.parameters() if p.ndim > 1]

    def decay(self, factor: float) -> None:
        """Add the gradient of an L2 term to the weights' gradients."""
        for weight in self.weights_:
            weight.grad = weight.grad + factor * weight.detach()

    def square(self) -> Tensor:
        return torch.stack([(weight**2).sum() / 2 for weight in self.weights_]).sum()

    def noise(self, generator: torch.Generator | None = None) -> list[Tensor]:
        return [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in self.weights_]


class DrawsAtZero(Wrong):
    """Strength 0 still scales by something that rounds."""

    def transform_gradients(self, step: Step) -> None:
        for weight in self.weights_:
            weight.grad.mul_(1.1 + self.alpha).div_(1.1)


class ChangesNothing(Wrong):
    """Its example shows nothing, so no other check could fail."""


class TimesMicroBatches(Wrong):
    """A term that counts once for each micro-batch."""

    def penalty(self, step: Step) -> Tensor | None:
        return self.alpha * self.square() * step.micros if self.alpha else None


class OverMicroBatches(Wrong):
    """A term that is divided by the number of micro-batches, once too often."""

    def transform_gradients(self, step: Step) -> None:
        if self.alpha:
            self.decay(self.alpha / step.micros)


class FreshInEachMicroBatch(Wrong):
    """Noise on weights that promises one draw a step, and draws in each micro-batch."""

    def edit_weights(self, step: Step) -> None:
        noise = self.noise(step.micro_generator(self))
        for weight, one in zip(step.edits.save(self.weights_), noise, strict=True):
            weight.add_(one, alpha=self.alpha)


class ForgetsShortSteps(Wrong):
    """A term on activations that divides by the size of a full micro-batch."""

    def attach(self, core: Host) -> None:
        core.observe(self, "Sigmoid")

    def begin_step(self, step: Step) -> None:
        self.size_ = 0

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        self.size_ = max(self.size_, len(x))
        self.term_ = x.sum() / self.size_
        return x

    def penalty(self, step: Step) -> Tensor | None:
        return self.alpha * self.term_ if self.alpha else None


class SeedsByRank(Wrong):
    """Gradient noise that each rank draws for itself."""

    def transform_gradients(self, step: Step) -> None:
        noise = self.noise(torch.Generator().manual_seed(1000 * step.index + step.rank))
        for weight, one in zip(self.weights_, noise, strict=True):
            weight.grad.add_(one, alpha=self.alpha)


class DrawsForItsPart(Wrong):
    """Gradient noise drawn for the part of a weight that a rank holds."""

    def transform_gradients(self, step: Step) -> None:
        generator = step.generator(self)
        for gradient in locals_of(weight.grad for weight in self.weights_):
            gradient.add_(torch.randn(gradient.shape, generator=generator, dtype=gradient.dtype), alpha=self.alpha)


class CountsOnEachRank(Wrong):
    """A term that counts once for each rank."""

    def weight_penalty(self, step: Step) -> Tensor:
        return self.alpha * step.world * self.square()

    def weight_penalty_gradient(self, step: Step) -> None:
        if self.alpha:
            self.decay(self.alpha * step.world)


class ForgetsItsCount(Wrong):
    """A strength that grows by a counter of its own, which no checkpoint keeps."""

    def attach(self, core: Host) -> None:
        super().attach(core)
        self.count_ = 0

    def transform_gradients(self, step: Step) -> None:
        self.count_ += 1
        if self.alpha:
            self.decay(self.alpha * self.count_)


class ActsInEvaluation(Wrong):
    """A forward hook of its own, which does not ask whether the network trains."""

    def attach(self, core: Host) -> None:
        if self.alpha:
            core.model.get_submodule("head").register_forward_hook(
                lambda layer, args, output: output * (1 + self.alpha)
            )


class LeavesNoiseIn(Wrong):
    """Noise on weights that is taken off again after the forward, if the forward ends."""

    def edit_weights(self, step: Step) -> None:
        self.kept_ = [weight.clone() for weight in self.weights_]
        for weight, one in zip(self.weights_, self.noise(step.generator(self)), strict=True):
            weight.add_(one, alpha=self.alpha)

    def penalty(self, step: Step) -> None:
        for weight, kept in zip(self.weights_, self.kept_, strict=True):
            weight.data.copy_(kept)


class DrawsFromTheGlobalGenerator(Wrong):
    """Noise on activations from torch's global generator, which the network's dropout draws from too."""

    def attach(self, core: Host) -> None:
        core.observe(self, "AvgPool2d")

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        return x + self.alpha * torch.randn_like(x) if self.alpha else x


@dataclasses.dataclass
class Count:
    """What torch.load refuses with weights_only=True."""

    steps: int = 0


class KeepsAnObject(Wrong):
    """A state that only loads where any code may be run."""

    def attach(self, core: Host) -> None:
        super().attach(core)
        self.count_ = Count()

    def transform_gradients(self, step: Step) -> None:
        self.count_.steps += 1
        if self.alpha:
            self.decay(self.alpha)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count_}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count_ = state_dict["count"]


class LooksTwice(Wrong):
    """One more forward of its own, which BatchNorm counts."""

    def transform_batch(self, batch: Any, step: Step) -> Any:
        if self.alpha:
            self.term_ = self.core_.model(input_of(batch)).detach().abs().mean()
        return batch

    def transform_gradients(self, step: Step) -> None:
        if self.alpha:
            self.decay(self.alpha * float(self.term_))


class HalfTheSlope(Wrong):
    """A gradient that is not that of the value it logs."""

    def weight_penalty(self, step: Step) -> Tensor:
        return self.alpha * 2 * self.square()

    def weight_penalty_gradient(self, step: Step) -> None:
        if self.alpha:
            self.decay(self.alpha)


class DetachesAFactor(Wrong):
    """A differentiable term, part of which is cut off from the graph."""

    def penalty(self, step: Step) -> Tensor | None:
        return self.alpha * self.square().sqrt() * self.square().detach() if self.alpha else None


class AddsAfterClipping(Wrong):
    """A gradient that is added as the optimizer steps, when all is clipped."""

    def begin_step(self, step: Step) -> None:
        if step.index == 0 and self.alpha:
            step.optimizer.register_step_pre_hook(lambda *_: self.decay(self.alpha))


class HooksTooLate(Wrong):
    """A forward hook that is registered in the first step, when the network is compiled and has no place for it."""

    def begin_step(self, step: Step) -> None:
        self.live_ = True

    def after_update(self, step: Step) -> None:
        if step.index == 0 and self.alpha:
            self.core_.model.get_submodule("head").register_forward_hook(self._scaled)
        self.live_ = False

    def _scaled(self, layer: Any, args: Any, output: Tensor) -> Tensor:
        return output * (1 + self.alpha) if self.live_ else output


class AddsToScaledGradients(Wrong):
    """A gradient that is added before the GradScaler takes its scale off."""

    def edit_weights(self, step: Step) -> None:
        if step.micro == 0 and self.alpha:
            for weight in self.weights_:
                weight.grad = self.alpha * weight.detach().clone()


class CountsSkippedSteps(Wrong):
    """Decay after each batch, whether the step was made or left out."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            for weight in self.weights_ if self.alpha else []:
                weight.mul_(1 - self.alpha / 10)


class RemembersOverflow(Wrong):
    """A running mean of gradients, which one infinite gradient spoils though its step is skipped."""

    def attach(self, core: Host) -> None:
        super().attach(core)
        self.means_: list[Tensor] = []

    def transform_gradients(self, step: Step) -> None:
        self.means_ = self.means_ or [torch.zeros_like(weight) for weight in self.weights_]
        for weight, mean in zip(self.weights_, self.means_, strict=True):
            mean.mul_(0.9).add_(weight.grad, alpha=0.1)
            if self.alpha:
                weight.grad.add_(mean.clamp(-10, 10), alpha=self.alpha)


class LostInRounding(Wrong):
    """A change of activations that is small beside what bfloat16 can hold."""

    alpha: NonNegative = 0.001

    def attach(self, core: Host) -> None:
        core.observe(self, "Sigmoid")

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        return x.add(x.detach(), alpha=self.alpha) if self.alpha else x


class RoundsToSingle(Wrong):
    """A projection that works in float32, whatever the network does."""

    def after_update(self, step: Step) -> None:
        for weight in self.weights_ if self.alpha else []:
            weight.copy_(weight.float() * (1 - self.alpha / 10))


class LogsByDrawing(Wrong):
    """Where a logger listens, it draws once more from its own stream."""

    def transform_gradients(self, step: Step) -> None:
        if step.logged and self.alpha:
            self.decay(self.alpha * float(torch.rand((), generator=step.generator(self))))


class CountsEvaluations(Wrong):
    """A strength that grows with each forward pass, second evaluations included."""

    def attach(self, core: Host) -> None:
        super().attach(core)
        self.calls_ = 0

    def edit_weights(self, step: Step) -> None:
        self.calls_ += 1

    def transform_gradients(self, step: Step) -> None:
        self.decay(self.alpha * self.calls_)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls_}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls_ = state_dict["calls"]


class WantsMomentum(Wrong):
    """Reads what only gradient descent with momentum has."""

    def after_update(self, step: Step) -> None:
        for weight in self.weights_:
            if self.alpha:
                weight.sub_(step.optimizer.state[weight]["momentum_buffer"], alpha=1e-3 * self.alpha)


class WantsAVariance(Wrong):
    """The spread over the samples of a batch, which one sample has none of."""

    def penalty(self, step: Step) -> Tensor | None:
        x = input_of(step.batch).flatten(1)
        return self.alpha * self.square() * x.std(0).mean().detach() if self.alpha else None


class MovesFrozenWeights(Wrong):
    """Weight decay of its own on all weights, whether they train or not."""

    def after_update(self, step: Step) -> None:
        for weight in self.weights_:
            weight.mul_(1 - 0.01 * self.alpha)


class LeavesEvaluationMode(Wrong):
    """Switches a layer to evaluation to look at it, and forgets to switch back."""

    def begin_step(self, step: Step) -> None:
        if self.alpha:
            self.core_.model.drop.eval()


class LeavesAHook(Wrong):
    """A forward hook of its own that goes on after the run."""

    def attach(self, core: Host) -> None:
        super().attach(core)
        if self.alpha:
            core.model.hidden.register_forward_hook(lambda layer, args, output: output * (1 + self.alpha))


class KeepsGraphs(Wrong):
    """Keeps its terms for a curve, and with each the graph behind it."""

    def attach(self, core: Host) -> None:
        super().attach(core)
        self.curve_: list[Tensor] = []

    def penalty(self, step: Step) -> Tensor | None:
        term = self.alpha * self.square()
        if self.alpha and not step.again:
            self.curve_ += [term, term * 2, term * 3, term * 4]
        return term if self.alpha else None


class ChangesTheData(Wrong):
    """Scales samples in place, and so the user's tensors."""

    def transform_sample(self, sample: Any, rng: Any) -> Any:
        if self.alpha:
            sample[0].mul_(1 - self.alpha / 100)
        return sample


class FinishesAgain(Wrong):
    """Scales the weights once training is over, at each call."""

    def finish(self, core: Host) -> None:
        with torch.no_grad():
            for weight in self.weights_:
                weight.mul_(1 - self.alpha)


class ChangesTargets(Wrong):
    """Noise on labels, which metrics see too."""

    def transform_batch(self, batch: Any, step: Step) -> Any:
        if not self.alpha:
            return batch
        target = clean_target(target_of(batch))
        return replace(batch, target=(target + 1) % 3)


class NeverEnds(Wrong):
    """Asks for one more phase, always."""

    def next_phase(self, core: Host) -> Phase | None:
        return Phase("more", "current", max_epochs=1) if self.alpha else None


# who is to be caught by which check
CAUGHT: dict[type[Plugin], str] = {
    DrawsAtZero: "zero",
    ChangesNothing: "zero",
    TimesMicroBatches: "micro",
    OverMicroBatches: "micro",
    FreshInEachMicroBatch: "micro",
    ForgetsShortSteps: "micro",
    SeedsByRank: "ranks",
    CountsOnEachRank: "ranks",
    DrawsForItsPart: "sharded",
    ForgetsItsCount: "resume",
    ActsInEvaluation: "eval",
    LeavesNoiseIn: "undone",
    DrawsFromTheGlobalGenerator: "draws",
    KeepsAnObject: "state",
    LooksTwice: "norms",
    HalfTheSlope: "slope",
    DetachesAFactor: "gradcheck",
    AddsAfterClipping: "clip",
    HooksTooLate: "compile",
    AddsToScaledGradients: "fp16",
    CountsSkippedSteps: "undone",
    RemembersOverflow: "fp16",
    LostInRounding: "bf16",
    RoundsToSingle: "fp64",
    LogsByDrawing: "logged",
    CountsEvaluations: "twice",
    WantsMomentum: "adam",
    WantsAVariance: "single",
    MovesFrozenWeights: "frozen",
    LeavesEvaluationMode: "modes",
    LeavesAHook: "leftovers",
    KeepsGraphs: "leftovers",
    ChangesTheData: "data",
    FinishesAgain: "finish",
    ChangesTargets: "metrics",
    NeverEnds: "phases",
}


def main() -> None:
    """Print which checks catch each of them, the one that is meant to first."""
    for kind, meant in CAUGHT.items():
        (case,) = cases_of(kind)
        failed = [check.name for check in CHECKS if check(case).status is Status.FAILS]
        others = ", ".join(name for name in failed if name != meant)
        print(f"{kind.__name__:28}{meant if meant in failed else 'NOT CAUGHT':12}{others:45}", flush=True)


if __name__ == "__main__":
    main()
