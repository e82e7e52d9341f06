"""Keeps the workers of a study running."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from framework.errors import UserError
from framework.tune.memory import check_memory
from framework.tune.order import Order
from framework.tune.results import Study
from framework.tune.worker import main

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_EVERY = 0.2  # seconds between two looks at the workers
_DIED = 20  # times that each worker may be killed without a trial ending


def supervise(
    order: Order,
    budget: tuple[float, float, float],
    workers: int,
    study: Study,
    tell: Callable[[Study, FrozenTrial], None] | None,
) -> None:
    """Keep a number of workers running until they find nothing left to do; a killed one is replaced.

    Args:
        order: the study's order.
        budget: trials, end of time and epochs, as for :class:`framework.tune.worker.Worker`.
        workers: number of workers.
        study: the study.
        tell: called with the study and each trial that ended.

    Raises:
        UserError: if memory does not suffice, or workers end with errors or are killed again and again.
    """
    check_memory(workers)
    # workers are forked from a process that imported everything and did nothing else
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(kind)
    if kind == "forkserver":
        context.set_forkserver_preload(["framework.tune.worker"])

    def start() -> Any:
        process = context.Process(target=main, args=(order, *budget))
        process.start()
        return process

    running = [start() for _ in range(workers)]
    known = {one.number for one in study.ended()}
    died = 0
    try:
        while running:
            time.sleep(_EVERY)
            for one in study.ended():
                if one.number not in known:
                    known.add(one.number)
                    died = 0
                    if tell is not None:
                        tell(study, one)
            for process in [one for one in running if one.exitcode is not None]:
                running.remove(process)
                if process.exitcode > 0:
                    raise UserError(f"study {order.name!r}: a worker ended with an error, see above")
                if process.exitcode < 0:
                    died += 1
                    if died > _DIED * workers:
                        raise UserError(
                            f"study {order.name!r}: {died} workers were killed in a row (signal"
                            f" {-process.exitcode}) and no trial ended; memory may not suffice: give fewer --workers"
                        )
                    running.append(start())
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()
