"""Encodings of numbers for networks that take a plain vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from framework.data import input_of
from framework.errors import UserError
from framework.ops.encodings import edges_of, periodic, piecewise_linear
from framework.plugin import Host, Plugin
from framework.ranges import LogRange
from framework.settings import Positive, PositiveInt


class Encoded(nn.Module):
    """A linear layer that takes encodings of its inputs as well.

    Args:
        linear: the layer.
        columns: which of its inputs are encoded.
        kind: ``"piecewise"`` or ``"periodic"``.
        bins: number of bins, or of frequencies.
        scale: standard deviation of the frequencies.
    """

    def __init__(self, linear: nn.Linear, columns: list[int], kind: str, bins: int, scale: float) -> None:
        super().__init__()
        self.linear, self._kind = linear, kind
        like: dict[str, Any] = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.register_buffer("columns", torch.tensor(columns, device=like["device"]))
        if kind == "piecewise":
            self.register_buffer("edges", torch.zeros(len(columns), bins + 1, **like))
        else:
            self.frequencies = nn.Parameter((scale * torch.randn(len(columns), bins)).to(**like))
        wide = len(columns) * bins * (1 if kind == "piecewise" else 2)
        self.encoded = nn.Linear(wide, linear.out_features, bias=False, **like)
        nn.init.zeros_(self.encoded.weight)  # the network begins as it was without

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, missing values (nan) taken for 0."""
        chosen = x[..., self.columns]  # type: ignore[index]
        parts = (
            piecewise_linear(chosen, self.edges)  # type: ignore[arg-type]
            if self._kind == "piecewise"
            else periodic(chosen, self.frequencies)
        )
        out: Tensor = self.linear(x.nan_to_num(0)) + self.encoded(parts.flatten(-2).to(x.dtype))
        return out


class NumberEncoding(Plugin):
    r"""Give the first layer encodings of its input numbers besides the numbers themselves.

    .. math::
        h = W x + b + V\,[e(x_1), …, e(x_d)], \qquad
        e_t(x) = \min\!\left(1, \max\!\left(0, \tfrac{x - b_{t-1}}{b_t - b_{t-1}}\right)\right)
        \;\text{or}\; [\sin(2\pi c_l x), \cos(2\pi c_l x)]_l

    so that the layer can bend, and step, along each number. The edges :math:`b_t` are quantiles of the training part,
    kept in checkpoints and exports; frequencies are trained. V begins at 0: the network begins as it was. A missing
    value (nan) is encoded by zeros; a constant column adds nothing.

    Args:
        bins: number of bins, or of frequencies, a column; 8 to 32.
        kind: ``"piecewise"``, which is nearly free and rarely harms, or ``"periodic"``.
        columns: which inputs are encoded; None for all. Leave out indicators, which gain nothing.
        scale: standard deviation of the frequencies, for standardized numbers 0.01 to 1; it decides how fine the
            periodic encoding looks.

    Raises:
        UserError: if the network has no linear layer that takes the data's input as a plain vector, or not that column.

    Example:
        >>> NumberEncoding(columns=[0, 3]).describe()
        'NumberEncoding(columns=[0, 3])'

    Interacts with: penalties and noise on weights, which find the layer as ``<name>.linear`` and ``<name>.encoded``.

    Source: Gorishniy, Rubachev and Babenko (2022), On embeddings for numerical features in tabular deep learning.
    """

    bins: Annotated[PositiveInt, LogRange(4, 64)] = 12
    kind: Literal["piecewise", "periodic"] = "piecewise"
    columns: list[int] | None = None
    scale: Annotated[Positive, LogRange(0.01, 1)] = 0.1

    examples = (
        {"bins": 4, "in": "rows"},
        {"bins": 3, "kind": "periodic", "columns": [0, 2], "in": "rows"},
    )

    @property
    def idle(self) -> tuple[str, ...]:
        """Return the setting of the other kind."""
        return ("scale",) if self.kind == "piecewise" else ()

    def limits(self) -> Mapping[str, str]:
        """Return the checks that cannot pass, with the reason."""
        return {"eval": "the encoding is a part of the network"}

    def prepare_model(self, model: nn.Module) -> nn.Module:
        """Put the layer that takes encodings in the first linear layer's place."""
        found = next(((name, one) for name, one in model.named_modules() if isinstance(one, nn.Linear)), None)
        if found is None:
            raise UserError(f"{self.describe()}: {type(model).__name__} has no nn.Linear, which would take encodings")
        name, linear = found
        columns = list(range(linear.in_features)) if self.columns is None else self.columns
        if wrong := [one for one in columns if not 0 <= one < linear.in_features]:
            wide = linear.in_features
            raise UserError(f"{self.describe()}: the first nn.Linear takes {wide} numbers and has no column {wrong[0]}")
        self.encoded_ = Encoded(linear, columns, self.kind, self.bins, self.scale)
        if not name:
            return self.encoded_
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, self.encoded_)
        return model

    def attach(self, core: Host) -> None:
        """Find the bins in the training part."""
        if core.data is None or core.data.part("train") is None:
            return
        wide = self.encoded_.linear.in_features
        rows = []
        for batch in core.data.eval_loader("train"):
            x = input_of(batch)
            if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != wide or not x.is_floating_point():
                given = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
                raise UserError(
                    f"{self.describe()}: the first nn.Linear takes {wide} numbers, and the data's input is {given}; it"
                    " must be a plain vector of numbers (samples, columns), which that layer takes"
                )
            if self.kind == "periodic":
                return
            rows.append(x[:, self.encoded_.columns.cpu()])  # type: ignore[index]
        edges: Any = self.encoded_.edges
        edges.copy_(edges_of(torch.cat(rows), self.bins))
