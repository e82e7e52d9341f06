"""What a study would search, and what a trial of it would cost."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from framework.recipe.spec import Source
from framework.report.table import table
from framework.run.fit import fit
from framework.tune.order import Order
from framework.tune.space import Space


def dry(recipe: Source, **given: Any) -> str:
    """Return what :func:`framework.tune.tune` with these arguments would search, and what a trial costs, as text.

    The cost is that of one epoch with the recipe's own settings, which is trained for this, times epochs and runs.
    """
    known = {field.name for field in dataclasses.fields(Order)}
    order = Order(recipe, **{name: value for name, value in given.items() if name in known and value is not None})
    built = order.build()
    lines = ["searched:", table(Space(order, built).rows(), ["name", "range", "in the recipe"])]
    overrides = order.overrides({})
    epochs = int(built.trainer.get("max_epochs") or 1)
    overrides["trainer"]["max_epochs"] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of patience longer than one epoch, and the like
        seconds = fit(order.factory(), seed=0, logs=None, **overrides).seconds
    runs = len(order.runs())
    whole = runs * epochs * seconds
    lines.append(f"a trial: {runs} x {epochs} epochs of at most {seconds:.2g} s, together at most {whole:.3g} s")
    return "\n".join(lines)
