"""The gradient of a step is that of one objective, however the step's batch is split."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from framework.data import Data
from framework.data.batch import input_of, target_of
from framework.data.outcome import Outcome
from framework.engine.core import Core
from framework.errors import NonFiniteError, UserError
from framework.plugin import Plugin

CoreOf = Callable[..., Core]
Train = Callable[..., pl.Trainer]
Weights = Callable[[Core], Tensor]


class Descent(Plugin):
    lr: float = 0.5

    def make_optimizer(self, groups: Any) -> Any:
        return torch.optim.SGD(groups, lr=self.lr)


class Norm(Plugin):
    """A penalty on weights through autograd."""

    alpha: float = 0.05

    def attach(self, core: Core) -> None:
        self.model_ = core.model

    def penalty(self, step: Any) -> Tensor:
        return 0.5 * self.alpha * sum((p**2).sum() for p in self.model_.parameters())


class NormInClosedForm(Norm):
    """The same penalty by its gradient."""

    def penalty(self, step: Any) -> None:
        return None

    def weight_penalty(self, step: Any) -> Tensor:
        return super().penalty(step)

    def weight_penalty_gradient(self, step: Any) -> None:
        for p in self.model_.parameters():
            p.grad.add_(p, alpha=self.alpha)


class Activity(Plugin):
    """The mean of squares of the hidden layer, a term on activations."""

    alpha: float = 0.5
    layer: str = "1"

    def attach(self, core: Core) -> None:
        core.observe(self, self.layer)
        self.seen_: list[Tensor] = []

    def transform_activation(self, x: Tensor, layer: str, step: Any) -> Tensor:
        self.seen_.append((x.float() ** 2).mean())
        return x

    def penalty(self, step: Any) -> Tensor:
        term, self.seen_ = self.seen_[0], []
        return self.alpha * term


class Jitter(Plugin):
    """Noise of the step's own on input and hidden layer, and on the weights."""

    std: float = 0.1

    def attach(self, core: Core) -> None:
        core.observe(self, "0")
        self.weights_ = list(core.model.parameters())

    def transform_batch(self, batch: Any, step: Any) -> Any:
        x, *rest = batch
        return x + self.std * step.normal(self, x, "input"), *rest

    def transform_activation(self, x: Tensor, layer: str, step: Any) -> Tensor:
        return x + self.std * step.uniform(self, x, layer).to(x.dtype)

    def edit_weights(self, step: Any) -> None:
        generator = step.generator(self)
        for w in step.edits.save(self.weights_):
            w.add_(torch.randn(w.shape, generator=generator, dtype=w.dtype), alpha=self.std)


