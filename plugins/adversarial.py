"""Adversarial training: the loss at inputs perturbed to increase it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.data import input_of, replace
from framework.errors import UserError
from framework.plugin import Host, Plugin, Step
from framework.settings import NonNegative, Positive, PositiveInt


def fast_gradient_sign(gradient: Tensor, eps: float) -> Tensor:
    r"""Return the step of the fast gradient sign method, :math:`r = \epsilon\, \mathrm{sign}(\nabla_x J)`."""
    return eps * gradient.sign()


def unit_rows(x: Tensor) -> Tensor:
    r"""Return each sample scaled to length one, :math:`x_i / \lVert x_i \rVert_2`; a zero sample stays zero."""
    norms: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    norms = norms.view(-1, *[1] * (x.ndim - 1))
    return torch.div(x, norms)


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    r"""Return :math:`\frac1n\sum_i \mathrm{KL}(\mathrm{softmax}(a_i) \,\Vert\, \mathrm{softmax}(b_i))`.

    Args:
        reference: logits a, ``(samples, classes, …)``.
        logits: logits b, shaped alike.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    p, q = F.log_softmax(reference, dim=1, dtype=wide), F.log_softmax(logits, dim=1, dtype=wide)
    return F.kl_div(q, p, reduction="sum", log_target=True) / len(p)


class Adversarial(Plugin):
    r"""Add the loss at adversarial inputs to the objective.

    ``kind="fgsm"`` (fast gradient sign method, uses the labels):

    .. math:: \Omega = J(\theta; x + r, y), \qquad r = \epsilon\,\mathrm{sign}(\nabla_x J(\theta; x, y))

    ``kind="vat"`` (virtual adversarial training: local distributional smoothness, uses no labels):

    .. math::
        \Omega = \frac1n\sum_i \mathrm{KL}\big(p(\cdot\mid x_i)\,\Vert\, p(\cdot\mid x_i + r_i)\big), \qquad
        r_i = \epsilon\, \frac{d_i}{\lVert d_i\rVert_2}

    with d the direction in which the divergence grows fastest, by power iteration from a random start. r counts as
    constant; p is the network's softmax, detached. Each evaluation uses the random draws of the micro-batch's own
    forward (the same dropout masks), and does not change running statistics or logs.

    Interactions: a term of the objective like any other, so it is exact under accumulation, mixed precision and several
    ranks, and included in the gradient that ``SAM`` sees. Costs two more evaluations of the network (VAT:
    ``2 + iterations``). Needs floating-point inputs; for unbounded inputs (standardized data) eps is in their units.

    Args:
        eps: size of the perturbation: of each entry for FGSM (0.01 to 0.3 for inputs in [0, 1]), of each sample's
            vector for VAT (1 to 8, chosen by validation).
        kind: ``"fgsm"`` or ``"vat"``.
        alpha: strength of the term; 1 weighs clean and adversarial loss equally.
        xi: finite-difference step of VAT's power iteration.
        iterations: number of VAT's power iterations; one usually suffices.

    Example:
        >>> Adversarial(eps=0.1, kind="fgsm").describe()
        "Adversarial(eps=0.1, kind='fgsm')"

    Source:
        Goodfellow, Shlens and Szegedy (2015), Explaining and Harnessing Adversarial Examples; Miyato et al. (2018),
        Virtual Adversarial Training.
    """

    eps: NonNegative
    kind: Literal["fgsm", "vat"]
    alpha: NonNegative = 1.0
    xi: Positive = 1e-3
    iterations: PositiveInt = 1

    examples = ({"eps": 0.1, "kind": "fgsm"}, {"eps": 2.0, "kind": "vat"})
    absent = ({"alpha": 0.0},)

    def limits(self) -> Mapping[str, str]:
        """Return which guarantees a direction that counts as constant cannot give."""
        reason = "the direction counts as constant, though it follows the weights"
        return {"gradcheck": reason} if self.kind == "vat" else {}

    def attach(self, core: Host) -> None:
        """Keep the core, which evaluates the network."""
        self.core_ = core

    def penalty(self, step: Step) -> Tensor | None:
        """Return the term of one micro-batch."""
        if self.alpha == 0 or self.eps == 0:
            return None
        x = input_of(step.batch)
        if not x.is_floating_point():
            raise UserError(
                f"{self.name}: inputs are {x.dtype}, and only floating-point inputs can be moved by a gradient"
            )
        return self.alpha * (self._fgsm(x, step) if self.kind == "fgsm" else self._vat(x, step))

    def _fgsm(self, x: Tensor, step: Step) -> Tensor:
        moved = x.detach().requires_grad_()
        loss = self.core_.again.evaluate(replace(step.batch, input=moved)).loss
        if loss is None:
            return x.new_zeros(())
        (gradient,) = torch.autograd.grad(loss, moved)
        adversarial = self.core_.again.evaluate(
            replace(step.batch, input=x + fast_gradient_sign(gradient, self.eps))
        ).loss
        return x.new_zeros(()) if adversarial is None else adversarial

    def _vat(self, x: Tensor, step: Step) -> Tensor:
        with torch.no_grad():
            reference = self._logits(x, step)
        direction = unit_rows(step.normal(self, x))
        for _ in range(self.iterations):
            direction.requires_grad_()
            rise = divergence(reference, self._logits(x + self.xi * direction, step))
            (gradient,) = torch.autograd.grad(rise, direction)
            direction = unit_rows(gradient)
        return divergence(reference, self._logits(x + self.eps * direction, step))

    def _logits(self, x: Tensor, step: Step) -> Tensor:
        prediction = self.core_.again.evaluate(replace(step.batch, input=x), full_precision=True).prediction
        if not isinstance(prediction, Tensor) or prediction.ndim < 2:
            raise UserError(
                f"{self.name}: kind='vat' needs predictions of shape (samples, classes, …); use kind='fgsm'"
            )
        return prediction
