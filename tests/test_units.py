"""Raw units wherever people normalise: strengths and the valid range hold, doubts are said."""

import contextlib
import warnings

import pytest
import torch
import torchvision
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import IntToFloatTensor
from fastai.data.transforms import Normalize as FastaiNormalize
from fastai.learner import Learner
from fastai.torch_core import TensorImage
from fastai.vision.all import vision_learner
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset
from torch.utils.data import DataLoader as TorchLoader
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.transforms import v2

from advinterp.adversary import PGD, OneStep
from advinterp.callbacks import AdversarialTraining, InputCallback, RobustMetrics
from advinterp.core import set_seed
from advinterp.data import tensor_dls
from advinterp.duals import L1, L2Ball, LInfBall
from advinterp.evaluate import accuracy
from advinterp.penalty import GradNorm
from advinterp.train import adv_learner
from advinterp.units import RawUnits, find_units, learner_in_raw_units

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
EPS = 8 / 255


@contextlib.contextmanager
def quiet(learn):
    with learn.no_bar(), learn.no_logging():
        yield learn


def stats():
    return [torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD)]


def pixels(n=12):
    torch.manual_seed(0)
    return torch.randint(256, (n, 3, 8, 8)) / 255, torch.arange(n) % 3


def network():
    set_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.Tanh(), nn.Linear(6, 3))


class NormalisesFirst(nn.Module):
    """A model of raw images."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        mean, std = stats()
        return self.net((x - mean) / std)


class Images(Dataset):
    """A data set as people write one; what it is called that transforms is theirs to choose."""

    def __init__(self, x, y, tfms):
        self.x, self.y, self.tfms = x, y, tfms

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.tfms(self.x[i]), int(self.y[i])


class Around(Dataset):
    """A data set around another one."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        return self.inner[i]


def torch_loaders(*datasets):
    data = datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)
    return DataLoaders(TorchLoader(data, batch_size=4), TorchLoader(data, batch_size=6))


def fastai_loaders(after_batch, scale=1.0):
    x, y = pixels()
    items = [
        (TensorImage((x[i] * scale).to(torch.uint8 if scale > 1 else x.dtype)), y[i])
        for i in range(12)
    ]
    loaders = [DataLoader(items, bs=4, after_batch=after_batch, num_workers=0) for _ in range(2)]
    return DataLoaders(*loaders)


def fastai_normalize():
    return FastaiNormalize.from_stats(MEAN, STD, cuda=False)


def by_pipeline():
    x, y = pixels()
    return tensor_dls(x, y, x, y, bs=4, device="cpu", after_batch=[fastai_normalize()])


def by_single_transform():
    return fastai_loaders(fastai_normalize())


def by_version_1():
    return torch_loaders(Images(*pixels(), torchvision.transforms.Normalize(MEAN, STD)))


def composed(*more):
    return v2.Compose([v2.Identity(), *more, v2.Normalize(MEAN, STD)])


def by_version_2():
    return torch_loaders(Images(*pixels(), composed()))


def by_bytes():
    x, y = pixels()
    to_float = v2.ToDtype(torch.float, scale=True)
    return torch_loaders(Images((x * 255).to(torch.uint8), y, composed(to_float)))


def in_a_subset():
    return torch_loaders(Around(Subset(Images(*pixels(20), composed()), range(12))))


def in_joined_sets():
    x, y = pixels()
    parts = [Images(x[rows], y[rows], composed()) for rows in (slice(6), slice(6, 12))]
    return torch_loaders(*parts)


def as_said():
    x, y = pixels()
    mean, std = stats()
    return torch_loaders(TensorDataset((x - mean) / std, y))


def raw_images():
    return torch_loaders(TensorDataset(*pixels()))


