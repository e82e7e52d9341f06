"""Leave the caller's process as it was: its random generators, and one command at a time in its threads."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info

_SEEDS = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # by which Lightning passes a seed on to ranks and workers
_BUSY = threading.RLock()  # the same thread may command again, such as a plugin that evaluates another run


@contextmanager
def as_alone(seed: int | None = None) -> Iterator[None]:
    """Run a command as if it were alone in the process, and restore the process's random generators, also after errors.

    The generators of torch (CPU and accelerators), NumPy and Python, and Lightning's variables of the seed, are
    those of the caller again. Since there is one of each in a process, a command in another thread waits for this one.

    Args:
        seed: seed all generators for the command, None to leave that to the command.

    Example:
        >>> torch.manual_seed(0).initial_seed()
        0
        >>> with as_alone(seed=3):
        ...     torch.initial_seed()
        3
        >>> torch.initial_seed()
        0
    """
    if not _BUSY.acquire(blocking=False):
        rank_zero_info("another thread of this process trains or evaluates a run; waiting until it has ended")
        _BUSY.acquire()
    try:
        given, ours, initial = (
            {name: os.environ.get(name) for name in _SEEDS},
            torch.get_rng_state(),
            torch.initial_seed(),
        )
        numbers, python = np.random.get_state(), random.getstate()  # noqa: NPY002 - what seed_everything seeds
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
        mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        try:
            if seed is not None:
                pl.seed_everything(seed, verbose=False)
            yield
        finally:
            torch.manual_seed(initial)  # a CUDA that was not initialized would have begun with this seed
            torch.set_rng_state(ours)
            np.random.set_state(numbers)  # noqa: NPY002
            random.setstate(python)
            if mps is not None:
                torch.mps.set_rng_state(mps)
            if cuda is not None:
                torch.cuda.set_rng_state_all(cuda)
            for name, value in given.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
    finally:
        _BUSY.release()
