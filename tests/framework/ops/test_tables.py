from __future__ import annotations

import torch
from torch import nn

from framework.ops.tables import padding_rows, tables, without_rows


def test_rows_of_padding() -> None:
    model = nn.Sequential(nn.Embedding(4, 2, padding_idx=0), nn.EmbeddingBag(4, 2, padding_idx=-1), nn.Embedding(4, 2))
    assert padding_rows(model) == {model[0].weight: 0, model[1].weight: 3}
    assert tables(model) == {layer.weight for layer in model}


def test_a_row_that_another_layer_trains_is_no_padding() -> None:
    for other in (nn.Linear(2, 4), nn.Embedding(4, 2), nn.Embedding(4, 2, padding_idx=1)):
        model = nn.Sequential(nn.Embedding(4, 2, padding_idx=0), other)
        other.weight = model[0].weight
        assert padding_rows(model) == {}
    same = nn.Sequential(nn.Embedding(4, 2, padding_idx=0), nn.Embedding(4, 2, padding_idx=0))
    same[1].weight = same[0].weight
    assert padding_rows(same) == {same[0].weight: 0}


def test_tensors_without_the_row_are_copies() -> None:
    table, plain = torch.ones(2, 2), torch.ones(2)
    first, second = without_rows([table, plain], [table, plain], {table: 1})
    assert first.tolist() == [[1, 1], [0, 0]]
    assert table.tolist() == [[1, 1], [1, 1]]
    assert second is plain
