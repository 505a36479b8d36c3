"Evaluations against other implementations and brute force; attacks on maps; pieces that survive a kill; bad input."

import signal
import subprocess
import sys
import types
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from advinterp import evaluate as E
from advinterp.adversary import PGD, OneStep
from advinterp.attribution import saliency, smoothgrad
from advinterp.duals import L1Ball, L2Ball, LInfBall
from advinterp.map_adversary import _top_entries, map_attack, paper_c_map_attack
from advinterp.metrics import topk_overlap
from advinterp.models import softplus_copy

ROOT = Path(__file__).resolve().parent.parent
quick = settings(deadline=None, max_examples=25)


def conv(act=nn.SiLU, seed=0, n_out=4):
    torch.manual_seed(seed)
    return (
        nn.Sequential(
            nn.Conv2d(2, 6, 3), act(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 25, n_out)
        )
        .double()
        .eval()
    )


@pytest.fixture
def batch():
    torch.manual_seed(1)
    x = torch.rand(6, 2, 12, 12, dtype=torch.double)
    return x, torch.tensor([0, 1, 2, 3, 2, 1])


# attacks on maps


@quick
@given(
    seed=st.integers(0, 999),
    k=st.floats(0.02, 0.98),
    radius=st.floats(0.01, 3),
    steps=st.integers(1, 6),
    sign=st.booleans(),
)
def test_map_attack_is_feasible_and_never_raises_the_share(seed, k, radius, steps, sign):
    net = conv(seed=seed)
    torch.manual_seed(seed)
    x = torch.rand(3, 2, 12, 12, dtype=torch.double)
    y = torch.randint(0, 4, (3,))
    adv = map_attack(
        net, x, y, radius, k=k, steps=steps, step_size=radius / 10 if sign else None, bounds=(0, 1)
    )
    assert (
        (adv - x).flatten(1).norm(dim=1).max() <= radius * (1 + 1e-9)
        and adv.min() >= 0
        and adv.max() <= 1
    )
    assert torch.equal(net(adv).argmax(1), net(x).argmax(1))
    v, w = (saliency(net, z, y, abs=True).flatten(1) for z in (x, adv))
    m = _top_entries(v, k)
    assert ((w * m).sum(1) / w.sum(1) <= (v * m).sum(1) / v.sum(1) + 1e-12).all()


@quick
@given(seed=st.integers(0, 999), k=st.floats(0.02, 1), zeros=st.floats(0, 1))
def test_top_entries_are_the_first_of_a_sorted_row(seed, k, zeros):
    torch.manual_seed(seed)
    v = torch.rand(4, 30).mul(10).round() * (torch.rand(4, 30) >= zeros)
    for row, kept in zip(v, _top_entries(v, k)):
        n = min(
            max(1, round(k * int((row > 0).sum()))), int((row > 0).sum())
        )  # by hand: the first so many of a stable order
        by_hand = sorted(range(len(row)), key=lambda i: -row[i].item())[:n]
        assert kept.nonzero()[:, 0].tolist() == sorted(by_hand)


@pytest.mark.parametrize(
    "kw",
    [
        {},
        dict(output="prob"),
        dict(output="loss"),
        dict(step_size=0.05),
        dict(bounds=(0, 1)),
        dict(steps=3, k=0.1),
    ],
)
def test_map_attack_of_a_batch_is_that_of_each_image(batch, kw):
    (x, y), net = batch, conv()
    whole = map_attack(net, x, y, 0.5, **kw)
    torch.testing.assert_close(
        whole,
        torch.cat([map_attack(net, x[i : i + 1], y[i : i + 1], 0.5, **kw) for i in range(6)]),
        atol=1e-8,
        rtol=0,
    )
    torch.testing.assert_close(
        whole, map_attack(net, x, y, 0.5, batch_size=4, **kw), atol=1e-8, rtol=0
    )
    assert not torch.equal(whole, x)


