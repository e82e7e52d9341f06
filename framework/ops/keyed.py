r"""Keyed randomness: every draw is a function of (run seed, consumer, position in the run), never of earlier draws.

Hence a resumed run continues with the same bits without any saved generator state, the number of loader workers changes
no image, and adding a plugin does not change the draws of others.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from framework.ops.normals import UNIT, WORD, Words, normals_of, uniforms_of

Kind = Literal["normal", "uniform"]

_MASK = (1 << 64) - 1
_AHEAD, _STEPS_AHEAD = 1 << 16, 16  # how many numbers, and steps, are generated ahead at most
_NO_WORDS = np.zeros(4, dtype=np.uint64)


def mix(state: int, number: int) -> int:
    r"""Fold one more number into a 64-bit key: :math:`\mathrm{splitmix64}(s \oplus n\gamma)`.

    Source: Steele, Lea and Flood (2014), Fast splittable pseudorandom number generators.
    """
    z = (state ^ (number * 0x9E3779B97F4A7C15)) + 0x9E3779B97F4A7C15 & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def key_of(seed: int, who: str) -> int:
    """Return the 64-bit key of a consumer of random numbers: a hash of the run's seed and its name."""
    digest = hashlib.blake2b(f"{seed}\0{who}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class Stream:
    """The random numbers of one consumer, such as a plugin, in one run.

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
        self._words: np.random.PCG64DXSM | None = None
        self._numpy: np.random.Generator | None = None
        self._ahead: tuple[tuple[object, ...], Tensor] | None = None

    def key(self, *where: int) -> int:
        """Return the 64-bit key of the draws at ``where`` (step, micro-batch, rank, …)."""
        state = self._key
        for number in where:
            state = mix(state, number)
        return state

    def words(self, *where: int, start: int = 0, count: int) -> Words:
        """Return ``count`` random 64-bit words of the position ``where``, from number ``start`` on.

        Source: O'Neill (2014), PCG: A family of simple fast space-efficient statistically good algorithms for random
        number generation; NumPy's PCG64DXSM, whose streams and distant segments are uncorrelated.
        """
        if self._words is None:
            self._words = np.random.PCG64DXSM(0)
        key = self.key(*where)
        halves = [key, mix(key, 1), mix(key, 2), mix(key, 3)]
        self._words.state = {
            "bit_generator": "PCG64DXSM",
            "state": {"state": halves[0] << 64 | halves[1], "inc": halves[2] << 64 | halves[3] | 1},
            "has_uint32": 0,
            "uinteger": 0,
        }
        if start:
            self._words.advance(start)
        return self._words.random_raw(count)

    def normals(self, *where: int, start: int = 0, size: int) -> Tensor:
        r"""Return draws from :math:`\mathcal N(0, 1)` of the position ``where``, in float32.

        Args:
            *where: step, micro-batch, rank, …
            start: index of the first draw.
            size: number of draws.

        Example:
            >>> noise = Stream(0, "weight_noise")
            >>> bool((noise.normals(3, start=700, size=2) == noise.normals(3, size=702)[700:]).all())
            True
        """
        first, last = start // UNIT, -(-(start + size) // UNIT)
        words = self.words(*where, start=first * (UNIT // WORD), count=(last - first) * (UNIT // WORD))
        low = start - first * UNIT
        return normals_of(words)[low : low + size]

    def uniforms(self, *where: int, start: int = 0, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return uniform draws from [0, 1) of the position ``where``, in float32 or float64; see :meth:`normals`."""
        share = 1 if dtype == torch.float64 else 2
        first, last = start // share, -(-(start + size) // share)
        words = self.words(*where, start=first, count=last - first)
        low = start - first * share
        return uniforms_of(words, dtype)[low : low + size]

    def of_step(
        self, index: int, *, room: int, start: int, size: int, kind: Kind = "normal", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Return draws of an optimizer step.

        A call takes some 30 microseconds however few the numbers are, so several small steps are generated at once. The
        draws of a step depend on the stream, the step and ``room`` alone, not on earlier calls.

        Args:
            index: index of the step.
            room: number of draws of the whole step, over its micro-batches and ranks.
            start: index of the first draw.
            size: number of draws.
            kind: ``"normal"``, in float32, or ``"uniform"`` in [0, 1).
            dtype: type of uniform draws, float32 or float64.

        Example:
            >>> noise = Stream(0, "input_noise")
            >>> whole = noise.of_step(20, room=100, start=0, size=100)
            >>> bool((noise.of_step(20, room=100, start=60, size=40) == whole[60:]).all())
            True
        """
        steps = min(_STEPS_AHEAD, _AHEAD // max(room, 1))
        if steps < 2:
            return self._drawn(kind, dtype, index, start=start, size=size)
        block, place = divmod(index, steps)
        if self._ahead is None or self._ahead[0] != (kind, dtype, block, room):
            with torch.inference_mode(False):  # the first call may come from within an evaluation
                numbers = self._drawn(kind, dtype, block, room, start=0, size=steps * room)
            self._ahead = (kind, dtype, block, room), numbers
        return self._ahead[1].narrow(0, place * room + start, size).clone()

    def _drawn(self, kind: Kind, dtype: torch.dtype, *where: int, start: int, size: int) -> Tensor:
        if kind == "normal":
            return self.normals(*where, start=start, size=size)
        return self.uniforms(*where, start=start, size=size, dtype=dtype)

    def torch(self, *where: int, device: torch.device | str = "cpu") -> torch.Generator:
        """Return a torch generator seeded for the position ``where``.

        There is one generator per device, which is reused: take all draws of one position before the next call.
        """
        name = str(device)
        generator = self._generators.get(name)
        if generator is None:
            generator = self._generators[name] = torch.Generator(device=device)
        generator.manual_seed(self.key(*where) >> 1)
        return generator

    def numpy(self, *where: int) -> np.random.Generator:
        """Return a NumPy generator seeded for the position ``where``.

        The one generator is reused, since making one takes ten times as long: take all draws of one position before the
        next call.
        """
        if self._numpy is None:
            self._numpy = np.random.Generator(np.random.Philox(key=0))
        self._numpy.bit_generator.state = {
            "bit_generator": "Philox",
            "state": {"counter": _NO_WORDS, "key": np.array([self.key(*where), 0], dtype=np.uint64)},
            "buffer": _NO_WORDS,
            "buffer_pos": 4,  # the buffer is empty
            "has_uint32": 0,
            "uinteger": 0,
        }
        return self._numpy

    def __getstate__(self) -> dict[str, object]:
        return {"seed": self.seed, "who": self.who}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["seed"], state["who"])  # type: ignore[misc]
