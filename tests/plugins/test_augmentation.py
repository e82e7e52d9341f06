from __future__ import annotations

import inspect
import pickle
import random
from typing import NamedTuple

import albumentations
import numpy as np
import pytest
import torch
from albumentations.pytorch import ToTensorV2
from scipy import stats
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from framework import Data, LintWarning, MixedTarget, Plugin, Recipe, UserError, fit
from framework.ops.draws import keyed_globals
from framework.ops.pipelines import image_of, tensor_of
from framework.ops.transforms import GaussianNoise, RandomAffine, RandomBrightnessContrast, RandomCrop, RandomFlip
from framework.plugin.answers import Answers
from framework.plugin.edits import WeightEdits
from framework.plugin.step import Step
from plugins.augmentation import Augmentation

X = torch.rand(24, 1, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24)


def pipeline(**options) -> albumentations.Compose:
    return albumentations.Compose(
        [
            albumentations.HorizontalFlip(p=0.5),
            albumentations.Affine(rotate=(-20, 20), p=0.7),
            albumentations.OneOf([albumentations.GaussNoise(p=1), albumentations.CoarseDropout(p=1)], p=0.8),
        ],
        **options,
    )


def keyed(x, rng):
    return x + float(rng.random())


def unkeyed(x):
    return x + float(torch.rand(()) + 2 * np.random.rand() + 4 * random.random())  # noqa: NPY002


def in_place(x):
    return x.mul_(0.5)


class UnkeyedModule(nn.Module):
    def forward(self, x):
        return x + torch.rand(())


SAMPLE = [pipeline(), pipeline(seed=1), albumentations.Affine(rotate=(-40, 40), p=1.0), keyed, unkeyed, UnkeyedModule()]
IDS = ["Compose", "seeded Compose", "one transform", "with rng", "function", "module"]


def epoch_of(sample, workers: int, epochs: int = 2, seed: int = 0, rank: int = 0, world: int = 1, part=(X, Y)):
    """Return for each epoch the inputs as the loader hands them over, by sample."""
    plugin = Augmentation(sample)
    loader = Data(part, batch_size=4, workers=workers).train_loader(
        seed=seed, transforms=[(plugin.name, plugin.transform_sample)], rank=rank, world=world
    )
    seen = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        batches = [batch for window in loader for batch in window.batches]
        targets = torch.cat([y for _, y in batches])
        seen.append(dict(zip(targets.tolist(), torch.cat([x for x, _ in batches]), strict=True)))
    loader.close()
    return seen


def same(a, b) -> list[bool]:
    return [torch.equal(a[index], b[index]) for index in sorted(a.keys() & b.keys())]


# ---- samples in the loader's workers -------------------------------------------------------------------------------


# more workers than this machine may have cores
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize("sample", SAMPLE, ids=IDS)
def test_any_number_of_workers_gives_the_same_samples(sample):
    expected = epoch_of(sample, workers=0)
    assert expected[0].keys() == expected[1].keys() == set(range(24))
    for workers in (1, 3):
        for epoch, seen in enumerate(epoch_of(sample, workers)):
            assert all(same(expected[epoch], seen))


@pytest.mark.parametrize("sample", SAMPLE, ids=IDS)
def test_samples_epochs_and_seeds_differ(sample):
    # the same image 24 times: what differs is the draw
    part = (X[:1].expand(24, -1, -1, -1), Y)
    first, second = epoch_of(sample, 0, part=part)
    assert len(torch.unique(torch.stack(list(first.values())).flatten(1), dim=0)) >= 20
    assert sum(same(first, second)) <= 4
    assert sum(same(first, epoch_of(sample, 0, part=part, seed=1)[0])) <= 4


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_the_pipelines_own_draws_would_depend_on_the_number_of_workers():
    """What the plugin is for: the same pipeline called without it fails what the test above asks."""
    compose = pipeline(seed=1)

    class Plain(Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, index):
            return tensor_of(compose(image=image_of(X[index]))["image"], 3), Y[index]

    def epochs(workers):
        return epoch_of(lambda x, rng: x, workers, part=Plain())

    none, three = epochs(0), epochs(3)
    assert not all(same(none[0], three[0]))


def test_ranks_draw_what_one_process_draws():
    expected = epoch_of(pipeline(), 0)[0]
    parts = [epoch_of(pipeline(), 0, rank=rank, world=2)[0] for rank in (0, 1)]
    assert not parts[0].keys() & parts[1].keys()
    assert parts[0].keys() | parts[1].keys() == expected.keys()
    assert all(same(expected, parts[0])) and all(same(expected, parts[1]))


