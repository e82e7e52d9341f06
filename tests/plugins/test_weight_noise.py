from __future__ import annotations

import copy
import math

import pytest
import torch
from pytorch_lightning import Callback
from scipy import stats
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from framework import Core, Data, Recipe, UserError, fit
from framework.ops.keyed import Stream
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.optimizer import Optimizer
from plugins.weight_noise import WeightNoise, perturb, shares_of

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
Y = (X @ torch.linspace(-1, 1, 8)).unsqueeze(1)


def make_model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))


def recipe_of(plugins=(), model=None, x=X, y=Y, batch_size=16, loss=functional.mse_loss) -> Recipe:
    data = Data((x, y), (x, y), batch_size=batch_size)
    return Recipe(model or make_model(), data, loss, plugins=copy.deepcopy(list(plugins)))


def train(plugins=(), callbacks=(), **arguments):
    names = ("model", "x", "y", "batch_size", "loss")
    recipe = recipe_of(plugins, **{name: arguments.pop(name) for name in names if name in arguments})
    recipe.plugins += callbacks
    options = {"max_epochs": 2, "enable_progress_bar": False, "logger": False, **arguments}
    return fit(recipe, seed=3, trainer=options, logs=None)


def weights_of(run) -> torch.Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def attached(model: nn.Module, plugin: WeightNoise) -> tuple[WeightNoise, Step]:
    core = Core(model, plugins=[plugin], seed=3)
    core.attach_plugins()
    return plugin, core.at


def edit(plugin: WeightNoise, step: Step) -> None:
    with torch.no_grad():
        plugin.edit_weights(step)


def noise_of(plugin: WeightNoise, step: Step) -> torch.Tensor:
    """Return what the plugin adds to weights of a network at a step."""
    clean = torch.cat([w.detach().flatten() for w in plugin.weights_])
    edit(plugin, step)
    noisy = torch.cat([w.detach().flatten() for w in plugin.weights_])
    step.edits.undo()
    assert torch.equal(torch.cat([w.detach().flatten() for w in plugin.weights_]), clean)
    return noisy - clean


def test_formulas_by_hand():
    noise = torch.tensor([1.0, -1.0, 2.0])
    weights = [torch.tensor([[1.0, -2.0]]), torch.tensor([0.0])]
    perturb(weights, 0.1, noise)
    torch.testing.assert_close(weights[0], torch.tensor([[1.1, -2.1]]))
    torch.testing.assert_close(weights[1], torch.tensor([0.2]))
    weights = [torch.tensor([[1.0, -2.0]]), torch.tensor([0.0])]
    perturb(weights, 0.1, noise, "relative")
    torch.testing.assert_close(weights[0], torch.tensor([[1.1, -1.8]]))
    assert weights[1].item() == 0.0


@pytest.mark.parametrize("kind", ["gaussian", "relative"])
def test_the_noise_is_normal_with_the_standard_deviation_asked_for(kind):
    model = nn.Linear(300, 300)
    plugin, step = attached(nn.Sequential(model), WeightNoise(0.2, kind))
    noise = noise_of(plugin, step) / 0.2
    if kind == "relative":
        noise = noise / model.weight.detach().flatten()
    assert abs(noise.mean()) < 4 / 300
    assert abs(noise.var() - 1) < 4 * math.sqrt(2) / 300
    assert stats.kstest(noise.numpy(), "norm").pvalue > 0.01
    rows = noise.view(300, 300)
    assert abs((rows[1:] * rows[:-1]).mean()) < 4 / 300
    assert abs((rows[:, 1:] * rows[:, :-1]).mean()) < 4 / 300


