"""Who speaks? A transformer of Hugging Face's classifies speeches of Shakespeare's, in batches of similar length."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from framework import Data, Recipe, UserError
from framework.data.fetch import fetch, read_bytes
from framework.data.split import split
from plugins.early_stopping import EarlyStopping
from plugins.layer_decay import LayerDecay
from plugins.optimizer import Optimizer
from plugins.schedule import Schedule
from recipes.shakespeare import FILE

Sample = dict[str, list[int] | int]


def read_speeches(data: Path | None, speakers: int) -> tuple[list[str], list[int], list[str]]:
    """Return the speeches of the speakers that have most lines, the index of each one's speaker, and their names."""
    (path,) = fetch([FILE], data)
    found = re.findall(r"^([A-Z][A-Za-z ]+):\n(.+?)(?:\n\n|\Z)", read_bytes(path).decode(), re.MULTILINE | re.DOTALL)
    names = [name for name, _ in collections.Counter(name for name, _ in found).most_common(speakers)]
    chosen = [(text, names.index(name)) for name, text in found if name in names]
    return [text for text, _ in chosen], [label for _, label in chosen], names


def pretrained(folder: Path | None, texts: list[str], classes: int, width: int, limit: int) -> tuple[nn.Module, Any]:
    """Return a network for texts, and a function from a text to its tokens.

    Args:
        folder: folder of a network and its tokenizer, as ``save_pretrained`` writes them; None for a small random
            network whose tokens are the words of ``texts``.
        texts: the training texts.
        classes: number of classes.
        width: width of the small network.
        limit: tokens of a text, at most.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError("recipes/text_classifier.py needs the extra text: pip install 'jtilde[text]'") from error
    if folder is not None:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=classes, local_files_only=True, ignore_mismatched_sizes=True
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return model, lambda text: tokenizer(text, truncation=True, max_length=limit)["input_ids"]
    words = collections.Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    known = {word: place for place, word in enumerate((word for word, count in words.items() if count > 1), 2)}
    config = transformers.BertConfig(
        vocab_size=len(known) + 2,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        max_position_embeddings=limit + 1,
        num_labels=classes,
        hidden_dropout_prob=0.3,
    )
    network: nn.Module = transformers.BertForSequenceClassification(config)

    def encode(text: str) -> list[int]:
        return [1, *(known.get(word, 1) for word in re.findall(r"\w+|[^\w\s]", text.lower())[: limit - 1])]

    return network, encode


def padded(samples: list[Sample]) -> dict[str, Tensor]:
    """Return a batch whose texts are padded to the longest one, as networks of Hugging Face's read it."""
    tokens = [torch.tensor(sample["input_ids"]) for sample in samples]
    rows = nn.utils.rnn.pad_sequence(tokens, batch_first=True)
    lengths = torch.tensor([len(one) for one in tokens])
    mask = torch.arange(rows.shape[1]) < lengths[:, None]
    return {
        "input_ids": rows,
        "attention_mask": mask.long(),
        "labels": torch.tensor([one["labels"] for one in samples]),
    }


def recipe(
    data: Path | None = None,
    model: Path | None = None,
    speakers: int = 5,
    epochs: int = 15,
    batch_size: int = 64,
    tokens: int = 2048,
    width: int = 64,
    limit: int = 128,
    lr: float = 1e-3,
    decay: float = 0.9,
) -> Recipe:
    """Tell from a speech which of Shakespeare's characters speaks.

    Args:
        data: data folder, by default FRAMEWORK_DATA or a cache folder.
        model: folder of a pretrained network and its tokenizer, None for a small random network.
        speakers: number of speakers to tell apart.
        epochs: passes over the training part.
        batch_size: texts per optimizer step, at most.
        tokens: tokens per optimizer step, at most, padding included.
        width: width of the small network.
        limit: tokens of a text, at most.
        lr: highest learning rate; some 3e-5 for a pretrained network.
        decay: factor on the learning rate for each layer below the head.
    """
    texts, labels, names = read_speeches(data, speakers)
    parts = split(len(texts), (0.7, 0.15, 0.15), stratify=labels)
    network, encode = pretrained(model, [texts[row] for row in parts[0]], len(names), width, limit)
    train, val, test = ([{"input_ids": encode(texts[row]), "labels": labels[row]} for row in part] for part in parts)
    return Recipe(
        model=network,  # computes its loss itself from "labels"
        data=Data(
            train,
            val,
            test,
            batch_size=batch_size,
            collate=padded,
            lengths=[len(sample["input_ids"]) for sample in train],
            tokens=tokens,
        ),
        metrics={"accuracy": MulticlassAccuracy(len(names), average="micro")},
        plugins=[
            Optimizer("AdamW", lr=lr, weight_decay=0.05),
            LayerDecay(decay),
            Schedule("one_cycle", warmup=0.1),
            EarlyStopping(patience=epochs),
        ],
        trainer={"max_epochs": epochs},
    )
