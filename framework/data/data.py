"""``Data``: the training, validation and test data of a recipe, and its loaders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from framework.data.loaders import EvalLoader, SampleTransform, TrainLoader
from framework.data.parts import Part, as_dataset, checked, is_datamodule, is_ready, length_of
from framework.errors import UserError
from framework.settings import as_python


@dataclasses.dataclass
class Data:
    """The training, validation and test part of the data, and how they are cut into batches.

    A part is a tuple of tensors whose first dimension runs over samples (the fast path: batches are taken by one
    indexing operation, without a ``DataLoader``), or a map-style ``torch.utils.data.Dataset``.

    Args:
        train: the training part.
        val: the validation part, None for no validation.
        test: the test part, None for no test.
        batch_size: samples per micro-batch of one rank.
        eval_batch_size: samples per batch in evaluation, None for ``batch_size``.
        workers: number of loader processes, used where samples are transformed or the part is a ``Dataset``.
        collate: makes a batch of a list of samples, None for torch's ``default_collate``.
        drop_last: whether to drop the samples at the end of an epoch that do not fill a whole step.

    Raises:
        UserError: if a part is empty, its tensors differ in length, or it is an ``IterableDataset``, whose order
            cannot be keyed.

    Example:
        >>> data = Data(train=(torch.randn(10, 3), torch.zeros(10)), batch_size=4)
        >>> [len(window.batches[0][0]) for window in data.train_loader(seed=0)]
        [4, 4, 2]
    """

    train: Any = None
    val: Part | None = None
    test: Part | None = None
    batch_size: int = dataclasses.field(default=64, kw_only=True)
    eval_batch_size: int | None = dataclasses.field(default=None, kw_only=True)
    workers: int = dataclasses.field(default=0, kw_only=True)
    collate: Callable[[list[Any]], Any] | None = dataclasses.field(default=None, kw_only=True)
    drop_last: bool = dataclasses.field(default=False, kw_only=True)

    datamodule: Any = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if is_datamodule(self.train):
            self.datamodule, self.train = self.train, None
        for name in ("train", "val", "test"):
            part = getattr(self, name)
            if part is None:
                continue
            setattr(self, name, checked(name, part))
        for name, least in (("batch_size", 1), ("eval_batch_size", 1), ("workers", 0)):
            value = as_python(getattr(self, name))
            setattr(self, name, value)
            if value is None and name == "eval_batch_size":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"Data({name}={value!r}): {name} must be a whole number >= {least}")

    @property
    def validates(self) -> bool:
        """Whether there is, or may be, a validation part: a data module's or LightningModule's own is not known yet."""
        return self.val is not None or self.datamodule is not None or self.train is None

    def samples(self, part: str) -> int | None:
        """Return the number of samples of a part, None if it has none or only its loader knows."""
        chosen = getattr(self, part)
        return None if chosen is None or is_ready(chosen) else length_of(chosen)

    def is_ready(self, part: str) -> bool:
        """Return whether a part, ``"train"``, ``"val"`` or ``"test"``, already yields batches."""
        return is_ready(getattr(self, part))

    def train_loader(
        self,
        *,
        seed: int,
        accumulate: int = 1,
        transforms: Sequence[tuple[str, SampleTransform]] = (),
        rank: int = 0,
        world: int = 1,
        pin_memory: bool = False,
    ) -> TrainLoader:
        """Return the loader of the training part.

        Args:
            seed: the run's seed, which keys the order of samples and the draws of the transforms.
            accumulate: micro-batches per optimizer step.
            transforms: ``(name, transform)`` pairs, applied to each sample in order.
            rank: index of this process.
            world: number of processes.
            pin_memory: copy batches into page-locked memory, for a GPU.
        """
        return TrainLoader(
            self.train,
            batch_size=self.batch_size,
            seed=seed,
            accumulate=accumulate,
            transforms=transforms,
            rank=rank,
            world=world,
            workers=self.workers,
            collate=self.collate,
            drop_last=self.drop_last,
            pin_memory=pin_memory,
        )

    def eval_loader(self, part: str, *, rank: int = 0, world: int = 1) -> EvalLoader:
        """Return a loader of one part in order; ranks get disjoint slices of it.

        Args:
            part: ``"train"``, ``"val"`` or ``"test"``.
            rank: index of this process.
            world: number of processes.

        Raises:
            UserError: if the data have no such part, or fewer samples than there are ranks.
        """
        chosen = getattr(self, part)
        if chosen is None:
            raise UserError(f"the recipe's data have no {part} part: give Data({part}=...)")
        if length_of(chosen) < world:
            raise UserError(
                f"Data({part}=...): {length_of(chosen)} samples for {world} ranks; use fewer --trainer.devices"
            )
        return EvalLoader(
            chosen,
            batch_size=self.eval_batch_size or self.batch_size,
            rank=rank,
            world=world,
            workers=self.workers,
            collate=self.collate,
        )

    def joined(self) -> Data:
        """Return the same data with the validation part added to the training part."""
        if self.val is None:
            return self
        if isinstance(self.train, tuple) and isinstance(self.val, tuple):
            joined: Part = tuple(torch.cat(pair) for pair in zip(self.train, self.val, strict=True))
        else:
            joined = torch.utils.data.ConcatDataset([as_dataset(self.train), as_dataset(self.val)])
        return dataclasses.replace(self, train=joined)
