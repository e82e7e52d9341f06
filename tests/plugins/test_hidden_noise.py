from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from framework import Core, Data, Recipe, UserError, fit
from framework.ops.keyed import Stream
from framework.ops.noise import dropout_std
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.hidden_noise import HiddenNoise
from plugins.strength_schedule import StrengthSchedule
from tests.by_hand import loop

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.linspace(-1, 1, 8)).unsqueeze(1)
KINDS = [
    HiddenNoise("ReLU", 0.3),
    HiddenNoise("ReLU", 0.3, kind="multiplicative"),
    HiddenNoise("ReLU", kind="masking", rate=0.25),
]


class Net(nn.Module):
    """Two hidden layers; ``after`` is applied to what each ReLU returns."""

    def __init__(self, after=lambda h, layer: h, reentrant: bool | None = None) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.relu1 = nn.Linear(8, 16), nn.ReLU()
        self.second, self.relu2 = nn.Linear(16, 16), nn.ReLU()
        self.last = nn.Linear(16, 1)
        self.after, self.reentrant = after, reentrant

    def middle(self, h: torch.Tensor) -> torch.Tensor:
        return self.after(self.relu2(self.second(h)), "relu2")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.after(self.relu1(self.first(x)), "relu1")
        h = self.middle(h) if self.reentrant is None else checkpoint(self.middle, h, use_reentrant=self.reentrant)
        return self.last(h)


def train(plugins=(), model=None, x=X, y=Y, batch_size=16, compiled=False, **trainer):
    data = Data((x, y), (x, y), batch_size=batch_size)
    model = Net() if model is None else model
    recipe = Recipe(model, data, functional.mse_loss, plugins=copy.deepcopy(list(plugins)), compile=compiled)
    options = {"max_epochs": 2, "enable_progress_bar": False, "logger": False, **trainer}
    return fit(recipe, seed=3, trainer=options, logs=None)


def weights_of(run) -> torch.Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def step_of(count: int, index: int = 0) -> Step:
    step = Step(3, WeightEdits())
    step.index, step.count, step.samples = index, count, count
    return step


def observed(model: nn.Module, plugin: HiddenNoise, x, count: int, start: int = 0):
    """Run a training forward of a copy of ``model`` under the plugin."""
    core = Core(copy.deepcopy(model), plugins=[plugin], seed=3)
    core.attach_plugins()
    core.at.count, core.at.start = count, start
    core.observers.live = True
    return core(x)


@pytest.mark.parametrize(
    ("plugin", "formula"),
    [
        (KINDS[0], lambda h, draw: h + 0.3 * draw("normal")),
        (KINDS[1], lambda h, draw: h * (1 + 0.3 * draw("normal"))),
        (KINDS[2], lambda h, draw: h * (draw("uniform") >= 0.25) / 0.75),
    ],
)
def test_a_fit_equals_a_loop_by_hand(plugin, formula):
    index = 0

    def after(h, layer):
        stream = Stream(3, f"hidden_noise/{layer}")
        return formula(h, lambda kind: stream.of_step(index, room=256, start=0, size=256, kind=kind).view(16, 16))

    model = Net(after)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)

    def count() -> None:
        nonlocal index
        index += 1

    expected = loop(model, functional.mse_loss, (X, Y), optimizer, count)
    torch.testing.assert_close(weights_of(train([plugin])), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, weights_of(train()), atol=1e-4)


