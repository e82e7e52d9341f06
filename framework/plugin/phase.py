"""One more phase of training, asked for by a plugin after the run ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import pytorch_lightning as pl

from framework.checkpoint.file import link
from framework.checkpoint.folder import RunFolder
from framework.checkpoint.saving import previous

_BEFORE = "before_"

# what would keep a phase from ending where it is to end
_ENDS = ("max_epochs", "max_steps", "min_epochs", "min_steps")


@dataclasses.dataclass(frozen=True)
class Phase:
    """What to train once more, and when to end, on training and validation part together.

    The phase has a fresh optimizer, a schedule of its own length, and step counts that start from 0; its curves stand
    beside those of the run under its name. The validation part is still validated on, but tells nothing about
    generalization any more.

    Args:
        name: what the phase is called in logs and ``run.json``.
        start: ``"initial"`` for a fresh network and fresh plugins, ``"current"`` for the parameters as they stand.
        max_steps: optimizer steps at most, None for no limit.
        max_epochs: epochs at most, None for no limit.
        without: names of plugins to leave out of a phase that starts from the initial parameters.
        stop_when: asked after each validation with the metrics by tag; True ends the phase.

    Raises:
        ValueError: where nothing would end the phase.
    """

    name: str
    start: Literal["initial", "current"]
    max_steps: int | None = None
    max_epochs: int | None = None
    without: tuple[str, ...] = ()
    stop_when: Callable[[Mapping[str, float]], bool] | None = None

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_epochs is None:
            raise ValueError(f"Phase({self.name!r}): give max_steps or max_epochs, or it may never end")

    def options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the Trainer's options of the run with the phase's own end in place of the run's."""
        kept = {name: value for name, value in options.items() if name not in _ENDS}
        return {**kept, "max_epochs": self.max_epochs or -1, "max_steps": self.max_steps or -1}

    def callbacks(self) -> list[pl.Callback]:
        """Return what ends the phase."""
        return [_StopWhen(self.stop_when)] if self.stop_when is not None else []

    def hand_over(self, folder: RunFolder) -> None:
        """Let the phase's weights be the run's best ones; the best before are kept as ``before_<name>.ckpt``.

        The phase's own file stays, another name of the same: a run that is killed by now does not train it once more.
        """
        best, own = folder.checkpoints / "best.ckpt", folder.checkpoints / f"{self.name}.ckpt"
        if own.exists():
            if best.exists():
                best.replace(best.with_name(f"{_BEFORE}{self.name}.ckpt"))
            link(own, best)
            own.with_name(f"{previous(self.name)}.ckpt").unlink(missing_ok=True)


def take_back_hand_over(folder: RunFolder) -> None:
    """Let the best weights of before a phase be the best ones again, where the run before it goes on."""
    for before in folder.checkpoints.glob(f"{_BEFORE}*.ckpt"):
        before.replace(before.with_name("best.ckpt"))


@dataclasses.dataclass
class PhaseRun:
    """What came of a phase.

    Args:
        name: the phase's name.
        status: as a run's.
        metrics: metrics by tag at the end of the phase; those of the validation part are of data trained on.
        epochs: epochs done.
        steps: optimizer steps done.
        seconds: wall time.
    """

    name: str
    status: str = "failed"
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    epochs: int = 0
    steps: int = 0
    seconds: float = 0.0


class _StopWhen(pl.Callback):
    """Ends a phase when its condition holds."""

    def __init__(self, condition: Callable[[Mapping[str, float]], bool]) -> None:
        self._condition = condition

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if self._condition({name: float(value) for name, value in trainer.callback_metrics.items()}):
            trainer.should_stop = True
