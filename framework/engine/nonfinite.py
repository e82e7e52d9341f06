"""Finds the cause of an objective that is not finite: a term, a weight, a batch or a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from framework.data.batch import input_of, size_of, target_of, third_of
from framework.data.loaders import TrainLoader
from framework.data.means import total_weight
from framework.data.mixed import MixedTarget, clean_target
from framework.engine.forward import Forward
from framework.engine.objective import Objective
from framework.errors import NonFiniteError, UserError
from framework.ops.finite import finite_weights
from framework.ops.shards import is_sharded

_PARTS: dict[str, Callable[[Any], Any]] = {"input": input_of, "target": target_of, "weight": third_of}
_DATA = "correct the data, or go on without such batches (--on-nonfinite skip)"


def explain_nonfinite(
    objective: Objective, forward: Forward, raw: Any, terms: Mapping[str, Tensor], total: Tensor
) -> str:
    """Explain in one line an objective that is not finite: which term, its cause, and what to do.

    To find the first layer whose output is not finite, the current micro-batch is evaluated a second time, with the
    same random draws and without side effects; this is omitted if it would be a collective.

    Args:
        objective: the objective; called within the micro-batch.
        forward: evaluates J of the micro-batch.
        raw: the micro-batch as the loader yielded it.
        terms: J (``"loss"``) and the terms of the plugins by tag.
        total: their sum.
    """
    name = next((tag for tag, term in terms.items() if not torch.isfinite(term).all()), "objective")
    value = terms.get(name, total).item()
    data = list(_in_data(objective, raw))
    causes = [cause for cause in (_weight(objective), *(data or _in_transforms(objective, raw))) if cause]
    if name == "loss" and (layer := _layer(objective, forward, has_cause=bool(causes))):
        causes.append(layer)
    subject = {"loss": "the loss", "objective": "the sum of loss and terms"}.get(name, name)
    reason = f": {', and '.join(causes)}" if causes else ""
    advice = _DATA if data and causes[0] == data[0] else NonFiniteError.ADVICE
    return f"step {objective.at.index}: {subject} is {value}{reason}; {advice}"


def explain_evaluation(objective: Objective, stage: str, batch: Any, loss: Tensor) -> str:
    """Explain in one line a loss of an evaluation that is not finite.

    Args:
        objective: the objective.
        stage: ``"val"`` or ``"test"``.
        batch: the batch.
        loss: its loss.
    """
    causes = [f"the weight {name!r} is not finite"] if (name := finite_weights(objective.model)) else []
    for part, read in _PARTS.items():
        row = _bad_row(_part(batch, read))
        if row is not None:
            causes.append(f"the {part} of row {row} of its batch is not finite")
    reason = f": {', and '.join(causes)}" if causes else ""
    words = {"val": "validation"}.get(stage, stage)
    return f"{words}: the loss is {loss.item()}{reason}; the mean over all batches is then not finite either"


def _weight(objective: Objective) -> str:
    """Return a clause on a weight that is not finite, and whether an edit caused it; empty if all are finite."""
    name = finite_weights(objective.model) if objective.at.world == 1 or not _evaluates_together(objective) else None
    if name is None:
        return ""
    weight = dict(objective.model.named_parameters()).get(name)
    before = objective.edits.before(weight) if weight is not None else None
    if before is not None and torch.isfinite(before).all():
        hook = "second_gradient" if objective.at.again else "edit_weights"
        editors = " and ".join(repr(plugin.name) for plugin in objective.answers.of(hook))
        return f"{name!r} is not finite after {hook} of {editors}"
    return f"{name!r} is not finite since an earlier update"


def _in_data(objective: Objective, raw: Any) -> Iterator[str]:
    """Yield a clause on a batch of the loader's that is not finite, or has no target that counts."""
    for part, read in _PARTS.items():
        row = _bad_row(_part(raw, read))
        if row is not None:
            yield f"the {part} of {_sample(objective, raw, row)} is not finite"
            return
    total = total_weight(objective.loss, clean_target(_part(raw, target_of)))
    if total is not None and not total:
        yield f"no target of micro-batch {objective.at.micro} counts: all are ignored, or of classes of weight 0"