@pytest.mark.parametrize("kind", ["gaussian", "relative"])
@pytest.mark.parametrize("fresh", ["step", "sequence"])
def test_a_fit_equals_a_loop_by_hand(kind, fresh):
    model = make_model()
    chosen = [model[0].weight, model[2].weight]
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    loader = Data((X, Y), batch_size=16).train_loader(seed=3, accumulate=2)
    stream, index = Stream(3, "weight_noise"), 0
    for epoch in range(2):
        loader.set_epoch(epoch)
        for window in loader:
            optimizer.zero_grad()
            for micro, (x, y) in enumerate(window.batches):
                if fresh == "step":
                    noise = stream.of_step(index, room=144, start=0, size=144)
                else:
                    noise = stream.normals(index, micro, 0, size=144)
                first, second = noise.split([128, 16])
                clean = [w.detach().clone() for w in chosen]
                with torch.no_grad():
                    for w, e in zip(chosen, (first, second), strict=True):
                        w += 0.1 * e.view_as(w) * (w if kind == "relative" else 1)
                (functional.mse_loss(model(x), y) / 2).backward()
                with torch.no_grad():
                    for w, c in zip(chosen, clean, strict=True):
                        w.copy_(c)
            optimizer.step()
            index += 1
    expected = nn.utils.parameters_to_vector(model.parameters()).detach()
    run = train([WeightNoise(0.1, kind, fresh=fresh)], accumulate_grad_batches=2)
    torch.testing.assert_close(weights_of(run), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, weights_of(train(accumulate_grad_batches=2)), atol=1e-5)


def test_micro_batches_equal_one_batch():
    one = weights_of(train([WeightNoise(0.1)], batch_size=64))
    four = weights_of(train([WeightNoise(0.1)], batch_size=16, accumulate_grad_batches=4))
    torch.testing.assert_close(four, one, rtol=0, atol=1e-6)


def test_one_draw_a_step_or_one_a_sequence():
    plugin, step = attached(make_model(), WeightNoise(0.1))
    draws = {}
    for fresh in ("step", "sequence"):
        plugin.fresh = fresh
        for where in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)):
            step.index, step.micro, step.rank = where
            draws[fresh, where] = noise_of(plugin, step)
    assert torch.equal(draws["step", (0, 0, 0)], draws["step", (0, 1, 0)])
    assert torch.equal(draws["step", (0, 0, 0)], draws["step", (0, 0, 1)])
    assert not torch.equal(draws["step", (0, 0, 0)], draws["step", (1, 0, 0)])
    sequence = [draw for (fresh, _), draw in draws.items() if fresh == "sequence"]
    assert all(not torch.equal(a, b) for i, a in enumerate(sequence) for b in sequence[i + 1 :])


@pytest.mark.parametrize("kind", ["gaussian", "relative"])
def test_strength_zero_is_absent_bit_for_bit_and_draws_nothing(kind):
    assert torch.equal(weights_of(train([WeightNoise(0.0, kind)])), weights_of(train()))
    plugin, step = attached(make_model(), WeightNoise(0.0, kind))
    edit(plugin, step)
    assert not step.edits.open
    assert not step._streams


def test_evaluation_sees_the_clean_weights():
    run = train([WeightNoise(1.0)])
    clean = functional.mse_loss(run.core.model(X), Y).item()
    assert run.metrics["val/loss"] == pytest.approx(clean, abs=1e-6)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rnn = kind(3, 5, num_layers=2, batch_first=True)
        self.head = nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers_use_the_noisy_weights_and_come_back_bit_for_bit(kind):
    model, x = Recurrent(kind), torch.randn(4, 6, 3)
    clean = {name: w.detach().clone() for name, w in model.named_parameters()}
    places = [w.data_ptr() for w in model.rnn._flat_weights]
    plugin, step = attached(model, WeightNoise(0.1, weights="rnn", biases=True))
    before = model(x)
    edit(plugin, step)
    noisy = {name: w.detach().clone() for name, w in model.named_parameters()}
    during = model(x)
    # the same weights in a new layer, which never saw edits in place
    fresh = Recurrent(kind)
    fresh.load_state_dict(noisy)
    torch.testing.assert_close(during, fresh(x), rtol=0, atol=1e-7)
    assert (during - before).abs().max() > 1e-3
    during.sum().backward()
    step.edits.undo()
    assert all(torch.equal(w, clean[name]) for name, w in model.named_parameters())
    assert torch.equal(model(x), before)
    assert [w.data_ptr() for w in model.rnn._flat_weights] == places
    assert all(noisy[name].equal(clean[name]) == name.startswith("head") for name in clean)


@pytest.mark.parametrize("fresh", ["step", "sequence"])
def test_a_recurrent_network_trains_under_noise(fresh):
    x = torch.randn(64, 6, 3, generator=torch.Generator().manual_seed(2))
    run = train([WeightNoise(0.05, fresh=fresh)], model=Recurrent(), x=x, y=x.sum((1, 2)).unsqueeze(1))
    assert math.isfinite(run.metrics["val/loss"])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(20, 20)
        self.b = nn.Linear(20, 20)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(self.a(x))