def test_transforms_of_one_pipeline_draw_independently():
    compose = albumentations.Compose([albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)])
    corner = torch.zeros(1, 4, 4)
    corner[0, 0, 0] = 1
    plugin, table = Augmentation(compose), np.zeros((2, 2))
    for index in range(400):
        x = plugin.transform_sample((corner, 0), np.random.default_rng(index))[0][0]
        table[int(x[3].any()), int(x[:, 3].any())] += 1
    assert stats.chisquare(table.ravel()).pvalue > 0.01


def test_plugins_that_share_a_pipeline_and_the_pipelines_owner_do_not_disturb_each_other():
    shared = pipeline()
    first, second = Augmentation(shared, name="first"), Augmentation(shared, name="second")
    x = torch.rand(1, 8, 8)
    alone = Augmentation(shared).transform_sample((x, 0), np.random.default_rng(1))[0]
    generator = shared.random_generator
    second.transform_sample((x, 0), np.random.default_rng(5))
    assert torch.equal(first.transform_sample((x, 0), np.random.default_rng(1))[0], alone)
    assert shared.random_generator is generator


@pytest.mark.parametrize(
    ("shape", "kind"), [((3, 6, 4), torch.float32), ((1, 6, 4), torch.uint8), ((6, 4), torch.uint8)]
)
def test_tensors_go_to_albumentations_channels_last_and_come_back_channels_first(shape, kind):
    x = (torch.rand(shape) * 200).to(kind)
    flipped, target = Augmentation(albumentations.HorizontalFlip(p=1.0)).transform_sample(
        (x, 7), np.random.default_rng(0)
    )
    assert flipped.dtype == kind
    assert torch.equal(flipped, x.flip(-1))
    assert target == 7


def test_arrays_come_back_as_the_pipeline_leaves_them():
    x = (np.random.default_rng(0).random((6, 4, 3)) * 200).astype(np.uint8)
    flip, rng = albumentations.HorizontalFlip(p=1.0), np.random.default_rng(0)
    array = Augmentation(flip).transform_sample((x, 0), rng)[0]
    np.testing.assert_array_equal(array, x[:, ::-1])
    tensor = Augmentation(albumentations.Compose([flip, ToTensorV2()])).transform_sample((x, 0), rng)[0]
    assert torch.equal(tensor, torch.from_numpy(x[:, ::-1].transpose(2, 0, 1).copy()))
    tensor = Augmentation(albumentations.Compose([flip, ToTensorV2()])).transform_sample((tensor, 0), rng)[0]
    assert tensor.shape == (3, 6, 4)


@pytest.mark.parametrize("part", [(X, Y), [(x.numpy(), int(y)) for x, y in zip(X, Y, strict=True)]])
def test_a_transform_in_place_leaves_the_data_alone(part):
    def halve(x):
        x *= 0.5
        return x

    for seen in epoch_of(halve, 0, part=part):
        assert all(same(seen, dict(enumerate(X * 0.5))))


def test_mappings_keep_their_other_entries():
    sample = {"input": torch.zeros(2), "target": 1, "weight": 2.0}
    changed = Augmentation(keyed).transform_sample(sample, np.random.default_rng(0))
    assert changed["input"].all()
    assert (changed["target"], changed["weight"]) == (1, 2.0)


def test_a_plugin_in_use_can_be_pickled_for_workers_that_are_spawned():
    plugin = Augmentation(pipeline())
    expected = plugin.transform_sample((X[0], 0), np.random.default_rng(0))[0]
    copy = pickle.loads(pickle.dumps(plugin))
    assert torch.equal(copy.transform_sample((X[0], 0), np.random.default_rng(0))[0], expected)


def test_global_generators_are_put_back_even_after_an_error():
    def state():
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = state()
    with keyed_globals(1):
        first = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
    with keyed_globals(1):
        assert first == (torch.rand(1).item(), np.random.rand(), random.random())  # noqa: NPY002
    with pytest.raises(ZeroDivisionError), keyed_globals(1):
        random.seed(1 // 0)
    assert state() == before


# ---- batches on the device -----------------------------------------------------------------------------------------


def train(plugins=(), batch_size=8, **trainer):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 24))
    data = Data((X, Y), (X, Y), batch_size=batch_size)
    recipe = Recipe(model, data, functional.cross_entropy, plugins=list(plugins))
    return fit(
        recipe, seed=3, trainer={"max_epochs": 2, "enable_progress_bar": False, "logger": False, **trainer}, logs=None
    )


