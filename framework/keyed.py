r"""Keyed randomness: every draw is a function of (run seed, who, where in the run), never of what was drawn before.

Hence a resumed run goes on with the same bits without any saved generator state, the number of loader workers changes
no image, and adding a plugin changes nobody else's draws.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

_MASK = (1 << 64) - 1


def mix(state: int, number: int) -> int:
    r"""Fold one more number into a 64-bit key: :math:`\mathrm{splitmix64}(s \oplus n\gamma)`.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    z = (state ^ (number * 0x9E3779B97F4A7C15)) + 0x9E3779B97F4A7C15 & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def key_of(seed: int, who: str) -> int:
    """Return the 64-bit key of one who draws: the run's seed and a name."""
    digest = hashlib.blake2b(f"{seed}\0{who}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Stream:
    """The draws of one who draws in one run.

    Args:
        seed: the run's seed.
        who: a name unique in the run, such as a plugin's.

    Example:
        >>> a = Stream(0, "input_noise").torch(3, 1)
        >>> b = Stream(0, "input_noise").torch(3, 1)
        >>> bool((torch.rand(4, generator=a) == torch.rand(4, generator=b)).all())
        True
    """

    def __init__(self, seed: int, who: str) -> None:
        self.seed = seed
        self.who = who
        self._key = key_of(seed, who)
        self._generators: dict[str, torch.Generator] = {}

    def key(self, *where: int) -> int:
        """Return the 64-bit key of the draws at ``where`` (step, micro-batch, rank, …)."""
        state = self._key
        for number in where:
            state = mix(state, number)
        return state

    def torch(self, *where: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a torch generator at the start of the draws of ``where``.

        The generator is one per device and reused: take all draws of one place before asking for the next.
        """
        name = str(device)
        generator = self._generators.get(name)
        if generator is None:
            generator = self._generators[name] = torch.Generator(device=device)
        generator.manual_seed(self.key(*where) >> 1)
        return generator

    def numpy(self, *where: int) -> np.random.Generator:
        """Return a new NumPy generator at the start of the draws of ``where``."""
        return np.random.Generator(np.random.Philox(key=self.key(*where)))

    def __getstate__(self) -> dict[str, object]:
        return {"seed": self.seed, "who": self.who}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["seed"], state["who"])  # type: ignore[misc]
