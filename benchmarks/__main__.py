"""Benchmarks of the framework's cost, as tables: ``python -m benchmarks [SECTION …]``."""

from __future__ import annotations

import argparse
import importlib
import logging
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import machine, write
from benchmarks.versus import Row, show

SECTIONS = {
    "step": "a step of 64-128-10, batch 64, us: fit with everything on / loops by hand",
    "where": "where the microseconds of a step of 64-128-10 go, the whole run divided by its 2,000 steps",
    "trial": "an epoch of 100 on few rows, us: fit with everything on and with logs=None / loops by hand",
    "loader": "a step of 64-128-10 from the user's own DataLoader, us: fit / Lightning, both with everything on",
    "conv": "a step of a small convolutional network, us: the same",
    "ranks": "a step of 64-128-10 by two processes, us",
    "start": "from typing fit to the end of the first step, us",
    "batches": "loading batches from memory, us",
    "terms": "penalties and averages over 200 tensors of 64 x 64, us",
    "noise": "noise on weights, us",
    "images": "transforms and the sample pipeline, us",
    "memory": "peak memory",
    "compiled": "torch.compile on a convolutional network, with plugins and without",
    "scaling": "how a step grows",
    "peers": "64-128-10 by other libraries, everything on, us a step",
}


def main() -> None:
    """Print the tables and write them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"by default all: {', '.join(SECTIONS)}")
    parser.add_argument("--threads", type=int, default=1, help="torch threads, by default 1")
    parser.add_argument("--json", type=Path, default=Path("lightning_logs/benchmarks.json"))
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    found: dict[str, Any] = {}
    for section in given.sections or SECTIONS:
        module = importlib.import_module(f"benchmarks.{section}")
        rows = module.rows()
        if isinstance(rows, list) and rows and isinstance(rows[0], Row):
            show(SECTIONS[section], rows)
            found[section] = [row._asdict() for row in rows]
        else:
            print(f"\n{SECTIONS[section]}")
            module.show(rows)
            found[section] = rows
    given.json.parent.mkdir(parents=True, exist_ok=True)
    write(given.json, found)


if __name__ == "__main__":
    main()
