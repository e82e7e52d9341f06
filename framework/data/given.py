"""Arguments of ``Data`` that were given, though no part reads them."""

from __future__ import annotations

from typing import Any

from framework.data.parts import is_ready
from framework.data.stream import Cut
from framework.errors import UserError


class Usual(int):
    """A default, which can be told from the same number that a user gives.

    Example:
        >>> Usual(64) == 64, Usual(64)
        (True, 64)
    """


def check_used(data: Any) -> None:
    """Check that what says how samples are cut into batches is read by one of the parts; a ready loader reads none.

    Args:
        data: the :class:`framework.Data`.

    Raises:
        UserError: if an argument was given that no part reads.
    """
    parts = {name: part for name in ("train", "val", "test") if (part := getattr(data, name)) is not None}
    ready = [part for part in parts.values() if is_ready(part) and not isinstance(part, Cut)]
    if data.datamodule is not None:
        ready.insert(0, data.datamodule)
    if not ready:
        return
    samples = {name for name, part in parts.items() if not is_ready(part)}
    cut = {name for name, part in parts.items() if isinstance(part, Cut)} | samples
    evaluated = cut - {"train"}
    used = {
        "batch_size": "train" in cut or (data.eval_batch_size is None and bool(evaluated)),
        "eval_batch_size": bool(evaluated | samples),  # J over the training part is evaluated too
        "workers": bool(cut),
        "collate": bool(cut),
        "drop_last": "train" in cut,
    }
    unread = [
        name
        for name, is_read in used.items()
        if not is_read and (value := getattr(data, name)) is not None and value is not False
        if not isinstance(value, Usual)
    ]
    if unread:
        kind = type(ready[0]).__name__
        raise UserError(
            f"Data({', '.join(f'{name}=...' for name in unread)}): a {kind} yields batches of its own, which this does"
            f" not change; set it in the {kind} and leave it out here, or give the data set itself"
        )