def weights_of(run) -> torch.Tensor:
    return nn.utils.parameters_to_vector(run.core.model.parameters()).detach()


def step_of(count: int, index: int = 0, start: int = 0, micro: int = 0) -> Step:
    step = Step(3, WeightEdits())
    step.index, step.count, step.start, step.micro = index, count, start, micro
    return step


def test_micro_batches_are_changed_as_one_batch():
    plugin = Augmentation(batch=[RandomFlip(), RandomCrop(2), GaussianNoise(0.1)])
    whole = plugin.transform_batch((X, Y), step_of(24))[0]
    parts = [plugin.transform_batch((X[i : i + 8], Y), step_of(8, start=i, micro=i // 8))[0] for i in (0, 8, 16)]
    assert torch.equal(torch.cat(parts), whole)


def test_one_transform_more_changes_no_other_ones_draws():
    noise, x = GaussianNoise(1.0), torch.zeros(8, 1, 4, 4)
    alone = Augmentation(batch=[noise]).transform_batch((x, Y), step_of(8))[0]
    flipped_first = Augmentation(batch=[RandomFlip(), noise]).transform_batch((x, Y), step_of(8))[0]
    twice = Augmentation(batch=[noise, noise]).transform_batch((x, Y), step_of(8))[0]
    assert torch.equal(flipped_first, alone)
    assert not torch.equal(twice, 2 * alone)


def test_transforms_of_the_batch_alone_draw_from_keyed_global_generators():
    plugin = Augmentation(batch=[unkeyed])
    before = torch.get_rng_state()
    first, again, later, other = (
        plugin.transform_batch((X, Y), step_of(24, index, micro=micro))[0]
        for index, micro in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fit_is_on_the_changed_inputs_and_evaluation_on_clean_ones():
    seen = []

    class Watch(Plugin):
        def transform_batch(self, batch, step):
            seen.append(batch)
            return batch

    run = train([Augmentation(pipeline(), batch=[lambda x, draws: x + 100.0]), Watch()])
    assert len(seen) == 6
    assert all(x.min() > 50 for x, _ in seen)
    assert not any(torch.allclose(x - 100.0, X[y], atol=1e-3) for x, y in seen)
    run.core.model.eval()
    assert run.last["val/loss"] == pytest.approx(functional.cross_entropy(run.core.model(X), Y).item(), rel=1e-5)


def test_an_identity_is_absent_bit_for_bit():
    nothing = weights_of(train())
    same_samples = Augmentation(unkeyed_identity, batch=[RandomFlip(0.0), unkeyed_identity])
    for plugin in (Augmentation(), same_samples):
        assert torch.equal(weights_of(train([plugin])), nothing)
    assert not torch.equal(weights_of(train([Augmentation(batch=[RandomFlip()])])), nothing)


def unkeyed_identity(x):
    torch.rand(3)  # draws that must not shift the network's dropout
    return x


def test_a_fit_with_workers_equals_one_without():
    expected = weights_of(train([Augmentation(pipeline())]))

    def with_workers(workers):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 24))
        data = Data((X, Y), (X, Y), batch_size=8, workers=workers)
        recipe = Recipe(model, data, functional.cross_entropy, plugins=[Augmentation(pipeline())])
        options = {"max_epochs": 2, "enable_progress_bar": False, "logger": False}
        return weights_of(fit(recipe, seed=3, trainer=options, logs=None))

    assert torch.equal(with_workers(2), expected)


def test_samples_stay_out_of_the_workers_where_only_batches_are_changed():
    def hooks(plugin):
        return [hook for hook in ("transform_sample", "transform_batch") if Answers([plugin]).of(hook)]

    assert hooks(Augmentation()) == []
    assert hooks(Augmentation(batch=[RandomFlip()])) == ["transform_batch"]
    assert hooks(Augmentation(keyed)) == ["transform_sample"]
    assert hooks(Augmentation(keyed, batch=[RandomFlip()])) == ["transform_sample", "transform_batch"]


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sample": 3}, "Augmentation(sample=3): must take (input) or (input, rng); give a callable"),
        ({"sample": lambda x, y: x}, "must take (input) or (input, rng); it takes (x, y)"),
        ({"sample": lambda: 0}, "it takes ()"),
        (
            {"sample": RandomFlip()},
            "sample=RandomFlip): must take (input) or (input, rng); it takes (x: 'Tensor', draws",
        ),
        ({"sample": albumentations.HorizontalFlip}, "give a callable"),
        ({"batch": RandomFlip()}, "batch must be a list"),
        ({"batch": [lambda x, rng: x]}, "must take (x) or (x, draws); it takes (x, rng)"),
        ({"batch": [RandomFlip]}, "must take (x) or (x, draws); give a callable"),
        ({"batch": [pipeline()]}, "batch=Compose): albumentations changes samples; use sample="),
    ],
)
def test_callables_that_take_something_else_are_refused(settings, words):
    with pytest.raises(UserError) as caught:
        Augmentation(**settings)
    assert words in str(caught.value)


