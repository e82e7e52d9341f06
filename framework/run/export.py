"""Export a trained network: its weights as safetensors, or the network through ``torch.export``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import Subset

from framework.checkpoint.atomic import output_file
from framework.checkpoint.file import read_checkpoint
from framework.data.batch import input_of, size_of
from framework.data.data import Data
from framework.data.evaluation import ReadyLoader
from framework.data.parts import as_dataset, length_of
from framework.data.trees import map_leaves
from framework.errors import UserError, one_line
from framework.foreign.core import Foreign
from framework.foreign.hooks import pass_on
from framework.foreign.layout import write_for_lightning
from framework.recipe.spec import Source
from framework.run.caller import as_alone
from framework.run.evaluate import trained
from framework.run.faults import faults
from framework.run.quiet import quiet
from framework.run.result import Run
from framework.run.trainer import evaluating_trainer, refusals
from framework.version import __version__

if TYPE_CHECKING:
    from framework.engine.core import Core

Facts = dict[str, str]

_SAMPLES = 3  # of the example input; torch.export would take a batch size of 1 for a constant
_ONE_PROCESS = {"devices": 1, "num_nodes": 1, "strategy": "auto"}


@as_alone()
def export(
    recipe: Source | Run, out: str | Path, *, ckpt: str | Path | None = None, raw: bool = False, **overrides: Any
) -> Facts:
    """Write a trained network to a file that does not depend on this package.

    ``FILE.safetensors`` holds parameters and buffers by their names in the plain network, tied ones under each of their
    names: ``model.load_state_dict(safetensors.torch.load_file(FILE))``. ``FILE.pt2`` holds the network in evaluation
    mode as ``torch.export`` traces it, for any number of samples of the data's shape:
    ``torch.export.load(FILE).module()(x)``. ``FILE.ckpt`` holds a LightningModule that was trained as
    ``Recipe(module=...)``, as its class reads it: ``MyModule.load_from_checkpoint(FILE)``; with ``weights_only=False``
    if its hyperparameters are objects, which executes code of the file.

    Args:
        recipe: a :class:`Run`, whose network is written with its final parameters, or what :func:`framework.fit` takes.
        out: the file; its name ends with ``.safetensors`` or ``.pt2``.
        ckpt: ``"best"`` (default), ``"last"`` or a path; not for a :class:`Run`.
        raw: write the weights as training left them, even if a plugin has others for evaluation, such as an average.
        **overrides: which run, and what to change in it, as for :func:`framework.test`.

    Returns:
        The metadata of the file: the recipe's name, the checkpoint's epoch and step, and which weights were written,
        ``"raw"`` or ``"evaluation"``.

    Raises:
        UserError: if there is no such run or checkpoint, or the file cannot be written, or the network not traced.
    """
    path = Path(out)
    if path.suffix not in _WRITERS:
        raise UserError(
            f"out={str(out)!r}: must end with .safetensors for weights, .pt2 for the network, or .ckpt for a"
            " LightningModule"
        )
    if isinstance(recipe, Run):
        if overrides or ckpt is not None:
            raise UserError("export(run): a Run takes no further arguments but out and raw")
        core, checkpoint, options, built, name = recipe.core, None, recipe.recipe.trainer, recipe.recipe, recipe.name
        epoch, step = recipe.epochs, recipe.steps
    else:
        found = trained(recipe, ckpt=ckpt or "best", **overrides)
        core, checkpoint, options, built, name = found.core, found.checkpoint, found.options, found.recipe, found.name
        content = read_checkpoint(checkpoint) if checkpoint is not None else {"epoch": 0, "global_step": 0}
        epoch, step = content["epoch"], content["global_step"]
        del content
    facts = {"format": "pt", "jtilde": __version__, "recipe": name, "epoch": str(epoch), "step": str(step)}
    if isinstance(core, Foreign):
        if path.suffix == ".pt2":
            raise UserError(f"out={str(out)!r}: a LightningModule has no single network to trace; write FILE.ckpt")
        samples: Any = [torch.zeros(1)]
        vars(core)["predict_step"] = _nothing
    else:
        samples = _samples(core)
    writing = _Writing(path, facts, raw, samples)
    trainer = evaluating_trainer(built, {**options, **_ONE_PROCESS}, [writing])
    with quiet(), refusals(), faults(core):
        try:
            trainer.predict(core, dataloaders=samples, ckpt_path=checkpoint)
        finally:
            core.close_loaders()
            core.leave_evaluation()
            if isinstance(core, Foreign):
                pass_on(core, core.model)
    return facts


def _nothing(batch: Any, batch_idx: int) -> Any:
    """Predict nothing: the prediction loop is run for its checkpoint and evaluation weights alone."""
    return batch


def _samples(core: Core) -> Any:
    """Return a loader of the example input: samples of the test part, else of the validation or training part."""
    data = core.data
    assert data is not None
    if data.datamodule is not None:
        core.prepare_data()
        data.datamodule.setup("test")
    parts = [name for name in ("test", "val", "train") if data.part(name) is not None]
    held = [name for name in parts if not data.is_ready(name) and length_of(getattr(data, name)) >= _SAMPLES]
    if held:
        few = Subset(as_dataset(getattr(data, held[0])), range(_SAMPLES))
        keys = {"input": data.input, "target": data.target, "weight": data.weight}
        return Data(test=few, batch_size=_SAMPLES, collate=data.collate, **keys).eval_loader("test")
    for name in parts:
        for batch in data.eval_loader(name) if data.is_ready(name) else ():
            if size_of(batch) >= _SAMPLES:
                return ReadyLoader([_first(batch)], name)
    raise UserError(
        f"Data(train=...): no part or batch has {_SAMPLES} samples, which export needs to find which sizes vary"
    )


def _first(batch: Any) -> Any:
    """Return the first samples of a batch."""
    size = size_of(batch)

    def cut(leaf: Any) -> Any:
        return leaf[:_SAMPLES] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == size else leaf

    return map_leaves(batch, cut)


class _Writing(pl.Callback):
    """Callback that writes the network once the checkpoint is loaded, before anything is predicted.

    Args:
        path: the file.
        facts: metadata of the file.
        raw: write the weights as training left them, not those for evaluation.
        samples: loader of the example input.
    """

    def __init__(self, path: Path, facts: Facts, raw: bool, samples: Any) -> None:
        self._path, self._facts, self._raw, self._samples = path, facts, raw, samples

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        core = cast("Core", pl_module)
        with nullcontext() if self._raw else core.evaluation(), torch.inference_mode(False), torch.no_grad():
            self._facts["weights"] = "evaluation" if core.evaluates_others else "raw"
            batch = trainer.precision_plugin.convert_input(next(iter(self._samples)))
            if not isinstance(core, Foreign):
                batch = core.transfer_batch_to_device(batch, core.device, 0)
            with output_file(self._path, "--out") as draft:
                _WRITERS[self._path.suffix](core, batch, draft, self._facts)


def _network(core: Core) -> Any:
    return core.answers.fold("export_model", core.model)


def _write_weights(core: Core, batch: Any, path: Path, facts: Facts) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, value in _network(core).state_dict().items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name!r} of the network's state is a {type(value).__name__}, which safetensors cannot hold"
            )
        # copies, since the format refuses tensors that share memory, as tied weights do
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
    save_file(tensors, path, facts)


def _write_network(core: Core, batch: Any, path: Path, facts: Facts) -> None:
    args, named = core.arguments(input_of(batch))
    # an input is given either by position or by name
    shapes: Any = tree_map(_any_number, named or args)
    try:
        program = torch.export.export(_network(core), args, named, dynamic_shapes=shapes)
    except Exception as error:  # tracing may raise any error
        network, why = type(core.model).__name__, one_line(error)[:200]
        raise UserError(
            f"torch.export cannot trace {network} for any number of samples ({why}); write its weights instead: --out"
            " FILE.safetensors"
        ) from error
    torch.export.save(program, path, extra_files=facts)


def _write_module(core: Core, batch: Any, path: Path, facts: Facts) -> None:
    if not isinstance(core, Foreign):
        raise UserError(
            "--out *.ckpt: only a LightningModule (Recipe(module=...)) has load_from_checkpoint; write *.safetensors"
        )
    write_for_lightning(_network(core), facts, path)


def _any_number(one: Any) -> Any:
    samples = isinstance(one, Tensor) and one.ndim and len(one) == _SAMPLES
    return {0: torch.export.Dim.DYNAMIC} if samples else None


_WRITERS: Mapping[str, Callable[[Core, Any, Path, Facts], None]] = {
    ".safetensors": _write_weights,
    ".pt2": _write_network,
    ".ckpt": _write_module,
}
