"""``Step``: the current optimizer step as hook points receive it: counters, keyed random draws, logging."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from framework.data.outcome import Outcome
from framework.ops.draws import Consumer
from framework.ops.keyed import Kind, Stream
from framework.ops.traced import draw, number, register
from framework.plugin.edits import WeightEdits
from framework.plugin.facts import Facts


class Step:
    """The current optimizer step; a single object that the core updates from step to step.

    Attributes:
        index: index of the step, from 0: the number of steps begun before; those that a GradScaler skipped count.
        epoch: index of the epoch, from 0.
        total: optimizer steps of the whole run, infinity if no limit is set.
        micro: index of the micro-batch within the step, from 0.
        micros: number of micro-batches of the step on this rank.
        start: position of the micro-batch's first sample among all samples of the step, over ranks and micro-batches.
        count: number of samples in the micro-batch.
        samples: number of samples of the whole step, over ranks and micro-batches.
        rank: index of this process.
        world: number of processes.
        logged: whether this step's values go to the logger; compute expensive values only then.
        batch: the current micro-batch, after the plugins' transforms; None between micro-batches.
        outcome: what the network gave on the micro-batch, loss J included; for ``penalty``, None elsewhere.
        ratio: what a mean over what J is a mean over, such as the targets that are not ignored, is to be multiplied by
            in ``penalty``, so that micro-batches with few of them count less, as they do in J; 1 if J is a mean over
            samples.
        again: nesting depth of second evaluations (see :mod:`framework.engine.forward`), 0 in the step's own forward;
            values of a second evaluation must not be recorded.
        edits: saves weights before plugins edit them, and restores them.
        optimizer: the run's optimizer, None before training starts.
        plugins: the recipe's plugins by name.
        skipped: number of steps skipped so far because they were not finite, see :mod:`framework.engine.skips`.
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
        self.outcome: Outcome | None = None
        self.ratio = 1.0
        self.again = 0
        self.skipped = 0
        self.records: dict[str, Tensor | float] = {}
        self._streams: dict[str, Stream] = {}
        self.plugins: dict[str, Facts] = {}
        self.token = register(self)  # compiled graphs can hold this number, but not the object

    @property
    def progress(self) -> float:
        """The completed fraction of the run, from 0 to 1; 0 if no limit is set."""
        return min(1.0, self.index / self.total) if math.isfinite(self.total) and self.total > 0 else 0.0

    def stream(self, who: str) -> Stream:
        """Return the random stream of a consumer, such as a plugin."""
        stream = self._streams.get(who)
        if stream is None:
            stream = self._streams[who] = Stream(self.seed, who)
        return stream

    def generator(self, plugin: Facts, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a plugin's random generator for draws per step: the same in every micro-batch and on every rank."""
        return self.stream(plugin.name).torch(self.index, device=device)

    def micro_generator(self, plugin: Facts, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a plugin's random generator for draws per micro-batch and rank."""
        return self.stream(plugin.name).torch(self.index, self.micro, self.rank, device=device)

    def normal(self, plugin: Consumer, like: Tensor, who: str = "") -> Tensor:
        r"""Draw :math:`\mathcal N(0, 1)` noise of the shape of ``like``, whose first dimension runs over samples.

        The noise of a sample depends on its position in the step's whole batch and not on how that batch is split: k
        micro-batches or ranks draw the same numbers as one batch.

        Args:
            plugin: the plugin that draws.
            like: tensor ``(samples, …)`` that gives shape, dtype and device.
            who: distinguishes several draws of one plugin in one step, such as a layer's name.
        """
        return self._draw("normal", plugin, like, who)

    def uniform(self, plugin: Consumer, like: Tensor, who: str = "") -> Tensor:
        """Draw uniform numbers from [0, 1) in the shape of ``like``; arguments as for :meth:`normal`."""
        return self._draw("uniform", plugin, like, who)

    def _draw(self, kind: Kind, plugin: Consumer, like: Tensor, who: str) -> Tensor:
        if torch.compiler.is_compiling():
            drawn: Tensor = draw(like.shape, like.dtype, like.device, self.token, kind, plugin.name, who)
            return drawn
        return self.rows(kind, plugin.name, like, who)

    def rows(self, kind: Kind, name: str, like: Tensor, who: str) -> Tensor:
        """Draw random numbers for a plugin given by name; plugins call :meth:`normal` or :meth:`uniform` instead.

        Args:
            kind: ``"normal"`` or ``"uniform"``.
            name: the plugin's name.
            like: tensor ``(samples, …)`` that gives shape, dtype and device.
            who: distinguishes several draws of one plugin in one step.
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
        else:  # the first dimension does not run over samples: draw per micro-batch and rank
            start, where = 0, [self.index, width, self.micro + 1, self.rank]
        if like.device.type != "cpu":
            # torch's generators cannot skip ahead: the rows before are drawn as well, which costs a GPU little
            make = torch.randn if kind == "normal" else torch.rand
            generator = stream.torch(*where, device=like.device)
            noise = make(start + size, generator=generator, device=like.device, dtype=dtype)[start:]
        elif kind == "uniform":
            noise = stream.uniforms(*where, start=start, size=size, dtype=dtype)
        else:
            noise = stream.normals(*where, start=start, size=size)
        return noise.view(like.shape).to(like.dtype)

    def number(self, plugin: Facts, setting: str) -> float | Tensor:
        """Return a numeric setting for use in ``transform_activation``: inside a compiled network as a tensor.

        Read directly, a setting that a schedule changes would make torch recompile the network for each value.

        Args:
            plugin: the plugin.
            setting: name of a numeric setting of the plugin.

        Returns:
            The number, or a tensor of one element inside a compiled network.
        """
        if torch.compiler.is_compiling():
            traced: Tensor = number(self.token, plugin.name, setting)
            return traced
        value: float = getattr(plugin, setting)
        return value

    def record(self, name: str, value: Tensor | float) -> None:
        """Log a scalar with this step; ignored unless :attr:`logged` is true, and in second evaluations.

        Args:
            name: the tag, such as ``"sparsity/relu1"``.
            value: a number, or a tensor of one element, which is read only when it is logged.
        """
        if self.logged and not self.again:
            self.records[name] = value
