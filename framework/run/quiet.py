"""Silence for what Lightning says at every run and nobody can act on; everything else still comes through."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Lightning sends what it has to tell through this one logger, Fabric included
_LOGGER = "pytorch_lightning.utilities.rank_zero"

# What stays, since a user may act on it or wait for it: a GPU that is not used, tensor cores that lie idle
# (set_float32_matmul_precision), modules in eval mode at the start (forgotten or meant, only the user knows), a monitor
# that was not there, ranks that register (a rank that hangs shows there), time limits, Ctrl-C.
_MESSAGES = (
    # an advert
    r"^.{0,3}Tip: For seamless cloud",
    # the machine, told anew at every run; that a GPU is there and idle is a warning of its own, which stays
    r"^[GTH]PU available: ",
    # the core's loaders hold no data of their own: nothing is loaded twice
    r"^Loading `train_dataloader` to estimate number of stepping batches",
    # the table at the end says how far the run went; "No training batches" stays
    r"^`Trainer\.fit` stopped: `max_(epochs|steps)=",
    # the table at the end says where a run that Ctrl-C ended lies; of an error this tells more, and stays
    r"^An KeyboardInterrupt was raised with message: *, saved checkpoint to",
    # repeats the option that was given
    r"^Using (bfloat16|16bit) Automatic Mixed Precision",
    # the commands name their checkpoint
    r"^Restor(ing states from the checkpoint path|ed all states from the checkpoint) at",
    r"^Loaded model weights from the checkpoint at",
)

_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Lightning 2.6 asks torch's pytree in a way that newer torch deprecates
    (r"`?isinstance\(treespec, LeafSpec\)`? is deprecated", FutureWarning),
    # the recorder logs at least once an epoch
    (r"The number of training batches \(\d+\) is smaller than the logging interval", UserWarning),
    # an evaluation makes no checkpoints; a plugin whose state finds nobody is told
    (
        r"Be aware that when using `ckpt_path`.*: \[(('(dashboard|checkpoints)'|\"ModelCheckpoint\{.*?\}\")(, )?)+\]",
        UserWarning,
    ),
    # the core's empty list of loaders where there is no validation part
    (r"Total length of `list` across ranks is zero", UserWarning),
    # told as an error
    (r"You passed `Trainer\(accelerator='cpu', precision='16-mixed'\)`", UserWarning),
    # the core keeps checkpoints after the update by intent
    (r"Using ModelCheckpoint with manual optimization and every_n_train_steps", UserWarning),
    # a further phase of a run goes on in the run's own folder, which nothing else writes to
    (r"Checkpoint directory .*version_\d+.checkpoints exists and is not empty", UserWarning),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's adverts and known-harmless messages while the context is open.

    Example:
        >>> with quiet():
        ...     logging.getLogger("pytorch_lightning.utilities.rank_zero").info("GPU available: False, used: False")
    """
    harmless = re.compile("|".join(_MESSAGES))

    def keep(record: logging.LogRecord) -> bool:
        return harmless.search(record.getMessage()) is None

    logger = logging.getLogger(_LOGGER)
    logger.addFilter(keep)
    try:
        with warnings.catch_warnings():
            for pattern, category in _WARNINGS:
                warnings.filterwarnings("ignore", pattern, category)
            yield
    finally:
        logger.removeFilter(keep)
