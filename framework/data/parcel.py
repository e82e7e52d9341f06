"""Transfer of batches from a loader's worker processes, in shared memory that is reused.

A ``DataLoader`` allocates shared memory for each tensor of each batch. Mapping and unmapping the pages of 64 images of
224 x 224 takes as long as augmenting a dozen of them. Here each worker writes into a few buffers in turn, which stay
mapped, and the training process copies from them into memory of earlier batches.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from torch.utils.data._utils.collate import collate, default_collate_fn_map

PREFETCH = 2  # batches that a worker prepares ahead
_SLOTS = PREFETCH + 1  # one more for the batch that is being copied out
_NUMBERED = 64  # bytes of a buffer's header, which holds the number of its batch; 64 keep what follows aligned
_MIDDLING, _LARGE = 1 << 14, 1 << 20  # bytes


class Request(NamedTuple):
    """A request to a worker for one batch.

    Args:
        iteration: number of the pass over the loader.
        samples: indices of the batch's samples.
    """

    iteration: int
    samples: list[Any]


class Requests:
    """A batch sampler that numbers its passes, so that workers can recognize a new one.

    Batches still in flight at the end of a pass are dropped unread.

    Args:
        batches: the indices of each batch.
    """

    def __init__(self, batches: Iterable[list[Any]]) -> None:
        self._batches = batches
        self._iteration = 0

    def __iter__(self) -> Iterator[Request]:
        self._iteration += 1
        for samples in self._batches:
            yield Request(self._iteration, samples)


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """The location of a tensor in a worker's buffers.

    Args:
        where: the worker's slot, and the index of the tensor in its batch.
        dtype: type of the tensor.
        shape: shape of the tensor.
    """

    where: tuple[int, int]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, buffer: Tensor) -> Tensor:
        """Return the tensor as a view of the buffer."""
        return buffer[_NUMBERED : _NUMBERED + self.nbytes].view(self.dtype).view(self.shape)


@dataclasses.dataclass(frozen=True, slots=True)
class _Row:
    """A sample's tensor that has already been written to its row of the batch's tensor."""

    place: _Place
    room: Tensor
    row: int

    def has_in(self, row: int, other: Any) -> bool:
        """Return whether ``other`` is row ``row`` of the same batch tensor."""
        return isinstance(other, _Row) and other.place is self.place and other.row == row


@dataclasses.dataclass(frozen=True, slots=True)
class Parcel:
    """A batch whose tensors are in a worker's buffers.

    Args:
        worker: index of the worker.
        number: number of the parcel, counted by the worker.
        content: the batch, with a place for each tensor.
        buffers: buffers by place that have not been sent in this pass yet, with the number of the parcel that first
            used each.
    """

    worker: int
    number: int
    content: Any
    buffers: dict[tuple[int, int], tuple[int, Tensor]]


class Packing(Dataset[Any]):
    """A data set of whole batches: a worker process makes a batch and writes its tensors into buffers.

    Args:
        dataset: the data set of samples.
        collate_fn: makes a batch of a list of samples, None for torch's ``default_collate``.
    """

    def __init__(self, dataset: Dataset[Any], collate_fn: Callable[[list[Any]], Any] | None) -> None:
        self._dataset = dataset
        self._collate_fn = collate_fn
        self._iteration = 0
        self._number = 0
        self._count = 0
        self._buffers: dict[tuple[int, int], tuple[int, Tensor]] = {}
        self._sent: set[tuple[int, int]] = set()
        self._sending: set[tuple[int, int]] = set()

    def __getitems__(self, request: Request) -> Any:
        """Return the parcel of a batch."""
        self._number, self._count = self._number + 1, 0
        self._sending.clear()
        if request.iteration != self._iteration:  # a parcel that carried buffers may have been dropped unread
            self._iteration = request.iteration
            self._sent.clear()
        if hasattr(self._dataset, "__getitems__"):
            samples = self._dataset.__getitems__(request.samples)
        else:
            samples = (self._dataset[sample] for sample in request.samples)
        if self._collate_fn is None:
            rows = self._laid(samples, len(request.samples))
            batch = collate(rows, collate_fn_map={**default_collate_fn_map, Tensor: self._stack, _Row: self._stack})
        else:
            batch = self._collate_fn(list(samples))
        content = _mapped(batch, self._put)
        worker = get_worker_info()
        assert worker is not None
        self._sent |= self._sending  # only here: if a sample raises, nothing is sent
        return Parcel(worker.id, self._number, content, {where: self._buffers[where] for where in self._sending})

    def _laid(self, samples: Iterable[Any], count: int) -> list[Any]:
        """Copy the larger tensors of each sample to their row of the batch while they are still in the cache.

        This frees a sample's memory for the next one. Holding a batch of images and stacking them at the end takes a
        third longer.
        """
        rooms: list[tuple[_Place, Tensor]] = []
        row = column = 0

        def lay(value: Any) -> Any:
            nonlocal column
            if not _is_plain(value) or value.nbytes < _MIDDLING:
                return value
            if column == len(rooms):
                rooms.append(self._room(value.dtype, (count, *value.shape)))
            place, room = rooms[column]
            if place.dtype != value.dtype or place.shape[1:] != value.shape:
                return value
            column += 1
            _copy(value, room[row])
            return _Row(place, room, row)

        laid = []
        for sample in samples:
            column = 0
            laid.append(_mapped(sample, lay))
            row += 1
        return laid

    def _stack(self, rows: Sequence[Tensor | _Row], *, collate_fn_map: Any = None) -> _Place | Tensor:
        """Stack tensors in a buffer; ``default_collate`` would allocate shared memory for each batch."""
        first = rows[0]
        if isinstance(first, _Row) and all(first.has_in(row, one) for row, one in enumerate(rows)):
            return first.place
        tensors = [one.room[one.row] if isinstance(one, _Row) else one for one in rows]
        dtype, shape = tensors[0].dtype, tensors[0].shape
        if not all(_is_plain(one) and one.dtype == dtype and one.shape == shape for one in tensors):
            return torch.stack(tensors)
        place, room = self._room(dtype, (len(tensors), *shape))
        torch.stack(tensors, out=room)
        return place

    def _put(self, value: Any) -> Any:
        # a tensor already in shared memory is sent as it is
        if not _is_plain(value) or not value.is_contiguous() or value.is_shared():
            return value
        place, room = self._room(value.dtype, tuple(value.shape))
        room.copy_(value)
        return place

    def _room(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[_Place, Tensor]:
        """Return a place for the batch's next tensor, and the tensor there."""
        place = _Place((self._number % _SLOTS, self._count), dtype, shape)
        self._count += 1
        _, buffer = self._buffers.get(place.where, (0, None))
        if buffer is None or len(buffer) < _NUMBERED + place.nbytes:
            buffer = torch.empty(_NUMBERED + place.nbytes, dtype=torch.uint8)
            buffer.share_memory_()  # type: ignore[no-untyped-call]
            self._buffers[place.where] = self._number, buffer
            self._sent.discard(place.where)
        if place.where not in self._sent:
            self._sending.add(place.where)
        _number_of(buffer).fill_(self._number)
        return place, place.of(buffer)


