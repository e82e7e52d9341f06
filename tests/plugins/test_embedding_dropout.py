"""Words are dropped for a whole step as by a mask on the table's rows, and tied layers see all of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from framework import Data, Recipe, UserError, fit
from framework.ops.keyed import Stream
from framework.plugin.finding import LintWarning
from plugins.embedding_dropout import EmbeddingDropout, drop_words
from plugins.optimizer import Optimizer
from plugins.strength_schedule import StrengthSchedule
from tests.by_hand import loop

WORDS = 12
X = torch.randint(WORDS, (64, 5), generator=torch.Generator().manual_seed(0))
Y = X[:, 0] % 3


class Reader(nn.Module):
    """The mean of word vectors, read out by a layer, and by the table itself where it is tied."""

    def __init__(self, look: Any = None, tied: bool = False, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words, self.head = nn.Embedding(WORDS, 4), nn.Linear(4, 3)
        self.look, self.tied, self.reentrant = look, tied, reentrant

    def read(self, x: Tensor) -> Tensor:
        vectors = self.words(input=x) if self.look is None else self.look(x, self.words.weight)
        return torch.tanh(vectors).mean(1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.read(x) if self.reentrant is None else checkpoint(self.read, x, use_reentrant=self.reentrant)
        return F.linear(h, self.words.weight) if self.tied else self.head(h)


def trained(*plugins: Any, model: nn.Module | None = None, x: Tensor = X, **trainer: Any) -> Any:
    model = Reader() if model is None else model
    compiled = trainer.pop("compile", False)
    data = Data((x, Y), (x, Y), batch_size=trainer.pop("batch_size", 16))
    options = {"max_epochs": 2, "enable_progress_bar": False, **trainer}
    plugins = [*plugins, Optimizer("SGD", lr=0.5)]
    recipe = Recipe(model, data, F.cross_entropy, plugins=list(plugins), trainer=options, compile=compiled)
    return fit(recipe, seed=3, logs=None)


def weights_of(run: Any) -> Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def drawn(index: int, layer: str = "words") -> Tensor:
    stream = Stream(3, f"embedding_dropout/{layer}")
    return stream.of_step(index, room=WORDS, start=0, size=WORDS, kind="uniform")


def test_by_hand() -> None:
    vectors = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [3.0, 4.0]])
    out = drop_words(vectors, torch.tensor([0, 2, 1, 2]), 0.2, torch.tensor([0.9, 0.2, 0.1]))
    torch.testing.assert_close(out, torch.tensor([[1.25, 2.5], [0.0, 0.0], [6.25, 7.5], [0.0, 0.0]]))
    out = drop_words(vectors.view(2, 2, 2), torch.tensor([[0, 2], [1, 2]], dtype=torch.int32), 0.2, torch.ones(3))
    torch.testing.assert_close(out, vectors.view(2, 2, 2) * 1.25)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("micros", [1, 4])
def test_a_fit_equals_a_loop_by_hand(tied: bool, micros: int) -> None:
    """The loop masks the rows of the table itself, as Merity et al. do, and looks words up in what is left."""
    index = 0

    def look(x: Tensor, table: Tensor) -> Tensor:
        keep = (drawn(index) >= 0.4).float().unsqueeze(1) / 0.6
        return F.embedding(x, keep * table)

    model = Reader(look, tied)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def count() -> None:
        nonlocal index
        index += 1

    expected = loop(model, F.cross_entropy, (X, Y), optimizer, count)
    cut = {"batch_size": 16 // micros, "accumulate_grad_batches": micros}
    run = trained(EmbeddingDropout(rate=0.4), model=Reader(tied=tied), **cut)
    torch.testing.assert_close(weights_of(run), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, weights_of(trained(model=Reader(tied=tied))), atol=1e-3)
    assert run.metrics["val/loss"] == pytest.approx(F.cross_entropy(run.core.model(X), Y).item(), abs=1e-6)


def test_words_are_dropped_as_often_as_asked() -> None:
    share = torch.stack([drawn(index) < 0.3 for index in range(2000)]).float().mean(0)
    assert bool(((share - 0.3).abs() < 4.5 * (0.21 / 2000) ** 0.5).all())


def test_rate_zero_is_absence() -> None:
    assert torch.equal(weights_of(trained(EmbeddingDropout(rate=0.0))), weights_of(trained()))


def test_layers_that_share_a_table_drop_the_same_words_and_others_their_own() -> None:
    class Two(nn.Module):
        def __init__(self, shared: bool) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Embedding(WORDS, 4), nn.Embedding(WORDS, 4), nn.Linear(4, 3)
            if shared:
                self.b.weight = self.a.weight
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            if self.training:
                self.seen.append(torch.stack([(one == 0).all(-1) for one in (a, b)]))
            return self.head((a + b).mean(1))

    for shared in (True, False):
        (*masks,) = trained(EmbeddingDropout(rate=0.5), model=(model := Two(shared)), max_epochs=1).core.model.seen
        assert model is not None and any(mask.any() for mask in masks)
        assert all(torch.equal(a, b) for a, b in masks) is shared


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # torch's
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_drops_the_same_words_again(reentrant: bool) -> None:
    plain = trained(EmbeddingDropout(rate=0.4), model=Reader())
    again = trained(EmbeddingDropout(rate=0.4), model=Reader(reentrant=reentrant))
    if reentrant:  # which passes no gradient where no input needs one, as of tokens
        assert torch.equal(again.core.model.words.weight, Reader().words.weight)
    else:
        assert torch.equal(weights_of(again), weights_of(plain))


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch hides it, but not from an error filter
def test_a_compiled_network_follows_a_schedule_and_is_compiled_once() -> None:
    def plugins() -> list[Any]:
        return [StrengthSchedule("embedding_dropout.rate", start=0.0, until=0.9), EmbeddingDropout(rate=0.5)]

    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    whole = {"backend": "eager", "fullgraph": True}
    compiled = trained(*plugins(), compile=whole, limit_val_batches=0)
    assert counters["stats"]["unique_graphs"] == 1
    eager = trained(*plugins(), limit_val_batches=0)
    torch.testing.assert_close(weights_of(compiled), weights_of(eager), rtol=1e-5, atol=1e-6)


def test_other_layers_and_patterns_are_told() -> None:
    there = "the network's nn.Embedding layers: words$"
    with pytest.raises(UserError, match=rf"^EmbeddingDropout\(layers='wte'\): pattern 'wte' matches .*; {there}"):
        trained(EmbeddingDropout("wte"))
    with pytest.raises(UserError, match=rf"^EmbeddingDropout\(layers='head'\): head is Linear, .*; {there}"):
        trained(EmbeddingDropout("head"))
    bag = nn.Sequential(nn.EmbeddingBag(WORDS, 4), nn.Linear(4, 3))
    with pytest.raises(UserError, match=r"0 is EmbeddingBag, whose output is not one vector a word; .* layers: none$"):
        trained(EmbeddingDropout("EmbeddingBag"), model=bag)
    with pytest.raises(UserError, match=r"^EmbeddingDropout\("):
        EmbeddingDropout(rate=1.0)


def test_an_embedding_that_returns_something_else_is_told() -> None:
    class Summed(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).sum(1)

    model = nn.Sequential(Summed(WORDS, 4), nn.Linear(4, 3))
    with pytest.raises(UserError, match=r"0 was given tokens \(16, 5\) and returns \(16, 4\); choose another$"):
        trained(EmbeddingDropout("Summed"), model=model)


def test_tables_of_positions_are_told() -> None:
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe, self.head = nn.Embedding(WORDS, 4), nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.wte(x) + self.wpe(torch.arange(5))).mean(1))

    with pytest.warns(LintWarning, match="wpe looks like no table of words"):
        trained(EmbeddingDropout(), model=Placed(), max_epochs=1)


def test_a_copy_of_the_layer_keeps_no_tokens() -> None:
    plugin = EmbeddingDropout(rate=0.4)
    run = trained(plugin, max_epochs=1)
    other = copy.deepcopy(run.core.model)
    plugin.tokens_.clear()
    other.train()(X)
    assert not plugin.tokens_
