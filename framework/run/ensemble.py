"""``ensemble``: the mean prediction of several runs, all or chosen on the validation part."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from framework.checkpoint.atomic import output_file
from framework.checkpoint.folder import ENDED, RunFolder
from framework.data.outcome import Outcome
from framework.data.outputs import outputs_of
from framework.errors import UserError, one_line, some
from framework.ops.committee import Outputs, choose, combined
from framework.recipe.recipe import Recipe
from framework.recipe.spec import Source
from framework.run.caller import as_alone
from framework.run.evaluate import run_trainer, trained
from framework.run.export import export

_QUIET = {"enable_progress_bar": False, "devices": 1, "num_nodes": 1, "strategy": "auto"}


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The mean prediction of several runs.

    Args:
        weights: weight of each chosen run by its folder; they sum to one.
        metrics: the ensemble's metrics on the validation part, and on the test part where there is one.
        members: metrics on the validation part of each run, by its folder.
        predictions: the ensemble's predictions by part, ``"val"`` and ``"test"``, in the part's order.
        out: the file of the network, None if none was written.
    """

    weights: dict[Path, float]
    metrics: dict[str, float]
    members: dict[Path, dict[str, float]]
    predictions: dict[str, Tensor]
    out: Path | None


@as_alone()
def ensemble(
    recipe: Source,
    runs: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    greedy: bool = False,
    rounds: int = 16,
    outputs: Outputs | None = None,
) -> Ensemble:
    """Take the mean prediction of several runs, or of those chosen on the validation part, and evaluate it.

    The runs may differ in everything but their data: seeds, settings, parameters, plugins, the network. Each
    contributes what it evaluates with at its best epoch. Of logits the mean is that of probabilities. ``greedy``:
    members are added one at a time so that the loss on the validation part is lowest, a member as often as it helps;
    those that do not help get no weight. That is for many candidates, such as the trials of a study; of few runs that
    are all good, the mean of all is better where the validation part is small. The test part is evaluated once, by
    the runs that have a weight.

    Args:
        recipe: what :func:`framework.fit` takes, the recipe of all runs.
        runs: folders of runs, or folders that hold runs, such as that of a study.
        out: file for the ensemble as one network, ``FILE.pt2``, see :func:`framework.export`; None for none.
        greedy: choose members on the validation part; else all have the same weight.
        rounds: with ``greedy``, number of members added, counted with repetition.
        outputs: what the outputs are, ``"softmax"`` for logits of classes, ``"bernoulli"`` for logits of yes or no,
            ``"normal"`` for values; None for what the loss reads: torch's losses are known, others say so by an
            attribute ``outputs``.

    Raises:
        UserError: if there are fewer than two runs, they predict on different data, or nothing says what outputs are.

    Source: Caruana, Niculescu-Mizil, Crew and Ksikes (2004), Ensemble selection from libraries of models; Goodfellow,
    Bengio and Courville (2016), Deep Learning, section 7.11.
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise UserError(f"rounds={rounds!r}: must be a whole number >= 1")
    if out is not None and Path(out).suffix != ".pt2":
        raise UserError(f"out={str(out)!r}: must end with .pt2, since an ensemble is several networks")
    folders = _folders(runs)
    if len(folders) < 2:
        raise UserError(f"ensemble: {len(folders)} run that ended given; give the folders of at least two")
    seen = {folder: _Seen.of(recipe, folder, "validate") for folder in folders}
    first = seen[folders[0]]
    for folder, one in seen.items():
        if not _same(one.target, first.target) or one.prediction.shape != first.prediction.shape:
            raise UserError(
                f"ensemble: {folder} predicts on other data than {folders[0]}; give runs of the same data and split"
            )
    kind = _kind_of(first.recipe, outputs)
    loss = cast("Callable[[Any, Any], Tensor]", first.recipe.loss)

    shown, right = [one.prediction for one in seen.values()], first.target

    def loss_of(weights: Sequence[float]) -> float:
        return float(loss(combined(shown, weights, kind), right))

    shares = choose(len(folders), loss_of, rounds) if greedy else [1 / len(folders)] * len(folders)
    chosen = dict(zip(folders, shares, strict=True))
    weights = {folder: weight for folder, weight in chosen.items() if weight}
    metrics: dict[str, float] = {}
    predictions: dict[str, Tensor] = {}
    parts = {"val": {folder: seen[folder] for folder in weights}}
    if first.recipe.data.part("test") is not None:
        parts["test"] = {folder: _Seen.of(recipe, folder, "test") for folder in weights}
    for stage, chosen_ones in parts.items():
        one = next(iter(chosen_ones.values()))
        every = [each.prediction for each in chosen_ones.values()]
        predictions[stage] = combined(every, list(weights.values()), kind)
        metrics |= one.measure(stage, predictions[stage])
    if out is not None:
        _write(recipe, weights, kind, Path(out))
    members = {folder: one.measure("val", one.prediction) for folder, one in seen.items()}
    return Ensemble(weights, metrics, members, predictions, None if out is None else Path(out))


def _folders(runs: Sequence[str | Path]) -> list[Path]:
    """Return the folders of runs that ended, each once."""
    found: dict[Path, Path] = {}
    for path in map(Path, runs):
        files = sorted(path.rglob("run.json")) if path.is_dir() else []
        ended = [file.parent for file in files if RunFolder(file.parent).read()["status"] in ENDED]
        if not ended:
            raise UserError(f"ensemble: {path} holds no run that ended")
        found |= {folder.resolve(): folder for folder in ended}
    return list(found.values())


def _kind_of(recipe: Recipe, given: Outputs | None) -> Outputs:
    if recipe.loss is None:
        raise UserError("ensemble: the recipe has no loss of prediction and target; give Recipe(loss=...)")
    if given not in (None, *get_args(Outputs)):
        raise UserError(f"outputs={given!r}: must be one of {', '.join(map(repr, get_args(Outputs)))}")
    kind = given or outputs_of(recipe.loss)
    if kind is None:
        name = getattr(recipe.loss, "__name__", type(recipe.loss).__name__)
        raise UserError(
            f"ensemble: nothing says what the outputs are that the loss reads ({name}); give outputs='softmax',"
            " 'bernoulli' or 'normal', or the loss an attribute outputs"
        )
    return cast("Outputs", kind)


@dataclasses.dataclass
class _Seen(pl.Callback):
    """What a run predicts on a part, and what is right.

    Args:
        recipe: the run's recipe.
        outcomes: what its core gave on each batch.
    """

    recipe: Recipe
    outcomes: list[Outcome] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, source: Source, folder: Path, kind: str) -> _Seen:
        """Evaluate a run's best checkpoint: ``"validate"`` or ``"test"``."""
        found = trained(source, run=folder)
        seen = cls(found.recipe)
        compute = found.core.compute_loss

        def kept(batch: Any) -> Any:
            outcome = Outcome.of(compute(batch), kind)
            seen.outcomes.append(outcome)
            return outcome

        vars(found.core)["compute_loss"] = kept  # where each batch's prediction and target are, whatever the core
        run_trainer(kind, found.core, found.recipe, {**found.options, **_QUIET}, found.checkpoint)
        if not all(isinstance(one, Tensor) for each in seen.outcomes for one in (each.prediction, each.target)):
            raise UserError(f"ensemble: {folder} predicts no tensors, of which alone a mean can be taken")
        return seen

    @property
    def prediction(self) -> Tensor:
        """The predictions on the whole part."""
        return torch.cat([one.prediction for one in self.outcomes]).cpu()

    @property
    def target(self) -> Tensor:
        """The targets of the whole part."""
        return torch.cat([one.target for one in self.outcomes]).cpu()

    def measure(self, stage: str, prediction: Tensor) -> dict[str, float]:
        """Return loss and metrics of predictions on the part, by tag."""
        found = {
            f"{stage}/loss": float(cast("Callable[[Any, Any], Tensor]", self.recipe.loss)(prediction, self.target))
        }
        for name, metric in self.recipe.metrics.items():
            own = copy.deepcopy(metric).cpu()
            own.reset()
            own.update(prediction, self.target)
            found[f"{stage}/{name}"] = float(own.compute())
        return found


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other))


class _Committee(nn.Module):
    """The members as one network."""

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float], outputs: Outputs) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._weights, self._outputs = list(weights), outputs

    def forward(self, x: Any) -> Tensor:
        return combined([member(x) for member in self.members], self._weights, self._outputs)


def _write(recipe: Source, weights: Mapping[Path, float], kind: Outputs, out: Path) -> None:
    members = []
    with tempfile.TemporaryDirectory() as place:
        for index, folder in enumerate(weights):
            export(recipe, Path(place) / f"{index}.pt2", run=folder)
            program = torch.export.load(Path(place) / f"{index}.pt2")
            members.append(program.module())
            (x,), _ = program.example_inputs
    network = _Committee(members, list(weights.values()), kind)
    try:
        whole = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    except Exception as error:  # tracing may raise any error
        raise UserError(f"torch.export cannot trace the ensemble ({one_line(error)[:200]})") from error
    facts = {"format": "pt", "members": some([str(folder) for folder in weights])}
    with output_file(out, "out") as draft:
        torch.export.save(whole, draft, extra_files=facts)