SETUPS = {
    "fastai, a pipeline": (by_pipeline, network, {}),
    "fastai, one transform": (by_single_transform, network, {}),
    "torchvision 1": (by_version_1, network, {}),
    "torchvision 2": (by_version_2, network, {}),
    "torchvision, bytes": (by_bytes, network, {}),
    "inside other sets": (in_a_subset, network, {}),
    "in joined sets": (in_joined_sets, network, {}),
    "in the model": (raw_images, NormalisesFirst, {}),
    "said": (as_said, network, dict(normalize=(MEAN, STD))),
}
each_setup = pytest.mark.parametrize("setup", SETUPS.values(), ids=SETUPS)
BALLS = LInfBall(EPS), L2Ball(0.4)
each_ball = pytest.mark.parametrize("ball", BALLS, ids=["linf", "l2"])


class Pixels(Callback):
    """The inputs of training in raw units, before and after the callbacks; of the loader alone."""

    order = MixedPrecision.order - 0.5
    run_valid = False

    def __init__(self, is_raw):
        self.is_raw = is_raw

    def raw(self):
        x = self.learn.xb[0].as_subclass(torch.Tensor).detach()
        mean, std = stats()
        return x if self.is_raw else x * std + mean

    def before_fit(self):
        self.moved = []

    def before_batch(self):
        self.moved.append((self.clean.at_start, self.raw().clone()))


class Clean(Callback):
    """The batch as the loader delivers it."""

    order = -5
    run_valid = False

    def before_batch(self):
        self.at_start = self.pixels.raw().clone()


def trained(setup, *cbs, n=1, lr=1.0, **settings):
    make_loaders, make_model, said = setup
    spy = Pixels(is_raw=make_model is NormalisesFirst)
    cbs = [Clean(), spy, *cbs]
    learn = adv_learner(make_loaders(), make_model(), cbs=cbs, lr=lr, **said, **settings)
    with quiet(learn), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        learn.fit(n)
    return learn


@each_ball
@each_setup
@pytest.mark.parametrize("free", [None, 2], ids=["pgd", "free"])
def test_strength_and_range_hold_in_raw_units(setup, ball, free):
    learn = trained(setup, adversary=PGD(ball, 3), free_replays=free, n=2)
    clean, seen = (torch.cat(parts) for parts in zip(*learn.pixels.moved))
    size = ball.norm(seen - clean).max()
    assert 0.8 * ball.eps < size <= ball.eps + 1e-5
    assert -1e-6 <= seen.min()
    assert seen.max() <= 1 + 1e-6


@pytest.mark.parametrize("setup", [*SETUPS.values()][1:], ids=[*SETUPS][1:])
def test_one_training_wherever_the_normalisation_stands(setup):
    def parameters(setup):
        judge = RobustMetrics(OneStep(LInfBall(EPS)))
        settings = dict(adversary=OneStep(L2Ball(0.4)), penalty=GradNorm(L1(0.05)))
        set_seed(0)
        learn = trained(setup, judge, lr=0.1, **settings)
        columns = [float(value) for value in learn.recorder.values[-1]]
        return [p.detach() for p in learn.model.parameters()], columns

    ours, columns = parameters(setup)
    expected, expected_columns = parameters(SETUPS["in the model"])
    assert columns == pytest.approx(expected_columns, abs=1e-4)
    assert all((first - second).abs().max() < 1e-4 for first, second in zip(ours, expected))


@each_setup
def test_a_learner_stands_for_its_model_in_raw_units(setup):
    make_loaders, make_model, said = setup
    learn = adv_learner(make_loaders(), make_model(), **said)
    x, y = pixels()
    reference = NormalisesFirst()
    torch.testing.assert_close(learner_in_raw_units(learn)(x), reference(x))
    assert accuracy(learn, x, y) == accuracy(reference, x, y)


@each_setup
@pytest.mark.parametrize("ball", [LInfBall(0.5), L2Ball(5.0)])
def test_direct_attacks_on_a_learner_stay_in_the_valid_range(setup, ball):
    """As its callbacks do: the attack on the learner is the one on its model with these bounds."""
    make_loaders, make_model, said = setup
    learn = adv_learner(make_loaders(), make_model(), **said)
    x, y = pixels()
    moved = PGD(ball, 3, random_start=False)(learn, x, y)
    assert 0 <= moved.min()
    assert moved.max() <= 1
    with_bounds = PGD(ball, 3, random_start=False, bounds=(0, 1))(NormalisesFirst(), x, y)
    torch.testing.assert_close(moved, with_bounds, atol=1e-4, rtol=0)
    free = PGD(ball, 3, random_start=False, bounds=(-9, 9))(learn, x, y)
    assert free.min() < 0
    assert free.max() > 1


