"""Strengths that follow the gradient of the validation loss."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from framework.errors import UserError, did_you_mean
from framework.ops.hypergradient import adam_step, check_optimizer, response
from framework.plugin import Finding, Host, Plan, Plugin, Step, overrides
from framework.settings import Bounds, Positive, PositiveInt

_CHANGERS = ("transform_gradients", "second_gradient")


class StrengthTuner(Plugin):
    r"""Move strengths of other plugins by the gradient of the validation loss through the last update (T1-T2).

    .. math::
        \theta_{t+1} = \theta_t - U(g_t(s)), \qquad
        \frac{\partial J_{\mathrm{val}}(\theta_{t+1})}{\partial \log s} =
        -\Big\langle \nabla J_{\mathrm{val}}(\theta_{t+1}) \odot \frac{\partial U}{\partial g},\;
        \frac{\partial g_t}{\partial \log s}\Big\rangle

    every ``every`` steps, over ``samples`` validation samples in turn; :math:`\log s` then moves by Adam. The
    optimizer's own scaling is differentiated (:func:`framework.ops.hypergradient.response`), the gradient by a second
    backward pass with the draws of the step (:class:`framework.engine.sensitivity.Sensitivity`). The effect of s on
    earlier updates is left out, as the source does.

    The validation part then takes part in training: its figures flatter a little, as those of any search by it do. What
    is found is a schedule, not a constant; ``strength/<plugin>.<setting>`` shows it.

    Args:
        strengths: ``"<plugin>.<setting>"``, one or several, such as ``"norm_penalty.alpha"``; a setting to which what
            the plugin adds is proportional, above 0.
        every: optimizer steps between two changes.
        samples: validation samples a change looks at, in whole batches, in turn.
        rate: learning rate of Adam on the logarithms: about the relative change of a strength.
        reach: largest factor between a strength and its declared value.

    Raises:
        UserError: if a strength is unknown or not proportional, the optimizer is none of SGD, Adam and AdamW, gradients
            are clipped or changed, the network is compiled or sharded, or there is no validation part.

    Example:
        >>> StrengthTuner("norm_penalty.alpha").describe()
        "StrengthTuner(strengths='norm_penalty.alpha')"

    Interacts with: ``SAM``, clipping and plugins that change gradients, which it refuses; ``StrengthSchedule`` of the
    same setting. A change costs some three steps and a step on its validation samples.

    Source: Luketina, Berglund, Greff and Raiko (2016), Scalable gradient-based tuning of continuous regularization
    hyperparameters.
    """

    strengths: str | list[str]
    every: PositiveInt = 10
    samples: PositiveInt = 128
    rate: Positive = 0.05
    reach: Annotated[float, Bounds(low=1, open_low=True)] = 100.0

    examples = ({"strengths": "norm_penalty.alpha", "every": 1, "with": {"norm_penalty": {"alpha": 0.1}}},)

    @property
    def moves(self) -> Collection[str]:
        """The settings that this plugin changes."""
        return tuple([self.strengths] if isinstance(self.strengths, str) else self.strengths)

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason."""
        return {
            "sharded": "no rank has the whole gradient, which is differentiated again",
            "undone": "it runs the network after the update, which an error there cannot undo",
        }

    def check(self) -> None:
        """Check the names of the settings."""
        for one in self.moves:
            if one.count(".") != 1:
                raise UserError(f"StrengthTuner(strengths={one!r}): must be '<plugin>.<setting>'")
        if not self.moves or len(set(self.moves)) < len(self.moves):
            raise UserError(f"StrengthTuner(strengths={self.strengths!r}): name at least one setting, each once")

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Report what cannot be differentiated."""
        for plugin in plan.core.plugins:
            changes = any(overrides(plugin, hook) for hook in _CHANGERS)
            clips = any(getattr(plugin, name, None) is not None for name in ("clip_norm", "clip_value"))
            if changes or clips:
                what = f"{plugin.name} {'clips' if clips else 'changes'} gradients, which is not differentiated"
                yield Finding("error", self.name, f"{what}; leave one of the two out")
        if plan.options.get("gradient_clip_val"):
            yield Finding("error", self.name, "gradient_clip_val clips gradients, which is not differentiated")
        if not plan.data.validates:
            yield Finding("error", self.name, "needs a validation part: Data(val=...)")

    def attach(self, core: Host) -> None:
        """Find the settings."""
        self.core_, self.window_ = core, None
        named = {plugin.name: plugin for plugin in core.plugins if plugin is not self}
        self.plugins_: dict[str, tuple[Any, str, float]] = {}
        for one in self.moves:
            name, setting = one.split(".")
            if name not in named:
                raise UserError(
                    f"StrengthTuner(strengths={one!r}): no plugin is called {name!r}{did_you_mean(name, named)}"
                )
            plugin = named[name]
            if setting not in plugin.proportional:
                known = ", ".join(plugin.proportional) or "none"
                raise UserError(
                    f"StrengthTuner(strengths={one!r}): what {name} adds is not proportional to {setting!r} (it is to:"
                    f" {known})"
                )
            value = getattr(plugin, setting)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise UserError(f"StrengthTuner(strengths={one!r}): {setting}={value!r}; must be one number above 0")
            if any(other is not self and one in other.moves for other in core.plugins):
                raise UserError(f"StrengthTuner(strengths={one!r}): another plugin changes it too; remove one")
            if any(plugin is known for known, _, _ in self.plugins_.values()):
                raise UserError(
                    f"StrengthTuner(strengths={self.strengths!r}): two of {name}; name one setting a plugin"
                )
            self.plugins_[one] = (plugin, setting, float(value))
        self.logs_ = dict.fromkeys(self.plugins_, 0.0)
        self.moments_ = {one: [0.0, 0.0] for one in self.plugins_}
        self.count_ = 0
        self.before_: dict[Tensor, Tensor] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check optimizer and network."""
        check_optimizer(trainer.optimizers[0])
        if getattr(pl_module, "_compile", False):
            raise UserError("StrengthTuner: a compiled network cannot be differentiated twice; leave compile out")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the step's micro-batches."""
        self.window_ = batch

    def begin_step(self, step: Step) -> None:
        """Set the strengths, and keep the weights of a step that is looked at."""
        for one, (plugin, setting, start) in self.plugins_.items():
            setattr(plugin, setting, start * math.exp(self.logs_[one]))
            step.record(f"strength/{one}", getattr(plugin, setting))
        looks = (step.index + 1) % self.every == 0
        # of all, since a plugin may thaw some in this step
        self.before_ = {one: one.detach().clone() for one in self.core_.model.parameters()} if looks else None

    def after_update(self, step: Step) -> None:
        """Move the strengths."""
        if self.before_ is None or self.window_ is None:
            return
        found = self.hypergradients(step)
        self.count_ += 1
        for one, gradient in found.items():
            step.record(f"hypergradient/{one}", gradient)
            change, *self.moments_[one] = adam_step(gradient, *self.moments_[one], self.count_, self.rate)
            bound = math.log(self.reach)
            self.logs_[one] = min(max(self.logs_[one] + change, -bound), bound)
        self.before_ = None

    def hypergradients(self, step: Step) -> dict[str, float]:
        """Return the derivative of the validation loss after the update by the logarithm of each strength."""
        core, before, weights, optimizer = self.core_, self.before_, self._weights(), step.optimizer
        assert before is not None and optimizer is not None
        vector = core.validation_gradient(weights, self.samples, self.count_)
        groups = {weight: group for group in optimizer.param_groups for weight in group["params"]}
        answered = []
        for weight, value in zip(weights, vector, strict=True):
            if weight.grad is None or weight not in groups:
                answered.append(torch.zeros_like(weight))
                continue
            answered.append(value * response(optimizer, groups[weight], weight, weight.grad, before[weight]))
        with core.edits.nested(rare=True):
            for weight in core.edits.save(weights):
                weight.copy_(before[weight])
            names = [plugin.name for plugin, _, _ in self.plugins_.values()]
            found = core.sensitivity(self.window_, answered, names)
        return {one: -found[plugin.name] for one, (plugin, _, _) in self.plugins_.items()}

    def finish(self, core: Host) -> None:
        """Give the settings their declared values again."""
        for plugin, setting, start in self.plugins_.values():
            setattr(plugin, setting, start)

    def _weights(self) -> list[Tensor]:
        return [weight for weight in self.core_.model.parameters() if weight.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """Return the logarithms of the strengths over the declared ones, and Adam's moments."""
        return {
            "logs": dict(self.logs_),
            "moments": {k: list(v) for k, v in self.moments_.items()},
            "count": self.count_,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load them."""
        self.logs_ = {**self.logs_, **state_dict["logs"]}
        self.moments_ = {**self.moments_, **{k: list(v) for k, v in state_dict["moments"].items()}}
        self.count_ = state_dict["count"]
