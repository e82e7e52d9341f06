from __future__ import annotations

from typing import Any

import pytest
from pytorch_lightning.loggers.logger import DummyLogger

from framework.report.telling import guard, telling


class Full(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1
        raise OSError(28, "No space left on device")


def test_a_logger_that_fails_warns_once_and_is_called_on() -> None:
    guard([logger := Full()])
    guard([logger])
    with pytest.warns(UserWarning, match=r"Full could not write \(No space left on device\); training continues"):
        logger.log_metrics({"a": 1.0}, 1)
    logger.log_metrics({"a": 1.0}, 2)
    assert logger.calls == 2


class Board:
    @telling
    def draw(self, error: Exception) -> int:
        raise error


def test_only_errors_of_the_system_are_told() -> None:
    board = Board()
    with pytest.warns(UserWarning, match="Board could not write"):
        assert board.draw(OSError(28, "full")) is None
    assert board.draw(OSError(28, "full")) is None
    with pytest.raises(ValueError, match="a mistake"):
        board.draw(ValueError("a mistake"))