def test_settings_are_plain_data():
    settings = Augmentation(keyed, batch=[RandomFlip(0.25)]).settings()
    assert settings["batch"] == [{"class": "RandomFlip", "probability": 0.25, "axis": "horizontal"}]
    assert settings["sample"].endswith("keyed")


# ---- targets with a place in the image -----------------------------------------------------------------------------

# each pixel of an image has a number of its own, and its mask has the same numbers
NUMBERS = torch.arange(12 * 6 * 8).view(12, 1, 6, 8)


def batches_of(plugin, batch, count=12):
    return plugin.transform_batch(batch, step_of(count))


@pytest.mark.parametrize(
    "transform",
    [RandomFlip(), RandomFlip(axis="vertical"), RandomCrop(2), RandomCrop(1, size=5), RandomCrop(2, fill="reflect")],
    ids=repr,
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_masks_go_where_the_pixels_go(transform, dtype):
    numbers = NUMBERS.to(dtype)
    plugin = Augmentation(batch=[transform, RandomFlip(axis="vertical")])
    x, mask = batches_of(plugin, (numbers, numbers[:, 0]))
    assert not torch.equal(x[:, 0], numbers[:, 0])
    assert torch.equal(mask, x[:, 0])
    assert torch.equal(batches_of(plugin, (numbers, torch.arange(12)))[0], x)


def test_rotated_masks_take_the_nearest_pixel():
    x = torch.zeros(12, 1, 16, 16)
    x[:, :, :, 8:] = 1.0
    plugin = Augmentation(batch=[RandomAffine(40.0, 0.3)])
    rotated, mask = batches_of(plugin, (x, (x[:, 0] * 255).long()))
    assert set(mask.unique().tolist()) == {0, 255}
    sure = (rotated[:, 0] > 0.9) | (rotated[:, 0] < 0.1)
    assert sure.float().mean() > 0.8
    assert torch.equal((mask > 0)[sure], (rotated[:, 0] > 0.5)[sure])


def test_masks_of_batches_of_any_type_move():
    mask = NUMBERS[:, 0]
    plugin = Augmentation(batch=[RandomFlip()])
    flipped = batches_of(plugin, (NUMBERS, Y[:12]))[0]
    batch = {"input": NUMBERS, "target": {"label": Y[:12], "masks": (mask, NUMBERS)}, "weights": mask.double()}
    changed = batches_of(plugin, batch)
    assert torch.equal(changed["input"], flipped)
    assert torch.equal(changed["target"]["masks"][0], flipped[:, 0])
    assert torch.equal(changed["target"]["masks"][1], flipped)
    assert torch.equal(changed["weights"], flipped[:, 0].double())
    assert changed["target"]["label"] is batch["target"]["label"]
    assert torch.equal(batches_of(plugin, (NUMBERS, NUMBERS))[1], flipped)  # as for an autoencoder
    mixed = MixedTarget.of(mask).mix(torch.arange(12).flip(0), 0.7)
    pairs = batches_of(plugin, (NUMBERS, mixed))[1].pairs
    assert torch.equal(pairs[0][0], flipped[:, 0])
    assert torch.equal(pairs[1][0].sum(), mask.sum())


def test_values_alone_may_change_beside_a_mask_or_boxes():
    x = NUMBERS.float()
    for target in (x[:, 0], torch.zeros(12, 5, 4)):
        plugin = Augmentation(batch=[GaussianNoise(), RandomBrightnessContrast()])
        assert batches_of(plugin, (x, target))[1] is target


@pytest.mark.parametrize("target", [torch.zeros(12, 5, 4), torch.zeros(12, 7, 2), torch.zeros(12, 3, 4), NUMBERS.mT])
def test_boxes_points_and_masks_of_another_size_are_refused(target):
    with pytest.raises(UserError, match="may have a place in the image"):
        batches_of(Augmentation(batch=[RandomFlip()]), (NUMBERS, target))
    assert batches_of(Augmentation(batch=[RandomFlip()], target="fixed"), (NUMBERS, target))[1] is target


@pytest.mark.parametrize(
    "target", [torch.tensor([[3.0, 5.0]]), torch.tensor([[0.0, 0.0, 7.0, 5.0]]), torch.tensor([[1, 2, 4, 5]])]
)
def test_numbers_that_may_be_coordinates_are_told_once(target):
    plugin, target = Augmentation(batch=[RandomFlip()]), target.expand(12, -1)
    with pytest.warns(LintWarning, match=r"Augmentation\(batch=RandomFlip\): the target \(12, \d\) stays as it is"):
        batches_of(plugin, (NUMBERS, target))
    assert batches_of(plugin, (NUMBERS, target))[1] is target
    batches_of(Augmentation(batch=[RandomFlip()], target="fixed"), (NUMBERS, target))


def roll(x, draws):
    return x.roll(int(draws.uniform(x[:1], 1) * 7) + 1, -1)


def shuffled(x):
    return x[..., torch.randperm(x.shape[-1])]


def shuffled_by(x, rng):
    return x[..., torch.from_numpy(rng.permutation(x.shape[-1]))]


def declared(transform, on_target):
    def change(*given):
        return transform(*given)

    change.on_target = on_target
    change.__signature__ = inspect.signature(transform)
    return change


@pytest.mark.parametrize("transform", [roll, shuffled])
def test_a_callable_declares_what_it_does_with_masks(transform):
    batch = (NUMBERS, NUMBERS[:, 0])
    with pytest.raises(UserError, match="on_target"):
        batches_of(Augmentation(batch=[transform]), batch)
    for on_target, moves in ((transform, True), (None, False)):
        x, mask = batches_of(Augmentation(batch=[declared(transform, on_target)]), batch)
        assert not torch.equal(x, NUMBERS)
        assert torch.equal(mask, (x if moves else NUMBERS)[:, 0])
    assert batches_of(Augmentation(batch=[transform]), (NUMBERS, Y[:12]))[1].equal(Y[:12])


@pytest.mark.parametrize("transform", [shuffled_by, shuffled])
def test_a_callable_for_samples_declares_it_too(transform):
    sample = (NUMBERS[1], NUMBERS[1, 0])
    with pytest.raises(UserError, match="on_target"):
        Augmentation(transform).transform_sample(sample, np.random.default_rng(0))
    plain = Augmentation(transform).transform_sample((NUMBERS[1], 3), np.random.default_rng(0))[0]
    for on_target, moves in ((transform, True), (None, False)):
        x, mask = Augmentation(declared(transform, on_target)).transform_sample(sample, np.random.default_rng(0))
        assert torch.equal(x, plain)
        assert torch.equal(mask, (x if moves else NUMBERS[1])[0])
    with pytest.raises(UserError, match="may have a place"):
        Augmentation(transform).transform_sample((NUMBERS[1], torch.zeros(5, 4)), np.random.default_rng(0))


def test_albumentations_moves_masks_with_the_image():
    compose = albumentations.Compose([albumentations.HorizontalFlip(p=0.5), albumentations.VerticalFlip(p=0.5)])
    seen = set()
    for index in range(8):
        image, rest = NUMBERS[1].to(torch.uint8), {"mask": NUMBERS[1, 0], "one_hot": NUMBERS[1].bool(), "label": 3}
        x, target = Augmentation(compose).transform_sample((image, rest), np.random.default_rng(index))
        assert torch.equal(target["mask"] - NUMBERS[1].min(), x[0].long() - x.min())
        assert torch.equal(target["one_hot"], x.bool())
        assert (target["label"], target["mask"].dtype) == (3, torch.int64)
        seen.add(int(x[0, 0, 0]))
    assert len(seen) > 2


@pytest.mark.parametrize("target", [torch.tensor([[3.0, 5.0], [1.0, 2.0]]), [[3.0, 5.0], [1.0, 2.0]]])
def test_albumentations_moves_key_points_that_are_the_target(target):
    compose = albumentations.Compose(
        [albumentations.HorizontalFlip(p=1.0)], keypoint_params=albumentations.KeypointParams(format="xy")
    )
    points = Augmentation(compose).transform_sample((torch.rand(3, 16, 16), target), np.random.default_rng(0))[1]
    assert type(points) is type(target)
    np.testing.assert_allclose(np.asarray(points), [[12.0, 5.0], [14.0, 2.0]])


class Boxes(NamedTuple):
    input: torch.Tensor
    bboxes: torch.Tensor
    labels: torch.Tensor


@pytest.mark.parametrize("inside", [True, False])
def test_albumentations_moves_boxes_by_their_names(inside):
    compose = albumentations.Compose(
        [albumentations.HorizontalFlip(p=1.0)],
        bbox_params=albumentations.BboxParams(format="pascal_voc", label_fields=["labels"]),
    )
    boxes, labels = torch.tensor([[1.0, 2.0, 5.0, 6.0]]), torch.tensor([4])
    image = torch.rand(3, 8, 16)
    sample = (image, {"bboxes": boxes, "labels": labels}) if inside else Boxes(image, boxes, labels)
    changed = Augmentation(compose).transform_sample(sample, np.random.default_rng(0))
    held = changed[1] if inside else changed._asdict()
    torch.testing.assert_close(held["bboxes"], torch.tensor([[11.0, 2.0, 15.0, 6.0]]))
    assert torch.equal(held["labels"], labels)
    assert type(changed) is type(sample)
    assert torch.equal(changed[0], image.flip(-1))


def test_pipelines_whose_parameters_find_no_target_are_refused():
    compose = albumentations.Compose(
        [albumentations.HorizontalFlip(p=1.0)],
        bbox_params=albumentations.BboxParams(format="pascal_voc", label_fields=["labels"]),
    )
    for target in (torch.zeros(2, 4), {"bboxes": torch.zeros(2, 4)}, 3):
        with pytest.raises(UserError, match=r"sample=Compose\): the pipeline's parameters ask for 'bboxes', 'labels'"):
            Augmentation(compose).transform_sample((torch.rand(3, 8, 8), target), np.random.default_rng(0))
    points = torch.zeros(5, 2)
    with pytest.raises(UserError, match="may have a place"):
        Augmentation(pipeline()).transform_sample((torch.rand(3, 8, 8), points), np.random.default_rng(0))
    noise = albumentations.Compose([albumentations.GaussNoise(p=1.0)])
    assert Augmentation(noise).transform_sample((torch.rand(3, 8, 8), points), np.random.default_rng(0))[1] is points


@pytest.mark.parametrize("transform", [RandomFlip(), RandomCrop(2), RandomAffine()], ids=repr)
def test_channels_last_are_refused(transform):
    with pytest.raises(UserError, match=r"layout \(N, C, H, W\)"):
        batches_of(Augmentation(batch=[transform]), (torch.zeros(12, 16, 16, 3), Y[:12]))
    with pytest.raises(UserError, match="layout"):
        Augmentation(pipeline()).transform_sample((torch.rand(16, 16, 3), 0), np.random.default_rng(0))


def test_masks_follow_in_a_fit():
    x = (X > 0.5).float()
    net = nn.Conv2d(1, 2, 1)
    net.weight.data[:] = torch.tensor([-40.0, 40.0]).view(2, 1, 1, 1)
    net.bias.data[:] = torch.tensor([20.0, -20.0])  # labels each pixel rightly
    compose = albumentations.Compose([albumentations.HorizontalFlip(p=0.5)])
    for plugin in (Augmentation(batch=[RandomFlip(), RandomCrop(2)]), Augmentation(compose)):
        recipe = Recipe(net, Data((x, x[:, 0].long()), batch_size=8), functional.cross_entropy, plugins=[plugin])
        run = fit(recipe, trainer={"max_epochs": 1, "enable_progress_bar": False, "logger": False}, logs=None)
        assert run.last["train/loss"] < 1e-3


def test_lists_of_boxes_are_refused():
    boxes = {"boxes": [[1, 2, 3, 4], [0, 0, 2, 2]], "labels": [3, 1]}
    for transform in (albumentations.HorizontalFlip(p=1.0), shuffled):
        with pytest.raises(UserError, match=r"the target \(2, 4\) may have a place in the image"):
            Augmentation(transform).transform_sample((NUMBERS[1], boxes), np.random.default_rng(0))
        changed = Augmentation(transform, target="fixed").transform_sample(
            (NUMBERS[1].float(), boxes), np.random.default_rng(0)
        )
        assert changed[1] is boxes