def by_hand(model: nn.Module, data: Data, *, epochs: int = 1, accumulate: int = 1, alpha: float = 0.0) -> Tensor:
    """Return the weights after training with a loop written out."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loader = data.train_loader(seed=0, accumulate=accumulate)
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for window in loader:
            optimizer.zero_grad()
            for x, y in window.batches:
                objective = cross_entropy(model(x), y)
                if alpha:
                    objective = objective + 0.5 * alpha * sum((p**2).sum() for p in model.parameters())
                if len(window.batches) > 1:
                    objective = objective * (len(x) / window.total)
                objective.backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("plugins", [[], [Norm]])
def test_equals_a_loop_written_out_bit_for_bit(
    core_of: CoreOf, train: Train, weights: Weights, data: Data, mlp: Any, plugins: list[Any], accumulate: int
) -> None:
    core = core_of(Descent(), *(kind() for kind in plugins), accumulate=accumulate)
    train(core, max_epochs=2)
    expected = by_hand(mlp(), data, epochs=2, accumulate=accumulate, alpha=0.05 if plugins else 0.0)
    assert torch.equal(weights(core), expected)


def test_the_default_optimizer_is_adamw_without_decay(
    core_of: CoreOf, train: Train, weights: Weights, data: Data, mlp: Any
) -> None:
    model, core = mlp(), core_of()
    train(core)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for window in data.train_loader(seed=0):
        optimizer.zero_grad()
        cross_entropy(model(window.batches[0][0]), window.batches[0][1]).backward()
        optimizer.step()
    assert torch.equal(weights(core), torch.cat([p.detach().flatten() for p in model.parameters()]))


SPLITS = [[], [Norm], [NormInClosedForm], [Activity], [Jitter], [Jitter, Activity, NormInClosedForm]]


@pytest.mark.parametrize("kinds", SPLITS)
@pytest.mark.parametrize("accumulate", [2, 4])
def test_k_micro_batches_are_one_batch(
    core_of: CoreOf, train: Train, weights: Weights, data: Data, kinds: list[Any], accumulate: int
) -> None:
    """100 samples in steps of 32: the last step holds 4, fewer than one micro-batch of 16 or half of one of 8."""

    def trained(k: int) -> Tensor:
        cut = Data(data.train, data.val, batch_size=32 // k)
        core = core_of(Descent(), *(kind() for kind in kinds), data=cut, accumulate=k)
        train(core, precision="64-true", max_epochs=2)
        return weights(core)

    torch.testing.assert_close(trained(accumulate), trained(1), rtol=1e-10, atol=1e-12)


class Masked(Core):
    """A mean over the samples whose target is not ignored."""

    def compute_loss(self, batch: Any) -> Outcome:
        if self.count(batch) == 0:
            return Outcome(None)
        return Outcome(cross_entropy(self(input_of(batch)), target_of(batch), ignore_index=-100))

    def count(self, batch: Any) -> Tensor:
        return (target_of(batch) != -100).sum()


def masked(data: Data, rate: float, batch_size: int) -> Data:
    def part(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        drop = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < rate
        return x, y.masked_fill(drop, -100)

    return Data(part(*data.train), part(*data.val), batch_size=batch_size)


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_micro_batches_count_by_what_the_loss_is_a_mean_over(
    core_of: CoreOf, train: Train, weights: Weights, data: Data, rate: float
) -> None:
    def trained(k: int) -> Core:
        core = core_of(Descent(), kind=Masked, data=masked(data, rate, 32 // k), accumulate=k)
        train(core, precision="64-true")
        return core

    one, four = trained(1), trained(4)
    torch.testing.assert_close(weights(four), weights(one), rtol=1e-10, atol=1e-12)
    losses = [core.trainer.callback_metrics["val/loss"].item() for core in (one, four)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    x, y = masked(data, rate, 32).val
    expected = cross_entropy(one.model(x.double()), y).item()
    assert losses[0] == pytest.approx(expected, rel=1e-6)


def test_a_step_without_anything_to_count_leaves_the_weights(core_of: CoreOf, train: Train, weights: Weights) -> None:
    x = torch.randn(8, 64)
    core = core_of(kind=Masked, data=Data((x, torch.full((8,), -100)), batch_size=4), accumulate=2)
    before = weights(core).clone()
    with pytest.raises(UserError, match="epoch 0: nothing was trained: the loss of each of 2 batches was None"):
        train(core)
    assert torch.equal(weights(core), before)


def test_a_batch_that_is_not_what_it_counts_is_reported(core_of: CoreOf, train: Train, data: Data) -> None:
    """Packed batches: shares by the length of the input would weigh micro-batches wrongly, and silently."""

    def packed(samples: list[Any]) -> Any:
        return torch.cat([x.view(4, 16) for x, _ in samples]), torch.stack([y for _, y in samples]).repeat_interleave(4)

    cut = Data(data.train, batch_size=8, collate=packed)
    core = core_of(data=cut, model=nn.Linear(16, 10), accumulate=2)
    with pytest.raises(UserError, match=r"micro-batches of 32 and 32 are made of 16 samples.*override count"):
        train(core)


# ---- ranks -----------------------------------------------------------------------------------------------------------


class RanksAgree(pl.Callback):
    """Fails where parameters or metrics differ between ranks."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        metrics = torch.tensor([v for k, v in sorted(trainer.callback_metrics.items())], dtype=values.dtype)
        for mine in (values, metrics):
            first = mine.clone()
            torch.distributed.broadcast(first, 0)
            assert torch.equal(first, mine)


TWO_RANKS = {"strategy": "ddp_fork", "devices": 2, "callbacks": [RanksAgree()]}


@pytest.mark.parametrize("kinds", SPLITS)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_ranks_are_one_process_with_the_whole_batch(
    core_of: CoreOf, train: Train, weights: Weights, data: Data, kinds: list[Any], accumulate: int
) -> None:
    def trained(size: int, k: int, **options: Any) -> Tensor:
        cut = Data(data.train, data.val, batch_size=size)
        core = core_of(Descent(), *(kind() for kind in kinds), data=cut, accumulate=k)
        train(core, precision="64-true", **options)
        return weights(core)

    two = trained(16 // accumulate, accumulate, **TWO_RANKS)
    assert two.dtype == torch.float32, "the parent's network is filled with the ranks' parameters in its own precision"
    torch.testing.assert_close(two, trained(32, 1).float(), rtol=1e-7, atol=1e-8)


def test_ranks_count_by_what_the_loss_is_a_mean_over(
    core_of: CoreOf, train: Train, weights: Weights, data: Data
) -> None:
    def trained(size: int, **options: Any) -> tuple[Tensor, float]:
        core = core_of(Descent(), kind=Masked, data=masked(data, 0.5, size))
        trainer = train(core, precision="64-true", **options)
        return weights(core), trainer.callback_metrics["val/loss"].item()

    two, one = trained(16, **TWO_RANKS), trained(32)
    torch.testing.assert_close(two[0], one[0].float(), rtol=1e-7, atol=1e-8)
    assert two[1] == pytest.approx(one[1], rel=1e-6)


# ---- precision -------------------------------------------------------------------------------------------------------


def half_precision(init_scale: float = 1024.0) -> MixedPrecision:
    return MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=init_scale))


