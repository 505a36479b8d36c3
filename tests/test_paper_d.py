"""Paper D: published settings, exact shortcuts, the bound on weight penalties, verdicts."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from advinterp.adversary import margin_loss
from advinterp.core import set_seed, task_loss
from advinterp.duals import LInfBall
from advinterp.jobs import check_out, read_job, run_job, store_row, write_study
from advinterp.models import one_hidden
from advinterp.papers import d as paper_d
from advinterp.papers.common import Done
from advinterp.papers.d import Corners, chosen, items_d, rows_d, weight_decay_optimum
from advinterp.papers.reproduce import paper_ledger
from advinterp.penalty import WeightNorm

TINY = dict(width=30, epochs=3, bs=5_000, lr=0.5)


def flat_parameters(net):
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_paper_preset_has_the_published_settings():
    """25,000 units, 4,000 epochs of 40 batches of 250, five seeds of 13 + 7 models."""
    item = next(item for item in items_d() if item.name == "D.claims")
    published = dict(width=25_000, epochs=4_000, bs=250, lr=0.1, eps=0.45, steps=8)
    jobs = item.jobs("paper")
    assert len(jobs) == 5 * 20
    for job in jobs:
        assert {name: job.settings[name] for name in published} == published


def test_learning_rate_is_the_published_one():
    """0.1, falling by 0.75 every 50 epochs, to 0.001."""
    settings = paper_d._job(preset="paper").settings
    rates = [round(paper_d._rate(settings, epoch), 6) for epoch in (0, 49, 50, 799, 850, 3_999)]
    assert rates == [0.1, 0.1, 0.075, round(0.1 * 0.75**15, 6), 0.001, 0.001]


def test_paper_preset_runs(tmp_path):
    """One epoch of it: the attack of the paper is never stronger than with all corners."""
    out = check_out(tmp_path)
    job = paper_d._job("linf", "l2", preset="paper", epochs=1, bs=2_500, lr=0.01)
    assert run_job(job, out) == "done"
    row = read_job(job, out)["row"]
    assert not row["diverged"]
    assert len(row["pgd"]) == len(row["worst"]) == 11
    assert (np.array(row["worst"]) <= np.array(row["pgd"]) + 1e-9).all()
    # by the trapezoid rule on eleven even steps; a curve that stays at 1 has the area 1
    for curve, area in (("pgd", "auc_pgd"), ("worst", "auc")):
        middles = (np.array(row[curve][1:]) + np.array(row[curve][:-1])) / 2
        assert row[area] == pytest.approx(middles.mean())


def test_signal_numbers_of_a_map_worked_out_by_hand():
    maps = torch.tensor([[6.0, 1.0, 1.0, 0.0]])
    truth = torch.tensor([[True, True, False, False]])
    numbers = paper_d.signal_numbers(maps, truth)
    assert numbers == pytest.approx(dict(largest=1.0, smallest=0.0, share=7 / 8, even=8 / 24))


@pytest.mark.parametrize("gradient,weights", paper_d._pairs)
@pytest.mark.parametrize("adversarial", [False, True])
def test_every_model_trains_and_repeats(gradient, weights, adversarial):
    """Two trainings agree to the last bit, and differ from one without the penalty."""
    settings = paper_d._job(gradient, weights, adversarial, **TINY).settings
    first = flat_parameters(paper_d._train(settings))
    assert torch.equal(first, flat_parameters(paper_d._train(settings)))
    without = paper_d._job(None, None, adversarial, **TINY).settings
    is_plain = gradient is None and weights is None
    assert torch.equal(first, flat_parameters(paper_d._train(without))) == is_plain


def test_training_is_that_of_the_ten_thousand_rows():
    """The weighted points against a loop over the rows themselves."""
    settings = paper_d._job(None, "l1", **dict(TINY, epochs=1)).settings
    x, y, _, kind, _ = paper_d._points(settings)
    set_seed(0)
    net = one_hidden(10, settings["width"])
    opt = torch.optim.SGD(net.parameters(), settings["lr"])
    strength = settings["strengths"][1]
    for batch in torch.randperm(len(kind)).split(settings["bs"]):
        rows = kind[batch]
        penalty = WeightNorm(1)(net, x[:1], y[:1]).mean()
        loss = task_loss(net(x[rows]), y[rows]).mean() + strength * penalty
        opt.zero_grad()
        loss.backward()
        opt.step()
    by_points = flat_parameters(paper_d._train(settings))
    torch.testing.assert_close(flat_parameters(net), by_points, rtol=1e-4, atol=1e-6)


def test_diverging_run_is_a_row(tmp_path):
    out = check_out(tmp_path)
    job = paper_d._job("l2", strengths=[1e6, 0.0], **TINY)
    assert run_job(job, out) == "done"
    assert read_job(job, out)["row"] == dict(accuracy=0.0, diverged=True)
    columns = paper_d._paper["items"][0]["sections"][0]["columns"]
    shown = paper_d._strengths(Done([job], out), dict(columns, accuracy="accuracy"))
    assert shown["table"].accuracy.tolist() == ["diverged"]


def lowest(objective, upper):
    """The least value of a function of one number."""
    options = dict(xatol=1e-8)
    return minimize_scalar(objective, bounds=(0, upper), method="bounded", options=options).fun


@pytest.mark.parametrize("d", [1, 3, 10])
@pytest.mark.parametrize("strength", [1e-3, 0.02, 0.5])
def test_optimum_of_weight_decay_is_that_of_one_dimension(d, strength):
    """The closed form against a search, of the bound and of the network that attains it."""
    least, _ = weight_decay_optimum(strength, d)
    c = 2 * (2 * d) ** 0.5 * strength
    assert least == pytest.approx(lowest(lambda z: np.log1p(np.exp(-z)) + c * z, 40), abs=1e-5)

    def sum_of_coordinates(s):
        """relu(u.x) - relu(-u.x) with u along (1, ..., 1), weights of one norm."""
        margin = s * s * 2**0.5 / d**0.5
        return np.log1p(np.exp(-margin)) + strength * 4 * s * s

    assert lowest(sum_of_coordinates, 12) == pytest.approx(least, abs=1e-5)


@pytest.mark.parametrize("d", [1, 3, 10])
def test_no_network_is_below_the_optimum_of_weight_decay(d):
    """Random networks of many shapes and scales never fall below the bound."""
    x = torch.cat([torch.eye(d), -torch.eye(d)]).double()
    y = torch.arange(2).repeat_interleave(d).flip(0)
    penalty = WeightNorm(2, squared=True)
    strengths = (1e-3, 0.02, 0.5)
    for seed in range(60):
        set_seed(seed)
        width = 1 + seed % 7
        net = nn.Sequential(
            nn.Linear(d, width, bias=False), nn.ReLU(), nn.Linear(width, 2, bias=False)
        ).double()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(10 ** (seed % 4 - 1.5)).add_((seed % 5 - 2) * 0.2)
            loss = task_loss(net(x), y).mean()
            size = penalty(net, x, y).mean()
        for strength in strengths:
            least, _ = weight_decay_optimum(strength, d)
            assert (loss + strength * size).item() >= least - 1e-9


def test_strength_of_weight_decay_is_checked():
    with pytest.raises(ValueError, match="strength=-1"):
        weight_decay_optimum(-1)


@pytest.mark.parametrize("bounds", [None, (-1.0, 1.0)])
@pytest.mark.parametrize("seed", range(5))
def test_corners_are_the_best_of_all(bounds, seed):
    """Against a plain loop, on networks of a few inputs."""
    set_seed(seed)
    net = one_hidden(4, 12).double()
    x = torch.rand(3, 4).double() * 2 - 1
    y = torch.tensor([0, 1, 1])
    eps = 0.3
    found = margin_loss(net(Corners(LInfBall(eps), bounds=bounds)(net, x, y)), y)
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=4))).double()
    for i in range(3):
        points = x[i] + eps * signs
        if bounds:
            points = points.clamp(*bounds)
        losses = margin_loss(net(points), y[i].expand(len(points)))
        assert found[i].item() == pytest.approx(losses.max().item(), abs=1e-12)


def known(tmp_path, values, column="share"):
    """A study whose rows are given: model -> one number for each seed."""
    out = check_out(tmp_path)
    jobs = []
    for model, numbers in values.items():
        for seed, number in enumerate(numbers):
            job = paper_d._job(*model, seed, **TINY)
            store_row(job, out, {"accuracy": 1.0, "diverged": False, column: number}, 1.0)
            jobs.append(job)
    return jobs, out


BEST = "An l2 penalty on the weights shows the signal best"


@pytest.mark.parametrize(
    "of_l2,verdict",
    [
        ([0.5, 0.52, 0.51], "confirmed"),
        ([0.1, 0.12, 0.11], "contradicted"),
        ([0.1, 0.5, 0.3], "open"),
        ([0.5], "no interval"),
    ],
)
def test_verdicts_follow_from_the_numbers(tmp_path, of_l2, verdict):
    of_others = [0.3, 0.31, 0.29][: len(of_l2)]
    values = {(*pair, False): of_others for pair in paper_d._alone}
    values[None, "l2", False] = of_l2
    jobs, out = known(tmp_path, values)
    write_study(out, jobs)
    claims = paper_ledger("D", out)
    best = claims[(claims.claim == BEST) & (claims.measure == "share")].iloc[0]
    assert best.verdict == verdict
    assert best.difference == pytest.approx(np.mean(np.subtract(of_l2, of_others)))


def test_models_that_guess_take_no_part_in_claims(tmp_path):
    """A constant model stands at every radius: it would win every claim on robustness."""
    out = check_out(tmp_path)
    jobs = []
    for weights, accuracy, auc in (("l1", 0.5, 1.0), (None, 1.0, 0.3)):
        for seed in range(2):
            job = paper_d._job(None, weights, seed=seed, **TINY)
            store_row(job, out, dict(accuracy=accuracy, diverged=False, auc=auc), 1.0)
            jobs.append(job)
    write_study(out, jobs)
    claims = paper_ledger("D", out).set_index(["better", "worse", "measure"])
    assert claims.verdict["l1 weights", "standard", "auc"] == "not testable here"
    assert len(rows_d(jobs, out)) == 4


def test_sections_of_a_study_that_has_just_begun(tmp_path):
    """One run: the items that need it show what there is, the others nothing."""
    jobs, out = known(tmp_path, {(None, None, False): [0.1]})
    for item in items_d():
        assert item.sections(out, "quick") == []  # those runs are of another size
    assert paper_d._gradients(Done(jobs, out), ["standard"], "f") is None
    assert len(paper_d._numbers(Done(jobs, out), dict(share="share"))["table"]) == 1


def test_strengths_are_by_the_rule():
    sweep = pd.DataFrame(
        dict(
            model=["a"] * 3 + ["b"],
            output="loss",
            strength=[1.0, 3.0, 10.0, 1.0],
            accuracy=[1.0, 1.0, 1.0, 0.5],
            blind=[0.0, 0.0, 0.05, 0.0],
        )
    )
    assert chosen(sweep).to_dict() == {("a", "loss"): 3.0}


@pytest.mark.parametrize("data,has_truth", [("block_digits", True), ("digits", False)])
def test_images_run_and_repeat(tmp_path, data, has_truth):
    small = dict(
        width=8,
        n_train=60,
        n_test=40,
        epochs=1,
        steps=2,
        fractions=[0.5],
        roar_epochs=1,
    )
    job = paper_d._image_job(data, "adversarial", **small)
    rows = []
    for name in ("first", "second"):
        out = check_out(tmp_path / name)
        assert run_job(job, out) == "done"
        rows.append(read_job(job, out)["row"])
    assert rows[0] == rows[1]
    assert ("leakage" in rows[0]) == has_truth
