"""Timing of contenders in turn, so that load on the machine affects all alike."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def alternate(contenders: Mapping[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Return microseconds per step of each contender, one number per round, run in turn.

    Args:
        contenders: by name, functions that run some steps and return how many.
        rounds: how often each runs, after one round that does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            began = time.perf_counter()
            steps = run()
            spent = (time.perf_counter() - began) / steps * 1e6
            if turn:
                times[name].append(spent)
    return times


def in_turn(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Return what contenders that measure time themselves report, one number per round, run in turn.

    Args:
        contenders: by name, functions that return microseconds a step.
        rounds: how often each runs, after one round that does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            spent = run()
            if turn:
                times[name].append(spent)
    return times


def table(times: Mapping[str, list[float]], bases: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one row per contender: median and quartiles in microseconds, and the median over rounds of its ratio."""
    rows = []
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        row = {"name": name, "us": round(median, 1), "quartiles": [round(low, 1), round(high, 1)]}
        if name in bases:
            ratios = [a / b for a, b in zip(values, times[bases[name]], strict=True)]
            row |= {"over": bases[name], "ratio": round(statistics.median(ratios), 2)}
        rows.append(row)
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as a table."""
    print(f"\n{title}")
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        ratio = f"{row['ratio']:6.2f} x {row['over']}" if "ratio" in row else ""
        low, high = row["quartiles"]
        print(f"  {row['name']:<{width}}  {row['us']:9.1f} us  [{low:.1f}, {high:.1f}]  {ratio}".rstrip())


def machine() -> dict[str, Any]:
    """Return the machine and the releases that were measured."""
    import pytorch_lightning

    return {
        "processor": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": pytorch_lightning.__version__,
        "threads": torch.get_num_threads(),
    }


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write results as JSON."""
    path.write_text(json.dumps({"machine": machine(), **content}, indent=2) + "\n")
    print(f"\nwritten: {path}")
