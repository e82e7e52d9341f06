"""Loaders and streams of the user's: how long they say that they are, if that is true, and what they lose."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from framework.data.memory import forgotten
from framework.ops.generators import set_generators, state_of_generators


class Cut(DataLoader[Any]):
    """The samples of an ``IterableDataset``, cut into batches as the arguments of ``Data`` say."""


def announced(loader: Any) -> int | None:
    """Return how many batches a loader says that it yields, None if it does not say.

    Example:
        >>> announced([1, 2]), announced(iter([1, 2]))
        (2, None)
    """
    try:
        return len(loader)
    except (TypeError, NotImplementedError):  # a stream
        return None


def source_name(loader: Any) -> str:
    """Return the name of the class that a user wrote: of a stream within a loader, or of the loader.

    Example:
        >>> source_name([1]), source_name(DataLoader([1]))
        ('list', 'DataLoader')
    """
    source = getattr(loader, "dataset", None)
    return type(source if isinstance(source, IterableDataset) else loader).__name__


def is_counted(loader: Any) -> bool:
    """Return whether a loader's length is torch's own count of the samples of a data set, which is always right."""
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return isinstance(loader, (list, tuple))
    return all(type(one).__module__.startswith("torch.") for one in (loader.sampler, loader.batch_sampler) if one)


def length_in_words(loader: Any) -> tuple[str, str]:
    """Return the class whose ``__len__`` decides how long a loader is, and that length, as text.

    Args:
        loader: yields batches, and has a length.

    Example:
        >>> length_in_words([1, 2])
        ('list', '2')
    """
    batches = str(announced(loader))
    if not isinstance(loader, DataLoader):
        return source_name(loader), batches
    if isinstance(loader.dataset, IterableDataset):
        samples = announced(loader.dataset)
        return source_name(loader), batches if samples is None else f"{batches} ({samples} samples)"
    own = [one for one in (loader.batch_sampler, loader.sampler) if not type(one).__module__.startswith("torch.")]
    return type(own[0] if own else loader).__name__, batches


def warn_if_longer(loader: Any, part: str, batches: Iterator[Any], seen: int) -> None:
    """Warn if a loader yields more than it announced; the process's generators stay as they were.

    An epoch, or an evaluation, ends at the length that the loader announces, by which schedules and the progress bar
    count too. That it is too small shows only by reading one more batch.

    Args:
        loader: the loader.
        part: ``"train"``, ``"val"`` or ``"test"``, which the warning names.
        batches: the iterator of the loader, after the last batch that it announced.
        seen: how many batches the loader has at least, over ranks, if there is one more.
    """
    present = state_of_generators()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch counts too, and would say the same of samples
            if next(batches, loader) is loader:
                return
    finally:
        set_generators(present)
    who, length = length_in_words(loader)
    warnings.warn(
        f"Data({part}=...): {who} yields {seen} batches or more, but its length is {length}; the"
        f" {'epoch' if part == 'train' else 'evaluation'} ends there, and what comes after it is not read: correct its"
        " __len__, or leave it out to read all",
        stacklevel=2,
    )


def what_is_lost(loader: Any) -> list[str]:
    """Return what a run on a user's loader cannot promise, a sentence each; empty if it is as exact as on samples.

    Args:
        loader: yields batches.
    """
    name, stateful = source_name(loader), hasattr(loader, "load_state_dict")
    found = [f"{one}: its state cannot be kept, so a resumed run may have another order" for one in forgotten(loader)]
    if getattr(loader, "persistent_workers", False):
        found.append(
            f"{type(loader).__name__}(persistent_workers=True): what its workers draw goes on from epoch to epoch, so a"
            " resumed run is exact only if the data set draws nothing"
        )
    stream = not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset)
    if hasattr(loader, "__next__"):
        found.append(f"{name} yields its batches once: one epoch, and no resuming within it")
    elif stream and not stateful:
        found.append(
            f"the order of {name} is its own, not keyed by the seed; a resumed run reads again what was read in the"
            " epoch, and is exact if that comes in the same order"
        )
    elif not stream:
        found.append("a resumed run loads again what was loaded in the epoch, to find its place")
    return found