def _in_transforms(objective: Objective, raw: Any) -> Iterator[str]:
    """Yield a clause on a batch that is not finite after a plugin's transform."""
    if objective.at.batch is None or _bad_row(_part(objective.at.batch, input_of)) is None:
        return
    batch = raw
    for plugin in objective.answers.of("transform_batch"):
        batch = plugin.transform_batch(batch, objective.at)
        if _bad_row(_part(batch, input_of)) is not None:
            yield f"the input is not finite after transform_batch of {plugin.name!r}"
            return


def _part(batch: Any, read: Callable[[Any], Any]) -> Any:
    try:
        return read(batch)
    except UserError:  # a batch in a format that only the user's compute_loss can read
        return None


def _bad_row(part: Any) -> int | None:
    """Return the index of the first row with an entry that is not finite, or None if all are finite."""
    for tensor in _tensors(part):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            rows = torch.isfinite(tensor).reshape(len(tensor), -1).all(1) if tensor.ndim else tensor[None]
            return int((~rows).nonzero()[0]) if tensor.ndim else 0
    return None


def _sample(objective: Objective, raw: Any, row: int) -> str:
    """Name a row of the micro-batch: by its index in the training part if rows are samples."""
    loader = objective.trainer.train_dataloader
    if isinstance(loader, TrainLoader) and size_of(raw) == objective.at.count:
        batch = objective.trainer.fit_loop.epoch_loop.batch_idx
        return f"training sample {loader.sample_at(batch, objective.at.start + row)}"
    return f"row {row} of micro-batch {objective.at.micro}"


def _layer(objective: Objective, forward: Forward, *, has_cause: bool) -> str:
    """Return a clause on the first layer, in order of execution, whose output is not finite; empty if unknown."""
    if objective.at.world > 1 and _evaluates_together(objective):
        return ""
    found: list[str] = []
    network = objective.__dict__["_network"]
    object.__setattr__(objective, "_network", objective.model)  # a compiled network ignores hooks that are added later
    try:
        with _watched(objective, found):
            loss = forward.evaluate(objective.at.batch).loss
    except Exception:  # the user's code may fail on such numbers; report their cause all the same
        loss = None
    finally:
        object.__setattr__(objective, "_network", network)
    if found:
        if has_cause:
            return f"the first output that is not finite is that of {found[0]}"
        return f"the first value that is not finite is the output of {found[0]}"
    if loss is not None and torch.isfinite(loss).all():
        return "a second evaluation is finite, so it depends on a random draw that is not keyed, or on the machine"
    return "" if has_cause else "the output of every layer is finite, but the loss computed from them is not"


@contextmanager
def _watched(objective: Objective, found: list[str]) -> Iterator[None]:
    """Collect the layers whose outputs are not finite, in order of execution, before and after the plugins' changes."""
    handles: list[RemovableHandle] = []

    def hook(words: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if any(not torch.isfinite(t).all() for t in _tensors(output) if t.is_floating_point()):
                found.append(words)

        return note

    try:
        for name, layer in objective.model.named_modules():
            words = f"{f'layer {name!r}' if name else 'the network'} ({type(layer).__name__})"
            handles.append(layer.register_forward_hook(hook(words), prepend=True))
            if watchers := " and ".join(repr(plugin.name) for plugin in objective.observers.of(name)):
                words += f" after transform_activation of {watchers}"
                handles.append(layer.register_forward_hook(hook(words)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _evaluates_together(objective: Objective) -> bool:
    """Return whether the forward pass is a collective, which every rank must call."""
    return any(is_sharded(p) for p in objective.model.parameters()) or any(
        isinstance(layer, nn.SyncBatchNorm) for layer in objective.model.modules()
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, MixedTarget):
        yield from _tensors([target for target, _ in value.pairs])
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