def test_map_attack_written_out(batch):
    "The public code's protocol, one image at a time, in plain torch."
    (x, y), net, radius = batch, conv(), 2.0
    got = paper_c_map_attack(net, x, y, radius)
    for x0, c, adv in zip(x, y, got):

        def grad(z, graph=False):
            return torch.autograd.grad(net(z[None])[0, c], z, create_graph=graph)[0].abs().flatten()

        z0 = x0.clone().requires_grad_()
        v = grad(z0)
        top = v.topk(round(0.4 * (v > 0).sum().item())).indices
        z, best, lowest = x0.clone(), x0, v[top].sum() / v.sum()
        for _ in range(10):
            z = z.detach().requires_grad_()
            v = grad(z, True)
            z = z.detach() - radius / 100 * torch.autograd.grad(v[top].sum() / v.sum(), z)[0].sign()
            if (z - x0).norm() > radius:
                z = x0 + (z - x0) * radius / (z - x0).norm()
            v = grad(z.requires_grad_())
            share = v[top].sum() / v.sum()
            if net(z[None]).argmax() == net(x0[None]).argmax() and share < lowest:
                best, lowest = z.detach(), share
        torch.testing.assert_close(adv, best, atol=1e-8, rtol=0)


def test_map_attack_through_a_smooth_copy(batch):
    (x, y), net = batch, conv(nn.ReLU)
    with pytest.raises(ValueError, match="softplus_copy"):
        map_attack(net, x, y, 1.0)
    adv = map_attack(net, x, y, 1.0, attack_model=softplus_copy(net))
    noise = torch.randn_like(x)
    noise = x + noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
    own = saliency(net, x, y)
    assert (
        topk_overlap(own, saliency(net, adv, y), 0.4, nonzero=True).mean()
        < topk_overlap(own, saliency(net, noise, y), 0.4, nonzero=True).mean()
    )


def test_a_zero_map_stays(batch):
    x, y = batch
    dead = nn.Sequential(nn.Flatten(), nn.Linear(288, 4)).double()
    nn.init.zeros_(dead[1].weight)
    assert torch.equal(map_attack(dead, x, y, 1.0), x)


def test_bounds_of_one_image(batch):
    (x, y), net = batch, conv()
    lo = torch.zeros(2, 12, 12).double()
    lo[:, :6] = -1.0
    adv = map_attack(net, x, y, 1.0, bounds=(lo, 1.0))
    assert (adv >= lo).all() and adv[:, :, :6].min() < 0


# accuracy under several attacks


def test_worst_case_is_the_intersection_and_its_order_does_not_matter(batch):
    x, net = batch[0], conv()
    y = net(x).argmax(1)
    attacks = [OneStep(LInfBall(0.02)), OneStep(L2Ball(0.3)), OneStep(L1Ball(2.0))]
    each = torch.stack([E.is_correct(net, x, y, a) for a in attacks]).all(0)
    for order in (attacks, attacks[::-1]):
        assert torch.equal(E.worst_case(net, x, y, order), each)
    assert torch.equal(E.worst_case(net, x, y, order, batch_size=2), each)


def test_curve_with_pgd_restarts_is_monotone_and_at_most_each_attack(batch):
    x, net = batch[0], conv()
    y = net(x).argmax(1)
    pgd = PGD(LInfBall(1.0), steps=5, restarts=2, bounds=(0, 1))
    c = E.robustness_curve(net, x, y, [0.0, 0.01, 0.03, 0.1], [pgd, OneStep(LInfBall(1.0))])
    assert (
        c.accuracy[0] == 1
        and (c.accuracy.diff() <= 0).all()
        and (c.correct[1:] <= c.correct[:-1]).all()
    )
    for e, a in zip(c.eps, c.accuracy):
        assert a <= E.robust_accuracy(net, x, y, pgd.with_eps(e.item())) + 1e-6