class Opening:
    """Copies batches out of parcels in the training process, before the worker reuses their buffers."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[int, tuple[int, int]], tuple[int, Tensor]] = {}
        self._memory = _Memory()

    def open(self, sent: Any) -> Any:
        """Return the batch that a worker sent, in memory of its own; anything but a parcel is returned as it is.

        Raises:
            RuntimeError: if the worker has reused a buffer already, which is a bug in this module.
        """
        if not isinstance(sent, Parcel):
            return sent
        for where, (since, buffer) in sent.buffers.items():
            if self._buffers.get((sent.worker, where), (0, None))[0] != since:
                self._buffers[sent.worker, where] = since, buffer

        def take_out(value: Any) -> Any:
            if not isinstance(value, _Place):
                return value
            _, buffer = self._buffers[sent.worker, value.where]
            tensor = self._memory.copy(value.of(buffer)) if value.nbytes >= _LARGE else value.of(buffer).clone()
            if _number_of(buffer).item() != sent.number:
                raise RuntimeError(f"worker {sent.worker} wrote over batch {sent.number} before it was read")
            return tensor

        return _mapped(sent.content, take_out)


class _Memory:
    """A pool of memory of large tensors, reused once they are freed: the allocator would unmap its pages."""

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}

    def copy(self, tensor: Tensor) -> Tensor:
        """Copy a tensor into memory that returns to the pool with the last tensor that shares it."""
        free = self._free.setdefault(tensor.nbytes, [])
        memory = free.pop() if free else torch.empty(tensor.nbytes, dtype=torch.uint8).numpy()
        held = memory[:]  # freed together with the storage made of it
        weakref.finalize(held, free.append, memory).atexit = False
        return torch.from_numpy(held).view(tensor.dtype).view(tensor.shape).copy_(tensor)


def _number_of(buffer: Tensor) -> Tensor:
    return buffer[:8].view(torch.int64)


def _is_plain(value: Any) -> bool:
    """Return whether a value is a plain dense CPU tensor, fully described by type, shape and numbers."""
    if type(value) is not Tensor or value.layout is not torch.strided or value.device.type != "cpu":
        return False
    return not (value.requires_grad or value.is_quantized or value.is_conj() or value.is_neg())


def _copy(image: Tensor, room: Tensor) -> None:
    """Copy a sample's tensor to its row of the batch."""
    if image.ndim == 3 and 1 < len(image) <= 4 and image.dtype in (torch.uint8, torch.float32) and "cv2" in sys.modules:
        side_by_side = image.permute(1, 2, 0)
        if side_by_side.is_contiguous():
            # channels last, as OpenCV has them: to separate them takes torch and NumPy five times as long
            sys.modules["cv2"].split(side_by_side.numpy(), list(room.numpy()))
            return
    room.copy_(image)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Apply ``change`` to each value within nested tuples, lists and dicts."""
    kind = type(value)
    if kind in (list, tuple):
        return kind([_mapped(entry, change) for entry in value])
    if kind is dict:
        return {key: _mapped(entry, change) for key, entry in value.items()}
    if kind.__bases__ == (tuple,) and hasattr(value, "_make"):  # a named tuple that overrides no constructor
        return value._make([_mapped(entry, change) for entry in value])
    return change(value)
