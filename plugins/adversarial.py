"""Adversarial training: the loss at inputs perturbed to increase it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from framework.data import clean_target, input_of, replace, target_of
from framework.data.outputs import outputs_of
from framework.errors import UserError
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
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


def bernoulli_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    r"""Return the divergence of independent yes and no, summed over outputs and averaged over samples.

    .. math:: \frac1n\sum_i\sum_j
        \mathrm{KL}\big(\mathrm{Bern}(\sigma(a_{ij})) \,\Vert\, \mathrm{Bern}(\sigma(b_{ij}))\big)

    Args:
        reference: logits a of yes or no, ``(samples, …)``.
        logits: logits b, shaped alike.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    a, b = reference.to(wide), logits.to(wide)
    yes = a.sigmoid() * (F.logsigmoid(a) - F.logsigmoid(b))
    no = (-a).sigmoid() * (F.logsigmoid(-a) - F.logsigmoid(-b))
    return (yes + no).sum() / len(a)


def normal_divergence(reference: Tensor, values: Tensor) -> Tensor:
    r"""Return the divergence of normal distributions of variance 1, averaged over samples.

    .. math:: \frac1n\sum_i \mathrm{KL}(\mathcal N(a_i, I) \,\Vert\, \mathcal N(b_i, I))
        = \frac1{2n}\sum_i \lVert a_i - b_i\rVert_2^2

    Args:
        reference: means a, ``(samples, …)``.
        values: means b, shaped alike.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    return (reference.to(wide) - values.to(wide)).square().sum() / (2 * len(values))


_DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "softmax": divergence,
    "bernoulli": bernoulli_divergence,
    "normal": normal_divergence,
}


class Adversarial(Plugin):
    r"""Add the loss at adversarial inputs to the objective.

    ``kind="fgsm"`` (fast gradient sign method, uses the labels):

    .. math:: \Omega = J(\theta; x + r, y), \qquad r = \epsilon\,\mathrm{sign}(\nabla_x J(\theta; x, y))

    ``kind="vat"`` (virtual adversarial training: local distributional smoothness, uses no labels):

    .. math::
        \Omega = \frac1n\sum_i \mathrm{KL}\big(p(\cdot\mid x_i)\,\Vert\, p(\cdot\mid x_i + r_i)\big), \qquad
        r_i = \epsilon\, \frac{d_i}{\lVert d_i\rVert_2}

    with d the direction in which the divergence grows fastest, by power iteration from a random start. r counts as
    constant; p is the distribution that the loss reads from the network's outputs, detached: the softmax of logits for
    cross entropy, a yes or no for each logit for binary cross entropy, normal distributions of variance 1 for losses of
    regression, where KL is half the squared distance. Each evaluation uses the random draws of the micro-batch's own
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
        outputs: what VAT takes the outputs for: ``"softmax"``, ``"bernoulli"`` or ``"normal"``; None for what torch's
            losses read, and ``"softmax"`` for other losses where it can be that.

    Example:
        >>> Adversarial(eps=0.1, kind="fgsm").describe()
        "Adversarial(eps=0.1, kind='fgsm')"

    Source:
        Goodfellow, Shlens and Szegedy (2015), Explaining and Harnessing Adversarial Examples; Miyato et al. (2018),
        Virtual Adversarial Training.
    """

    eps: Annotated[NonNegative, LogRange(1e-3, 1.0)]
    kind: Literal["fgsm", "vat"]
    alpha: Annotated[NonNegative, LogRange(0.1, 10)] = 1.0
    xi: Positive = 1e-3
    iterations: PositiveInt = 1
    outputs: Literal["softmax", "bernoulli", "normal"] | None = None

    examples = ({"eps": 0.1, "kind": "fgsm"}, {"eps": 2.0, "kind": "vat"})
    absent = ({"alpha": 0.0},)

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason: the direction counts as a constant."""
        reason = "the direction counts as constant, though it follows the weights"
        return {"gradcheck": reason} if self.kind == "vat" else {}

    @property
    def proportional(self) -> Collection[str]:
        """Return the strength, to which what is added is proportional."""
        return ("alpha",)

    def check(self) -> None:
        """Refuse outputs where no divergence is computed."""
        if self.kind == "fgsm" and self.outputs is not None:
            raise UserError(
                f"Adversarial(kind='fgsm', outputs={self.outputs!r}): fgsm does not read outputs; leave it out"
            )

    def attach(self, core: Host) -> None:
        """Keep the core, which evaluates the network."""
        self.core_ = core
        self.divergence_: Callable[[Tensor, Tensor], Tensor] | None = None

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
        if self.divergence_ is None:
            self.divergence_ = _DIVERGENCES[self._outputs(reference, step)]
        rise_of = self.divergence_
        direction = unit_rows(step.normal(self, x))
        for _ in range(self.iterations):
            direction.requires_grad_()
            rise = rise_of(reference, self._logits(x + self.xi * direction, step))
            (gradient,) = torch.autograd.grad(rise, direction)
            direction = unit_rows(gradient)
        return rise_of(reference, self._logits(x + self.eps * direction, step))

    def _outputs(self, prediction: Tensor, step: Step) -> str:
        """Return what to take the network's outputs for."""
        found = self.outputs or outputs_of(self.core_.loss)
        shape = tuple(prediction.shape)
        ways = "give outputs='bernoulli' for logits of yes or no, 'normal' for values of a regression"
        if found is None and (prediction.ndim < 2 or shape[1] == 1):
            raise UserError(f"{self.name}: kind='vat' with one output a sample, shape {shape}: {ways}; or kind='fgsm'")
        if found is None and _several_labels(prediction, step.batch):
            raise UserError(
                f"{self.name}: kind='vat' with targets shaped like the outputs, {shape}, whose rows do not sum to 1:"
                f" {ways}, or 'softmax' for logits of classes"
            )
        if found in (None, "softmax") and (prediction.ndim < 2 or shape[1] == 1):
            raise UserError(
                f"{self.name}: kind='vat' needs logits of shape (samples, classes, …) with two classes or more, and has"
                f" {shape}: the softmax of one is constant; use a loss of that many outputs, or kind='fgsm'"
            )
        return found or "softmax"

    def _logits(self, x: Tensor, step: Step) -> Tensor:
        prediction = self.core_.again.evaluate(replace(step.batch, input=x), full_precision=True).prediction
        if not isinstance(prediction, Tensor) or not prediction.ndim:
            raise UserError(
                f"{self.name}: kind='vat' needs predictions of shape (samples, classes, …); use kind='fgsm'"
            )
        return prediction


def _several_labels(prediction: Tensor, batch: Any) -> bool:
    """Return whether targets are numbers for each output that are no distribution over classes."""
    try:
        target = clean_target(target_of(batch))
    except UserError:
        return False
    if not isinstance(target, Tensor) or target.shape != prediction.shape:
        return False
    return bool((target < 0).any() or ((target.sum(1, dtype=torch.float32) - 1).abs() > 1e-3).any())