def test_curve_warns_of_models_without_gradients():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].bias.data.fill_(-9.0)
    with pytest.warns(UserWarning, match="gradient is exactly zero"):
        E.robustness_curve(
            net, torch.rand(5, 3), torch.zeros(5).long(), [0.1], OneStep(LInfBall(1.0))
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda n, x, y: E.accuracy(n, x, y),
        lambda n, x, y: E.worst_case(n, x, y, OneStep(LInfBall(0.1))),
        lambda n, x, y: E.aopc_morf(n, x, y, x),
        lambda n, x, y: E.map_stability([n, n], x, y),
        lambda n, x, y: E.gradient_norms(n, x, y),
        lambda n, x, y: E.map_robustness(n, x, y, [0.1]),
        lambda n, x, y: E.cascading_randomization(n, x, y),
        lambda n, x, y: E.robustness_curve(n, x, y, [0.1], OneStep(LInfBall(1.0))),
    ],
    ids=[
        "accuracy",
        "worst_case",
        "aopc",
        "stability",
        "norms",
        "map_robustness",
        "cascading",
        "curve",
    ],
)
def test_bad_input(batch, call):
    (x, y), net = batch, conv()
    for args, error, match in (
        ((x, y + 2), ValueError, "classes 0 to 3"),
        ((x[:0], y[:0]), ValueError, "empty"),
        ((x, y[:2]), ValueError, "y"),
        ((x, y.tolist()), TypeError, "y:"),
    ):
        with pytest.raises(error, match=match):
            call(net, *args)
    with pytest.raises(ValueError, match="expected logits"):
        call(nn.Sequential(net, nn.Softmax(1)), x, y)


# AutoAttack


def test_autoattack_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    with pytest.raises(ImportError, match="pip install torchattacks"):
        E.AutoAttack(LInfBall(0.1))


def test_autoattack_is_one_of_the_adversaries():
    pytest.importorskip("torchattacks")
    net = conv().float()
    torch.manual_seed(0)
    x = torch.rand(6, 2, 12, 12)
    y = net(x).argmax(1)
    rng, attack = torch.get_rng_state(), E.AutoAttack(LInfBall(1.0), "rand")
    c = E.robustness_curve(net.train(), x, y, [0.0, 0.02], [attack])
    assert (
        c.accuracy[0] == 1
        and torch.equal(rng, torch.get_rng_state())
        and net.training
        and all(p.requires_grad and p.grad is None for p in net.parameters())
    )
    adv = attack.with_eps(0.02)(net, x, y)
    assert (adv - x).abs().max() <= 0.02 + 1e-6 and torch.equal(
        adv, attack.with_eps(0.02)(net, x, y)
    )
    assert repr(attack) == "AutoAttack(LInfBall(eps=1), version='rand')"
    with pytest.raises(ValueError, match="at least four logits"):
        attack.with_eps(0.1)(conv(n_out=3).float(), x, y % 3)
    with pytest.raises(ValueError, match="outside the bounds"):
        attack.with_eps(0.1)(net, 3 * x, y)
    with pytest.raises(ValueError, match="expected LInfBall or L2Ball"):
        E.AutoAttack(L1Ball(1.0))


@pytest.mark.slow
def test_autoattack_and_pgd_agree_on_a_small_net():
    "Two strong attacks leave about as many examples standing, both together the fewest."
    pytest.importorskip("torchattacks")
    torch.manual_seed(0)
    x = torch.rand(40, 2, 12, 12)
    net = conv().float()
    y = net(x).argmax(1)
    pgd, auto = (
        PGD(LInfBall(0.004), steps=40, restarts=3, bounds=(0, 1), early_stop=True),
        E.AutoAttack(LInfBall(0.004)),
    )
    a, b, both = (
        E.worst_case(net, x, y, attacks).float().mean() for attacks in (pgd, auto, [pgd, auto])
    )
    assert abs(a - b) < 0.1 and both <= min(a, b) and 0 < both < 1


# pieces that survive

HASHES = """
import torch; from torch import nn; from functools import partial
from advinterp.evaluate import content_hash; from advinterp.adversary import PGD; from advinterp.duals import LInfBall; from advinterp.attribution import smoothgrad
torch.manual_seed(0); k = 3
def f(x, a={'b': {'c', 'd', 'e'}}): return k*x + len(a)
print(content_hash(nn.Linear(3, 2), PGD(LInfBall(.1), bounds=(0, torch.ones(3))), partial(smoothgrad, sigma=.1), f, lambda z: f(z), {'x': 1., 'y': None}, {'c', 'd', 'e'}))
"""


