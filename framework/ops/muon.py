"""Muon for matrices and AdamW for the other parameters, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT


class Muon(torch.optim.Optimizer):
    r"""One optimizer that applies Muon to the parameter groups with ``use_muon`` and AdamW to the others.

    Muon moves a matrix by its momentum with all singular values set to about 1, found by Newton-Schulz iterations:

    .. math::
        B_t = \mu B_{t-1} + G_t, \qquad
        W_{t+1} = (1 - \eta\lambda)\,W_t - \eta\, s\, \operatorname{ortho}(G_t + \mu B_t), \qquad
        \operatorname{ortho}(U\Sigma V^\top) = U V^\top

    with :math:`s = 0.2\sqrt{\max(m, n)}` by default for an (m, n) matrix, which gives the update the root mean square
    of AdamW's, so that one learning rate serves both. Both updates are torch's own; schedulers, checkpoints and
    hooks see one list of groups and one state.

    Args:
        params: parameter groups, each with ``"use_muon": True`` (matrices only) or ``"use_muon": False``.
        lr: learning rate η of groups that set none; 3e-4 to 3e-3 are usual.
        weight_decay: decoupled decay λ of groups that set none.
        momentum: μ.
        nesterov: use Nesterov momentum, as in the formula.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: ``"match_rms_adamw"`` as above, or ``"original"`` for :math:`s = \sqrt{\max(1, m/n)}`.
        betas: AdamW's decay rates of its two moments.
        eps: AdamW's term for numerical stability.
        fused: whether AdamW uses its fused kernel; None for torch's default.

    Raises:
        ValueError: if a group lacks ``use_muon``, or a group with it has a parameter that is not a matrix.

    Example:
        >>> matrix, bias = torch.nn.Parameter(torch.eye(2)), torch.nn.Parameter(torch.ones(2))
        >>> groups = [{"params": [matrix], "use_muon": True}, {"params": [bias], "use_muon": False}]
        >>> [group["lr"] for group in Muon(groups, lr=0.01).param_groups]
        [0.01, 0.01]

    Source: Jordan et al. (2024), Muon: an optimizer for hidden layers in neural networks; Liu et al. (2025), Muon is
    scalable for LLM training, for the scale; Loshchilov and Hutter (2019) for AdamW.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool | None = None,
    ) -> None:
        matrix = {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
        other = {"betas": betas, "eps": eps, "fused": fused}
        groups: list[dict[str, Any]] = []
        for group in params:
            if not isinstance(group, dict) or "use_muon" not in group:
                raise ValueError("every parameter group needs use_muon: True for Muon (matrices), False for AdamW")
            groups.append({**(matrix if group["use_muon"] else other), **group})
        self._parts: list[torch.optim.Optimizer] = []
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})
        self._share()

    def _share(self) -> None:
        """Build the two optimizers over this one's groups and state, which all three share as the same objects."""
        matrices = [group for group in self.param_groups if group["use_muon"]]
        others = [group for group in self.param_groups if not group["use_muon"]]
        self._parts = []
        if matrices:
            self._parts.append(torch.optim.Muon(matrices))
        if others:
            self._parts.append(torch.optim.AdamW(others))
        for part in self._parts:
            part.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; one that a callback adds without ``use_muon`` is moved by AdamW, as others are."""
        if "use_muon" not in param_group:
            like: dict[str, Any] = next(
                (group for group in getattr(self, "param_groups", []) if not group["use_muon"]), {}
            )
            options = {name: value for name, value in like.items() if name not in ("params", "param_names")}
            param_group = {**options, **param_group, "use_muon": False}
        super().add_param_group(param_group)
        if self._parts:
            self._share()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], Tensor | float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> float | None:
        """Update all parameters once.

        Args:
            closure: evaluates the objective again and returns it.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss
