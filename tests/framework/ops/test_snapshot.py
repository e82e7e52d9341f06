from __future__ import annotations

import torch
from torch import nn

from framework.ops.snapshot import Snapshot, tensors_of


def network() -> nn.Sequential:
    first = nn.Linear(3, 3)
    last = nn.Linear(3, 3)
    last.weight = first.weight
    last.bias.requires_grad_(False)
    return nn.Sequential(first, nn.BatchNorm1d(3), last)


def test_everything_comes_back_bit_for_bit() -> None:
    model, snapshot = network(), Snapshot()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    snapshot.take(model)
    model(torch.randn(5, 3)).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert model.state_dict()["1.num_batches_tracked"] == 1
    snapshot.put_back(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model[0].weight is model[2].weight
    assert all(p.requires_grad for name, p in model.named_parameters() if name != "2.bias")


def test_tied_weights_are_copied_once() -> None:
    assert [name for name in tensors_of(network()) if name.endswith("weight")] == ["0.weight", "1.weight"]


def test_a_second_copy_allocates_nothing() -> None:
    model, snapshot = network(), Snapshot()
    snapshot.take(model)
    first = {name: tensor.data_ptr() for name, tensor in snapshot.tensors.items()}
    nn.init.ones_(model[0].weight)
    snapshot.take(model)
    assert {name: tensor.data_ptr() for name, tensor in snapshot.tensors.items()} == first
    assert torch.equal(snapshot.tensors["0.weight"], torch.ones(3, 3))


def test_a_network_that_changed_is_copied_again() -> None:
    model, snapshot = network(), Snapshot()
    snapshot.take(model)
    model.double().register_buffer("more", torch.ones(2))
    snapshot.take(model)
    assert snapshot.tensors["0.weight"].dtype == torch.float64
    assert snapshot.tensors["more"].tolist() == [1.0, 1.0]


def test_a_copy_taken_in_inference_mode_can_be_taken_again_outside() -> None:
    model, snapshot = network(), Snapshot()
    with torch.inference_mode():
        snapshot.take(model)
    snapshot.take(model)
    assert not any(tensor.is_inference() or tensor.requires_grad for tensor in snapshot.tensors.values())
    snapshot.put_back(model)
