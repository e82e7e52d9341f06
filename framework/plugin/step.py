"""The optimizer step at hand, as hook points receive it: counters, keyed random draws, logging."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.ops.keyed import Kind, Stream
from framework.ops.traced import draw, number, register
from framework.plugin.edits import WeightEdits
from framework.plugin.facts import Facts


class Step:
    """The optimizer step at hand; one object, reused, moved on by the core.

    Attributes:
        index: optimizer steps begun before this one; skipped ones (GradScaler) count.
        epoch: the epoch, from 0.
        total: optimizer steps of the whole run, infinity where no end is set.
        micro: which micro-batch of the step, from 0.
        micros: how many micro-batches the step has on this rank.
        start: position of the micro-batch's first sample among all samples of the step, over ranks and micro-batches.
        count: samples in the micro-batch.
        samples: samples of the whole step, over ranks and micro-batches.
        rank: this process among ``world`` processes.
        world: number of processes.
        logged: whether this step's values go to the logger; expensive values are worked out only then.
        batch: the micro-batch at hand, after the plugins' transforms; None between micro-batches.
        again: how many second evaluations enclose this one (see :mod:`framework.engine.forward`), 0 for the step's own
            forward; nothing of a second evaluation is to be recorded.
        edits: the service through which plugins edit weights.
        optimizer: the run's optimizer.
        plugins: the recipe's plugins by name.
        skipped: steps left out so far because they were not finite, see :mod:`framework.engine.skips`.
    """

    def __init__(self, seed: int, edits: WeightEdits) -> None:
        self.seed = seed
        self.edits = edits
        self.optimizer: Optimizer | None = None
        self.index = 0
        self.epoch = 0
        self.total: float = math.inf
        self.micro = 0
        self.micros = 1
        self.start = 0
        self.count = 0
        self.samples = 0
        self.rank = 0
        self.world = 1
        self.logged = False
        self.batch: Any = None
        self.again = 0
        self.skipped = 0
        self.records: dict[str, Tensor | float] = {}
        self._streams: dict[str, Stream] = {}
        self.plugins: dict[str, Facts] = {}
        self.token = register(self)  # by which compiled graphs find it

    @property
    def progress(self) -> float:
        """The share of the run that is done, from 0 to 1; 0 where no end is set."""
        return min(1.0, self.index / self.total) if math.isfinite(self.total) and self.total > 0 else 0.0

    def stream(self, who: str) -> Stream:
        """Return the random stream of a consumer, such as a plugin."""
        stream = self._streams.get(who)
        if stream is None:
            stream = self._streams[who] = Stream(self.seed, who)
        return stream

    def generator(self, plugin: Facts, device: torch.device | str = "cpu") -> torch.Generator:
        """Return the plugin's generator for draws that belong to the step: the same in every micro-batch and rank."""
        return self.stream(plugin.name).torch(self.index, device=device)

    def micro_generator(self, plugin: Facts, device: torch.device | str = "cpu") -> torch.Generator:
        """Return the plugin's generator for draws that belong to one micro-batch of one rank."""
        return self.stream(plugin.name).torch(self.index, self.micro, self.rank, device=device)

    def normal(self, plugin: Facts, like: Tensor, who: str = "") -> Tensor:
        r"""Return :math:`\mathcal N(0, 1)` noise shaped like ``like``, whose first dimension runs over samples.

        The noise of a sample depends on its position in the step's whole batch, not on how that batch is split: k
        micro-batches or ranks draw what one batch draws.

        Args:
            plugin: whose draws they are.
            like: tensor ``(samples, …)`` that gives shape, dtype and device.
            who: tells several draws of one plugin in one step apart, such as a layer's name.
        """
        return self._draw("normal", plugin, like, who)

    def uniform(self, plugin: Facts, like: Tensor, who: str = "") -> Tensor:
        """Return uniform draws from [0, 1) shaped like ``like``; see :meth:`normal`."""
        return self._draw("uniform", plugin, like, who)

    def _draw(self, kind: Kind, plugin: Facts, like: Tensor, who: str) -> Tensor:
        if torch.compiler.is_compiling():
            drawn: Tensor = draw(like.shape, like.dtype, like.device, self.token, kind, plugin.name, who)
            return drawn
        return self.rows(kind, plugin.name, like, who)

    def rows(self, kind: Kind, name: str, like: Tensor, who: str) -> Tensor:
        """Return draws of a plugin by its name; :meth:`normal` and :meth:`uniform` are how plugins ask.

        Args:
            kind: ``"normal"`` or ``"uniform"``.
            name: the plugin's name.
            like: tensor ``(samples, …)`` that gives shape, dtype and device.
            who: tells several draws of one plugin in one step apart.
        """
        rows, size = like.shape[0], like.numel()
        width = size // max(rows, 1)
        stream = self.stream(f"{name}/{who}")
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        if rows == self.count:
            start, room, where = self.start * width, self.samples * width, [self.index, width]
            if like.device.type == "cpu" and start + size <= room:
                drawn = stream.of_step(self.index, room=room, start=start, size=size, kind=kind, dtype=dtype)
                return drawn.view(like.shape).to(like.dtype)
        else:  # a first dimension that does not run over samples: draws of the micro-batch and rank
            start, where = 0, [self.index, width, self.micro + 1, self.rank]
        if like.device.type != "cpu":
            # torch's generators have no places to begin at: the rows before are drawn as well, which costs a GPU little
            make = torch.randn if kind == "normal" else torch.rand
            generator = stream.torch(*where, device=like.device)
            noise = make(start + size, generator=generator, device=like.device, dtype=dtype)[start:]
        elif kind == "uniform":
            noise = stream.uniforms(*where, start=start, size=size, dtype=dtype)
        else:
            noise = stream.normals(*where, start=start, size=size)
        return noise.view(like.shape).to(like.dtype)

    def number(self, plugin: Facts, setting: str) -> float | Tensor:
        """Return a plugin's setting for use in ``transform_activation``: in a compiled network a tensor of one element.

        There a number that a schedule moves, read directly, would have the network compiled again for each value.

        Args:
            plugin: whose setting.
            setting: name of a number among its settings.
        """
        if torch.compiler.is_compiling():
            traced: Tensor = number(self.token, plugin.name, setting)
            return traced
        value: float = getattr(plugin, setting)
        return value

    def record(self, name: str, value: Tensor | float) -> None:
        """Log a scalar with this step; worth calling only where :attr:`logged` is true.

        Args:
            name: the tag, such as ``"sparsity/relu1"``.
            value: a number, or a tensor of one element, which is read only when the logger writes it.
        """
        if self.logged and not self.again:
            self.records[name] = value
