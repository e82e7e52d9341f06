"""What ``compute_loss`` may return."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from framework.data.outcome import Outcome
from framework.errors import UserError


def test_a_loss_alone_is_an_outcome() -> None:
    loss = torch.tensor(1.0)
    assert Outcome.of(loss, "step 0") == Outcome(loss)
    assert Outcome.of(Outcome(None), "step 0").loss is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (1.5, "the loss is of type float, not a tensor"),
        (torch.ones(2), r"the loss has shape \(2,\), not one number"),
        (Outcome(torch.tensor(1.0), terms={"a": 1.5}), r"Outcome\(terms=...\): 'a' has type float"),  # type: ignore[dict-item]
        (Outcome(torch.tensor(1.0), terms={"a": torch.ones(2)}), r".*'a' has shape \(2,\)"),
    ],
)
def test_what_is_no_outcome(given: Any, words: str) -> None:
    with pytest.raises(UserError, match=f"step 3: {words}"):
        Outcome.of(given, "step 3")