@pytest.mark.parametrize("kinds", [[], [Norm], [NormInClosedForm], [Activity]])
@pytest.mark.parametrize(
    "options", [lambda: {"precision": "bf16-mixed"}, lambda: {"plugins": [half_precision()]}], ids=["bf16", "fp16"]
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_mixed_precision_trains_on_the_same_objective(
    core_of: CoreOf,
    train: Train,
    weights: Weights,
    data: Data,
    kinds: list[Any],
    options: Callable[[], Any],
    accumulate: int,
) -> None:
    def trained(**more: Any) -> Tensor:
        core = core_of(
            Descent(0.1),
            *(kind() for kind in kinds),
            data=Data(data.train, batch_size=16 // accumulate),
            accumulate=accumulate,
        )
        train(core, **more)
        return weights(core)

    full, mixed, start = trained(), trained(**options()), weights(core_of())
    assert mixed.dtype == torch.float32
    assert (mixed - full).norm() < 0.02 * (full - start).norm()


def test_terms_are_computed_in_float32_and_so_is_their_sum(core_of: CoreOf, train: Train) -> None:
    class Watch(Plugin):
        def penalty(self, step: Any) -> Tensor:
            a = torch.ones(3, 3, requires_grad=True)
            self.kinds_ = (a @ a).dtype, torch.is_autocast_enabled("cpu")
            return (a @ a).sum() * 0

        def after_update(self, step: Any) -> None:
            self.update_ = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()

    class Seen(Plugin):
        def attach(self, core: Core) -> None:
            core.observe(self, "0")

        def transform_activation(self, x: Tensor, layer: str, step: Any) -> Tensor:
            self.kind_ = x.dtype
            return x

    watch, seen = Watch(), Seen()
    train(core_of(watch, seen), precision="bf16-mixed", max_steps=1)
    assert watch.kinds_ == (torch.float32, False)
    assert watch.update_ == (False, False)
    assert seen.kind_ == torch.bfloat16


# ---- second forwards, repeated layers --------------------------------------------------------------------------------


class Checkpointed(nn.Sequential):
    """Keeps no activations of its first layers but works them out again in backward."""

    def forward(self, x: Tensor) -> Tensor:
        return self[2](checkpoint(lambda x: self[1](self[0](x)), x, use_reentrant=False))


@pytest.mark.parametrize("kinds", [[Activity], [Jitter], [Jitter, Activity]])
def test_activation_checkpointing_changes_nothing(
    core_of: CoreOf, train: Train, weights: Weights, mlp: Any, kinds: list[Any]
) -> None:
    def trained(model: nn.Module) -> Tensor:
        core = core_of(Descent(), *(kind() for kind in kinds), model=model, accumulate=2)
        train(core)
        return weights(core)

    assert torch.equal(trained(Checkpointed(*mlp())), trained(mlp()))


# ---- what is refused -------------------------------------------------------------------------------------------------


class Gives(Core):
    """Returns for J what the test says."""

    what: Any = None

    def compute_loss(self, batch: Any) -> Any:
        return type(self).what(self, batch)


def gives(what: Callable[[Core, Any], Any]) -> type[Core]:
    return type("Given", (Gives,), {"what": what})


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda core, b: cross_entropy(core(b[0]), b[1], reduction="none"), r"step 0: the loss has shape \(16,\)"),
        (lambda core, b: core(b[0]).sum() * math.nan, "step 0: the loss is nan"),
        (lambda core, b: core(b[0]).sum() * math.inf, "step 0: the loss is -?inf"),
        (lambda core, b: 3.0, "step 0: the loss is of type float, not a tensor"),
        (lambda core, b: (core(b[0]).sum(), 1, 2), "step 0: the loss is of type tuple, not a tensor"),
        (lambda core, b: cross_entropy(core(b[0]).detach(), b[1]), "step 0: the loss has no gradient"),
    ],
)
def test_losses_that_cannot_be_trained_on(core_of: CoreOf, train: Train, what: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        train(core_of(kind=gives(what)))


def test_a_loss_alone_is_an_outcome(core_of: CoreOf, train: Train, weights: Weights) -> None:
    short = core_of(kind=gives(lambda core, b: cross_entropy(core(b[0]), b[1])))
    whole = core_of()
    train(short)
    train(whole)
    assert torch.equal(weights(short), weights(whole))


def test_a_term_that_is_not_finite_is_named(core_of: CoreOf, train: Train) -> None:
    class Bad(Plugin):
        def penalty(self, step: Any) -> Any:
            return {"good": torch.tensor(1.0), "root": torch.tensor(math.nan if step.index == 2 else 0.0)}

    with pytest.raises(NonFiniteError, match="step 2: penalty/bad/root is nan"):
        train(core_of(Norm(), Bad()))


def test_a_term_that_is_no_tensor_is_refused(core_of: CoreOf, train: Train) -> None:
    class Number(Plugin):
        def penalty(self, step: Any) -> Any:
            return 0.5

    with pytest.raises(UserError, match="step 0: penalty/number is a float; return a tensor"):
        train(core_of(Number()))


def test_a_term_that_is_not_one_number_is_named(core_of: CoreOf, train: Train) -> None:
    class Bad(Plugin):
        def penalty(self, step: Any) -> Any:
            return torch.ones(3)

    with pytest.raises(UserError, match=r"step 0: penalty/bad has shape \(3,\)"):
        train(core_of(Bad()))


# ---- notices of plain Lightning callbacks ----------------------------------------------------------------------------


class Notes(pl.Callback):
    """Records its notices."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self.told.append("start")

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        assert isinstance(optimizer, torch.optim.Optimizer)
        self.told.append("zero")

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        assert loss.requires_grad
        self.told.append("before backward")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.told.append("after backward")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        assert all(p.grad is not None for group in optimizer.param_groups for p in group["params"])
        self.told.append("step")

    def on_train_batch_end(self, *args: Any) -> None:
        self.told.append("end")


def test_callbacks_get_lightnings_notices_once_an_update(core_of: CoreOf, train: Train, weights: Weights) -> None:
    notes = Notes()
    core, plain = core_of(accumulate=2), core_of(accumulate=2)
    train(core, callbacks=[notes], max_steps=2)
    train(plain, max_steps=2)
    backward = ["before backward", "after backward"]
    assert notes.told == ["start", "zero", *backward, *backward, "step", "end"] * 2
    assert torch.equal(weights(core), weights(plain)), "being watched changes nothing"


def test_watch_gets_each_micro_batch_as_the_network_gets_it(core_of: CoreOf, train: Train) -> None:
    core, seen = core_of(Jitter(), accumulate=2), []
    core.gradient.watch = lambda batch: seen.append(copy.copy(batch))
    train(core, max_steps=1)
    assert [len(batch[0]) for batch in seen] == [16, 16]
    assert seen[0][0].std() > 0
    assert not torch.equal(seen[0][0], core.data.train[0][:16])
