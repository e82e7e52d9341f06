"""The contract between the core and everything that regularizes or optimizes."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

import numpy as np
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.optim import Optimizer

from framework.plugin.hooks import HOOKS
from framework.settings import check_settings, is_default, settings_of

if TYPE_CHECKING:
    from framework.engine.core import Core
    from framework.plugin.finding import Finding
    from framework.plugin.phase import Phase
    from framework.plugin.plan import Plan
    from framework.plugin.step import Step

Relations = Mapping[str, str]
Terms = Mapping[str, Tensor]


@dataclass_transform(eq_default=False, field_specifiers=(dataclasses.field,))
@dataclasses.dataclass(eq=False)
class Plugin(Callback):
    r"""A Lightning ``Callback`` that can also answer.

    Besides Lightning's notices (``on_train_start``, …) a plugin overrides the hook points below. One that it does not
    override costs nothing. The training loop, with the rule by which answers combine:

    .. code-block:: text

        model     = fold(prepare_model)                        notify(attach)
        findings  = collect(lint)                              # an error among them ends it here
        groups    = fold(group_parameters)
        optimizer = sole(make_optimizer)                       scheduler = sole(make_scheduler)
        for epoch in range(max_epochs):
            for window in loader:                              # accumulate_grad_batches micro-batches, one update
                notify(begin_step)                             # samples went through fold(transform_sample) in workers
                for batch in window:
                    batch = fold(transform_batch)
                    with nest(edit_weights):                   # undone after backward, on every way out
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
        notify(finish)                                         # on every way out
        sole(next_phase)

    Here ``share`` is the micro-batch's share of the samples of the step, so that k micro-batches or ranks give the
    gradient of one batch:

    .. math:: \tilde J(\theta; X, y) = J(\theta; X, y) + \sum_i \alpha_i \Omega_i

    **Settings** are typed fields, declared once; the class is made a dataclass. The constructor stores them and nothing
    more; :meth:`check` looks at them together. What a plugin works out later it keeps in attributes that end in ``_``.

    **Relations** name other plugin classes and say why: ``before`` and ``after`` (order in the recipe), ``requires``
    and ``conflicts``. They are checked before training.

    **Facts** are what plugins tell about themselves for others to know without knowing them: ``mixes_targets`` (makes a
    :class:`framework.MixedTarget`), ``read_once`` (settings that are read before the first step and never again),
    :attr:`moves` and :attr:`needs_until`. :mod:`framework.recipe.lint` and the plugins' own :meth:`lint` go by them.

    **Examples** are settings that :mod:`framework.testing` checks the class with: ``examples`` lists some strong enough
    to show, and ``absent`` what to put over each of them (a single one: over all) so that the plugin is to equal its
    absence, None where nothing does. An example may also say ``"in"``, the task (``"images"`` or ``"tokens"``), and
    ``"with"``, other plugins it needs, ``{"norm_penalty": {"alpha": 0.1}}``.

    Args:
        name: what the plugin is called in logs, ``--set`` and checkpoints; by default its class name in snake case.

    Raises:
        TypeError: when a class is made with a method that looks like a misspelt hook, or with the wrong arguments.
        UserError: when a setting is of the wrong type or out of bounds.

    Example:
        >>> class Shrink(Plugin):
        ...     factor: float = 0.5
        ...     def transform_gradients(self, step):
        ...         ...
        >>> Shrink(0.1)
        Shrink(name='shrink', factor=0.1)
    """

    name: str = dataclasses.field(default="", kw_only=True)

    before: ClassVar[Relations] = {}
    after: ClassVar[Relations] = {}
    requires: ClassVar[Relations] = {}
    conflicts: ClassVar[Relations] = {}

    mixes_targets: ClassVar[bool] = False
    read_once: ClassVar[Collection[str]] = ()

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    absent: ClassVar[Sequence[Mapping[str, Any] | None]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(eq=False)(cls)
        _check_methods(cls)

    def __post_init__(self) -> None:
        if not self.name:
            self.name = snake_case(type(self).__name__)
        check_settings(self)
        self.check()
        self.declared_ = self.settings()  # what the recipe said, whatever a schedule moves later

    def check(self) -> None:
        """Check settings that only make sense together; raise :class:`framework.UserError` where they do not."""

    def answers_at(self, hook: str) -> bool:
        """Tell whether a plugin set like this answers at a hook point that its class overrides; asked before attach.

        For hook points whose mere use costs something, such as ``transform_sample``, and only where the answer cannot
        change during a run.
        """
        return True

    @property
    def moves(self) -> Collection[str]:
        """Settings of other plugins that this one moves during a run, as ``"<plugin>.<setting>"``."""
        return ()

    @property
    def needs_until(self) -> float:
        """The share of the run, 0 to 1, that it must reach for the plugin to have what it is for."""
        return 0.0

    @property
    def state_key(self) -> str:
        """The plugin's key in checkpoints."""
        return self.name

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain data, as ``run.json`` keeps them."""
        return settings_of(self)

    # ---- hook points, in the order in which a run meets them ---------------------------------------------------------

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Return the network to train, changed or wrapped. Fold; once, before the optimizer and compile."""
        return model

    def attach(self, core: Core) -> None:
        """Look at the finished network: resolve patterns, keep references in attributes that end in ``_``. Notify.

        Asked again, to start afresh, where the network's parameters are sharded after that (``strategy="fsdp2"``): they
        are other tensors then, of which a rank holds a part, see :mod:`framework.ops.shards`.

        A plugin with :meth:`transform_activation` chooses its layers by ``core.observe(self, patterns)`` here.
        """

    def lint(self, plan: Plan) -> Iterator[Finding]:
        """Yield what is wrong or odd about the recipe, as far as this plugin can tell. Collect; after attach.

        Args:
            plan: what is known of the run: the core with all plugins, the decay of each weight, how long it will be,
                and which metrics it will log.
        """
        yield from ()

    def group_parameters(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return parameter groups for the optimizer. Fold; asked for :meth:`lint` first, then for the optimizer.

        Args:
            groups: dictionaries with ``"params"``, a list of ``(name, parameter)`` pairs, and optimizer options.
        """
        return groups

    def make_optimizer(self, groups: list[dict[str, Any]]) -> Optimizer | None:
        """Return the optimizer, or None to leave it to others. Sole; the default is AdamW without decay.

        Args:
            groups: as :meth:`group_parameters` returned them, ``"params"`` now being the parameters alone.
        """
        return None

    def make_scheduler(self, optimizer: Optimizer, total_steps: int) -> Mapping[str, Any] | None:
        """Return Lightning's scheduler configuration, or None to leave it to others. Sole; the default is none.

        Args:
            optimizer: the run's optimizer.
            total_steps: optimizer steps of the whole run; -1 where no end is set.

        Returns:
            A mapping with ``"scheduler"`` and, if wanted, ``"interval"`` (``"step"`` or ``"epoch"``) and ``"monitor"``.
        """
        return None

    def transform_sample(self, sample: Any, rng: np.random.Generator) -> Any:
        """Return a training sample, changed. Fold; in the loader's workers.

        Args:
            sample: what the data set returned, commonly ``(input, target)``.
            rng: generator keyed by run seed, plugin, epoch and sample; every draw has to come from it.
        """
        return sample

    def begin_step(self, step: Step) -> None:
        """Be told that an optimizer step begins. Notify."""

    def transform_batch(self, batch: Any, step: Step) -> Any:
        """Return a training micro-batch, changed; :mod:`framework.data.batch` reads its parts. Fold; on the device."""
        return batch

    def edit_weights(self, step: Step) -> None:
        """Edit weights in place for forward and backward of one micro-batch. Nest.

        Every weight is to be saved first: ``weights = step.edits.save(self.weights_)``. The core restores the copies
        after backward, on every way out, and applies the update to the clean weights.
        """

    def transform_activation(self, x: Tensor, layer: str, step: Step) -> Tensor:
        """Return a layer's output, changed or only looked at. Fold; at layers chosen by ``core.observe``.

        Args:
            x: the layer's output, ``(samples, …)``; of a tuple the first entry.
            layer: the layer's qualified name.
            step: the step at hand.
        """
        return x

    def penalty(self, step: Step) -> Tensor | Terms | None:
        r"""Return :math:`\alpha\Omega`, differentiable, for one micro-batch: a scalar or named scalars. Sum.

        Asked after the micro-batch's forward, with autocast off, so terms are worked out in float32. A term on
        activations is a mean over samples. Where parameters are sharded, a term on weights is refused: it belongs to
        :meth:`weight_penalty`.
        """
        return None

    def second_gradient(self, step: Step, again: Callable[[Callable[[], None]], None]) -> None:
        """Replace the step's gradient by one evaluated at edited weights. Sole.

        Asked when the gradient over all micro-batches is complete, unscaled and reduced over ranks. ``again(edit)``
        calls ``edit``, which changes weights in place (each saved first by ``step.edits.save``), evaluates the gradient
        of all micro-batches anew with the same random draws and no trace in buffers and logs, and undoes the edit.
        """

    def weight_penalty(self, step: Step) -> Tensor | Terms | None:
        r"""Return the value of :math:`\alpha\Omega(\theta)` whose gradient :meth:`weight_penalty_gradient` adds. Sum.

        Asked under ``no_grad``, on logged steps only.
        """
        return None

    def weight_penalty_gradient(self, step: Step) -> None:
        r"""Add :math:`\alpha\nabla\Omega(\theta)` in place to the weights' ``grad``. Sum.

        Asked once an optimizer step, after unscaling and reduction over ranks, so that the term counts once under
        accumulation, mixed precision and any number of ranks.
        """

    def transform_gradients(self, step: Step) -> None:
        """Change gradients in place. Fold; the same on every rank, so draws come from ``step.generator(self)``."""

    def clip_gradients(self, step: Step) -> bool:
        """Clip gradients in place and return True, or return False to leave it to others. Sole."""
        return False

    def after_update(self, step: Step) -> None:
        """Be told that the optimizer moved the weights: project, average. Notify; under ``no_grad``."""

    def evaluation_weights(self, core: Core) -> AbstractContextManager[None] | None:
        """Return a context in which the network holds the weights to evaluate, or None. Sole."""
        return None

    def should_stop(self, metrics: Mapping[str, float]) -> bool:
        """Tell whether training is to end. Any.

        Args:
            metrics: validation metrics by tag (``"val/loss"``), already reduced over ranks.
        """
        return False

    def finish(self, core: Core) -> None:
        """Be told that training ended: by itself, by Ctrl-C or by an error. Notify.

        The last checkpoint is written by then and holds the weights as training left them, so that a resumed run goes
        on exactly; what is put into the network now is what the run hands back.
        """

    def next_phase(self, core: Core) -> Phase | None:
        """Return one more phase of training, or None. Sole; asked after training ended by itself."""
        return None

    # ---- a few words that tell ---------------------------------------------------------------------------------------

    def limits(self) -> Mapping[str, str]:
        """Return what cannot hold with these settings, a reason by name of a check of :mod:`framework.testing`.

        A reason for ``"sharded"`` refuses the run before training where ranks share the parameters out.
        """
        return {}

    def describe(self) -> str:
        """Return the plugin as the recipe would write it."""
        shown = [f for f in dataclasses.fields(self) if f.name != "name"]
        values = [(f.name, getattr(self, f.name)) for f in shown if not is_default(f, getattr(self, f.name))]
        parts = [f"{name}={_in_words(value)}" for name, value in values]
        return f"{type(self).__name__}({', '.join(parts)})"


def _in_words(value: Any) -> str:
    """Return functions and classes by name, whose ``repr`` tells an address, and everything else by its ``repr``."""
    if isinstance(value, list):
        return f"[{', '.join(map(_in_words, value))}]"
    return getattr(value, "__qualname__", None) or repr(value)


def snake_case(name: str) -> str:
    """Return a class name in snake case.

    Example:
        >>> snake_case("NormPenalty"), snake_case("SAM")
        ('norm_penalty', 'sam')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def overrides(plugin: object, hook: str) -> bool:
    """Tell whether a plugin's class overrides a hook point and the plugin, as it is set, answers there."""
    if not isinstance(plugin, Plugin) or getattr(type(plugin), hook) is getattr(Plugin, hook):
        return False
    return plugin.answers_at(hook)


_NOTICES = frozenset(name for name in vars(Callback) if name.startswith(("on_", "setup", "teardown")))
_OWN = frozenset(name for name, value in vars(Plugin).items() if callable(value) and not name.startswith("_"))


def _check_methods(cls: type[Plugin]) -> None:
    """Refuse methods that look like a hook but are none, hooks with wrong arguments, and half a weight penalty."""
    known = _NOTICES | _OWN | {"state_dict", "load_state_dict"}
    for name, method in vars(cls).items():
        if name.startswith("_") or not inspect.isfunction(method):
            continue
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            if close or name.startswith("on_"):
                hint = f"did you mean {close[0]!r}?" if close else "Lightning has no such notice"
                raise TypeError(f"{cls.__name__}.{name} is no hook point: {hint} (a helper's name may start with '_')")
        elif name in HOOKS:
            expected = list(inspect.signature(getattr(Plugin, name)).parameters)
            received = list(inspect.signature(method).parameters)
            if received != expected:
                raise TypeError(
                    f"{cls.__name__}.{name} takes ({', '.join(received)}); the hook point is called with"
                    f" ({', '.join(expected)})"
                )
    if (cls.weight_penalty is Plugin.weight_penalty) != (cls.weight_penalty_gradient is Plugin.weight_penalty_gradient):
        raise TypeError(
            f"{cls.__name__} has one of weight_penalty and weight_penalty_gradient: the value is what is logged, the"
            " gradient is what trains, so a plugin has both (or returns a differentiable term from penalty)"
        )
