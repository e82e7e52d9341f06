"""Whether the machine has memory for so many workers."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from framework.errors import UserError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_USED = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def check_memory(workers: int) -> None:
    """Check that workers of this process's size fit into the memory that is left; where the system tells, on Linux.

    Raises:
        UserError: if they do not.
    """
    left, own = available(), own_size()
    if left is not None and own is not None and workers * own > left:
        fit = max(1, left // own)
        raise UserError(
            f"workers={workers}: each needs some {own / 2**20:,.0f} MiB, and {left / 2**20:,.0f} MiB are left; give at"
            f" most --workers {fit}"
        )


def available() -> int | None:
    """Return the bytes of memory that further processes may take, None where the system does not tell."""
    if not sys.platform.startswith("linux"):
        return None
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    for limit, used in zip(_LIMITS, _USED, strict=True):  # of a container
        try:
            found.append(int(Path(limit).read_text(encoding="utf-8")) - int(Path(used).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return min(found, default=None)


def own_size() -> int | None:
    """Return the bytes of memory that this process holds alone, None where the system does not tell."""
    try:
        resident, shared = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1:3]
    except OSError:
        return None
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
