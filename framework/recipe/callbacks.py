"""Lightning's own callbacks that cannot do here what they say, with what to use instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pytorch_lightning import Callback

_REFUSED = {
    "GradientAccumulationScheduler": "a step is a whole window of micro-batches, whose number is fixed for the run; set"
    " trainer.accumulate_grad_batches",
    "OnExceptionCheckpoint": "its presence makes a new run begin from the file of a failed one; a run keeps last.ckpt"
    " itself, from which fit(resume=True) goes on",
    "StochasticWeightAveraging": "its average reaches no checkpoint of the run; use the plugin"
    " WeightAverage(kind='swa')",
    "WeightAveraging": "it exchanges weights behind the checkpoints of the run; use the plugin WeightAverage",
    "EMAWeightAveraging": "it exchanges weights behind the checkpoints of the run; use the plugin WeightAverage",
    "ModelPruning": "it renames parameters during the run, so that no checkpoint of it can be resumed; prune the"
    " network that fit returns",
    "BatchSizeFinder": "it looks for a batch size in the module; give Data(batch_size=...)",
    "LearningRateFinder": "its trial steps would be part of the run; try rates by fits of a few steps"
    " (trainer.max_steps)",
}


def refused_callbacks(callbacks: Sequence[Callback]) -> Iterator[tuple[str, str]]:
    """Yield name and reason of each of Lightning's callbacks that cannot be used, its subclasses included.

    Args:
        callbacks: callbacks of a recipe and of the Trainer's options.
    """
    for one in callbacks:
        for base in type(one).__mro__:
            home = base.__module__.partition(".")[0]
            if base.__name__ in _REFUSED and home in ("pytorch_lightning", "lightning"):
                yield type(one).__name__, _REFUSED[base.__name__]
                break
