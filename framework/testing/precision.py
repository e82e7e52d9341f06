"""Checks that a plugin has the same effect in other precisions, and with a compiled network."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor

from framework.data.loaders import Window
from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.testing.case import Case, isolated
from framework.testing.compare import demand_close, demand_same_bits
from framework.testing.invariance import SUMS
from framework.testing.result import Failed, Inapplicable

# Relative difference allowed between the effect of a plugin and its effect in float32. A rounding is 2^-11 in float16
# and 2^-8 in bfloat16; roundings add up over six steps, noise is rounded too, and rescaled gradients (Muon) amplify
# them: up to 0.11 and 0.31 for the bundled plugins. A term that is missing, or counted twice, has a difference of 1.
_HALF, _BRAIN = 0.2, 0.5
_SKIPPED = (0, 2)  # steps; a scaler commonly skips the first one


def compiled(case: Case) -> str:
    """Compare with a network compiled by ``aot_eager``, which traces like every backend but runs eager kernels."""
    eager = case.fit(case.make, dtype=torch.float64, trainer={"max_epochs": 1})
    with isolated():
        torch.compiler.reset()
    try:
        fast = case.fit(case.make, dtype=torch.float64, compile={"backend": "aot_eager"}, trainer={"max_epochs": 1})
    finally:
        torch.compiler.reset()
    return demand_close(eager.model.state_dict(), fast.model.state_dict(), SUMS, "the compiled network differs")


# ---- half precision --------------------------------------------------------------------------------------------------


def _half() -> dict[str, Any]:
    # given by name, Lightning would use bfloat16 on a CPU; the scale allows gradients of up to 2^6
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    return {"plugins": [MixedPrecision("16-mixed", device="cpu", scaler=scaler)]}


def half(case: Case) -> str:
    """Compare the effect with float32; then compare two overflowing steps with leaving their batches out."""
    try:
        case.fit(None, noisy=False, trainer=_half())
    except RuntimeError as error:  # this machine lacks a kernel
        raise Inapplicable(f"the task's network does not run in float16 here: {str(error).split('. ')[0]}") from None
    text = _demand_same_effect(case, _half, _HALF, "16-mixed")
    ends = [case.fit(case.make, kind=kind, trainer=_half()) for kind in (_LeavingOut, _Overflowing)]
    scales = [_scaler_of(core).get_scale() for core in ends]
    if scales[0] != scales[1]:
        raise Failed(f"steps were not skipped: the scale is {scales[1]}, not {scales[0]}")
    demand_same_bits(ends[0].model.state_dict(), ends[1].model.state_dict(), "skipped steps leave a trace")
    return f"{text}; skipped steps: the same bits"


def _scaler_of(core: Core) -> torch.amp.GradScaler:
    precision = core.trainer.precision_plugin
    assert isinstance(precision, MixedPrecision) and precision.scaler is not None
    return precision.scaler


class _Overflowing(Core):
    """Core with infinite gradients of a finite loss in some steps."""

    def compute_loss(self, batch: Any) -> Outcome:
        outcome = super().compute_loss(batch)
        if self.model.training and self.at.index in _SKIPPED and not self.at.again:
            assert outcome.loss is not None
            outcome = outcome._replace(loss=_overflowing(outcome.loss))
        return outcome


def _overflowing(loss: Tensor) -> Tensor:
    loss = loss * 1.0
    loss.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
    return loss


class _LeavingOut(Core):
    """Core that leaves out the batches of these steps after their forward, and lowers the scale as the scaler does."""

    def training_step(self, window: Window, batch_idx: int) -> None:
        super().training_step(window, batch_idx)
        if self.at.index - 1 in _SKIPPED:
            scaler = _scaler_of(self)
            scaler.scale(torch.zeros(1))  # before the first step the scaler has no scale yet
            scaler.update(scaler.get_scale() * scaler.get_backoff_factor())

    def compute_loss(self, batch: Any) -> Outcome:
        outcome = super().compute_loss(batch)
        return Outcome(None) if self.model.training and self.at.index in _SKIPPED else outcome


def brain_half(case: Case) -> str:
    """Compare the effect in bfloat16 with that in float32."""
    return _demand_same_effect(case, lambda: {"precision": "bf16-mixed"}, _BRAIN, "bf16-mixed")


def _effect(case: Case, trainer: Any) -> Tensor:
    """Return the difference that the plugin makes to the trained weights, as one vector."""
    ends = [case.fit(make, noisy=False, trainer=trainer()).model.state_dict() for make in (case.make, None)]
    both = [name for name in ends[1] if name in ends[0]]  # one that changes the network may give weights other names
    return torch.cat([(ends[0][name].double() - ends[1][name].double()).flatten() for name in both])


def _demand_same_effect(case: Case, trainer: Any, tolerance: float, what: str) -> str:
    full, narrow = _effect(case, dict), _effect(case, trainer)
    if not full.any():
        if narrow.any():
            raise Failed(f"{what}: changes weights, which 32-true does not")
        return "changes no weights, as in 32-true"
    gap = float((narrow - full).norm() / full.norm())
    if not gap <= tolerance:
        raise Failed(f"{what}: the effect on the weights differs by {gap:.1%}, tolerance {tolerance:.0%}")
    return f"the effect on the weights differs by {gap:.1%}"


def double(case: Case) -> str:
    """Compare 64-true with network and data in float64, and look for weights rounded to float32."""
    true = case.fit(case.make, trainer={"precision": "64-true"})
    plain = case.fit(case.make, dtype=torch.float64)
    text = demand_same_bits(plain.model.state_dict(), true.model.state_dict(), "64-true is not float64")
    start = dict(case.core(case.make, dtype=torch.float64).model.named_parameters())
    for name, weight in true.model.named_parameters():
        if torch.equal(weight, start[name]):  # frozen ones have the values that they were made with
            continue
        rounded = float((weight == weight.float()).double().mean())
        if weight.numel() > 10 and rounded > 0.5:
            raise Failed(f"{rounded:.0%} of {name} is rounded to float32")
    return text
