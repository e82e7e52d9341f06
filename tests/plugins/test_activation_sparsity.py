from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from framework import Core, Data, Plugin, Recipe, UserError, fit
from framework.data.batch import input_of, replace
from framework.ops.rates import kl, rows_of_units
from plugins.activation_sparsity import ActivationSparsity, k_winners, l1
from plugins.optimizer import Optimizer

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.linspace(-1, 1, 8)).unsqueeze(1)


class Net(nn.Module):
    def __init__(self, act: type[nn.Module] = nn.ReLU, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.act1 = nn.Linear(8, 16), act()
        self.second, self.act2 = nn.Linear(16, 12), act()
        self.last = nn.Linear(12, 1)
        self.reentrant = reentrant

    def hidden(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.act1(self.first(x))
        g = lambda h: self.act2(self.second(h))  # noqa: E731
        return h, g(h) if self.reentrant is None else checkpoint(g, h, use_reentrant=self.reentrant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.hidden(x)[1])


class Memory(Logger):
    """Keeps what is logged."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics, step=None):
        self.entries.append((step, dict(metrics)))

    def log_hyperparams(self, *args, **kwargs):
        """Keep nothing of them."""

    def curve(self, tag):
        return [(step, metrics[tag]) for step, metrics in self.entries if tag in metrics]


def train(plugins=(), model=None, batch_size=16, core=Core, compiled=False, **trainer):
    model = Net() if model is None else model
    data = Data((X, Y), (X, Y), batch_size=batch_size)
    plugins = copy.deepcopy(list(plugins))
    recipe = Recipe(model, data, functional.mse_loss, plugins=plugins, core=core, compile=compiled)
    options = {"max_epochs": 2, "enable_progress_bar": False, "logger": False, **trainer}
    return fit(recipe, seed=3, trainer=options, logs=None)


def weights_of(run) -> torch.Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def by_hand(term, act=nn.ReLU) -> torch.Tensor:
    """Train as ``train`` does, ``term(hidden activations)`` added to the loss."""
    model = Net(act)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    loader = Data((X, Y), batch_size=16).train_loader(seed=3)
    for epoch in range(2):
        loader.set_epoch(epoch)
        for window in loader:
            x, y = window.batches[0]
            optimizer.zero_grad()
            hidden = model.hidden(x)
            (functional.mse_loss(model.last(hidden[1]), y) + term(hidden)).backward()
            optimizer.step()
    return nn.utils.parameters_to_vector(model.parameters()).detach()


# ---- the mathematics -------------------------------------------------------------------------------------------------


def test_l1_by_hand():
    h = torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.0, 0.5]], requires_grad=True)
    value = l1(h, samples=2)
    value.backward()
    assert value.item() == 2.0
    assert h.grad.tolist() == [[0.5, -0.5, 0.0], [0.5, 0.0, 0.5]]


@pytest.mark.parametrize(("k", "kept"), [(1, 1), (3, 3), (0.25, 2), (0.26, 3), (1.0, 8), (8, 8)])
def test_k_winners_keeps_the_k_largest(k, kept):
    h = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    out = k_winners(h, k)
    smallest_kept = h.sort(dim=1, descending=True).values[:, kept - 1 : kept]
    assert torch.equal(out, torch.where(h >= smallest_kept, h, torch.zeros(())))


def test_k_winners_keeps_k_of_equal_activations():
    assert (k_winners(torch.ones(5, 8), 3) == 1).sum(1).tolist() == [3] * 5


def test_the_gradient_passes_to_the_winners_alone():
    h = torch.tensor([[3.0, -1.0, 2.0, 0.5]], requires_grad=True)
    (k_winners(h, 2) * torch.tensor([[1.0, 2.0, 3.0, 4.0]])).sum().backward()
    assert h.grad.tolist() == [[1.0, 0.0, 3.0, 0.0]]
    h = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda h: k_winners(h, 2), h)


def test_units_of_sequences_and_images():
    assert rows_of_units(torch.zeros(7)).shape == (1, 7)
    assert rows_of_units(torch.zeros(4, 7)).shape == (4, 7)
    assert rows_of_units(torch.zeros(4, 5, 7)).shape == (20, 7)
    assert rows_of_units(torch.zeros(4, 3, 5, 7)).shape == (4, 105)
    h = torch.randn(4, 5, 7)
    assert (k_winners(h, 2) != 0).sum(-1).eq(2).all()
    assert torch.equal(k_winners(h, 2).transpose(0, 1), k_winners(h.transpose(0, 1), 2))
    assert (k_winners(torch.randn(4, 3, 5, 7), 6) != 0).flatten(1).sum(1).eq(6).all()


# ---- in a fit --------------------------------------------------------------------------------------------------------


def test_l1_in_a_fit_equals_a_loop_by_hand():
    run = train([ActivationSparsity(0.05)])
    expected = by_hand(lambda hidden: 0.05 * sum(h.abs().sum() / 16 for h in hidden))
    torch.testing.assert_close(weights_of(run), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, weights_of(train()), atol=1e-4)


def test_kl_in_a_fit_equals_a_loop_by_hand():
    def term(hidden):
        rates = [h.mean(0) for h in hidden]
        return 0.3 * sum((0.2 * (0.2 / r).log() + 0.8 * (0.8 / (1 - r)).log()).sum() for r in rates)

    run = train([ActivationSparsity(0.3, "Sigmoid", kind="kl", rho=0.2)], model=Net(nn.Sigmoid))
    torch.testing.assert_close(weights_of(run), by_hand(term, nn.Sigmoid), rtol=0, atol=1e-6)
    assert not torch.allclose(weights_of(run), weights_of(train(model=Net(nn.Sigmoid))), atol=1e-4)


def test_l1_of_micro_batches_equals_that_of_one_batch():
    one = weights_of(train([ActivationSparsity(0.05)], batch_size=64))
    four = weights_of(train([ActivationSparsity(0.05)], accumulate_grad_batches=4))
    uneven = weights_of(train([ActivationSparsity(0.05)], batch_size=24, accumulate_grad_batches=3))
    torch.testing.assert_close(four, one, rtol=0, atol=1e-6)
    torch.testing.assert_close(uneven, one, rtol=0, atol=1e-6)


def test_kl_of_micro_batches_is_no_smaller_than_that_of_one_batch():
    h = torch.rand(64, 5)
    assert torch.stack([kl(part, 0.1) for part in h.split(16)]).mean() >= kl(h, 0.1)


@pytest.mark.parametrize(
    ("plugin", "act"),
    [
        (ActivationSparsity(0.0), nn.ReLU),
        (ActivationSparsity(0.0, "Sigmoid", kind="kl"), nn.Sigmoid),
        (ActivationSparsity(kind="k_winners", k=1.0), nn.ReLU),
    ],
)
def test_strength_zero_is_absent_bit_for_bit(plugin, act):
    assert torch.equal(weights_of(train([plugin], model=Net(act))), weights_of(train(model=Net(act))))


def test_it_is_logged_apart_and_validation_is_the_data_loss_alone():
    memory = Memory()
    run = train([ActivationSparsity(0.05)], logger=memory, log_every_n_steps=1)
    first = dict(memory.entries[0][1])
    assert first["train/objective"] == pytest.approx(first["train/loss"] + first["penalty/activation_sparsity"])
    assert first["penalty/activation_sparsity"] > 0
    clean = functional.mse_loss(run.core.model(X), Y).item()
    assert run.metrics["val/loss"] == pytest.approx(clean, abs=1e-6)


def test_the_fraction_of_active_units_is_logged_on_logged_steps_over_all_micro_batches():
    memory = Memory()
    train([ActivationSparsity(0.0)], logger=memory, log_every_n_steps=3, batch_size=8, accumulate_grad_batches=2)
    model = Net()
    curve = memory.curve("sparsity/act1")
    assert [step for step, _ in curve] == [3, 6]
    # at the first step the weights are known: log at once and compare
    memory = Memory()
    train([ActivationSparsity(0.0)], logger=memory, log_every_n_steps=1, batch_size=32, accumulate_grad_batches=2)
    for layer, h in zip(("act1", "act2"), model.hidden(X), strict=True):
        assert memory.curve(f"sparsity/{layer}")[0][1] == pytest.approx((h > 0).float().mean().item())


def test_the_threshold_says_what_is_active():
    memory, model = Memory(), Net(nn.Sigmoid)
    share = (model.hidden(X)[0] > 0.6).float().mean().item()
    plugin = ActivationSparsity(0.0, "act1", threshold=0.6)
    train([plugin], model=model, logger=memory, log_every_n_steps=1, batch_size=64)
    assert memory.curve("sparsity/act1")[0][1] == pytest.approx(share)
    assert not memory.curve("sparsity/act2")


def test_l1_makes_activations_sparse():
    def sparsity(alpha):
        memory = Memory()
        train([ActivationSparsity(alpha)], logger=memory, log_every_n_steps=4, max_epochs=40)
        return memory.curve("sparsity/act2")[-1][1]

    assert sparsity(0.3) < 0.5 * sparsity(0.0)


class Shared(nn.Module):
    """One ReLU called twice, with different widths."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 12), nn.Linear(12, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.last(self.relu(self.second(self.relu(self.first(x)))))


def test_a_layer_called_several_times_counts_every_call():
    apart, memory_apart = train([ActivationSparsity(0.05)]), Memory()
    memory = Memory()
    run = train([ActivationSparsity(0.05)], model=Shared(), logger=memory, log_every_n_steps=1)
    torch.testing.assert_close(weights_of(run), weights_of(apart), rtol=0, atol=1e-6)
    train([ActivationSparsity(0.05)], logger=memory_apart, log_every_n_steps=1)
    one, two = memory_apart.entries[0][1]["sparsity/act1"], memory_apart.entries[0][1]["sparsity/act2"]
    assert memory.entries[0][1]["sparsity/relu"] == pytest.approx((16 * one + 12 * two) / 28)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # torch's, in validation
def test_activation_checkpointing_counts_once():
    plain = weights_of(train([ActivationSparsity(0.05)], accumulate_grad_batches=2))
    again = weights_of(train([ActivationSparsity(0.05)], model=Net(reentrant=False), accumulate_grad_batches=2))
    torch.testing.assert_close(again, plain, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", ["l1", "kl"])
def test_terms_are_float32_under_autocast(kind):
    seen = []

    class Watched(ActivationSparsity):
        def penalty(self, step):
            seen.append((self.seen_[0].x.dtype, super().penalty(step)))
            return seen[-1][1]

    plugin = Watched(0.05, "Sigmoid", kind=kind)
    train([plugin], model=Net(nn.Sigmoid), precision="bf16-mixed", max_epochs=1)
    assert {dtype for dtype, _ in seen} == {torch.bfloat16}
    assert all(term.dtype == torch.float32 and term.requires_grad for _, term in seen)


def test_nothing_stays_after_an_error_in_forward():
    failing = {"on": True}

    class Fails(Core):
        def compute_loss(self, batch):
            outcome = super().compute_loss(batch)
            if self.training and failing["on"]:
                raise ArithmeticError("of the user's")
            return outcome

    core = Fails(Net(), functional.mse_loss, plugins=[ActivationSparsity(0.05)], seed=3)
    core.attach_plugins()
    plugin, step = core.plugins[0], core.at
    step.count = 16
    for on in (True, False):
        failing["on"] = on
        batch = plugin.transform_batch((X[:16], Y[:16]), step)
        core.observers.live = True
        if on:
            with pytest.raises(ArithmeticError):
                core.compute_loss(batch)
        else:
            core.compute_loss(batch)
    expected = 0.05 * sum(h.abs().sum() / 16 for h in core.model.hidden(X[:16]))
    assert len(plugin.seen_) == 4  # those of the line above too: the hooks are still live
    del plugin.seen_[2:]
    torch.testing.assert_close(plugin.penalty(step), expected)
    assert plugin.seen_ == []


def test_no_activation_seen_is_no_term():
    plugin = ActivationSparsity(0.05)
    core = Core(Net(), plugins=[plugin])
    core.attach_plugins()
    assert plugin.penalty(core.at) is None


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch hides it, but not from an error filter
def test_a_compiled_network_has_the_same_term_and_is_compiled_whole():
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    compiled = train([ActivationSparsity(0.05)], compiled={"backend": "eager", "fullgraph": True}, limit_val_batches=0)
    torch.testing.assert_close(weights_of(compiled), weights_of(train([ActivationSparsity(0.05)])), rtol=0, atol=1e-7)
    assert counters["stats"]["unique_graphs"] == 1


# ---- kl asks for rates -----------------------------------------------------------------------------------------------


def test_kl_refuses_activations_that_are_no_rates():
    message = (
        r"^ActivationSparsity\(alpha=0.1, kind='kl'\): act1 has activations from 0 to [1-9]\.\d+, and rates lie in"
    )
    with pytest.raises(UserError, match=message):
        train([ActivationSparsity(0.1, kind="kl")])


# ---- k-winners are a part of the network -----------------------------------------------------------------------------


def test_k_winners_hold_in_training_and_in_evaluation():
    memory = Memory()
    plugin = ActivationSparsity(layers="act*", kind="k_winners", k=3)
    run = train([plugin], model=Net(nn.Sigmoid), logger=memory, log_every_n_steps=1)
    first, second = run.core.model.hidden(X)
    assert (first != 0).sum(1).tolist() == [3] * 64
    assert (second != 0).sum(1).tolist() == [3] * 64
    assert memory.curve("sparsity/act1")[0][1] == pytest.approx(3 / 16)
    assert memory.curve("sparsity/act2")[-1][1] == pytest.approx(3 / 12)
    assert run.metrics["val/loss"] == pytest.approx(functional.mse_loss(run.core.model(X), Y).item(), abs=1e-6)


def test_k_winners_in_a_fit_equal_a_network_that_has_them():
    class Winners(Net):
        def hidden(self, x):
            h = k_winners(self.act1(self.first(x)), 0.5)
            return h, k_winners(self.act2(self.second(h)), 0.5)

    run = train([ActivationSparsity(kind="k_winners", k=0.5)])
    assert torch.equal(weights_of(run), weights_of(train(model=Winners())))
    assert list(run.core.model.state_dict()) == list(Net().state_dict())


def test_a_network_with_k_winners_can_be_copied_and_pickled():
    model = ActivationSparsity(kind="k_winners", k=2).prepare_model(Shared())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), model(X))
    assert not torch.equal(Shared()(X), model(X))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # torch's, in validation
@pytest.mark.parametrize(
    ("plugin", "model", "message"),
    [
        (ActivationSparsity(kind="k_winners", k=13), Net(), r"k=13\): act2 has 12 units; k must be at most that"),
        (
            ActivationSparsity(layers="0", kind="k_winners", k=2),
            nn.Sequential(nn.LSTM(8, 4)),
            r"0 returns tuple, not a tensor; choose the nonlinearity",
        ),
        (
            ActivationSparsity(layers="Relu", kind="k_winners", k=2),
            Net(),
            r"'Relu' matches no layer of Net; known: .*ReLU",
        ),
        (ActivationSparsity(0.1, "GELU"), Net(), r"'GELU' matches no layer of Net"),
        (
            ActivationSparsity(0.1, "Linear"),
            nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True), nn.Linear(4, 1)),
            r"the output of 0 is overwritten in place by the layer after it .*; choose that layer",
        ),
        (ActivationSparsity(0.1), Net(reentrant=True), r"act2 runs without gradients, .* use_reentrant=False"),
    ],
)
def test_what_cannot_be_is_reported(plugin, model, message):
    with pytest.raises(UserError, match=message) as caught:
        train([plugin], model=model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"alpha": -1e-3},
        {"alpha": math.nan},
        {"alpha": 0.1, "k": 3},
        {"alpha": 0.1, "kind": "l2"},
        {"alpha": 0.1, "kind": "kl", "rho": 0.0},
        {"alpha": 0.1, "kind": "kl", "rho": 1.0},
        {"kind": "k_winners"},
        {"kind": "k_winners", "k": 0},
        {"kind": "k_winners", "k": 1.5},
        {"kind": "k_winners", "k": 0.0},
        {"kind": "k_winners", "k": 3, "alpha": 0.1},
        {"alpha": 0.1, "threshold": -1},
    ],
)
def test_wrong_settings_are_reported_in_one_line(arguments):
    with pytest.raises(UserError, match=r"^ActivationSparsity\(.*") as caught:
        ActivationSparsity(**arguments)
    assert "\n" not in str(caught.value)


# ---- beside others ---------------------------------------------------------------------------------------------------


class Looks(Plugin):
    """Evaluates each micro-batch once more at other inputs."""

    def attach(self, core):
        self.core_ = core

    def penalty(self, step):
        outcome = self.core_.again.evaluate(replace(step.batch, input=input_of(step.batch) + 1))
        return 0.0 * outcome.loss


class Doubles(Plugin):
    """Takes the gradient of the step once more, at the same weights."""

    def second_gradient(self, step, again):
        again(lambda: None)


@pytest.mark.parametrize("first", [[], [Doubles()]])
def test_another_plugins_second_evaluation_is_not_counted(first):
    alone = weights_of(train([ActivationSparsity(0.05)]))
    for plugins in ([Looks(), ActivationSparsity(0.05)], [ActivationSparsity(0.05), Looks()]):
        torch.testing.assert_close(weights_of(train([*first, *plugins])), alone, rtol=0, atol=1e-7)


# ---- rates at both ends ----------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """A sigmoid within a layer of the user's own."""

    def forward(self, z):
        return torch.sigmoid(z)


def slope_at(bias, layer=None, plugins=(), **settings):
    """Return the gradient of a unit's bias under the KL term alone, by one step of SGD at a rate of 1."""
    model = nn.Sequential(nn.Linear(4, 1), layer or nn.Sigmoid(), nn.Linear(1, 1)).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(model[0].bias, bias)
    model.to(settings.pop("dtype", torch.float32))
    x = torch.zeros(10, 4, dtype=model[0].weight.dtype)
    term = ActivationSparsity(1.0, "1", kind="kl", rho=0.05)
    recipe = Recipe(
        model,
        Data((x, x[:, :1]), batch_size=10),
        functional.mse_loss,
        plugins=[*plugins, term, Optimizer("SGD", lr=1.0)],
        **settings,
    )
    fit(recipe, logs=None, trainer={"max_epochs": 1, "enable_progress_bar": False, "logger": False})
    return bias - model[0].bias.item()