def started(code, folder=None):
    return subprocess.Popen(
        [sys.executable, "-c", f"folder = {str(folder)!r}\n{code}"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def here(code, capsys):
    exec(code, dict(folder=None, __name__="__main__"))
    return capsys.readouterr().out


def test_hash_is_the_same_in_another_process(capsys):
    own = here(HASHES, capsys)
    assert len(own.strip()) == 64 and started(HASHES).communicate()[0] == own


def test_hash_sees_code_and_what_it_refers_to():
    def make(text, **names):
        exec(text, names)
        return names["f"]

    fs = [
        make("def f(x): return x + 1"),
        make("def f(x): return x + 2"),
        make("def f(x): return x + c", c=1),
        make("def f(x): return x + c", c=2),
        make("def f(x): return [v + c for v in x]", c=1),
        make("def f(x): return [v + c for v in x]", c=2),
        make("def f(x): return max(x, key=lambda v: v*c)", c=1),
        make("def f(x): return max(x, key=lambda v: v*c)", c=2),
        make("def f(x): return g(x)", g=make("def f(x): return x")),
        make("def f(x): return g(x)", g=make("def f(x): return -x")),
        make("def f(x, y=1): return x"),
        make("def f(x, y=2): return x"),
    ]
    for f in fs:
        f.__module__ = "__main__"
    assert len({E.content_hash(f) for f in fs}) == len(fs)

    class Net(nn.Module):
        def forward(self, x):
            return x

    class Other(nn.Module):
        def forward(self, x):
            return 2 * x

    Other.__qualname__ = Net.__qualname__
    assert E.content_hash(Net()) != E.content_hash(Other())

    def variant(c, s):
        return type(
            "Own",
            (nn.Module,),
            dict(
                forward=Net.forward,
                scale=c,
                s=staticmethod(eval(f"lambda x: x + {s}")),
                p=property(eval(f"lambda self: {s}")),
                __module__="__main__",
            ),
        )

    classes = [variant(c, s) for c in (1.0, 2.0) for s in (1, 2)]
    assert len({E.content_hash(o) for c in classes for o in (c, c())}) == 8 and E.content_hash(
        classes[0]()
    ) == E.content_hash(variant(1.0, 1)())


def test_hash_sees_modules_that_are_not_installed(tmp_path):
    def load(text):
        (tmp_path / "helpers.py").write_text(text)
        m = types.ModuleType("helpers")
        m.__file__ = str(tmp_path / "helpers.py")
        return m

    assert E.content_hash(load("a = 1")) != E.content_hash(load("a = 2")) and E.content_hash(
        torch
    ) == E.content_hash(torch)


def test_hash_of_an_object_inside_itself():
    loop = nn.Linear(2, 2)
    loop.me = [loop]
    assert E.content_hash(loop) == E.content_hash(loop)


EVALUATION = """
import time, torch
from torch import nn
from advinterp.adversary import OneStep
from advinterp.duals import LInfBall
from advinterp.evaluate import robustness_curve
class Slow(OneStep):
    def search(self, p, gen):
        print('attack', flush=True); time.sleep(.05)
        return super().search(p, gen)
torch.manual_seed(0); net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)); x = torch.rand(60, 8); y = net(x).argmax(1)
print('done', robustness_curve(net, x, y, [.01, .02, .05, .1], Slow(LInfBall(1.)), batch_size=20, cache=folder).accuracy.tolist())
"""


def test_a_killed_evaluation_goes_on_where_it_died(tmp_path, capsys):
    whole, folder, p = (
        here(EVALUATION, capsys).splitlines(),
        tmp_path / "kept",
        started(EVALUATION, tmp_path / "kept"),
    )
    for _ in range(6):
        assert p.stdout.readline() == "attack\n"
    p.send_signal(signal.SIGKILL)
    p.communicate()
    done = len(
        list(folder.glob("[!.]*.safetensors"))
    )  # pieces of the clean pass and of the five finished attacks, at least
    again = started(EVALUATION, folder).communicate()[0].splitlines()
    assert (
        again[-1] == whole[-1]
        and whole[-1].startswith("done")
        and 1 < len(again) <= len(whole) - 5
        and done >= 5
    )


def test_the_long_evaluations_use_the_cache(batch, tmp_path):
    (x, y), net = batch, conv()
    smooth = partial(smoothgrad, n_samples=2)
    for f in (
        partial(E.map_robustness, net, x, y, [0.1, 0.2], smooth, sigma=1.0),
        partial(E.map_stability, [net, conv(seed=1)], x, y, smooth, sigma=1.0),
        partial(E.cascading_randomization, net, x, y, smooth, sigma=1.0),
    ):
        before, free = len([*tmp_path.glob("*")]), f()
        first = f(cache=tmp_path)
        n = len([*tmp_path.glob("*")])
        second = f(cache=E.Cache(tmp_path))
        assert n > before and n == len([*tmp_path.glob("*")])
        for a, b in ((first, free), (second, free)):
            assert E.content_hash(a) == E.content_hash(b)


def test_what_cannot_be_hashed_is_refused(batch, tmp_path):
    (x, y), net = batch, conv()
    gen = torch.Generator()
    with pytest.raises(TypeError, match="cache: cannot tell"):
        E.map_stability(
            [net, net], x, y, lambda m, x, y: torch.rand(x.shape, generator=gen), cache=tmp_path
        )


# faithful maps


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("signed", [True, False])
def test_morf_curve_equals_quantus(batch, patch, signed):
    quantus = pytest.importorskip("quantus")
    x, y, net, m, n = (
        batch[0].float(),
        batch[1],
        conv().float(),
        torch.randn(6, 1, 12, 12),
        (12 // patch) ** 2,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = quantus.RegionPerturbation(
            patch_size=patch,
            regions_evaluation=n,
            abs=not signed,
            normalise=False,
            perturb_baseline=0.5,
            disable_warnings=True,
        )
        theirs = np.array(
            metric(
                net,
                x.numpy(),
                y.numpy(),
                m.expand_as(x).numpy().copy(),
                softmax=True,
                channel_first=True,
            )
        )
    ours = E.morf_curve(net, x, y, m.expand_as(x).contiguous(), patch, fill=0.5, signed=signed)
    np.testing.assert_allclose(ours[:, 1:], theirs, atol=1e-6)
    np.testing.assert_allclose(
        E.aopc_morf(net, x, y, m.expand_as(x).contiguous(), patch, fill=0.5, signed=signed),
        theirs.sum(1) / (n + 1),
        atol=1e-6,
    )


@quick
@given(seed=st.integers(0, 999), patch=st.sampled_from([None, 1, 2, 3, 5]), steps=st.integers(1, 6))
def test_morf_curve_by_brute_force(seed, patch, steps):
    net = conv(seed=seed)
    torch.manual_seed(seed)
    x, m = torch.rand(2, 2, 12, 12, dtype=torch.double), torch.randn(2, 2, 12, 12).double()
    y = torch.tensor([1, 3])
    curve = E.morf_curve(net, x, y, m, patch, steps=steps, output="logit")
    for i in range(2):
        cells = (
            [
                (slice(None), slice(a, a + patch), slice(b, b + patch))
                for a in range(0, 12, patch)
                for b in range(0, 12, patch)
            ]
            if patch
            else [np.unravel_index(j, (2, 12, 12)) for j in range(288)]
        )
        cells.sort(key=lambda c: -m[i][c].abs().sum().item())
        z, drops = x[i].clone(), [0.0]
        for c in cells[:steps]:
            z[c] = 0.0
            drops.append((net(x[i : i + 1]) - net(z[None]))[0, y[i]].item())
        torch.testing.assert_close(curve[i], torch.tensor(drops).double(), atol=1e-6, rtol=0)


def test_relative_drop():
    assert E.relative_drop(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0])) == 0.5
    with pytest.raises(ValueError, match="one shape"):
        E.relative_drop(torch.ones(2), torch.ones(3))


# stable maps, random weights, norms


def test_stability_is_the_mean_over_pairs_in_any_order(batch):
    (x, y), nets = batch, [conv(seed=s) for s in range(4)]
    s = E.map_stability(nets, x, y, sigma=1.0)
    pairs = [
        E.map_similarity(saliency(a, x, y), saliency(b, x, y), sigma=1.0)
        for i, a in enumerate(nets)
        for b in nets[:i]
    ]
    for name in ("dice", "ssim", "rank"):
        torch.testing.assert_close(
            getattr(s, name), torch.stack([getattr(p, name) for p in pairs]).mean(0)
        )
        torch.testing.assert_close(
            getattr(s, name), getattr(E.map_stability(nets[::-1], x, y, sigma=1.0), name)
        )


def test_tables_have_no_ssim():
    x, y = torch.rand(5, 7), torch.zeros(5).long()
    nets = [nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 2)) for _ in range(2)]
    assert (
        E.map_stability(nets, x, y).ssim.isnan().all()
        and E.map_stability(nets, x, y).rank.isfinite().all()
    )
    r = E.map_robustness(nets[0], x, y, [0.5])
    assert r.attacked.ssim.isnan().all() and r.attacked.rank.shape == (1, 5)


