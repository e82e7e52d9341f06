"""Peak memory of a fit over a handwritten loop, per plugin, in copies of the weights or of a batch.

Each is measured in its own process: the growth of resident memory from before the network is made to the peak.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from framework import Data, Plugin, Recipe, fit
from framework.ops.transforms import RandomCrop, RandomFlip
from plugins.activation_sparsity import ActivationSparsity
from plugins.adversarial import Adversarial
from plugins.augmentation import Augmentation
from plugins.cut_mix import CutMix
from plugins.cutout import Cutout
from plugins.early_stopping import EarlyStopping
from plugins.hidden_noise import HiddenNoise
from plugins.input_noise import InputNoise
from plugins.mixup import Mixup
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.sam import SAM
from plugins.weight_average import WeightAverage
from plugins.weight_noise import WeightNoise

WIDTH, LAYERS, STEPS = 3000, 3, 3
IMAGES = (512, 3, 128, 128)
MIB = 1 << 20

Plugins = Callable[[], list[Plugin]]

ON_WEIGHTS: dict[str, Plugins] = {
    "no plugin": list,
    "clipping": lambda: [Optimizer("AdamW", lr=1e-3, clip_norm=1.0)],
    "L2": lambda: [NormPenalty(1e-4)],
    "L1": lambda: [NormPenalty(1e-4, p=1)],
    "elastic net": lambda: [NormPenalty(1e-4, l1_ratio=0.5)],
    "group lasso": lambda: [NormPenalty(1e-4, groups="rows")],
    "L1, proximal": lambda: [NormPenalty(1e-4, p=1, proximal=True)],
    "L2-SP": lambda: [NormPenalty(1e-4, around="start")],
    "weight noise": lambda: [WeightNoise(0.01)],
    "weight average": lambda: [WeightAverage(decay=0.99)],
    "early stopping": lambda: [EarlyStopping(patience=3)],
    "SAM": lambda: [SAM()],
}
ON_BATCHES: dict[str, Plugins] = {
    "no plugin": list,
    "input noise": lambda: [InputNoise(0.1)],
    "hidden noise, one layer": lambda: [HiddenNoise("ReLU", std=0.1)],
    "activation L1, one layer": lambda: [ActivationSparsity(1e-4, "ReLU")],
    "flips and crops": lambda: [Augmentation(batch=[RandomFlip(), RandomCrop(4)])],
    "mixup": lambda: [Mixup(0.4)],
    "cut mix": lambda: [CutMix()],
    "cutout": lambda: [Cutout(32)],
    "adversarial, FGSM": lambda: [Adversarial(0.01, "fgsm")],
    "adversarial, VAT": lambda: [Adversarial(2.0, "vat")],
}


def large_network() -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """Return a network of 27 million weights, data of which a batch is small, and the bytes of the weights."""
    layers = [one for _ in range(LAYERS) for one in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 10))
    data = torch.randn(STEPS * 16, WIDTH), torch.zeros(STEPS * 16, dtype=torch.long)
    return model, data, sum(p.nbytes for p in model.parameters())


def large_batches() -> tuple[nn.Module, tuple[Tensor, Tensor], int]:
    """Return a small network, images of which a batch is large, and the bytes of a batch."""
    layer = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(layer, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
    x = torch.randn(STEPS * IMAGES[0], *IMAGES[1:])
    return model, (x, torch.zeros(len(x), dtype=torch.long)), x.nbytes // STEPS


KINDS = {"weights": (large_network, ON_WEIGHTS), "batches": (large_batches, ON_BATCHES)}


def resident() -> int:
    """Return the bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def by_hand(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    """Train by a handwritten loop, and evaluate on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    x, y = data
    size = len(x) // STEPS
    for _ in range(2):
        for chosen in torch.randperm(len(x)).split(size):
            optimizer.zero_grad()
            cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            cross_entropy(model(x[:size]), y[:size])


def ours(model: nn.Module, data: tuple[Tensor, Tensor], plugins: Plugins, keep: bool) -> None:
    """Fit the same."""
    x, y = data
    size = len(x) // STEPS
    added = plugins()
    if not any(isinstance(plugin, Optimizer) for plugin in added):
        added.append(Optimizer("AdamW", lr=1e-3))
    recipe = Recipe(
        model,
        Data((x, y), (x[:size], y[:size]), batch_size=size),
        cross_entropy,
        plugins=added,
        trainer={"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False},
    )
    with tempfile.TemporaryDirectory() as logs:
        fit(recipe, logs=logs if keep else None)


def peak(kind: str, name: str) -> None:
    """Run one contender and print the growth of memory in bytes; to be run in its own process."""
    torch.set_num_threads(1)
    make, listed = KINDS[kind]
    torch.randn(8, 8).mm(torch.randn(8, 8))
    before = resident()
    model, data, _ = make()
    if name == "by hand":
        by_hand(model, data)
    else:
        ours(model, data, listed.get(name, list), keep=name.endswith("checkpoints"))
    # not that of getrusage, which a process inherits from its parent
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    print(int(line.split()[1]) * 1024 - before)


def measured(kind: str, name: str) -> int:
    """Return the growth of a contender's memory at its peak, in bytes."""
    code = f"from benchmarks.memory import peak; peak({kind!r}, {name!r})"
    asked = subprocess.run([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return int(asked.stdout.split()[-1])


def rows() -> list[dict[str, Any]]:
    """Return one row per plugin: MiB over the handwritten loop, also in copies of what is large."""
    found = []
    for kind, (make, listed) in KINDS.items():
        unit = make()[2]
        hand, plain = measured(kind, "by hand"), 0
        for name in (*listed, "no plugin, TensorBoard and checkpoints"):
            bytes_ = measured(kind, name)
            plain = plain or bytes_
            found.append(
                {
                    "what": kind,
                    "name": name,
                    "hand_mib": hand / MIB,
                    "mib": (bytes_ - hand) / MIB,
                    "copies": (bytes_ - hand) / unit,
                    "of_plugin": (bytes_ - plain) / unit,
                }
            )
    return found


def show(found: list[dict[str, Any]]) -> None:
    """Print the rows."""
    for kind in KINDS:
        print(f"  in copies of the {kind}")
        for row in (one for one in found if one["what"] == kind):
            print(
                f"    {row['name']:<40} {row['mib']:+8.1f} MiB over {row['hand_mib']:.0f} by hand,"
                f" {row['copies']:+.2f} copies, {row['of_plugin']:+.2f} of them the plugin's"
            )
