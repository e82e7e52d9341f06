"""The optimizer: its class, its parameter groups, and gradient clipping."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
from collections.abc import Collection, Mapping
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from framework.errors import UserError, did_you_mean
from framework.ops.clip import clip_by_norm_, clip_by_value_, total_norm
from framework.ops.muon import Muon
from framework.ops.patterns import Patterns, is_weight, select_weights
from framework.ops.tables import tables
from framework.plugin import Host, Plugin, Step
from framework.ranges import LogRange
from framework.settings import NonNegative, Positive

_log = logging.getLogger(__name__)
_OWN = ("lr", "weight_decay", "fused")
# torch lacks the operators for these on sharded tensors, or they would update each shard by itself
_WHOLE = ("Adafactor", "LBFGS", "Muon", "Rprop")
_SCALES = ("lr_scale", "decay_scale")


def optimizer_class(cls: type | str) -> type[torch.optim.Optimizer]:
    """Return an optimizer class given by name in ``torch.optim``, by dotted path, or as a class.

    For torch's Muon this is :class:`framework.ops.muon.Muon`, which moves the other parameters by AdamW.

    Raises:
        UserError: if there is no such class.

    Example:
        >>> optimizer_class("AdamW").__name__
        'AdamW'
    """
    found: Any = cls
    if isinstance(cls, str) and "." in cls:
        module, _, name = cls.rpartition(".")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"Optimizer(cls={cls!r}): {error}; give 'module.ClassName'") from error
    elif isinstance(cls, str):
        known = {name: one for name, one in vars(torch.optim).items() if _is_optimizer(one)}
        if cls not in known:
            raise UserError(f"Optimizer(cls={cls!r}): torch.optim has no such optimizer{did_you_mean(cls, known)}")
        found = known[cls]
    if not _is_optimizer(found):
        raise UserError(f"Optimizer(cls={cls!r}): cls must be a subclass of torch.optim.Optimizer, or the name of one")
    return Muon if found is torch.optim.Muon else found


def _is_optimizer(one: Any) -> bool:
    return isinstance(one, type) and issubclass(one, torch.optim.Optimizer) and one is not torch.optim.Optimizer


def why_not_fused(
    cls: type[torch.optim.Optimizer], options: Mapping[str, Any], parameters: Collection[Tensor], *, sparse: bool
) -> str | None:
    """Return why the fused kernel cannot update these parameters, None if it can.

    Args:
        cls: the optimizer's class.
        options: further arguments of the class.
        parameters: the parameters, on the devices they are trained on.
        sparse: whether some gradients will be sparse.

    Example:
        >>> why_not_fused(torch.optim.RMSprop, {}, [], sparse=False)
        'RMSprop has no fused kernel'
    """
    if "fused" not in inspect.signature(cls).parameters:
        return f"{cls.__name__} has no fused kernel"
    if clash := next((name for name in ("foreach", "differentiable") if options.get(name)), None):
        return f"options={{{clash!r}: True}} excludes it"
    if sparse:
        return "it takes no sparse gradients"
    if not all(parameter.is_floating_point() for parameter in parameters):
        return "it takes real floating-point parameters only"
    half = (torch.float16, torch.bfloat16)
    if cls is torch.optim.SGD and any(p.device.type == "cpu" and p.dtype in half for p in parameters):
        return "SGD's leaves weights in half precision unmoved on a CPU"  # pytorch/pytorch#191763, in 2.13
    if cls in (torch.optim.SGD, torch.optim.Adagrad) and any(hasattr(p, "full_tensor") for p in parameters):
        return f"{cls.__name__}'s takes no sharded parameters"
    kinds = {"cpu"} if cls is torch.optim.Adagrad else {"cpu", "cuda", "mps", "xpu"}
    if strange := {parameter.device.type for parameter in parameters} - kinds:
        return f"{cls.__name__} has none on {', '.join(sorted(strange))}"
    return None


class Optimizer(Plugin):
    r"""Set the optimizer, its parameter groups, and gradient clipping.

    With decoupled decay (AdamW, Muon) an update is, with d the optimizer's direction,

    .. math:: \theta_{t+1} = (1 - \eta\lambda)\,\theta_t - \eta\, d_t

    while under SGD, Adam and most others ``weight_decay`` adds :math:`\lambda\theta` to the gradient. The decay λ
    applies to weights only: biases, norm gains and other parameters of one dimension have λ = 0. Clipping by norm
    scales all gradients by one factor and logs the norm before it as ``grad_norm``; by value it is entry by entry:

    .. math:: g \leftarrow g\,\min\Bigl(1, \frac{c}{\|g\|_2}\Bigr) \qquad\text{or}\qquad
              g_i \leftarrow \min(\max(g_i, -c), c)

    Args:
        cls: a class of ``torch.optim`` or a third party's, or its name (``"SGD"``, ``"package.module.Class"``).
            ``"Muon"`` uses Muon for hidden matrices and AdamW for the rest, see :class:`framework.ops.muon.Muon`.
        lr: learning rate η; 1e-3 suits AdamW and Muon, 0.01 to 0.1 SGD with momentum.
        weight_decay: λ; 1e-2 to 1e-1 is usual with AdamW, 1e-4 to 5e-4 with SGD.
        options: further arguments of the class, such as ``{"momentum": 0.9, "nesterov": True}``.
        groups: factors on η and λ by pattern over parameters or layers, where the first match applies:
            ``{"head.*": {"lr_scale": 10.0, "decay_scale": 0.0}}``.
        decay_biases: apply decay to biases and norm gains too.
        adamw: with Muon, patterns of matrices for AdamW, commonly the output head; embeddings, which are tables
            rather than linear maps, always use AdamW, also where they are tied to a head, and so do complex matrices.
        fused: use the fused kernel, some five times as fast on a CPU; None to use it for torch's own classes where
            it works.
        clip_norm: c, the largest global Euclidean norm of the gradients; 1.0 is usual.
        clip_value: c, the largest absolute value of any entry of a gradient.

    Raises:
        UserError: if a class, option or group factor is unknown, or a pattern matches nothing.

    Example:
        >>> Optimizer("SGD", lr=0.1, weight_decay=5e-4, options={"momentum": 0.9}, clip_norm=1.0).describe()
        "Optimizer(cls='SGD', lr=0.1, weight_decay=0.0005, options={'momentum': 0.9}, clip_norm=1.0)"

    Interacts with: ``Schedule``, which varies η (groups keep their factors; ``lr`` is read once, so a
    ``StrengthSchedule`` of it is an error); ``NormPenalty``, whose L2 equals weight decay under SGD only.

    Source: Goodfellow, Bengio and Courville (2016), Deep Learning, chapter 8 and section 10.11.1 (clipping);
    Loshchilov and Hutter (2019), Decoupled weight decay regularization.
    """

    cls: type[torch.optim.Optimizer] | str = torch.optim.AdamW
    lr: Annotated[NonNegative, LogRange(1e-4, 1e-1)] = 1e-3
    weight_decay: Annotated[NonNegative, LogRange(1e-5, 1)] = 0.0
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    groups: dict[str, dict[str, NonNegative]] = dataclasses.field(default_factory=dict)
    decay_biases: bool = False
    adamw: Patterns = ()
    fused: bool | None = None
    clip_norm: Positive | None = None
    clip_value: Positive | None = None

    read_once = ("lr", "weight_decay")

    examples = (
        {"lr": 0.01, "weight_decay": 0.1},
        {
            "cls": "SGD",
            "lr": 0.1,
            "options": {"momentum": 0.9},
            "groups": {"head": {"lr_scale": 2.0}},
            "clip_norm": 1.0,
        },
        {"cls": "Muon", "lr": 0.01},
        {"cls": "LBFGS", "lr": 0.1, "options": {"max_iter": 2}},
    )

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass with Muon, or with an optimizer that needs a closure, with the reason."""
        cls = optimizer_class(self.cls)
        limits = {"sharded": f"{cls.__name__} needs each weight whole"} if cls.__name__ in _WHOLE else {}
        closure = inspect.signature(cls.step).parameters.get("closure")
        if closure is None or closure.default is not inspect.Parameter.empty:
            return limits
        reason = "it evaluates the objective several times a step, each time at weights it moved to"
        return limits | dict.fromkeys(("undone", "norms"), reason)

    def check(self) -> None:
        """Check the options against the class's signature, and for contradictions."""
        cls = optimizer_class(self.cls)
        parameters = inspect.signature(cls).parameters
        known = set(parameters) - {"params", *_OWN}
        takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
        for name in self.options:
            what = f"Optimizer(options={{{name!r}: ...}})"
            if name in _OWN:
                raise UserError(f"{what}: {name} is a setting of its own; give Optimizer({name}=...)")
            if name not in known and not takes_all:
                raise UserError(f"{what}: {cls.__name__} has no such argument{did_you_mean(name, known)}")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if value != getattr(type(self), name) and name not in parameters and not takes_all:
                raise UserError(f"Optimizer({name}={value!r}): {cls.__name__} takes no {name}; leave it out")
        for pattern, factors in self.groups.items():
            if unknown := next((name for name in factors if name not in _SCALES), None):
                what = f"Optimizer(groups={{{pattern!r}: {{{unknown!r}: ...}}}})"
                raise UserError(f"{what}: no such factor{did_you_mean(unknown, _SCALES)}")
        if self.adamw and cls is not Muon:
            raise UserError(
                f"Optimizer(adamw={self.adamw!r}): adamw selects the matrices that Muon leaves to AdamW; use it"
                " with cls='Muon' only"
            )
        if self.clip_norm is not None and self.clip_value is not None:
            raise UserError("Optimizer(clip_norm=, clip_value=): clip gradients by norm or by value; leave one out")

    def attach(self, core: Host) -> None:
        """Classify the parameters: which decay, which Muon updates, and which group factors apply."""
        self.decaying_: set[int] = set()
        self.matrices_: set[int] = set()
        self.sparse_ = False
        for layer in core.model.modules():
            table = isinstance(layer, (nn.Embedding, nn.EmbeddingBag))
            self.sparse_ |= table and bool(layer.sparse)
            for name, parameter in layer.named_parameters(recurse=False):
                if self.decay_biases or is_weight(layer, name, parameter):
                    self.decaying_.add(id(parameter))
                if parameter.ndim == 2 and is_weight(layer, name, parameter) and not parameter.is_complex():
                    self.matrices_.add(id(parameter))
        self.matrices_ -= {id(table) for table in tables(core.model)}
        if self.adamw:
            named = select_weights(core.model, self.adamw, who=f"Optimizer(adamw={self.adamw!r})")
            self.matrices_ -= {id(parameter) for parameter in named.values()}
        self.pattern_: dict[int, str] = {}
        for pattern in self.groups:
            for parameter in select_weights(core.model, pattern, who="Optimizer(groups=)", biases=True).values():
                self.pattern_.setdefault(id(parameter), pattern)

    def group_parameters(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Split the groups by learning rate, decay, and update rule."""
        joint = optimizer_class(self.cls) is Muon
        split: list[dict[str, Any]] = []
        for group in groups:
            parts: dict[tuple[Any, ...], dict[str, Any]] = {}
            for name, parameter in group["params"]:
                factors = self.groups.get(self.pattern_.get(id(parameter), ""), {})
                rate = group.get("lr", self.lr) * factors.get("lr_scale", 1.0)
                decay = group.get("weight_decay", self.weight_decay) * factors.get("decay_scale", 1.0)
                options = {"lr": rate, "weight_decay": decay if id(parameter) in self.decaying_ else 0.0}
                if joint:
                    options["use_muon"] = id(parameter) in self.matrices_
                part = parts.setdefault(tuple(options.values()), {**group, "params": [], **options})
                part["params"].append((name, parameter))
            split.extend(parts.values())
        return split

    def make_optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Create the optimizer, fused where that works."""
        cls = optimizer_class(self.cls)
        options = dict(self.options)
        ours = cls.__module__.startswith("torch.optim") or cls is Muon
        if self.fused or (self.fused is None and ours):
            parameters = [parameter for group in groups for parameter in group["params"]]
            reason = why_not_fused(cls, options, parameters, sparse=self.sparse_)
            if reason is None:
                options["fused"] = True
            elif self.fused:
                raise UserError(f"Optimizer(fused=True): {reason}; leave fused out")
            else:
                _log.info("%s is not fused: %s", cls.__name__, reason)
        for name in ("lr", "weight_decay"):
            if name in inspect.signature(cls).parameters:
                options[name] = getattr(self, name)
        try:
            make: Any = cls
            return make(groups, **options)  # type: ignore[no-any-return]
        except (TypeError, ValueError) as error:
            raise UserError(f"{self.describe()}: {error}") from error

    def clip_gradients(self, step: Step) -> bool:
        """Clip gradients by norm or by value if one of them is set."""
        if self.clip_norm is None and self.clip_value is None:
            return False
        assert step.optimizer is not None
        parameters = [parameter for group in step.optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.clip_norm is not None:
            step.record("grad_norm", clip_by_norm_(gradients, self.clip_norm))
        elif self.clip_value is not None:
            if step.logged:
                step.record("grad_norm", total_norm(gradients))
            clip_by_value_(parameters, self.clip_value)
        return True