def test_cascade_goes_through_the_layers_as_they_are_called(batch):
    x, y = batch

    class Swapped(nn.Module):
        "Registers its layers in the opposite order."

        def __init__(self):
            super().__init__()
            self.last, self.norm, self.first = nn.Linear(6, 4), nn.BatchNorm1d(6), nn.Linear(288, 6)

        def forward(self, x):
            return self.last(self.norm(self.first(x.flatten(1))).tanh())

    torch.manual_seed(0)
    net = Swapped().double()
    net.norm.running_mean.fill_(3.0)
    before, got = (
        E.content_hash(net, torch.get_rng_state()),
        E.cascading_randomization(net, x, y, sigma=1.0),
    )
    assert (
        got.layers == ["last", "norm", "first"]
        and E.content_hash(net, torch.get_rng_state()) == before
        and net.norm.running_mean[0] == 3
    )
    assert (
        E.cascading_randomization(net, x, y, sigma=1.0, order="bottom_up").layers
        == got.layers[::-1]
    )
    again, other = (
        E.cascading_randomization(net, x, y, sigma=1.0, seed=s).similarity.rank for s in (0, 1)
    )
    assert torch.equal(again, got.similarity.rank) and not torch.equal(other, again)
    with pytest.raises(ValueError, match="no reset_parameters"):
        E.cascading_randomization(nn.Sequential(net, Scale()), x, y, sigma=1.0)
    kept = E.cascading_randomization(
        nn.Sequential(net, Scale()), x, y, sigma=1.0, reinit=lambda m: None
    )
    assert (kept.similarity.rank > 1 - 1e-9).all()


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.s = nn.Parameter(torch.ones(()).double())

    def forward(self, x):
        return self.s * x


