"""Turn errors of a run into ones that name their cause: the plugin that raised, or a loader worker that died."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from framework.engine.mistakes import explain_mistake
from framework.errors import Mistake, UserError
from framework.plugin.blame import name_plugin, step_of

if TYPE_CHECKING:
    from framework.engine.core import Core


@contextmanager
def faults(core: Core) -> Iterator[None]:
    """Add the plugin's name to errors that a plugin raises, and explain the death of a loader worker.

    Args:
        core: the core that trains or evaluates.

    Raises:
        UserError: in place of the loader's error if a worker process died, or if one raised a ``UserError``.
    """
    try:
        yield
    except UserError as error:
        if "Original Traceback" in str(error):  # raised in a worker process
            raise UserError(str(error).rstrip().splitlines()[-1].partition("UserError: ")[2]) from error
        raise
    except Exception as error:
        if (message := _death_of_worker(error, core)) is not None:
            raise UserError(message) from error
        part = None if core.data is None else core.data.train
        if name_plugin(error) is None and (line := explain_mistake(core.model, error, part)) is not None:
            raise Mistake(f"{step_of(error.__traceback__)}{line}") from error
        raise


def _death_of_worker(error: Exception, core: Core) -> str | None:
    """Return the message for a worker process that died, None if none did."""
    noticed = isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")
    # reading a dead worker's last batch may raise these
    if not noticed and not isinstance(error, ConnectionError | EOFError):
        return None
    code = core.exit_code_of_workers()
    if code is None and not noticed:
        return None
    code = code or -signal.SIGKILL
    workers = core.data.workers if core.data is not None else 0
    way = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    advice = "run with Data(workers=0) to see which sample or transform causes it"
    if code == -signal.SIGKILL:
        advice = "most often memory ran out: use fewer workers or smaller batches"
    if core._trainer is not None and core.trainer.state.fn == "fit":
        advice += "; --resume continues the run"
    return f"Data(workers={workers}): a loader worker {way}; {advice}"
