"""What a run of paper C trains with: strengths for its size of images, rows, labels, maps."""

import numpy as np
import pytest
import torch

from advinterp.adversary import Harmonise, OneStep
from advinterp.data import Arrays, tensor_dls
from advinterp.duals import ElasticNet, GroupBall, L2Ball, LInfBall
from advinterp.jobs import Job, check_out, run_job
from advinterp.papers import c as paper_c
from advinterp.papers.c import swapped_rows

TINY = dict(net="small", size=32, of=64, n_train=8, n_test=4, epochs=1, bs=4, lr=1e-3, wd=0.0)
TINY |= dict(betas=[0.9, 0.999], fast=False, roar=None, seed=0, labels="true", device="cpu")
UNIT = 0.226  # mean deviation of ImageNet's channels: published strengths are in units of it


def photos(name):
    """Image i has the grey value i/20, and the class i."""
    values = np.arange(20, dtype=np.float32) / 20
    grey = np.broadcast_to(values[:, None, None, None], (20, 3, 8, 8)).copy()
    names = [str(i) for i in range(20)]
    return Arrays(grey, np.arange(20), grey[:4], np.arange(4), None, names)


def trained(patch, out, data="cifar10", norm=None, eps=0.0, protocol="fast", **changes):
    """Train a run: with what loaders and adversaries were made."""
    made = []

    def recorded(kind):
        def make(*args, **kwargs):
            made.append(args)
            return kind(*args, **kwargs)

        return make

    for name, kind in dict(OneStep=OneStep, Harmonise=Harmonise, tensor_dls=tensor_dls).items():
        patch.setattr(paper_c, name, recorded(kind))
    patch.setattr(paper_c, "load", photos)
    settings = TINY | dict(data=data, norm=norm, eps=eps, protocol=protocol) | changes
    job = Job("advinterp.papers.c:train_c", settings, "tiny")
    assert run_job(job, check_out(out)) == "done"
    return made


@pytest.mark.parametrize(
    "norm, eps, expected",
    [
        ("l1", 0.05, LInfBall(UNIT * 0.05)),
        ("l2", 0.5, L2Ball(UNIT * 0.25)),
        ("group", 0.5, GroupBall(UNIT * 0.25, 7)),
        ("elastic", [0.05, 0.2], ElasticNet(UNIT * 0.05, UNIT**2 * 0.05)),
    ],
)
def test_strengths_are_scaled_to_the_size_of_the_images(monkeypatch, tmp_path, norm, eps, expected):
    """Half the side: a patch of half the side; half the l2 norm; the same per pixel."""
    _, (dual,) = trained(monkeypatch, tmp_path, norm=norm, eps=eps)
    assert repr(dual) == repr(expected)
    g = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(dual.h_star(g), expected.h_star(g))


@pytest.mark.parametrize("labels", ["true", "permuted"])
def test_the_rows_of_a_seed_and_their_labels(monkeypatch, tmp_path, labels):
    ((x, y, *_),) = trained(monkeypatch, tmp_path, labels=labels)
    classes = [round(20 * value) for value in x[:, 0, 0, 0].tolist()]
    assert classes == swapped_rows(8, 20, 0).tolist()
    assert sorted(y.tolist()) == sorted(classes)
    assert (y.tolist() == classes) == (labels == "true")


def test_rows_are_exchanged_for_later_ones():
    rows = swapped_rows(100, 200, seed=1, share=0.1)
    assert len(set(rows)) == 100
    assert ((rows == np.arange(100)) | (rows >= 100)).all()
    assert (rows >= 100).sum() == 10
    assert (rows != swapped_rows(100, 200, seed=2, share=0.1)).any()
    assert (swapped_rows(100, 104, seed=1, share=0.1) >= 100).sum() == 4  # no more than there are
    with pytest.raises(ValueError, match="n=5: expected at most the 4 rows"):
        swapped_rows(5, 4, 0)


def test_the_control_has_the_maps_of_other_images(monkeypatch, tmp_path):
    """The maps of the last batch, as both adversaries see them."""
    maps = {}
    for protocol in ("harmonise", "wrong_maps"):
        how = dict(data="cells", protocol=protocol, eps=0.5, size=64)
        ((strength, maps_of),) = trained(monkeypatch, tmp_path / protocol, **how)
        assert strength == pytest.approx(UNIT * 0.5)
        maps[protocol] = maps_of(torch.zeros(1), None)
    right, wrong = maps.values()
    assert right.shape == (4, 1, 64, 64)
    assert torch.equal(wrong, right[[3, 0, 1, 2]])
    assert not torch.equal(wrong, right)