@pytest.mark.parametrize("plugin", KINDS)
def test_micro_batches_equal_one_batch(plugin):
    one = weights_of(train([plugin], batch_size=64))
    four = weights_of(train([plugin], batch_size=16, accumulate_grad_batches=4))
    torch.testing.assert_close(four, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("plugin", [HiddenNoise("ReLU", 0.0), HiddenNoise("ReLU", kind="masking", rate=0.0)])
def test_strength_zero_is_absent_bit_for_bit(plugin):
    assert torch.equal(weights_of(train([plugin])), weights_of(train()))


def test_evaluation_sees_the_clean_activations():
    run = train([HiddenNoise("ReLU", 5.0)])
    clean = functional.mse_loss(run.core.model(X), Y).item()
    assert run.metrics["val/loss"] == pytest.approx(clean, abs=1e-6)


@pytest.mark.parametrize("plugin", KINDS)
def test_the_gradient_is_that_of_the_formula(plugin):
    x = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    out = plugin.transform_activation(x, "relu", step_of(5))
    (gradient,) = torch.autograd.grad(out.sum(), x)
    factor = torch.ones_like(x) if plugin.kind == "gaussian" else out.detach() / x.detach()
    torch.testing.assert_close(gradient, factor)
    assert torch.autograd.gradcheck(lambda x: plugin.transform_activation(x, "relu", step_of(5)), x)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_multiplicative_noise_agrees_with_dropout_in_mean_and_variance(rate):
    h = torch.randn(1, 40, generator=torch.Generator().manual_seed(2))
    n = 20_000
    rows = h.expand(n, -1)
    noisy = HiddenNoise("*", dropout_std(rate), kind="multiplicative").transform_activation(rows, "", step_of(n))
    masked = HiddenNoise("*", kind="masking", rate=rate).transform_activation(rows, "", step_of(n))
    variance = h.square().squeeze() * rate / (1 - rate)
    for drawn in (noisy, masked):
        assert ((drawn.mean(0) - h.squeeze()).abs() < 4.5 * (variance / n).sqrt()).all()
        torch.testing.assert_close(drawn.var(0), variance, rtol=0.05, atol=0)


def test_layers_draw_apart_and_calls_of_one_layer_together():
    plugin, x = HiddenNoise("*", 1.0), torch.zeros(16, 20)
    step = step_of(16)
    a, b = plugin.transform_activation(x, "a", step), plugin.transform_activation(x, "b", step)
    assert torch.equal(a, plugin.transform_activation(x, "a", step))
    assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 4 / math.sqrt(320)


def test_of_a_recurrent_layer_the_output_sequence_is_disturbed():
    torch.manual_seed(0)
    lstm, x = nn.LSTM(3, 4, batch_first=True), torch.randn(6, 5, 3)
    clean, (h, c) = lstm(x)
    noisy, (noisy_h, noisy_c) = observed(Recurrent(lstm), HiddenNoise("rnn", 0.5), x, 6)
    assert torch.equal(noisy_h, h)
    assert torch.equal(noisy_c, c)
    assert (noisy != clean).all()
    # noise belongs to the sample: the last four samples as a micro-batch of their own draw the same
    part, _ = observed(Recurrent(lstm), HiddenNoise("rnn", 0.5), x[2:], 4, start=2)
    torch.testing.assert_close(part, noisy[2:], rtol=0, atol=1e-6)


class Recurrent(nn.Module):
    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)


def test_time_first_outputs_and_packed_sequences_are_disturbed_too():
    torch.manual_seed(0)
    x = torch.randn(5, 6, 3)
    rnn = nn.GRU(3, 4)
    noisy, _ = observed(Recurrent(rnn), HiddenNoise("GRU", 0.5), x, 6)
    assert (noisy != rnn(x)[0]).all()
    packed = pack_padded_sequence(x, torch.tensor([5, 4, 3, 3, 2, 1]))
    noisy_packed, _ = observed(Recurrent(rnn), HiddenNoise("GRU", 0.5), packed, 6)
    clean = rnn(packed)[0]
    assert (noisy_packed.data != clean.data).all()
    assert torch.equal(noisy_packed.batch_sizes, clean.batch_sizes)


def test_token_ids_take_noise_at_the_embedding():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 1))
    ids = torch.randint(0, 10, (64, 3))
    run = train([HiddenNoise("Embedding", 0.3)], model=model, x=ids)
    assert math.isfinite(run.metrics["val/loss"])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # torch's, in validation
@pytest.mark.parametrize("plugin", KINDS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_meets_the_same_noise_again(plugin, reentrant):
    plain = weights_of(train([plugin]))
    assert torch.equal(weights_of(train([plugin], model=Net(reentrant=reentrant))), plain)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch hides it, but not from an error filter
@pytest.mark.parametrize("plugin", KINDS)
def test_a_compiled_network_meets_the_same_noise_and_is_compiled_once(plugin):
    counters = torch._dynamo.utils.counters

    def graphs(epochs):
        torch._dynamo.reset()
        counters.clear()
        plugins = [StrengthSchedule(f"hidden_noise.{'rate' if plugin.rate else 'std'}", start=0.0, until=0.9), plugin]
        whole = {"backend": "eager", "fullgraph": True}  # a break in the graph raises
        run = train(plugins, compiled=whole, max_epochs=epochs, limit_val_batches=0)
        torch.testing.assert_close(weights_of(run), weights_of(train(plugins, max_epochs=epochs)), rtol=1e-5, atol=1e-6)
        return counters["stats"]["unique_graphs"]

    assert graphs(1) == graphs(4) == 1


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train(precision):
    dtype = torch.float64 if precision == "64-true" else torch.float32
    run = train([KINDS[1]], x=X.to(dtype), y=Y.to(dtype), precision=precision)
    torch.testing.assert_close(weights_of(run).float(), weights_of(train([KINDS[1]])), rtol=0, atol=0.05)


def test_a_pattern_that_matches_nothing_is_reported():
    with pytest.raises(UserError, match=r"^HiddenNoise\(layers='RelU'\): pattern 'RelU' matches no layer of Net"):
        train([HiddenNoise("RelU")])


@pytest.mark.parametrize("arguments", [{"std": -1.0}, {"kind": "dropout"}, {"kind": "masking"}, {"rate": 0.1}])
def test_wrong_settings_are_reported(arguments):
    with pytest.raises(UserError, match=r"^HiddenNoise\("):
        HiddenNoise("ReLU", **arguments)
