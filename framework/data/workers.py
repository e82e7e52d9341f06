"""Worker processes that make batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from framework.data.parcel import PREFETCH, Opening, Packing, Requests


class Workers:
    """A ``DataLoader`` whose worker processes end when they are told to, and send batches in shared memory.

    See :mod:`framework.data.parcel` for the memory.

    Left to the garbage collector, in a cycle with trainer and module, each waits for five seconds. Where batches are
    pinned for a GPU, they are sent as torch does, since its pinning thread copies them anyway.

    Args:
        dataset: where samples come from.
        batches: what the data set is asked for, a list a batch.
        collate: makes a batch of a list of samples, None for torch's ``default_collate``.
        count: worker processes, 0 to make batches in this one.
        generator: of the seeds that torch gives workers.
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
        self._dataset = dataset
        self._options: dict[str, Any] = {
            "batch_sampler": batches,
            "collate_fn": collate or default_collate,
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
        """Begin to make the batches."""
        if self._loader is None:
            if self._options["num_workers"] and "cv2" in sys.modules:
                # a process that is forked while OpenCV's threads are at their locks waits for them for ever
                sys.modules["cv2"].setNumThreads(0)
            self._loader = DataLoader(self._dataset, **self._options)
        self._batches = iter(self._loader)

    def next(self) -> Any:
        """Return the next batch."""
        return self._opening.open(next(self._batches))

    @property
    def exit_code(self) -> int | None:
        """The exit code of a process that failed, the negative number of the signal that ended it; None for none."""
        if not isinstance(self._batches, _MultiProcessingDataLoaderIter):
            return None
        processes = self._batches._workers
        wait([process.sentinel for process in processes], timeout=1.0)  # one that was hit takes a moment to end
        return next((process.exitcode for process in processes if process.exitcode), None)

    def end(self) -> None:
        """End the processes at once, though an error's traceback may still keep what they belong to."""
        if isinstance(self._batches, _MultiProcessingDataLoaderIter):
            self._batches._shutdown_workers()
        self._batches, self._loader, self._opening = iter(()), None, Opening()


def _as_it_is(batch: Any) -> Any:
    return batch