@pytest.mark.parametrize("bias", [-200.0, -95.0, -14.0, -3.0, 0.0, 3.0, 14.0, 20.0, 200.0])
def test_a_dead_and_a_saturated_unit_get_the_slope_of_the_formula(bias):
    # (-rho / r + (1 - rho) / (1 - r)) r (1 - r) = r - rho
    assert slope_at(bias) == pytest.approx(1 / (1 + math.exp(-bias)) - 0.05, abs=3e-5)


@pytest.mark.parametrize("bias", [-14.0, -60.0, 9.0])
def test_a_sigmoid_within_another_layer_gets_the_slope_wherever_its_rate_is_a_number(bias):
    assert slope_at(bias, Wrapped()) == pytest.approx(1 / (1 + math.exp(-bias)) - 0.05, abs=3e-5)


@pytest.mark.parametrize("bias", [-200.0, 200.0])
def test_a_rate_of_exactly_zero_or_one_without_logits_leaves_the_run_finite(bias):
    assert slope_at(bias, Wrapped()) == 0.0


def test_what_another_plugin_adds_behind_the_sigmoid_is_measured():
    class Half(Plugin):
        def attach(self, core):
            core.observe(self, "1")

        def transform_activation(self, x, layer, step):
            return 0.5 * x

    # the rate is r / 2 with r = sigmoid(0): (-rho / (r / 2) + (1 - rho) / (1 - r / 2)) r (1 - r) / 2
    assert slope_at(0.0, plugins=[Half()]) == pytest.approx((-0.05 / 0.25 + 0.95 / 0.75) * 0.125, abs=1e-6)
    assert slope_at(-14.0, plugins=[Half()]) == pytest.approx(-0.05, abs=1e-5)
