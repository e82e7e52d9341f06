from __future__ import annotations

from torch import nn

from framework.engine.layer_modes import LayerModes


def test_a_frozen_layer_stays_in_evaluation() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[0].eval()
    modes = LayerModes(model)
    modes.remember()
    model.eval()
    with modes.as_in_training():
        assert [layer.training for layer in model.modules()] == [True, False, True]
    assert [layer.training for layer in model.modules()] == [False, False, False]
