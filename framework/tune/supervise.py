"""Keeps a number of worker processes running."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

from framework.errors import UserError
from framework.tune.memory import check_memory

_EVERY = 0.2  # seconds between two looks at the workers
_DIED = 20  # times that each worker may be killed without anything ending


def keep_running(
    target: Callable[..., None],
    args: tuple[Any, ...],
    workers: int,
    threads: int,
    who: str,
    look: Callable[[], bool] = lambda: False,
) -> None:
    """Keep workers running until they find nothing left to do; a killed one is replaced.

    Workers stop when the process that called this has ended.

    Args:
        target: what a worker runs.
        args: its arguments.
        workers: number of workers.
        threads: threads of a worker.
        who: what they work on, for messages.
        look: called again and again; returns True if something has ended since the last call.

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
        process = context.Process(target=_run, args=(target, args, threads))
        try:
            process.start()
        except (EOFError, ConnectionError) as error:
            raise UserError(f"{who}: the process that starts workers was killed; give the command again") from error
        return process

    running, died = [start() for _ in range(workers)], 0
    try:
        while running:
            time.sleep(_EVERY)
            died = 0 if look() else died
            for process in [one for one in running if one.exitcode is not None]:
                running.remove(process)
                if process.exitcode > 0:
                    raise UserError(f"{who}: a worker ended with an error, see above")
                if process.exitcode < 0:
                    died += 1
                    if died > _DIED * workers:
                        raise UserError(
                            f"{who}: {died} workers were killed in a row (signal {-process.exitcode}) and nothing"
                            " ended; memory may not suffice: give fewer --workers"
                        )
                    running.append(start())
        look()
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()


def _run(target: Callable[..., None], args: tuple[Any, ...], number: int) -> None:
    torch.set_num_threads(number)
    threading.Thread(target=_stop_with, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # told by the process that started this one
        target(*args)


def _stop_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
