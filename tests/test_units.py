"""Raw units of what a loader delivers: there and back, found in transforms, inside a learner."""

import pytest
import torch
from fastai.data.transforms import Normalize as FastaiNormalize
from fastai.learner import Learner
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize

from advinterp.core import input_grad
from advinterp.data import tensor_dls
from advinterp.units import RawUnits, find_units, learner_in_raw_units

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.5]
PIXELS = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
FIRST = (torch.tensor(0.5), torch.tensor(0.25))
SECOND = (torch.tensor(1.0), torch.tensor(2.0))


class Pictures(Dataset):
    """Images in [0, 1], behind a transform."""

    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, i):
        return self.transform(PIXELS[i]), i % 2


def normalised(pixels):
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


def test_two_normalisations_are_undone_backwards():
    units = RawUnits([FIRST, SECOND])
    u = torch.tensor([[0.5, 0.75, 1.0]])
    torch.testing.assert_close(units.encode(u), torch.tensor([[-0.5, 0.0, 0.5]]))
    torch.testing.assert_close(units.decode(units.encode(u)), u)


def test_normalisations_are_found_in_the_transforms_of_a_data_set():
    """Their range is that of the raw image, whatever it is afterwards."""
    again = Normalize([1.0] * 3, [2.0] * 3)
    loader = DataLoader(Pictures(Compose([Normalize(MEAN, STD), again])), 6)
    x, _ = next(iter(loader))
    units = find_units(loader, x)
    torch.testing.assert_close(units.decode(x), PIXELS)
    torch.testing.assert_close(units.encode(PIXELS), x)
    assert units.bounds == (0.0, 1.0)


def test_what_the_caller_says_comes_before_what_is_found():
    loader = DataLoader(Pictures(Normalize(MEAN, STD)), 6)
    x, _ = next(iter(loader))
    units = find_units(loader, x, normalize=(MEAN, STD))
    torch.testing.assert_close(units.decode(x), PIXELS)
    with pytest.raises(ValueError, match=r"normalize=0.5: expected \(mean, std\)"):
        find_units(loader, x, normalize=0.5)


def test_normalised_images_of_which_nothing_says_so_are_warned_of():
    x = normalised(PIXELS)
    with pytest.warns(UserWarning, match="no normalisation found"):
        assert find_units(None, x).bounds is None


def test_a_learner_is_a_function_of_raw_pixels():
    """Its gradient is that of the raw input, as if the normalisation were a layer."""
    y = torch.arange(6) % 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    stats = FastaiNormalize.from_stats(MEAN, STD, cuda=False)
    data = (PIXELS, y, PIXELS, y)
    dls = tensor_dls(*data, bs=6, device="cpu", after_batch=[stats])
    learn = Learner(dls, net, loss_func=nn.CrossEntropyLoss())
    model = learner_in_raw_units(learn)
    torch.testing.assert_close(model(PIXELS), net(normalised(PIXELS)))
    expected, _ = input_grad(lambda u: net(normalised(u)), PIXELS, y)
    torch.testing.assert_close(input_grad(learn, PIXELS, y)[0], expected)
