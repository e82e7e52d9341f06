"""``Plugin``: the base class of regularizers and optimizers, with the hook points that the core calls."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.optim import Optimizer

from framework.plugin.facts import Facts, Terms
from framework.plugin.finding import Finding
from framework.plugin.hooks import HOOKS, NOTICES
from framework.plugin.host import Host
from framework.plugin.phase import Phase
from framework.plugin.plan import Plan
from framework.plugin.step import Step


class Plugin(Facts):
    r"""Base class of plugins: a Lightning ``Callback`` with further hook points whose results the core uses.

    A plugin overrides any of the hook points below, and any of Lightning's hooks (``on_train_start``, …). Hook points
    that it does not override cost nothing. The training loop, with the rule by which the results of plugins combine:

    .. code-block:: text

        model     = fold(prepare_model)                        notify(attach)
        findings  = collect(lint)                              # the run does not start if one is an error
        groups    = fold(group_parameters)
        optimizer = sole(make_optimizer)                       scheduler = sole(make_scheduler)
        for epoch in range(max_epochs):
            for window in loader:                              # accumulate_grad_batches micro-batches, one update
                notify(begin_step)                             # samples went through fold(transform_sample) in workers
                for batch in window:
                    batch = fold(transform_batch)
                    with nest(edit_weights):                   # undone after backward, also after an error
                        J = core.compute_loss(batch)           # forward; fold(transform_activation) at chosen layers
                        (share * (J + sum(penalty))).backward()
                unscale gradients, reduce them over ranks
                sole(second_gradient)
                gradients += sum(weight_penalty_gradient)
                gradients = fold(transform_gradients)
                sole(clip_gradients)
                optimizer.step()
                if not skipped: notify(after_update); scheduler.step()
            with sole(evaluation_weights): validate
            if any(should_stop): break
        notify(finish)                                         # also after an error or Ctrl-C
        sole(next_phase)                                       # and when it is exported: fold(export_model)

    Here ``share`` is the fraction of the step's samples in the micro-batch, so that k micro-batches or ranks give the
    gradient of one batch. The objective is

    .. math:: \tilde J(\theta; X, y) = J(\theta; X, y) + \sum_i \alpha_i \Omega_i

    **Arguments** of most hook points are ``step``, the current :class:`framework.Step` (counters, random draws,
    logging), or ``core``, the core as :class:`framework.Host` describes it.

    **Settings** are typed class attributes of a dataclass, which the constructor stores and checks; override
    :meth:`check` for those that depend on one another. Computed values are kept in attributes that end in ``_``.

    **Relations** map names of other plugin classes to a reason: ``before`` and ``after`` (order in the recipe),
    ``requires`` and ``conflicts``. They are checked before training.

    **Facts** let :mod:`framework.recipe.lint` and other plugins' :meth:`lint` reason about a plugin without knowing its
    class: ``mixes_targets`` (it makes a :class:`framework.MixedTarget`), ``read_once`` (settings that are read only
    before the first step), :attr:`moves` and :attr:`needs_until`.

    **Examples** are settings with which :mod:`framework.testing` tests the class. ``examples`` lists settings strong
    enough to have a visible effect. ``absent`` lists, for each example (or one for all), the settings to override so
    that the plugin has no effect, None if no settings do that. An example may also contain ``"in"``, the task
    (``"images"``, ``"tokens"``, ``"rows"``), and ``"with"``, plugins that it needs: ``{"norm_penalty": {"alpha": 1}}``.

    Args:
        name: the plugin's name in logs, ``--set`` and checkpoints; by default its class name in snake case.

    Raises:
        TypeError: if a class is defined with a method that looks like a misspelt hook, or a hook with wrong arguments.
        UserError: if a setting is of the wrong type or out of bounds.

    Example:
        >>> class Shrink(Plugin):
        ...     factor: float = 0.5
        ...     def transform_gradients(self, step):
        ...         ...
        >>> Shrink(0.1)
        Shrink(name='shrink', factor=0.1)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _check_methods(cls)

    def answers_at(self, hook: str) -> bool:
        """Return whether a hook point that the class overrides is needed with these settings; called before attach.

        For hook points that cost time even if they change nothing, such as ``transform_sample``. The result must not
        change during a run.
        """
        return True

    # ---- hook points, in the order in which a run calls them ---------------------------------------------------------

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Return the network to train: the given one, changed in place or wrapped. Fold.

        Called once, before the optimizer is made and the network is compiled.
        """
        return model

    def attach(self, core: Host) -> None:
        """Resolve patterns and keep references to parts of the finished network. Notify.

        References are kept in attributes that end in ``_``. A plugin with :meth:`transform_activation` selects its
        layers here, by ``core.observe(self, patterns)``. Called once, and again if the parameters are sharded after
        that (``strategy="fsdp2"``): they are then other tensors, of which a rank holds a slice (see
        :mod:`framework.ops.shards`), so every call must start from scratch.
        """

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Yield the errors and warnings of this plugin about the recipe. Collect; called once, after :meth:`attach`.

        Args:
            plan: what is known about the run: the core with all plugins, the weight decay of each parameter, the length
                of the run, and the metrics that it will log.
        """
        yield from ()

    def group_parameters(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups, such as split by weight decay. Fold; may be called several times.

        Args:
            groups: dictionaries with ``"params"``, a list of ``(name, parameter)`` pairs, and optimizer options. The
                first plugin receives one group with all trainable parameters.
        """
        return groups

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer | None:
        """Return the optimizer, or None if this plugin makes none. Sole; the default is AdamW without weight decay.

        Args:
            groups: the groups that :meth:`group_parameters` returned, ``"params"`` now a list of parameters.
        """
        return None

    def make_scheduler(self, optimizer: Optimizer, total_steps: int) -> Mapping[str, Any] | None:
        """Return the learning rate schedule, or None if this plugin makes none. Sole; the default is a constant rate.

        Args:
            optimizer: the run's optimizer.
            total_steps: optimizer steps of the whole run; -1 if no limit is set.

        Returns:
            Lightning's scheduler configuration: a mapping with ``"scheduler"`` and optionally ``"interval"``
            (``"step"`` or ``"epoch"``, the default), ``"frequency"`` and ``"monitor"``.
        """
        return None

    def transform_sample(self, sample: Any, rng: np.random.Generator) -> Any:
        """Return one training sample, transformed. Fold; called in the loader's worker processes.

        Args:
            sample: what the data set returned, commonly ``(input, target)``.
            rng: generator keyed by run seed, plugin, epoch and sample; take all random numbers from it.
        """
        return sample

    def begin_step(self, step: Step) -> None:
        """Called at the start of each optimizer step. Notify."""

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Return one training micro-batch, transformed on the device. Fold; called before its forward.

        Args:
            batch: the collated micro-batch, tensors ``(samples, …)``, commonly ``(input, target)``; read it by
                :func:`framework.data.batch.input_of` and :func:`~framework.data.batch.target_of`.
            step: the current step; random numbers per sample come from ``step.normal`` and ``step.uniform``.
        """
        return batch

    def edit_weights(self, step: Step) -> None:
        """Edit weights in place for forward and backward of one micro-batch. Nest; called under ``no_grad``.

        Save every weight before editing it: ``weights = step.edits.save(self.weights_)``. The core restores the weights
        after backward, also after an error, and applies the update to the unedited weights.
        """

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        """Return a layer's output, changed or as it is. Fold; called in each training forward.

        Only called at the layers selected by ``core.observe`` in :meth:`attach`. Read a setting that a schedule may
        change by ``step.number(self, "setting")``.

        Args:
            x: the layer's output ``(samples, …)``; the first item if the output is a tuple.
            layer: the layer's qualified name.
            step: the current step; random numbers per sample come from ``step.normal`` and ``step.uniform``.
        """
        return x

    def penalty(self, step: Step) -> Tensor | Terms | None:
        r"""Return the differentiable term :math:`\alpha\Omega` of one micro-batch. Sum.

        Called after the micro-batch's forward, with autocast off, so terms are computed in float32. A term on
        activations must be a mean over samples. A term on weights is refused if parameters are sharded: implement
        :meth:`weight_penalty` and :meth:`weight_penalty_gradient` instead.

        Returns:
            A scalar tensor, a mapping of scalar tensors by name (each is logged), or None for no term.
        """
        return None

    def second_gradient(self, step: Step, again: Callable[[Callable[[], None]], None]) -> None:
        """Replace the step's gradient by the gradient at edited weights. Sole.

        Called when the gradient over all micro-batches is in ``grad``, unscaled and reduced over ranks.

        Args:
            step: the current step.
            again: ``again(edit)`` calls ``edit``, which changes weights in place (saved first by ``step.edits.save``),
                evaluates the gradient of all micro-batches with the same random draws into ``grad``, without changing
                buffers or logs, and undoes the edit. A collective: every rank must call it.
        """

    def weight_penalty(self, step: Step) -> Tensor | Terms | None:
        r"""Return the value of a term :math:`\alpha\Omega(\theta)` on weights, for logging. Sum.

        :meth:`weight_penalty_gradient` must add its gradient. Called under ``no_grad``, on logged steps only (and by
        optimizers that evaluate the objective, such as LBFGS). Returns the same types as :meth:`penalty`.
        """
        return None

    def weight_penalty_gradient(self, step: Step) -> None:
        r"""Add the gradient :math:`\alpha\nabla\Omega(\theta)` of a term on weights to their ``grad``, in place. Sum.

        Called under ``no_grad`` once per optimizer step, after unscaling and reduction over ranks, so the term counts
        once under accumulation, mixed precision and any number of ranks.
        """

    def transform_gradients(self, step: Step) -> None:
        """Change the weights' ``grad`` in place, before clipping. Fold; called under ``no_grad``.

        The change must be the same on every rank: take random numbers from ``step.generator(self)``.
        """

    def clip_gradients(self, step: Step) -> bool:
        """Clip the weights' ``grad`` in place and return True, or return False if this plugin does not clip. Sole."""
        return False

    def after_update(self, step: Step) -> None:
        """Called after the optimizer updated the weights, under ``no_grad``, to project or average them. Notify."""

    def evaluation_weights(self, core: Host) -> AbstractContextManager[None] | None:
        """Return a context in which the network holds other weights, or None to evaluate the trained ones. Sole.

        Entered for validation, test, predict and export; on exit it must restore the trained weights.
        """
        return None

    def export_model(self, model: nn.Module) -> nn.Module:
        """Return the network as ``export`` writes it, such as a copy without what only training needs. Fold."""
        return model

    def should_stop(self, metrics: Mapping[str, float]) -> bool:
        """Return whether training must end. Any; called after each validation.

        Args:
            metrics: the latest metrics by tag, such as ``"val/loss"``, reduced over ranks.
        """
        return False

    def finish(self, core: Host) -> None:
        """Called after training ended: normally, by Ctrl-C or by an error. Notify.

        The last checkpoint has been written and holds the weights at the end of training, from which a resumed run
        continues exactly. Weights that are put into the network here are those that the run returns.
        """

    def next_phase(self, core: Host) -> Phase | None:
        """Return one more phase of training, or None. Sole; called only after training ended normally."""
        return None


def overrides(plugin: object, hook: str) -> bool:
    """Return whether a plugin's class overrides a hook point and its settings need it (:meth:`Plugin.answers_at`)."""
    if not isinstance(plugin, Plugin) or getattr(type(plugin), hook) is getattr(Plugin, hook):
        return False
    return plugin.answers_at(hook)


_OWN = frozenset(
    name
    for kind in (Plugin, Facts)
    for name, value in vars(kind).items()
    if callable(value) and not name.startswith("_")
)


def _check_methods(cls: type[Plugin]) -> None:
    """Refuse misspelt hooks, hooks with wrong arguments, and a weight penalty without its gradient or vice versa."""
    known = _OWN | {*NOTICES} | {"state_dict", "load_state_dict"}
    for name, method in vars(cls).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if close or name.startswith("on_"):
                hint = f"did you mean {close[0]!r}?" if close else "Lightning has no such hook"
                raise TypeError(f"{cls.__name__}.{name} is no hook point: {hint} (start a helper's name with '_')")
        elif name in HOOKS:
            expected = list(inspect.signature(getattr(Plugin, name)).parameters)
            received = list(inspect.signature(method).parameters)
            if received != expected:
                raise TypeError(
                    f"{cls.__name__}.{name} takes ({', '.join(received)}), but the hook point is called with"
                    f" ({', '.join(expected)}); use these arguments"
                )
    if (cls.weight_penalty is Plugin.weight_penalty) != (cls.weight_penalty_gradient is Plugin.weight_penalty_gradient):
        raise TypeError(
            f"{cls.__name__} overrides only one of weight_penalty and weight_penalty_gradient: the value is logged and"
            " the gradient trains, so override both (or return a differentiable term from penalty)"
        )
