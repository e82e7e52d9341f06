from __future__ import annotations

import pytest
import torch
from torch import nn

from framework.ops.proximal import group_norms
from framework.ops.units import units_by_weight, units_of

LAYERS = [
    nn.Linear(4, 6, bias=False),
    nn.Conv1d(4, 6, 3, bias=False),
    nn.Conv2d(4, 6, 3, groups=2, bias=False),
    nn.Conv1d(4, 4, 3, groups=4, bias=False),
    nn.ConvTranspose1d(4, 6, 3, bias=False),
    nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
    nn.ConvTranspose3d(4, 4, 1, groups=4, bias=False),
]


def with_only(layer: nn.Module, unit: int) -> torch.Tensor:
    """Return which entries of the weight the output unit depends on, by autograd."""
    shape = (1, 4) if isinstance(layer, nn.Linear) else (1, 4, *[5] * (layer.weight.ndim - 2))
    layer.zero_grad()
    (layer(torch.ones(shape)).movedim(1, 0)[unit]).sum().backward()
    return layer.weight.grad != 0


def reached_from(layer: nn.Module, channel: int) -> torch.Tensor:
    """Return which entries of the weight the input is multiplied by, by autograd."""
    shape = (1, 4) if isinstance(layer, nn.Linear) else (1, 4, *[5] * (layer.weight.ndim - 2))
    x = torch.zeros(shape)
    x[:, channel] = 1.0
    layer.zero_grad()
    layer(x).sum().backward()
    return layer.weight.grad != 0


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("groups", ["rows", "columns"])
def test_groups_are_what_an_output_unit_depends_on_and_what_an_input_reaches(layer, groups) -> None:
    w, units = layer.weight.detach(), [units_of(layer)]
    rows = groups == "rows"
    entries = [
        with_only(layer, k) if rows else reached_from(layer, k)
        for k in range(getattr(layer, "out_channels", 6) if rows else 4)
    ]
    wanted = torch.stack([w[of].norm() * int(of.sum()) ** 0.5 for of in entries])
    (found,) = group_norms([w], groups, weigh=True, units=units)
    torch.testing.assert_close(found.flatten(), wanted)
    (spread,) = group_norms([w], groups, weigh=False, units=units)
    for of in entries:
        torch.testing.assert_close(spread.expand_as(w)[of], (w[of].norm() / int(of.sum()) ** 0.5).expand(int(of.sum())))


def test_an_embedding_is_a_linear_map_of_tokens_stored_transposed() -> None:
    embedding = nn.Embedding(5, 3)
    (rows,) = group_norms([embedding.weight], "rows", weigh=True, units=[units_of(embedding)])
    assert rows.numel() == 3
    assert units_of(nn.EmbeddingBag(5, 3)) == units_of(embedding)


def test_tied_and_parametrized_weights_have_the_units_of_their_layer() -> None:
    tied = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    tied[1].weight = tied[0].weight
    assert units_by_weight(tied)[tied[0].weight].out == 0
    for make in (nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm):
        layer = make(nn.ConvTranspose2d(4, 6, 3, groups=2))
        assert {units for w, units in units_by_weight(layer).items() if w.ndim == 4} == {units_of(layer)}
        assert units_of(layer).out == 1