class Checkpointed(nn.Module):
    """Keeps no activations but works them out again in backward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.model, x, use_reentrant=False)


@pytest.mark.parametrize("kind", ["gaussian", "relative"])
def test_activation_checkpointing_recomputes_with_the_same_noise(kind):
    kept = train([WeightNoise(0.3, kind=kind)], model=make_model())
    again = train([WeightNoise(0.3, kind=kind)], model=Checkpointed(make_model()))
    clean = train([], model=make_model())
    assert torch.equal(weights_of(again), weights_of(kept))
    assert not torch.equal(weights_of(clean), weights_of(kept))


def test_a_tied_weight_is_disturbed_once():
    model = Tied()
    plugin, step = attached(model, WeightNoise(1.0))
    noise = noise_of(plugin, step)
    assert noise.numel() == 400
    assert 0.8 < noise.std() < 1.2
    clean = model.a.weight.detach().clone()
    edit(plugin, step)
    torch.testing.assert_close((model.b.weight.detach() - clean).flatten(), noise, rtol=0, atol=1e-6)


def test_patterns_and_biases_choose_the_weights():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "norm": nn.BatchNorm1d(2), "b": nn.Conv1d(2, 2, 1)})

    def chosen(**settings):
        plugin, _ = attached(copy.deepcopy(model), WeightNoise(**settings))
        return [tuple(w.shape) for w in plugin.weights_]

    assert chosen() == [(2, 2), (2, 2, 1)]
    assert chosen(weights="Conv1d") == [(2, 2, 1)]
    assert chosen(weights=["a"], biases=True) == [(2, 2), (2,)]
    assert len(chosen(biases=True)) == 6
    with pytest.raises(UserError, match=r"^WeightNoise\(weights='LSTM'\): pattern 'LSTM' matches no weight"):
        chosen(weights="LSTM")


def test_an_error_in_forward_leaves_the_clean_weights():
    def loss(prediction, target):
        raise ArithmeticError("of the user's")

    recipe = recipe_of([WeightNoise(1.0)], loss=loss)
    clean = copy.deepcopy(recipe.model.state_dict())
    with pytest.raises(ArithmeticError, match="of the user's"):
        fit(recipe, trainer={"max_epochs": 1, "num_sanity_val_steps": 0, "enable_progress_bar": False}, logs=None)
    assert all(torch.equal(w, clean[name]) for name, w in recipe.model.state_dict().items())


def test_two_noises_at_once_are_both_undone():
    alone = weights_of(train([WeightNoise(0.1)]))
    both = train([WeightNoise(0.1), WeightNoise(0.1, "relative", name="other")])
    assert not torch.equal(weights_of(both), alone)
    clean = functional.mse_loss(both.core.model(X), Y).item()
    assert both.metrics["val/loss"] == pytest.approx(clean, abs=1e-6)


def test_another_plugins_noise_changes_no_draw():
    alone, step = attached(make_model(), WeightNoise(0.1))
    core = Core(make_model(), plugins=[WeightNoise(0.1, name="other"), WeightNoise(0.1)], seed=3)
    core.attach_plugins()
    noise_of(core.plugins[0], core.at)
    assert torch.equal(noise_of(core.plugins[1], core.at), noise_of(alone, step))


class Quieten(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.plugins[0].std = 0.0


def test_a_schedule_may_move_the_strength():
    moved = weights_of(train([WeightNoise(0.1)], [Quieten()]))
    assert not torch.allclose(moved, weights_of(train([WeightNoise(0.1)])), atol=1e-6)
    assert not torch.allclose(moved, weights_of(train()), atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
@pytest.mark.parametrize("kind", ["gaussian", "relative"])
def test_other_precisions_train(precision, kind):
    dtype = {"bf16-mixed": torch.float32, "bf16-true": torch.bfloat16, "64-true": torch.float64}[precision]
    run = train([WeightNoise(0.05, kind)], x=X.to(dtype), y=Y.to(dtype), precision=precision)
    torch.testing.assert_close(weights_of(run).float(), weights_of(train([WeightNoise(0.05, kind)])), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    "arguments", [{"std": -0.1}, {"std": math.inf}, {"kind": "multiplicative"}, {"fresh": "epoch"}, {"biases": 1}]
)
def test_wrong_settings_are_reported(arguments):
    with pytest.raises(UserError, match=r"^WeightNoise\("):
        WeightNoise(**arguments)


def test_gaussian_noise_leaves_the_gradient_of_a_quadratic_unbiased():
    # E[(y - x (w + s e))^2] is the clean error plus s^2 E|x|^2, which does not depend on w
    model = nn.Sequential(nn.Linear(8, 1, bias=False))
    plugin, step = attached(model, WeightNoise(0.5))
    loss = lambda: functional.mse_loss(model(X), Y)  # noqa: E731
    (clean,) = torch.autograd.grad(loss(), model[0].weight)
    total, value, n = torch.zeros_like(clean), 0.0, 2000
    for step.index in range(n):
        edit(plugin, step)
        noisy = loss()
        total += torch.autograd.grad(noisy, model[0].weight)[0]
        value += noisy.item()
        step.edits.undo()
    assert (total / n - clean).abs().max() < 0.15
    extra = 0.25 * X.square().sum(1).mean().item()
    assert value / n - loss().item() == pytest.approx(extra, rel=0.1)


def test_edits_work_without_a_core():
    weights = [torch.ones(3, 2)]
    edits = WeightEdits()
    perturb(edits.save(weights), 1.0, torch.arange(6.0))
    assert weights[0].tolist() == [[1, 2], [3, 4], [5, 6]]
    edits.undo()
    assert weights[0].tolist() == [[1, 1], [1, 1], [1, 1]]


@pytest.mark.parametrize("limit", [1, 7, 64, 500, 10**6])
def test_the_noise_is_one_vector_however_weights_are_cut(limit, monkeypatch):
    monkeypatch.setattr("plugins.weight_noise._IN_CACHE", limit)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3).to(memory_format=torch.channels_last), nn.Linear(9, 40)
    )
    plugin, step = attached(model, WeightNoise(0.5, biases=True))
    clean = [w.detach().clone() for w in plugin.weights_]
    edit(plugin, step)
    size = sum(w.numel() for w in clean)
    noise = step.stream("weight_noise").of_step(step.index, room=size, start=0, size=size)
    for weight, before, part in zip(plugin.weights_, clean, noise.split([w.numel() for w in clean]), strict=True):
        assert torch.equal(weight, before + 0.5 * part.view(weight.shape))
    step.edits.undo()
    assert all(torch.equal(w, c) for w, c in zip(plugin.weights_, clean, strict=True))


def test_shares_cover_each_entry_once_and_keep_to_the_limit():
    weights = [torch.zeros(3, 4), torch.zeros(50, 2, 2), torch.zeros(()), torch.zeros(7), torch.zeros(2, 30)]
    shares = shares_of(weights, limit=20)
    start = 0
    for share in shares:
        assert share.start == start
        assert share.size == sum(view.numel() for view in share.views)
        for view in share.views:
            view += 1
        start += share.size
    assert start == sum(w.numel() for w in weights)
    assert all((w == 1).all() for w in weights)
    assert [s.size for s in shares] == [12, *[20] * 10, 8, 30, 30]  # a row is never cut


def test_weights_that_were_moved_are_the_ones_disturbed():
    model = make_model()
    plugin, step = attached(model, WeightNoise(0.1))
    noise_of(plugin, step)
    model.double()
    assert (noise_of(plugin, step) != 0).all()
    for weight in plugin.weights_:
        weight.data = weight.data.clone()
    assert (noise_of(plugin, step) != 0).all()


def test_sharded_weights_get_their_part_of_the_noise(tmp_path):
    # one process that holds everything goes the way of shards all the same
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        whole, sharded = make_model(), make_model()
        for layer in (sharded[0], sharded[2]):
            layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [Shard(0)]))
        for model in (whole, sharded):
            plugin, step = attached(model, WeightNoise(0.1))
            edit(plugin, step)
        for a, b in zip(whole.parameters(), sharded.parameters(), strict=True):
            assert torch.equal(a, b.full_tensor() if hasattr(b, "full_tensor") else b)
    finally:
        torch.distributed.destroy_process_group()


# ---- complex weights, mixed types, padding, layers frozen during the run ---------------------------------------------


class Used(nn.Module):
    """A network that keeps the weights that its forward sees."""

    def __init__(self, **weights: torch.Tensor) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight.clone()))
        self.seen: list[dict[str, torch.Tensor]] = []

    def forward(self, x):
        self.seen.append({name: p.detach().clone() for name, p in self.named_parameters()})
        return 0 * torch.stack([p.abs().sum().float() for p in self.parameters()]).sum() + 0 * x


def fit_once(model: nn.Module, *plugins, epochs: int = 1) -> None:
    data = Data((torch.zeros(4, 1), torch.zeros(4, 1)), batch_size=4)
    recipe = Recipe(model, data, nn.functional.mse_loss, plugins=[*plugins, Optimizer("SGD", lr=0.0, fused=False)])
    fit(recipe, logs=None, trainer={"max_epochs": epochs, "enable_progress_bar": False, "logger": False})


@pytest.mark.parametrize("kind", ["gaussian", "relative"])
def test_noise_of_complex_weights_is_a_complex_normal(kind) -> None:
    before = {"a": torch.full((200, 200), 2j), "b": torch.ones(3, 2)}
    model = Used(**before)
    fit_once(model, WeightNoise(0.5, kind))
    noise = (model.seen[0]["a"] - 2j) / (2j if kind == "relative" else 1)
    parts = torch.view_as_real(noise).flatten(0, 1)
    # E |noise|^2 = 0.25, half of it in each part, and the parts do not go together
    assert parts.square().mean(0).tolist() == pytest.approx([0.125, 0.125], rel=0.03)
    assert abs(parts.prod(1).mean()) < 0.003
    assert ((model.seen[0]["b"] - 1) != 0).all()
    assert all(torch.equal(p.detach(), before[name]) for name, p in model.named_parameters())


def test_complex_weights_are_cut_by_their_numbers() -> None:
    shares = shares_of([torch.empty(2, 3), torch.empty(5, 3, dtype=torch.complex64)], limit=12)
    assert [(start, size) for start, size, _ in shares] == [(0, 6), (6, 12), (18, 12), (30, 6)]


def test_each_type_gets_noise() -> None:
    kinds = [torch.bfloat16, torch.float64, torch.float32, torch.float16]
    before = {f"w{k}": torch.ones(30, 4, dtype=kind) for k, kind in enumerate(kinds)}
    model = Used(**before)
    fit_once(model, WeightNoise(0.5))
    for name, weight in model.seen[0].items():
        assert (weight.double() - 1).std().item() == pytest.approx(0.5, rel=0.3), name


class Tokens(nn.Module):
    """A table that keeps what its forward sees."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.first, self.table, self.seen = nn.Parameter(torch.ones(2, 2)), table, []

    def forward(self, x):
        self.seen.append(self.table.weight.detach().clone())
        return x.sum() * 0 * (self.table.weight.sum() + self.first.sum()) + 0 * x


@pytest.mark.parametrize("limit", [1, 7, 1 << 17])
@pytest.mark.parametrize("make", [nn.Embedding, nn.EmbeddingBag])
def test_rows_of_padding_get_no_noise(make, limit, monkeypatch) -> None:
    monkeypatch.setattr("plugins.weight_noise._IN_CACHE", limit)
    model = Tokens(make(5, 3, padding_idx=2))
    before = model.table.weight.detach().clone()
    fit_once(model, WeightNoise(0.5))
    moved = (model.seen[0] != before).all(1)
    assert moved.tolist() == [True, True, False, True, True]


def test_a_padding_row_that_another_layer_trains_gets_noise() -> None:
    model = Tokens(nn.Embedding(5, 3, padding_idx=2))
    model.head = nn.Linear(3, 5, bias=False)
    model.head.weight = model.table.weight
    before = model.table.weight.detach().clone()
    fit_once(model, WeightNoise(0.5))
    assert (model.seen[0] != before).all()


def test_noise_follows_what_is_frozen_and_unfrozen() -> None:
    class Turn(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.model.a.requires_grad_(trainer.current_epoch != 1)
            pl_module.model.b.requires_grad_(trainer.current_epoch != 2)

    model = Used(a=torch.ones(3, 2), b=torch.ones(3, 2), c=torch.ones(2))
    fit_once(model, WeightNoise(0.5), Turn(), epochs=4)
    moved = [[bool((seen[name] != 1).any()) for name in "ab"] for seen in model.seen]
    assert moved == [[True, True], [False, True], [True, False], [True, True]]
