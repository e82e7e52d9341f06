"""The states of the process's global random generators, as plain data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def state_of_generators() -> dict[str, Any]:
    """Return the states of the global generators of torch, NumPy and Python, as tensors and plain data.

    Example:
        >>> state = state_of_generators()
        >>> first = torch.rand(1)
        >>> set_generators(state)
        >>> bool(torch.rand(1) == first)
        True
    """
    version, words, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the generator that users' code uses
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": (str(name), torch.from_numpy(np.asarray(key).astype(np.int64)), position, has_gauss, cached),
        "python": (version, torch.tensor(words), gauss),
    }


def set_generators(state: dict[str, Any]) -> None:
    """Set the global generators to states that :func:`state_of_generators` returned, in this or another process.

    Args:
        state: the states; those of accelerators that this process does not have are ignored.
    """
    torch.set_rng_state(state["torch"].cpu())
    for index, one in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(one.cpu(), index)
    name, key, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, key.cpu().numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))


def seed_generators(seed: int) -> None:
    """Seed the process's generators of torch (CPU), NumPy and Python, which a user's data set or sampler may draw from.

    Args:
        seed: an integer from [0, 2^64).
    """
    torch.default_generator.manual_seed(seed >> 1)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - the generator that others draw from
