"""Filters for log messages and warnings of Lightning that need no action; all others are still shown."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Lightning, Fabric included, logs through this one logger
_LOGGER = "pytorch_lightning.utilities.rank_zero"

# Not filtered, since a user may act on it or wait for it: a GPU that is not used, tensor cores that are not used
# (set_float32_matmul_precision), modules in eval mode at the start (perhaps by mistake), a monitor that was not logged,
# ranks that register (which shows a rank that hangs), time limits, Ctrl-C.
_MESSAGES = (
    # an advertisement
    r"^.{0,3}Tip: For seamless cloud",
    # the hardware, the same at every run; for a GPU that is not used there is a separate warning, which is shown
    r"^[GTH]PU available: ",
    # the core's loaders hold no data of their own, so that nothing is loaded twice
    r"^Loading `train_dataloader` to estimate number of stepping batches",
    # the table at the end shows how far the run went; "No training batches" is shown
    r"^`Trainer\.fit` stopped: `max_(epochs|steps)=",
    # the table at the end shows the folder after Ctrl-C; for other errors the message is shown
    r"^An KeyboardInterrupt was raised with message: *, saved checkpoint to",
    # repeats an option of the user's
    r"^Using (bfloat16|16bit) Automatic Mixed Precision",
    # the commands print their checkpoint
    r"^Restor(ing states from the checkpoint path|ed all states from the checkpoint) at",
    r"^Loaded model weights from the checkpoint at",
)

_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Lightning 2.6 calls a function of torch's pytree that newer torch deprecates
    (r"`?isinstance\(treespec, LeafSpec\)`? is deprecated", FutureWarning),
    # the recorder logs at least once an epoch
    (r"The number of training batches \(\d+\) is smaller than the logging interval", UserWarning),
    # an evaluation has no checkpoint callback; the warning is shown if the state of a plugin is left over
    (
        r"Be aware that when using `ckpt_path`.*: \[(('(dashboard|checkpoints)'|\"ModelCheckpoint\{.*?\}\")(, )?)+\]",
        UserWarning,
    ),
    # the core has an empty list of loaders if there is no validation part
    (r"Total length of `list` across ranks is zero", UserWarning),
    # raised as an error
    (r"You passed `Trainer\(accelerator='cpu', precision='16-mixed'\)`", UserWarning),
    # with the core's manual optimization checkpoints are saved after the update, as intended
    (r"Using ModelCheckpoint with manual optimization and every_n_train_steps", UserWarning),
    # a later phase writes into the folder of its run, as intended
    (r"Checkpoint directory .*version_\d+.checkpoints exists and is not empty", UserWarning),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Context manager that hides advertisements and known harmless messages of Lightning.

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
