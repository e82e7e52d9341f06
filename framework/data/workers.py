"""Worker processes that load batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from framework.data.parcel import PREFETCH, Opening, Packing, Requests


class Workers:
    """A ``DataLoader`` whose worker processes can be stopped at once, and which reuses shared memory for its batches.

    See :mod:`framework.data.parcel` for the memory. Left to the garbage collector, in a reference cycle with trainer
    and module, each worker would wait for five seconds at the end. Batches that are pinned for a GPU are sent the way
    torch does, since its pinning thread copies them anyway.

    Args:
        dataset: the data set.
        batches: the batch sampler: a list of indices per batch.
        collate: makes a batch of a list of samples, None for torch's ``default_collate``.
        count: number of worker processes, 0 to load batches in this process.
        generator: generates the seeds that torch gives to workers.
        pin_memory: copy batches into page-locked memory.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batches: Iterable[list[Any]],
        collate: Callable[[list[Any]], Any] | None,
        count: int,
        generator: torch.Generator,
        pin_memory: bool = False,
    ) -> None:
        self._dataset = self._samples = dataset
        self._collate = collate or default_collate
        self._options: dict[str, Any] = {
            "batch_sampler": batches,
            "collate_fn": self._collate,
            "num_workers": count,
            "persistent_workers": count > 0,
            "prefetch_factor": PREFETCH if count else None,
            "pin_memory": pin_memory,
            "generator": generator,
        }
        if count and not pin_memory:
            self._dataset = Packing(dataset, collate)
            self._options |= {"batch_sampler": Requests(batches), "collate_fn": _as_it_is}
        self._opening = Opening()
        self._loader: DataLoader[Any] | None = None
        self._batches: Iterator[Any] = iter(())

    def begin(self) -> None:
        """Start a pass over the batches."""
        if self._loader is None:
            if self._options["num_workers"] and "cv2" in sys.modules:
                # a process forked while OpenCV's threads hold their locks would wait for them forever
                sys.modules["cv2"].setNumThreads(0)
            self._loader = DataLoader(self._dataset, **self._options)
        self._batches = iter(self._loader)

    def next(self) -> Any:
        """Return the next batch."""
        return self._opening.open(next(self._batches))

    def load(self, indices: Sequence[Any]) -> Any:
        """Return a batch of any samples, loaded in this process."""
        alone = DataLoader(self._samples, batch_sampler=[list(indices)], collate_fn=self._collate)
        return next(iter(alone))

    @property
    def exit_code(self) -> int | None:
        """The exit code of a worker that failed, negative for a signal; None if none failed."""
        if not isinstance(self._batches, _MultiProcessingDataLoaderIter):
            return None
        processes = self._batches._workers
        wait([process.sentinel for process in processes], timeout=1.0)  # a killed process takes a moment to exit
        return next((process.exitcode for process in processes if process.exitcode), None)

    def end(self) -> None:
        """Stop the processes now, even if a traceback still references the loader."""
        if isinstance(self._batches, _MultiProcessingDataLoaderIter):
            self._batches._shutdown_workers()
        self._batches, self._loader, self._opening = iter(()), None, Opening()


def _as_it_is(batch: Any) -> Any:
    return batch
