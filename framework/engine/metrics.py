"""The state of a torchmetrics metric in a checkpoint, and what a metric's or a record's value may be."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor
from torchmetrics import Metric

from framework.errors import UserError
from framework.settings import as_python


def check_number(value: Any, what: str, advice: str) -> None:
    """Check that a value is one number: of Python's, of NumPy's, or a real tensor of one element.

    Args:
        value: the value, which is not read, so that no device is waited for.
        what: where the value comes from, as an error message names it.
        advice: what to do instead, for the message.

    Raises:
        UserError: if it is anything else.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            kind = "complex" if value.is_complex() else f"of shape {tuple(value.shape)}"
            raise UserError(f"{what} gives a tensor {kind}, not one number; {advice}")
    elif not isinstance(as_python(value), (int, float)):
        shape = f" of shape {value.shape}" if hasattr(value, "shape") else ""
        raise UserError(f"{what} gives a value of type {type(value).__name__}{shape}, not one number; {advice}")


def check_records(records: Mapping[str, Any], taken: Collection[str]) -> None:
    """Check what plugins recorded with ``step.record``: one number each, under a tag of their own.

    Args:
        records: values by tag.
        taken: the tags that the run itself logs.

    Raises:
        UserError: if a value is not one number, or its tag is that of another value.
    """
    for tag, value in records.items():
        check_number(value, f"step.record({tag!r}, ...)", "record its mean, or each number under a tag of its own")
        if tag in taken:
            raise UserError(f"step.record({tag!r}, ...): the run logs another value by this tag; record it by another")


def state_of_metric(metric: Metric) -> dict[str, Any]:
    """Return the state of a metric, with its count of updates; the metric itself is left as it is.

    ``Metric.state_dict`` would have the state only after ``persistent(True)``, which would add it to the state of the
    network that the metric is a part of.
    """
    state = {key: _detached(getattr(one, name)) for key, one, name in _states(metric)}
    return {"state": state, "updates": [one._update_count for one in _parts(metric)]}


def restore_metric(metric: Metric, kept: Mapping[str, Any]) -> None:
    """Load what :func:`state_of_metric` returned into a metric of the same kind, on the metric's device."""
    for key, one, name in _states(metric):
        value = kept["state"][key]
        setattr(one, name, [v.to(one.device) for v in value] if isinstance(value, list) else value.to(one.device))
    for one, updates in zip(_parts(metric), kept["updates"], strict=True):
        one._update_count = updates
        one._computed = None


def _states(metric: Metric) -> Iterator[tuple[str, Metric, str]]:
    """Yield each state's key, by its name within the metric, with the part that has it and its attribute there."""
    for prefix, one in metric.named_modules():
        if isinstance(one, Metric):
            yield from ((f"{prefix}.{name}" if prefix else name, one, name) for name in one._defaults)


def _detached(value: Any) -> Any:
    return [one.detach() for one in value] if isinstance(value, list) else value.detach().clone()


def _parts(metric: Metric) -> list[Metric]:
    return [one for one in metric.modules() if isinstance(one, Metric)]


def check_terms(terms: Collection[str], metrics: Collection[str]) -> None:
    """Check that no term of an outcome has the name of a metric, beside which its curve would stand.

    Raises:
        UserError: if one has.
    """
    if same := [name for name in terms if name in metrics]:
        raise UserError(f"Outcome(terms=...): {same[0]!r} is the name of a metric too; rename one of them")