def test_label_randomization_permutes_the_labels():
    seen = []

    def fit(labels):
        seen.append(labels)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))

    y = torch.arange(50) % 2
    s = E.label_randomization(fit, y, torch.rand(3, 4), torch.tensor([0, 1, 0]))
    assert (
        torch.equal(seen[0], y)
        and not torch.equal(seen[1], y)
        and torch.equal(seen[1].sort().values, y.sort().values)
        and s.rank.shape == (3,)
    )


def test_gradient_norms_of_a_binary_model_and_of_each_logit(batch):
    x, y = batch
    net = conv()
    g = E.gradient_norms(net, x, y, batch_size=4)
    for i in range(6):
        n = [
            torch.autograd.functional.jacobian(lambda z: net(z[None])[0, j], x[i]).norm()
            for j in range(4)
        ]
        assert abs(g.true[i] - n[y[i]]) < 1e-9 and abs(g.others[i] - (sum(n) - n[y[i]]) / 3) < 1e-9
    one = nn.Sequential(nn.Flatten(), nn.Linear(288, 1)).double()
    g = E.gradient_norms(one, x, y % 2)
    torch.testing.assert_close(g.true, one[1].weight.norm().expand(6).detach())
    torch.testing.assert_close(g.true, g.others)


def test_metrics_say_which_way_is_good():
    for f in (
        E.accuracy,
        E.robust_accuracy,
        E.robustness_curve,
        E.map_robustness,
        E.map_stability,
        E.aopc_morf,
        E.relative_drop,
        E.cascading_randomization,
        E.label_randomization,
        E.gradient_norms,
        E.rank_correlation,
    ):
        assert f.citation and set(
            f.direction.values() if isinstance(f.direction, dict) else [f.direction]
        ) <= {"higher", "lower"}
    assert (
        E.aopc_morf.direction == "higher"
        and E.relative_drop.direction == "lower"
        and E.map_attack is map_attack
    )
