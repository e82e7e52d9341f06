"""What each plugin is good for alone: test accuracy with it minus without, paired by seed, on small tasks.

    python -m benchmarks.cards cards.jsonl --seeds 8
    python -m benchmarks.cards cards.jsonl --plugins mixup,sam

Two tasks whose networks overfit if nothing is done, from data that come with scikit-learn: 200 handwritten digits as
images for a convolutional network, and 100 rows of a table (breast cancer, 30 numbers) for a perceptron. A seed is a
start, an order of samples, and a choice of training samples; all others test. Each plugin stands with one plausible
strength that was not tuned here, and the network of the last step is tested: zero and negative results count like the
others. Runs append a line each to the file, and are not repeated if the command is given again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn

from framework import Data, Plugin, Recipe, fit
from framework.plugin.registry import find_plugin
from framework.tune.statistics import compare_pairs

IMAGES, ROWS = "images", "rows"
BOTH: dict[str, dict[str, dict[str, Any]]] = {
    "L2": {"norm_penalty": {"alpha": 3e-3}},
    "L1": {"norm_penalty": {"alpha": 3e-4, "p": 1}},
    "decoupled decay": {"optimizer": {"weight_decay": 0.1}},
    "max-norm": {"norm_constraint": {"limit": 0.8}},
    "orthogonality": {"matrix_penalty": {"alpha": 1e-3}},
    "spectral norm": {"matrix_penalty": {"alpha": 1e-2, "kind": "spectral"}},
    "nuclear norm": {"matrix_penalty": {"alpha": 1e-3, "kind": "nuclear"}},
    "weight noise": {"weight_noise": {"std": 0.03}},
    "input noise": {"input_noise": {"std": 0.2}},
    "dropout": {"hidden_noise": {"layers": "ReLU", "kind": "masking", "rate": 0.3}},
    "multiplicative noise": {"hidden_noise": {"layers": "ReLU", "kind": "multiplicative", "std": 0.5}},
    "sparse activations": {"activation_sparsity": {"alpha": 3e-4}},
    "mixup": {"mixup": {"alpha": 0.4}},
    "label smoothing": {"label_smoothing": {"eps": 0.1}},
    "confidence penalty": {"confidence_penalty": {"alpha": 0.1}},
    "SAM": {"sam": {"rho": 0.05}},
    "adversarial (FGSM)": {"adversarial": {"kind": "fgsm", "eps": 0.05}},
    "virtual adversarial": {"adversarial": {"kind": "vat", "eps": 1.0}},
    "EMA": {"weight_average": {"decay": 0.98}},
    "gradient noise": {"gradient_noise": {"eta": 0.01}},
    "gradient centralization": {"gradient_centralization": {}},
    "lookahead": {"lookahead": {}},
    "adaptive clipping": {"adaptive_clipping": {"ratio": 0.02}},
}
OWN: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    IMAGES: {
        "CutMix": {"cut_mix": {}},
        "Cutout": {"cutout": {"size": 3}},
        "DropBlock": {"drop_block": {"layers": "Conv2d", "size": 3, "rate": 0.2}},
    },
    ROWS: {
        "piecewise-linear numbers": {"number_encoding": {"bins": 8}},
        "periodic numbers": {"number_encoding": {"bins": 8, "kind": "periodic"}},
    },
}


def samples(task: str) -> tuple[Tensor, Tensor]:
    """Return inputs and classes of a task."""
    if task == IMAGES:
        x, y = load_digits(return_X_y=True)
        return torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y)
    x, y = load_breast_cancer(return_X_y=True)
    rows = torch.tensor(x, dtype=torch.float32)
    return (rows - rows.mean(0)) / rows.std(0), torch.tensor(y)


def network(task: str) -> nn.Module:
    """Return a network of a task."""
    if task == IMAGES:
        convolutions = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
        return nn.Sequential(
            *convolutions, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    return nn.Sequential(nn.Linear(30, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 2))


def run(task: str, plugins: Mapping[str, Mapping[str, Any]], seed: int, epochs: int) -> dict[str, float]:
    """Train once and return accuracy and loss on all other samples."""
    x, y = samples(task)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, test = order[: 200 if task == IMAGES else 100], order[200 if task == IMAGES else 100 :]
    torch.manual_seed(seed)
    settings = {"optimizer": {"lr": 1e-3}, **{name: dict(one) for name, one in plugins.items()}}
    settings["optimizer"] = {"lr": 1e-3, **settings["optimizer"]}
    used: list[Plugin] = [find_plugin(name)(**one) for name, one in settings.items()]
    recipe = Recipe(network(task), Data((x[train], y[train]), batch_size=25), nn.CrossEntropyLoss(), plugins=used)
    options = {"max_epochs": epochs, "enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = fit(recipe, seed=seed, logs=None, trainer=options)
    with torch.no_grad(), done.core.evaluation():
        logits = done.core.model.eval()(x[test])
    right, loss = (logits.argmax(1) == y[test]).float().mean(), nn.functional.cross_entropy(logits, y[test])
    return {"accuracy": float(right), "loss": float(loss)}


def table(runs: Sequence[Mapping[str, Any]], task: str) -> str:
    """Return a Markdown table of a task: gain in accuracy (points) and loss, with what can be told."""
    figures = {(one["plugin"], one["seed"]): one for one in runs if one["task"] == task}
    names = list(dict.fromkeys(name for name, _ in figures if name != "none"))
    plain = {seed: one for (name, seed), one in figures.items() if name == "none"}

    def gains(name: str, change: Callable[[Mapping[str, Any], Mapping[str, Any]], float]) -> list[float]:
        return [change(one, plain[seed]) for (other, seed), one in figures.items() if other == name and seed in plain]

    accuracy = {name: gains(name, lambda a, b: 100 * (a["accuracy"] - b["accuracy"])) for name in names}
    loss = {name: gains(name, lambda a, b: b["loss"] - a["loss"]) for name in names}
    lines = ["| alone | accuracy, points | interval | | loss, less by | interval | |", "|---" * 7 + "|"]
    of_accuracy, of_loss = (compare_pairs(one, higher_is_better=True) for one in (accuracy, loss))
    for name in sorted(names, key=lambda one: -of_loss[one].mean):
        cells = []
        for found, digits in ((of_accuracy[name], 2), (of_loss[name], 4)):
            verdict = found.verdict(higher_is_better=True)
            ends = f"{found.low:+.{digits}f} to {found.high:+.{digits}f}"
            cells += [f"{found.mean:+.{digits}f}", ends, "" if verdict == "not told apart" else verdict]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    mean = statistics.fmean(100 * one["accuracy"] for one in plain.values())
    level = statistics.fmean(one["loss"] for one in plain.values())
    return f"{task}: without any plugin {mean:.2f} %, loss {level:.4f}, {len(plain)} seeds\n\n" + "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing in the file, and print a table a task."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cards", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="file for the single runs, one JSON object a line")
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds, from 0")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--plugins", help="rows to make, by default all")
    order = parser.parse_args(arguments)
    torch.set_num_threads(1)
    text = order.file.read_text(encoding="utf-8") if order.file.exists() else ""
    runs = [json.loads(line) for line in text.splitlines()]
    done = {(one["task"], one["plugin"], one["seed"]) for one in runs}
    for task in (IMAGES, ROWS):
        arms: dict[str, dict[str, dict[str, Any]]] = {"none": {}, **BOTH, **OWN[task]}
        wanted = ["none", *order.plugins.split(",")] if order.plugins else list(arms)
        for seed in range(order.seeds):
            for name in [one for one in arms if one in wanted and (task, one, seed) not in done]:
                found = {"task": task, "plugin": name, "seed": seed, **run(task, arms[name], seed, order.epochs)}
                runs.append(found)
                with order.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
        print(f"{table(runs, task)}\n", flush=True)


if __name__ == "__main__":
    main()