@each_setup
def test_inputs_of_a_learner_in_other_units_are_said(setup):
    make_loaders, make_model, said = setup
    learn = adv_learner(make_loaders(), make_model(), **said)
    if not learner_in_raw_units(learn) is not learn.model:
        return  # the learner's own data have no range that differs
    x, y = pixels()
    normalised = (x - stats()[0]) / stats()[1]
    with pytest.warns(UserWarning, match="a Learner takes raw inputs, its normalisation is inside"):
        accuracy(learn, normalised, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accuracy(learn, x, y)


def test_photos_outside_the_range_are_not_attacked():
    learn = adv_learner(by_pipeline(), network())
    x, y = pixels()
    with (
        pytest.warns(UserWarning, match="a Learner takes raw inputs"),
        pytest.raises(ValueError, match=r"lies outside the bounds.*normalisation is inside it"),
    ):
        PGD(LInfBall(EPS), 2)(learn, 255 * x, y)


def test_what_is_no_image_has_no_range():
    x, y = torch.rand(12, 5), torch.arange(12) % 3
    dls = tensor_dls(x, y, x, y, bs=4, device="cpu")
    moved = PGD(LInfBall(2.0), 2)(adv_learner(dls, nn.Linear(5, 3)), x, y)
    assert moved.min() < 0
    images = torch.rand(12, 3, 4, 4)
    as_given = tensor_dls(images, y, images, y, bs=4, device="cpu")  # its caller knows the range
    learn = adv_learner(as_given, nn.Sequential(nn.Flatten(), nn.Linear(48, 3)))
    assert PGD(LInfBall(2.0), 2)(learn, images, y).min() < 0


@pytest.mark.parametrize("said_to", ["adv_learner", "adversarial", "penalise", "RobustMetrics"])
def test_units_are_said_once_for_all(said_to):
    said = dict(normalize=(MEAN, STD))
    attack = PGD(LInfBall(EPS), 2)
    judge = RobustMetrics(attack, **(said if said_to == "RobustMetrics" else {}))
    learn = adv_learner(
        as_said(), network(), cbs=judge, **(said if said_to == "adv_learner" else {})
    )
    learn.penalise(GradNorm(L1(0.05)), **(said if said_to == "penalise" else {}))
    learn.adversarial(attack, **(said if said_to == "adversarial" else {}))
    seen = []

    class Look(Callback):
        order = InputCallback.order + 1

        def before_batch(self):
            seen.extend(cb.raw for cb in self.learn.cbs if isinstance(cb, InputCallback) and cb.raw)

    learn.add_cb(Look())
    with quiet(learn), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        learn.fit(1)
    assert len(seen) == 3 * 2 + 2
    assert all(batch.units.bounds == (0.0, 1.0) for batch in seen)
    x, y = pixels()
    assert accuracy(learn, x, y) == accuracy(learn.model, (x - stats()[0]) / stats()[1], y)


def test_a_learner_of_fastai_knows_its_units():
    x, y = (part.repeat_interleave(2, 0) for part in pixels())
    x = nn.functional.interpolate(x, size=32)
    normalize = fastai_normalize()
    dls = tensor_dls(x, y, x, y, bs=8, device="cpu", after_batch=[normalize])
    learn = vision_learner(dls, resnet18, n_out=3, pretrained=False, weights=None)
    learn.adversarial(PGD(LInfBall(EPS), 2))  # its own attribute `normalize` is another thing
    with quiet(learn):
        learn.fit(1)
    assert len(learner_in_raw_units(learn).units.stats) == 1


# ---------------------------------------------------------------- doubts are said


def said_by(learn):
    with quiet(learn), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn.fit(2)
    own = [str(warning.message) for warning in caught if warning.category is UserWarning]
    return [text for text in own if "images" in text or "clamped" in text]


def test_images_that_leave_the_range_are_said_once():
    attack = PGD(LInfBall(EPS), 2)
    learn = adv_learner(as_said(), network(), attack, GradNorm(L1(0.05)), cbs=RobustMetrics(attack))
    (text,) = said_by(learn)
    assert "normalize=(mean, std)" in text
    told = adv_learner(as_said(), network(), attack, normalize=(0, 1))
    assert "normalize=(mean, std)" in said_by(told)[0]
    assert said_by(adv_learner(as_said(), network(), PGD(LInfBall(EPS), 2, bounds=(-9, 9)))) == []
    assert said_by(adv_learner(raw_images(), network(), attack)) == []


def test_grey_levels_are_said():
    for make in (
        lambda: dict(adversary=PGD(LInfBall(8), 2)),
        lambda: dict(adversary=LInfBall(8), free_replays=2),
        lambda: dict(cbs=RobustMetrics(OneStep(LInfBall(8)))),
        lambda: dict(
            cbs=AdversarialTraining(OneStep(LInfBall(1)), schedule=lambda share: 8 * share)
        ),
    ):
        texts = said_by(adv_learner(raw_images(), network(), **make()))
        assert texts
        assert all("8/255" in text for text in texts)
    for adversary in (PGD(L2Ball(8), 2), PGD(LInfBall(1), 2)):
        assert said_by(adv_learner(raw_images(), network(), adversary)) == []
    table = TensorDataset(torch.rand(8, 5), torch.arange(8) % 3)
    assert said_by(adv_learner(torch_loaders(table), nn.Linear(5, 3), PGD(LInfBall(8), 2))) == []


def test_a_later_batch_that_leaves_the_range_is_not_cut():
    x, y = pixels()
    x[9, 0, 0, 0] = 5.0
    learn = adv_learner(
        torch_loaders(TensorDataset(x, y)), network(), PGD(LInfBall(EPS), 2), cbs=Pixels(True)
    )
    learn.add_cb(Clean())
    (text,) = said_by(learn)
    assert "up to" not in text
    assert "no longer clamped" in text
    clean, seen = (torch.cat(parts) for parts in zip(*learn.pixels.moved))
    assert clean.max() == 5.0
    assert (seen - clean).abs().max() <= EPS + 1e-6
    assert seen[:8].max() <= 1
    assert seen[12:].max() > 4.9


def test_a_range_that_transforms_make_needs_no_look():
    tfms = [IntToFloatTensor(), fastai_normalize()]
    loader = fastai_loaders(lambda batch: batch, scale=255.0)
    x = TensorImage(torch.rand(4, 3, 8, 8))
    units = find_units(type("L", (), dict(after_batch=tfms))(), x)
    assert units.bounds == (0.0, 1.0)
    assert not units.guessed
    assert len(units.stats) == 1
    assert find_units(loader.train, torch.rand(4, 3, 8, 8)).guessed


def test_units_follow_the_type_as_fastai_does():
    train = by_pipeline().train
    x = train.one_batch()[0]
    assert type(x) is TensorImage
    units = find_units(train, x)
    assert len(units.stats) == 1
    assert units.bounds == (0.0, 1.0)
    bare = x.as_subclass(torch.Tensor)
    assert torch.allclose(units.encode(units.decode(bare)), bare, atol=1e-6)
    assert find_units(train, bare, warn=False).stats == []


def test_data_of_tensors_have_the_bounds_of_their_adversary():
    x, y = pixels()
    train = tensor_dls(x, y, x, y, bs=4, device="cpu").train
    assert find_units(train, x).bounds is None
    assert find_units(train, x, normalize=(0, 1)).bounds == (0.0, 1.0)
    assert find_units(None, torch.randn(9)).bounds is None


def test_presets_of_pretrained_weights_are_known():
    preset = ResNet18_Weights.DEFAULT.transforms()
    data = Images(*pixels(), preset)
    loader = TorchLoader(data, batch_size=4)
    x, _ = next(iter(loader))
    units = find_units(loader, x)
    assert units.stats[0][0].flatten().tolist() == pytest.approx(preset.mean)
    assert units.bounds == (0.0, 1.0)


def test_joined_sets_of_several_normalisations_are_refused():
    x, y = pixels()
    others = Images(x, y, v2.Normalize([0.1], [0.2]))
    loaders = torch_loaders(Images(x, y, composed()), others)
    learn = adv_learner(loaders, network(), PGD(LInfBall(EPS), 2))
    with pytest.raises(ValueError, match="normalised differently"), quiet(learn):
        learn.fit(1)
    told = adv_learner(loaders, network(), PGD(LInfBall(EPS), 2), normalize=(0, 1))
    with quiet(told), pytest.warns(UserWarning):
        told.fit(1)


@pytest.mark.parametrize(
    "normalize", [3, "01", (0.5, 0), (0.5, -1), ([0.5], [float("nan")]), (1, 2, 3), ("a", "b")]
)
def test_units_that_are_none_are_refused(normalize):
    with pytest.raises(ValueError, match="expected \\(mean, std\\)"):
        adv_learner(raw_images(), network(), PGD(LInfBall(EPS)), normalize=normalize)
    with pytest.raises(ValueError, match="expected \\(mean, std\\)"):
        RobustMetrics(PGD(LInfBall(EPS)), normalize=normalize)


def test_units_of_other_channels_are_refused():
    learn = adv_learner(raw_images(), network(), PGD(LInfBall(EPS)), normalize=([0.5, 0.5], 1))
    with pytest.raises(ValueError, match="2 channels do not fit"), quiet(learn):
        learn.fit(1)


def test_a_loader_is_no_list_of_units():
    with pytest.raises(TypeError, match="find_units"):
        RawUnits(by_pipeline().train)


def test_two_normalisations_are_undone_backwards():
    first, second = ((torch.tensor(mean), torch.tensor(std)) for mean, std in ((0.5, 0.25), (1, 2)))
    units = RawUnits([first, second])
    u = torch.tensor([[0.5, 0.75, 1.0]])
    torch.testing.assert_close(units.encode(u), torch.tensor([[-0.5, 0.0, 0.5]]))
    torch.testing.assert_close(units.decode(units.encode(u)), u)


def test_several_inputs_of_a_learner_are_normalised_as_fastai_does():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, table, image):
            return self.net(image) + table.sum(1, keepdim=True)

    x, y = pixels()
    table = torch.rand(12, 5)
    items = [(table[i], TensorImage(x[i]), y[i]) for i in range(12)]
    loaders = [DataLoader(items, bs=4, after_batch=fastai_normalize(), n_inp=2) for _ in range(2)]
    dls = DataLoaders(*loaders)
    dls.n_inp = 2
    learn = Learner(dls, Both(), loss_func=nn.CrossEntropyLoss())
    mean, std = stats()
    expected = learn.model(table, (x - mean) / std)
    torch.testing.assert_close(learner_in_raw_units(learn)(table, x), expected)
    learn.adversarial(PGD(LInfBall(EPS), 2), which=1)
    with quiet(learn):
        learn.fit(1)


class TwoTransforms(Dataset):
    """Images normalised by one transform in training and by another in validation."""

    def __init__(self, train, valid):
        self.train, self.valid = train, valid

    def __len__(self):
        return 8

    def __getitem__(self, i):
        return self.train(torch.rand(3, 8, 8)), i % 2


def test_one_of_several_transforms_of_a_data_set_acts():
    both = [v2.Normalize([0.5] * 3, [0.25] * 3) for _ in range(2)]
    units = find_units(
        TorchLoader(TwoTransforms(v2.Compose([v2.RandomHorizontalFlip(), both[0]]), both[1]))
    )
    delta = torch.full((1, 3, 8, 8), 0.1)
    normalised = units.encode(0.5 + delta) - units.encode(0.5 + 0 * delta)
    torch.testing.assert_close(normalised, delta / 0.25)


def test_transforms_of_a_data_set_that_differ_are_refused():
    two = v2.Normalize([0.5] * 3, [0.25] * 3), v2.Normalize([0.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match=r"several transforms.*normalize=\(mean, std\)"):
        find_units(TorchLoader(TwoTransforms(*two)))
