"""Worker processes: they start when they are asked, stop at once, and tell how they died."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import cv2
import pytest
import torch
from torch.utils.data import Dataset

from framework.data import Data
from framework.data.workers import Workers


class Threads(torch.utils.data.Dataset):
    """Tells how many threads OpenCV has where samples are made."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return cv2.getNumThreads()


@pytest.mark.parametrize(("workers", "threads"), [(0, 3), (1, 1)])
def test_opencv_has_no_threads_to_be_forked_in_the_midst_of(workers, threads):
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        loader = Data(Threads(), batch_size=4, workers=workers).train_loader(seed=0)
        assert [window.batches[0].tolist() for window in loader] == [[threads] * 4]
        loader.close()
        assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)


class Samples(Dataset[Any]):
    """Samples that tell their index and process, and kill it where they are told to."""

    def __init__(self, kill_at: int = -1) -> None:
        self.kill_at = kill_at

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        if index == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return index, os.getpid()


def workers(count: int, dataset: Dataset[Any] | None = None) -> Workers:
    batches = [[4 * batch + sample for sample in range(4)] for batch in range(2)]
    return Workers(dataset or Samples(), batches, None, count, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_each_pass_gives_the_batches_in_order(count: int) -> None:
    source = workers(count)
    for _ in range(2):
        source.begin()
        seen = [source.next() for _ in range(2)]
        assert [index.tolist() for index, _ in seen] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert {pid == os.getpid() for _, pids in seen for pid in pids.tolist()} == {count == 0}
    assert source.exit_code is None
    source.end()


def test_processes_start_with_the_first_pass_stay_for_the_next_and_end_at_once() -> None:
    before = set(multiprocessing.active_children())
    source = workers(2)
    assert set(multiprocessing.active_children()) <= before
    source.begin()
    started = set(multiprocessing.active_children()) - before
    for _ in range(2):
        source.next()
    source.begin()
    assert set(multiprocessing.active_children()) - before == started
    assert len(started) == 2
    assert all(process.is_alive() for process in started)
    held = source._batches  # as a traceback does
    source.end()
    assert held is not None and not any(process.is_alive() for process in started)


def test_a_killed_worker_is_told_by_its_exit_code() -> None:
    source = workers(1, Samples(kill_at=4))

    def load() -> None:
        source.begin()
        for _ in range(2):
            source.next()

    with pytest.raises(RuntimeError, match="DataLoader worker"):
        load()
    assert source.exit_code == -signal.SIGKILL
    source.end()
    assert source.exit_code is None
