"""The memory that a run takes at most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")  # writing 5 to it resets the highest resident size


class Peak:
    """A measured peak.

    Attributes:
        bytes: the peak above what was held at the start: of the accelerator if it was used, else of this process; None
            where the system does not tell.
    """

    bytes: int | None = None


@contextmanager
def measured() -> Iterator[Peak]:
    """Measure the highest memory that is held inside the context, above what was held before it."""
    peak = Peak()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        on_device = torch.cuda.memory_allocated()
    try:
        _RESET.write_text("5", encoding="utf-8")
    except OSError:
        before = None
    else:
        before = _kilobytes("VmRSS")
    yield peak
    highest = _kilobytes("VmHWM")
    if cuda and torch.cuda.max_memory_allocated() > on_device:
        peak.bytes = torch.cuda.max_memory_allocated() - on_device
    elif before is not None and highest is not None:
        peak.bytes = max(0, highest - before) * 1024


def _kilobytes(name: str) -> int | None:
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
