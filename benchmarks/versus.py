"""Timing of one implementation against another: rows of the tables on parts of a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Row(NamedTuple):
    """One line of a table.

    Args:
        name: what was measured.
        ours: microseconds, the median of rounds.
        reference: likewise, of the reference.
        ratio: the median over rounds of the ratio of the two, each round's taken next to each other.
        goal: the bound that the ratio should meet.
        spread: the ratio's quartiles.
        least: ratio of the shortest times, which other work on the machine disturbs least.
    """

    name: str
    ours: float
    reference: float
    ratio: float
    goal: str
    spread: tuple[float, float]
    least: float


def versus(
    name: str,
    ours: Callable[[], Any],
    reference: Callable[[], Any],
    *,
    goal: str,
    rounds: int,
    times: int = 1,
    faster: bool = False,
    share: float = 1.0,
) -> Row:
    """Measure two contenders in turn.

    Args:
        name: what is measured.
        ours: a call of ours.
        reference: a call of what it is held against.
        goal: what the ratio is to keep to, such as ``"<= 4"``.
        rounds: how often each is measured, after one round that does not count.
        times: calls a round.
        faster: give the reference's time over ours, a speed, instead of ours over the reference's.
        share: a factor on the ratio, such as one over the number of cores that ours took.
    """
    spent: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for calls, taken in zip((ours, reference), spent, strict=True):
            began = time.perf_counter()
            for _ in range(times):
                calls()
            if turn:
                taken.append((time.perf_counter() - began) / times * 1e6)
    top, bottom = (spent[1], spent[0]) if faster else spent
    low, middle, high = statistics.quantiles([a / b * share for a, b in zip(top, bottom, strict=True)], n=4)
    medians = [statistics.median(one) for one in spent]
    least = min(top) / min(bottom) * share
    return Row(name, *medians, middle, goal, (low, high), least)


def show(title: str, rows: list[Row]) -> None:
    """Print rows as a table."""
    print(f"\n{title}")
    width = max(len(row.name) for row in rows)
    print(f"  {'':<{width}}       ours   reference   ratio   quartiles       of minima   goal")
    for row in rows:
        low, high = row.spread
        print(
            f"  {row.name:<{width}}  {row.ours:9.1f}   {row.reference:9.1f}  {row.ratio:6.2f}"
            f"   [{low:5.2f}, {high:5.2f}]  {row.least:9.2f}   {row.goal}"
        )
