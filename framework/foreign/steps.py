"""The module's ``training_step``, and the hooks around it, batch by batch."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor

from framework.data.modules import overridden
from framework.errors import UserError
from framework.foreign.hooks import tell


class Steps:
    """Calls ``training_step`` with the index that the batch has in the epoch, as Lightning counts.

    A window of the framework is several batches of Lightning's, each of which begins and ends by its own hooks.

    Args:
        module: the user's module.

    Attributes:
        index: the index of the current batch in the epoch.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._name = type(module).__name__
        self._takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        self._ends = overridden(module, "on_train_batch_end")
        self._done: tuple[Any, Any] | None = None
        self.index = 0

    def begin(self, batch: Any, index: int) -> Any:
        """Announce a batch; returns -1 if the module ends the epoch before it."""
        self.index, self._done = index, None
        return tell(self._module, "on_train_batch_start", batch, index)

    def __call__(self, batch: Any) -> Tensor | None:
        """Return the loss of a batch, None if the module leaves it out."""
        output = self._step(batch)
        self._done = (output, batch)
        return self._loss(output)

    def quietly(self, batch: Any) -> Tensor | None:
        """Return the loss of a batch evaluated once more, which must not be logged again."""
        own = vars(self._module)
        own["log"] = _ignore
        try:
            return self._loss(self._step(batch))
        finally:
            del own["log"]

    def end(self) -> None:
        """Announce the end of the batch, with what ``training_step`` returned, without its graph."""
        if self._done is None or not self._ends:
            return
        output, batch = self._done
        outputs = {} if output is None else dict(output) if isinstance(output, dict) else {"loss": output}
        if outputs:
            outputs["loss"] = outputs["loss"].detach()
        self._module.on_train_batch_end(outputs, batch, self.index)
        self._done = None

    def _step(self, batch: Any) -> Any:
        module = self._module
        return module.training_step(batch, self.index) if self._takes_index else module.training_step(batch)

    def _loss(self, output: Any) -> Tensor | None:
        loss = output.get("loss") if isinstance(output, dict) else output
        if output is None or isinstance(loss, Tensor):
            return loss
        raise UserError(
            f"{self._name}.training_step returned {type(output).__name__}"
            f"{' without a tensor under loss' if isinstance(output, dict) else ''}; return the loss, a mapping with"
            " 'loss', or None to leave the batch out"
        )


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Log nothing."""
