"""``Data``: the training, validation and test data of a recipe, and its loaders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import IterableDataset

from framework.data.evaluation import EvalLoader, ReadyLoader
from framework.data.given import Usual, check_used
from framework.data.listed import check_listed
from framework.data.loaders import TrainLoader
from framework.data.modules import is_datamodule, overridden
from framework.data.order import order_of
from framework.data.parts import Part, as_dataset, checked, is_ready, length_of
from framework.data.ready import WindowLoader
from framework.data.roles import Roles
from framework.data.samples import SampleTransform
from framework.data.sharing import gives_ranks_their_own
from framework.data.splits import Splits
from framework.data.stream import Cut, source_name, what_is_lost
from framework.errors import UserError, brief
from framework.ops.keyed import Stream
from framework.settings import as_python


@dataclasses.dataclass
class Data(Splits):
    """The training, validation and test part of the data, and how they are cut into batches.

    A part is one of:

    - tensors in a tuple, mapping or other containers, whose first dimensions run over samples: the fast path, batches
      are taken by one indexing operation, without a ``DataLoader``;
    - a map-style data set, one of Hugging Face's ``datasets`` included, or a list of samples; for a list of batches
      give ``DataLoader(batches, batch_size=None)``;
    - an ``IterableDataset``: its samples are cut into batches in its own order, read by at most one worker;
    - a ``DataLoader``, or another iterable of batches, as it is: an epoch ends at its length, if it has one;
    - as ``train``, a ``LightningDataModule``, which has all parts.

    What a batch's input, target and sample weights are is found by convention: ``(x, y)``, ``(x, y, weight)``, or names
    such as ``image`` and ``label``, ``input_ids`` and ``labels`` (:mod:`framework.data.roles`); ``input``, ``target``
    and ``weight`` declare it otherwise.

    Args:
        train: the training part.
        val: the validation part, None for no validation.
        test: the test part, None for no test.
        batch_size: samples per micro-batch of one rank.
        eval_batch_size: samples per batch in evaluation, None for ``batch_size``.
        workers: number of loader processes, used where samples are transformed or the part is a ``Dataset``.
        collate: makes a batch of a list of samples, None for torch's ``default_collate``.
        drop_last: whether to drop the samples at the end of an epoch that do not fill a whole step.
        input: key, position or attribute of a batch's input; a tuple of them, or a mapping ``{parameter: key}``, for a
            network with several inputs; None for the convention.
        target: key, position or attribute of the target.
        weight: key, position or attribute of the samples' weights in J.
        weights: how often to draw each training sample, relative to the others, ``(samples,)``: numbers of 0 or more.
        balance: ``"class"`` to draw every class equally often, by the target of tensors, or by the data set's
            ``targets`` or ``labels``; or the samples' classes.
        replacement: whether weighted draws may repeat a sample within an epoch; without it, heavier samples come
            earlier, which matters with ``epoch_samples`` alone.
        epoch_samples: training samples per epoch, None for as many as there are.
        lengths: length of each training sample, such as its number of tokens: samples of nearly the same length (within
            5 %) then share a micro-batch, which saves padding.
        tokens: upper bound of a micro-batch's samples times its longest sample, with ``lengths``; ``batch_size`` is the
            upper bound of its samples.
        sharded: whether the loaders give each rank its own batches already. Otherwise ranks take a loader's batches in
            turn.

    Raises:
        UserError: if a part is empty or of no such kind, its tensors differ in length, or an argument is wrong.

    Example:
        >>> data = Data(train=(torch.randn(10, 3), torch.zeros(10)), batch_size=4)
        >>> [len(window.batches[0][0]) for window in data.train_loader(seed=0)]
        [4, 4, 2]
    """

    train: Any = None
    val: Any = None
    test: Any = None
    batch_size: int = dataclasses.field(default=Usual(64), kw_only=True)
    eval_batch_size: int | None = dataclasses.field(default=None, kw_only=True)
    workers: int = dataclasses.field(default=Usual(0), kw_only=True)
    collate: Callable[[list[Any]], Any] | None = dataclasses.field(default=None, kw_only=True)
    drop_last: bool = dataclasses.field(default=False, kw_only=True)
    input: Any = dataclasses.field(default=None, kw_only=True)
    target: Any = dataclasses.field(default=None, kw_only=True)
    weight: Any = dataclasses.field(default=None, kw_only=True)
    weights: Any = dataclasses.field(default=None, kw_only=True)
    balance: Any = dataclasses.field(default=None, kw_only=True)
    replacement: bool = dataclasses.field(default=True, kw_only=True)
    epoch_samples: int | None = dataclasses.field(default=None, kw_only=True)
    lengths: Any = dataclasses.field(default=None, kw_only=True)
    tokens: int | None = dataclasses.field(default=None, kw_only=True)
    sharded: bool = dataclasses.field(default=False, kw_only=True)
    datamodule: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if is_datamodule(self.train):
            self.datamodule, self.train = self.train, None
        whole = (("batch_size", 1), ("eval_batch_size", 1), ("workers", 0), ("epoch_samples", 1), ("tokens", 1))
        for name, least in whole:
            value = as_python(getattr(self, name))
            setattr(self, name, value)
            if value is None and name not in ("batch_size", "workers"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"Data({name}={brief(value)}): {name} must be a whole number >= {least}")
        self._roles = Roles(self.input, self.target, self.weight)
        for name in ("train", "val", "test"):
            part = getattr(self, name)
            if isinstance(part, IterableDataset):
                size = self.batch_size if name == "train" else self.eval_batch_size or self.batch_size
                part = Cut(
                    part,
                    size,
                    num_workers=min(self.workers, 1),  # each of several workers would read the whole stream
                    collate_fn=self.collate,
                    drop_last=self.drop_last and name == "train",
                )
            if part is not None:
                setattr(self, name, checked(name, part, formats=self.collate is None))
        check_used(self)
        check_listed({"train": self.train, "val": self.val, "test": self.test})
        names = ("weights", "balance", "epoch_samples", "lengths", "tokens")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if given and (self.train is None or self.is_ready("train")):
            names_given = " and ".join(given)
            raise UserError(f"Data({names_given}=...): a loader draws its own samples; give the data set itself")
        self._order = order_of(self.train, self._roles, self.batch_size, self.replacement, given) if given else None

    @property
    def validates(self) -> bool:
        """Whether there is, or may be, a validation part: a data module's or LightningModule's own is not known yet."""
        return self.val is not None or self.datamodule is not None or self.train is None

    def samples(self, part: str) -> int | None:
        """Return the number of samples of a part, None if it has none or only its loader knows."""
        chosen = getattr(self, part)
        return None if chosen is None or is_ready(chosen) else length_of(chosen)

    def steps(self, accumulate: int = 1) -> int | None:
        """Return the number of optimizer steps of an epoch on one rank, None if only the user's loader knows."""
        if self.train is None or self.is_ready("train"):
            return None
        return len(self.train_loader(seed=0, accumulate=accumulate))

    def part(self, name: str) -> Any:
        """Return a part, ``"train"``, ``"val"`` or ``"test"``; of a data module its loader, None if there is none."""
        given = getattr(self, name)
        if given is None and self.datamodule is not None and overridden(self.datamodule, f"{name}_dataloader"):
            given = getattr(self.datamodule, f"{name}_dataloader")()
            if isinstance(given, (list, tuple)) and len(given) == 1:
                given = given[0]
            if isinstance(given, (list, tuple, dict)):
                kind = type(self.datamodule).__name__
                raise UserError(
                    f"{kind}.{name}_dataloader: gives {len(given)} loaders; a network takes one, or a LightningModule"
                    " whose steps read several"
                )
        return given

    def is_ready(self, part: str) -> bool:
        """Return whether a part, ``"train"``, ``"val"`` or ``"test"``, already yields batches."""
        chosen = getattr(self, part)
        return is_ready(chosen) if chosen is not None else self.datamodule is not None

    def lost(self) -> list[str]:
        """Return what a run on these data cannot promise, a sentence each; empty for samples, whose order is keyed."""
        return what_is_lost(self.train) if self.train is not None and self.is_ready("train") else []

    def train_loader(
        self,
        *,
        seed: int,
        accumulate: int = 1,
        transforms: Sequence[tuple[str, SampleTransform]] = (),
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> TrainLoader | WindowLoader:
        """Return the loader of the training part.

        Args:
            seed: the run's seed, which keys the order of samples and the draws of the transforms.
            accumulate: micro-batches per optimizer step.
            transforms: ``(name, transform)`` pairs, applied to each sample in order.
            rank: index of this process.
            world: number of processes.
            pin_memory: copy batches into page-locked memory, for a GPU.

        Raises:
            UserError: if there are transforms of samples, but a loader that yields batches.
        """
        chosen = self.part("train")
        if chosen is None:
            raise UserError("the recipe's data have no training part: give Data(train=...)")
        if is_ready(chosen):
            if transforms:
                names = " and ".join(name for name, _ in transforms)
                raise UserError(
                    f"{names}: changes samples, but Data(train=...) is a {source_name(chosen)}, which yields batches;"
                    " give the data set itself, or augment in it"
                )
            return WindowLoader(
                chosen,
                accumulate,
                Stream(seed, "loader"),
                rank=rank,
                world=world,
                sharded=self.sharded or gives_ranks_their_own(chosen),
                roles=self._roles,
            )
        return TrainLoader(
            chosen,
            batch_size=int(self.batch_size),
            seed=seed,
            accumulate=accumulate,
            transforms=transforms,
            rank=rank,
            world=world,
            workers=int(self.workers),
            collate=self.collate,
            drop_last=self.drop_last,
            pin_memory=pin_memory,
            order=self._order,
            roles=self._roles,
        )

    def eval_loader(self, part: str, *, rank: int = 0, world: int = 1) -> EvalLoader | ReadyLoader:
        """Return a loader of one part in order; ranks get disjoint slices of it, or a user's loader's batches in turn.

        Args:
            part: ``"train"``, ``"val"`` or ``"test"``.
            rank: index of this process.
            world: number of processes.

        Raises:
            UserError: if the data have no such part, or fewer samples than there are ranks.
        """
        chosen = self.part(part)
        if chosen is None:
            raise UserError(f"the recipe's data have no {part} part: give Data({part}=...)")
        if is_ready(chosen):
            sharded = self.sharded or gives_ranks_their_own(chosen)
            return ReadyLoader(chosen, part, rank=rank, world=world, roles=self._roles, sharded=sharded)
        if length_of(chosen) < world:
            raise UserError(
                f"Data({part}=...): {length_of(chosen)} samples for {world} ranks; use fewer --trainer.devices"
            )
        return EvalLoader(
            chosen,
            batch_size=int(self.eval_batch_size or self.batch_size),
            rank=rank,
            world=world,
            workers=int(self.workers),
            collate=self.collate,
            roles=self._roles,
        )

    def joined(self) -> Data:
        """Return the same data with the validation part added to the training part.

        Raises:
            UserError: if the two are not samples, or the order of training samples is declared for the training part.
        """
        if self.val is None and self.datamodule is None:
            return self
        if self.train is None or self.is_ready("train") or self.is_ready("val"):
            raise UserError("training on training and validation part together needs their samples, not loaders")
        if self._order is not None:
            raise UserError(
                "training on training and validation part together: Data(weights, balance, epoch_samples, lengths)"
                " say nothing of the validation part; leave them out"
            )
        if isinstance(self.train, tuple) and isinstance(self.val, tuple):
            joined: Part = tuple(torch.cat(pair) for pair in zip(self.train, self.val, strict=True))
        else:
            joined = torch.utils.data.ConcatDataset([as_dataset(self.train), as_dataset(self.val)])
        return dataclasses.replace(self, train=joined)
