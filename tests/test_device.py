"""The package on a device that is not the host: nothing is mixed, and no loop waits for values.

Every call runs on the stand-in of `tests.device`, once with `n` and once with `2 n` steps, samples
or pieces. Its results are on the device, and those of the host. The host waits for the device in
the places of `ALLOWED` alone, and more often in the longer call only where `GROWS` says so.
"""

import copy
import pickle
from functools import partial

import pytest
import torch
from fastai.learner import Learner
from fastai.optimizer import SGD
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from advinterp import (
    adversary,
    attribution,
    cheap,
    duals,
    evaluate,
    map_adversary,
    metrics,
    penalty,
)
from advinterp.adversary import (
    PGD,
    Harmonise,
    OneStep,
    check_attackable,
    drawn_as_in_0_1,
    first_order_gap,
    joined,
    margin_loss,
    mi_fgsm,
    paper_a_cifar,
    paper_a_mnist,
    paper_b_cifar,
    paper_b_mnist,
    paper_c_iterative,
)
from advinterp.callbacks import (
    AdversarialTraining,
    FreeAdversarialTraining,
    GradientPenalty,
    RobustMetrics,
)
from advinterp.cheap import TRADES, NoisyStep, n_fgsm
from advinterp.data import tensor_dls
from advinterp.duals import Ball, ElasticNet, GroupBall, L1Ball, L2Ball, LInfBall, WeightedL2
from advinterp.evaluate import (
    accuracy,
    aopc_morf,
    cascading_randomization,
    gradient_norms,
    is_correct,
    label_randomization,
    map_robustness,
    map_similarity,
    map_stability,
    morf_curve,
    rank_correlation,
    relative_drop,
    robust_accuracy,
    robustness_curve,
    worst_case,
)
from advinterp.map_adversary import map_attack, paper_c_map_attack
from advinterp.models import softplus_copy
from advinterp.penalty import (
    GradNorm,
    JacobianNorm,
    ScoreMatching,
    StableIG,
    TargetMap,
    Targets,
    WeightNorm,
    permute_map,
    smoothgrad_targets,
    threshold_map,
)
from tests.device import DEVICE, DeviceTensor, MixedDevicesError, on_device, standing_in, values_of

LOOK = "a look at the values that were brought or found, one sentence if they are wrong"
MOVE = "numbers or tensors that were brought on the host, moved once a call"
HOST = "computed by NumPy, SciPy or scikit-image, with one transfer there and one back"
ANSWER = "the answer is a Python number"

# Where a call may wait for the device, and why.
ALLOWED = {
    "adversary._inspect": LOOK,
    "adversary._limits": MOVE,
    "adversary._seed_of_float_sums": "the seed of version 0.1 is a hash of sums",
    "adversary._until_fooled": "an early stop has to know who is left",
    "adversary._warn_of_lost_gradients": LOOK,
    "adversary.check_attackable": "its answer is a list of warnings",
    "adversary.search": MOVE,  # the attention of `Harmonise`
    "attribution._background": MOVE,
    "attribution._check_gap": LOOK,
    "attribution._finite": LOOK,
    "attribution._gauss_legendre": MOVE,
    "attribution._like": MOVE,
    "attribution._shifts": "torch.roll takes Python numbers: those of all steps at once",
    "attribution._warn_of_few_steps": LOOK,
    "attribution._warn_of_hills": LOOK,
    "attribution._warn_of_moreau": LOOK,
    "attribution.integrated_gradients": MOVE,  # nodes and weights
    "attribution.slope_between": MOVE,
    "callbacks._can_measure": LOOK,
    "callbacks.gini": LOOK,
    "core._ends": LOOK,
    "data.create_batches": "the order of an epoch is drawn on the host",
    "data.to": "a loader moves its data once",
    "duals.on": MOVE,  # groups and weights
    "evaluate.__torch_function__": "torch's own initialisation of a layer",
    "evaluate._centred_ranks": HOST,
    "evaluate._left_alone": LOOK,
    "evaluate._like_inputs": MOVE,
    "evaluate._permuted": "labels in the order of a permutation drawn on the host",
    "evaluate._probe": "inputs that are drawn on the host",
    "evaluate._randomise": LOOK,
    "evaluate._refuse_nan": LOOK,
    "evaluate._stands": "only who stands is attacked",
    "evaluate.accuracy": ANSWER,
    "evaluate.label_randomization": LOOK,
    "evaluate.map_robustness": "noise that is drawn on the host",
    "evaluate.relative_drop": ANSWER,
    "evaluate.robust_accuracy": ANSWER,
    "evaluate.robustness_curve": "only who stands is attacked",
    "map_adversary._check_curved": LOOK,
    "metrics._as_map": LOOK,
    "metrics._bands": MOVE,  # the cuts between bands
    "metrics._channels_first": HOST,
    "metrics._with_mask": LOOK,
    "metrics.connectedness": HOST,
    "metrics.ssim": HOST,
    "outside": "the test itself, or fastai, which reads the loss",
    "penalty.__call__": "`Targets` keeps the maps on the host, and looks whether it has the input",
    "penalty.__init__": LOOK,  # of `Targets`
    "penalty._finite_values": LOOK,
    "penalty._first_equal": LOOK,
    "penalty._key": MOVE,
    "penalty._move_to": MOVE,
    "penalty._one_map_each": LOOK,
    "penalty.penalty": MOVE,  # a target map
    "penalty.permute_map": "places that are drawn on the host",
    "units._range_of": LOOK,
}

# Where a call of more steps, samples or pieces may wait more often: (call, place), and why.
ATTACKS_OF_PIECES = "each piece, or each strength, is an attack of its own"
OF_STRENGTHS = "robustness_curve, strengths"
GROWS = {
    ("PGD, early stop", "adversary._until_fooled"): "one transfer a step, as it says",
    ("map_attack, pieces", "map_adversary._check_curved"): "a hopeless piece is refused at once",
    ("FreeAdversarialTraining", "adversary._inspect"): "each replay is a batch of its own",
    ("FreeAdversarialTraining", "outside"): "fastai reads the loss of each replay",
    ("is_correct", "adversary._inspect"): ATTACKS_OF_PIECES,
    ("is_correct", "adversary._warn_of_lost_gradients"): ATTACKS_OF_PIECES,
    (OF_STRENGTHS, "adversary._inspect"): ATTACKS_OF_PIECES,
    (OF_STRENGTHS, "adversary._warn_of_lost_gradients"): ATTACKS_OF_PIECES,
    (OF_STRENGTHS, "evaluate._refuse_nan"): ATTACKS_OF_PIECES,
    (OF_STRENGTHS, "evaluate._stands"): ATTACKS_OF_PIECES,
    (OF_STRENGTHS, "evaluate.robustness_curve"): ATTACKS_OF_PIECES,
    ("integrated_gradients, baselines", "attribution._like"): "each baseline is a number",
}

# Public names that no call here begins with, and why.
ELSEWHERE = {
    **dict.fromkeys(["L1", "L2", "LInf", "GroupL21"], "other names of balls"),
    **dict.fromkeys(["Dual", "Ball", "Adversary", "DualAdversary", "Penalty"], "base classes"),
    **dict.fromkeys(["BandScore", "RobustnessCurve", "MapSimilarity", "MapRobustness"], "results"),
    **dict.fromkeys(["Randomization", "GradientNorms"], "results"),
    **dict.fromkeys(["own_buffers", "undisturbed"], "contexts of every attack"),
    **dict.fromkeys(["bootstrap_interval", "seed_interval"], "of numbers, by SciPy"),
    "AutoAttack": "torchattacks computes it",
    "TeacherMaps": "gives a TargetMap",
    "captum_map": "captum computes it",
    "finite_difference": "reads a number after each of its two moves",
    "has_bf16": "asks the hardware",
    **dict.fromkeys(["is_affine", "is_homogeneous"], "ask the classes of modules"),
    "metric": "a decorator",
}

SHAPE = 1, 8, 8


def world():
    """A network of four classes, inputs and labels, on the host."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 4)).eval()
    return net, torch.rand(6, *SHAPE), torch.arange(6) % 4


def table_world():
    torch.manual_seed(0)
    return nn.Linear(12, 2), torch.rand(6, 12), torch.arange(6) % 2


NET, TABLE = world(), table_world()
RAN, WAITED, GREW = set(), set(), set()


def given(seed, *shape):
    """Values in [0, 1] on the host, as a user may bring them with inputs on the device."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def ran(call, inputs, n):
    torch.manual_seed(0)
    return call(*inputs, n)


def ran_on_device(call, inputs, n):
    """The result of a call on the device, and how often each function waited for it."""
    with standing_in() as watch:
        there = on_device(inputs)
        return ran(call, there, n), watch.waits


def same(found, expected):
    found, expected = tree_leaves(found), tree_leaves(expected)
    assert len(found) == len(expected)
    for one, other in zip(values_of(found), expected):
        if isinstance(other, (Tensor, float)):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5, equal_nan=True)
        else:
            assert one == other


def holds_on_device(name, call, inputs=NET):
    """Run a call as the page says."""
    _, waits = ran_on_device(call, inputs, 1)
    found, of_longer = ran_on_device(call, inputs, 2)
    tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
    assert all(isinstance(tensor, DeviceTensor) for tensor in tensors)
    same(found, ran(call, copy.deepcopy(inputs), 2))
    grown = {(name, place) for place in of_longer if of_longer[place] > waits[place]}
    assert not of_longer.keys() - ALLOWED.keys(), of_longer
    assert not grown - GROWS.keys(), (waits, of_longer)
    RAN.add(name)
    WAITED.update(of_longer)
    GREW.update(grown)


GROUPS = torch.arange(64).reshape(SHAPE) // 16
DUALS = {
    "LInfBall": LInfBall(0.1),
    "L1Ball": L1Ball(0.5),
    "L2Ball": L2Ball(0.5),
    "GroupBall of patches": GroupBall(0.1, patch=3),
    "GroupBall of all channels": GroupBall(0.1, patch=4, across_channels=True),
    "GroupBall of groups": GroupBall(0.1, groups=GROUPS),
    "ElasticNet": ElasticNet(0.1, 0.1),
    "WeightedL2": WeightedL2(0.1, 0.5 + given(0, *SHAPE)),
    "WeightedL2 of a number": WeightedL2(0.1, 2.0),
    "SumDual": LInfBall(0.1) + L2Ball(0.1),
    "SumDual of WeightedL2": L1Ball(0.1) + WeightedL2(0.1, 2.0),
    "ScaledDual": duals.ScaledDual(L2Ball(0.2), 2.0),
}


def all_of(dual, net, x, y, n):
    """Everything that a dual computes, `n` times."""
    results = []
    for _ in range(n):
        g = x - 0.5
        delta = dual.delta_star(g)
        results += [dual.h_star(g), delta, dual.h(delta), dual.gap(g, delta)]
        if isinstance(dual, Ball):
            gen = torch.Generator(x.device).manual_seed(0)
            results += [dual.norm(g), dual.project(g), dual.steepest(g)]
            results += [dual.random_point(x), dual.random_point(x, gen)]
            results.append(dual.project(g.detach().requires_grad_()).detach())
    return results


@pytest.mark.parametrize("name", DUALS)
def test_duals(name):
    holds_on_device(name, partial(all_of, copy.deepcopy(DUALS[name])))


UNIT = 0.0, 1.0


def with_steps(attack, n):
    attack.steps = n
    return attack


ADVERSARIES = {
    **{f"OneStep {name}": lambda n, dual=dual: OneStep(dual) for name, dual in DUALS.items()},
    **{f"PGD {name}": lambda n, dual=dual: PGD(dual, n) for name, dual in DUALS.items()},
    **{
        f"PGD {name}, restarts and bounds": lambda n, dual=dual: PGD(
            dual, n, restarts=2, bounds=UNIT
        )
        for name, dual in DUALS.items()
        if isinstance(dual, Ball)
    },
    "PGD, more restarts": lambda n: PGD(L2Ball(0.5), 2, restarts=2 * n),
    "PGD, bounds on the host": lambda n: PGD(
        LInfBall(0.1), n, bounds=(torch.zeros(SHAPE), torch.ones(SHAPE))
    ),
    "PGD, momentum": lambda n: PGD(LInfBall(0.1), n, momentum=0.9),
    "PGD, best": lambda n: PGD(LInfBall(0.1), n, best=True),
    "PGD, best of a penalty": lambda n: PGD(DUALS["WeightedL2"], n, best=True),
    "PGD, warm start": lambda n: PGD(L2Ball(0.5), n, warm_start=True),
    "PGD, step of a ball": lambda n: PGD(ElasticNet(0.1, 0.1), n, step_size=L2Ball(0.3)),
    "PGD, step of groups": lambda n: PGD(
        ElasticNet(0.1, 0.1), n, step_size=GroupBall(0.1, groups=GROUPS)
    ),
    "PGD, step of a length": lambda n: PGD(LInfBall(0.1), n, step_size=0.03),
    "PGD, targeted": lambda n: PGD(LInfBall(0.1), n, targeted=True),
    "PGD, in training mode": lambda n: PGD(LInfBall(0.1), n, training=True),
    "PGD, fast where it can be": lambda n: PGD(LInfBall(0.1), n, fast="auto"),
    "PGD, early stop": lambda n: PGD(LInfBall(0.01), n, early_stop=True, bounds=UNIT),
    "Harmonise": lambda n: Harmonise(0.1, given(1, *SHAPE)),
    "Harmonise, attention by a function": lambda n: Harmonise(0.1, lambda x, y: x),
    "drawn_as_in_0_1": lambda n: drawn_as_in_0_1(PGD(LInfBall(0.1), n)),
    "NoisyStep": lambda n: NoisyStep(LInfBall(0.1)),
    "TRADES": lambda n: TRADES(LInfBall(0.1), n),
    "n_fgsm": lambda n: n_fgsm(0.1, bounds=UNIT),
    "mi_fgsm": lambda n: mi_fgsm(0.1, n),
    "paper_a_mnist": lambda n: with_steps(paper_a_mnist(), n),
    "paper_a_cifar": lambda n: with_steps(paper_a_cifar(), n),
    "paper_b_mnist": lambda n: with_steps(paper_b_mnist(), n),
    "paper_b_cifar": lambda n: with_steps(paper_b_cifar(train=True), n),
    "paper_c_iterative": lambda n: with_steps(paper_c_iterative(ElasticNet(0.1, 0.1)), n),
}


@pytest.mark.parametrize("name", ADVERSARIES)
def test_adversaries(name):
    holds_on_device(name, lambda net, x, y, n: ADVERSARIES[name](n)(net, x, y))


def two_inputs(net, x, y, n):
    return PGD(LInfBall(0.1), n)(lambda a, b: net(a + b), (x, x), y)


def price_of_labels(logits, y):
    return nn.functional.cross_entropy(logits, y, reduction="none")


ATTACKS = {
    "margin_loss": lambda net, x, y, n: PGD(LInfBall(0.1), n)(net, x, y, margin_loss),
    "PGD, a loss of one's own": lambda net, x, y, n: PGD(LInfBall(0.1), n)(
        net, x, y, price_of_labels
    ),
    "joined": lambda net, x, y, n: joined(lambda a, b: net(a + b), (x, x))[1],
    "PGD, two inputs": two_inputs,
    "check_attackable": lambda net, x, y, n: check_attackable(net, x, y),
    "first_order_gap": lambda net, x, y, n: first_order_gap(LInfBall(0.1), net, x, y, x + 0.01),
    "map_attack": lambda net, x, y, n: map_attack(softplus_copy(net), x, y, 0.5, steps=n),
    "map_attack, bounds on the host": lambda net, x, y, n: map_attack(
        softplus_copy(net), x, y, 0.5, steps=n, bounds=(torch.zeros(SHAPE), torch.ones(SHAPE))
    ),
    "map_attack, another model": lambda net, x, y, n: map_attack(
        net, x, y, 0.5, steps=n, attack_model=softplus_copy(net)
    ),
    "map_attack, pieces": lambda net, x, y, n: map_attack(
        softplus_copy(net), x, y, 0.5, steps=2, batch_size=6 // n
    ),
    "paper_c_map_attack": lambda net, x, y, n: paper_c_map_attack(
        softplus_copy(net), x, y, 0.5, steps=n
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name):
    holds_on_device(name, ATTACKS[name])


PENALTIES = {
    **{f"GradNorm {name}": lambda n, dual=dual: GradNorm(dual) for name, dual in DUALS.items()},
    "GradNorm of a logit": lambda n: GradNorm(L2Ball(0.1), output="logit", squared=True),
    "JacobianNorm": lambda n: JacobianNorm(squared=False),
    "JacobianNorm, projections": lambda n: JacobianNorm(n),
    "TargetMap": lambda n: TargetMap(given(2, 6, *SHAPE)),
    "TargetMap, cosine": lambda n: TargetMap(torch.ones(SHAPE), distance="cosine"),
    "TargetMap, batch": lambda n: TargetMap(torch.ones(SHAPE), reduction="batch"),
    "StableIG": lambda n: StableIG(0.1, steps=n),
    "StableIG, adversary": lambda n: StableIG(0.1, steps=2, adversary=PGD(LInfBall(0.1), n)),
    "WeightNorm": lambda n: WeightNorm(2),
    "ScoreMatching": lambda n: ScoreMatching(n_samples=n),
    "ScoreMatching, anti": lambda n: ScoreMatching(anti=True, output="logprob"),
}


def penalised(make, net, x, y, n):
    """The penalty, and its gradient by the parameters."""
    value = make(n)(net, x, y)
    value.mean().backward()
    return value.detach(), [p.grad for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties(name):
    holds_on_device(name, partial(penalised, PENALTIES[name]))


def by_targets_of_host(net, x, y, n):
    return TargetMap(Targets(values_of(x), values_of(x)))(net, x, y).detach()


TARGETS = {
    "Targets": lambda net, x, y, n: TargetMap(Targets(x, x))(net, x, y).detach(),
    "Targets, with labels": lambda net, x, y, n: TargetMap(Targets(x, x, y=y))(net, x, y).detach(),
    "Targets, made on the host": by_targets_of_host,
    "smoothgrad_targets": lambda net, x, y, n: smoothgrad_targets(net, x, y, 4 * n, phi=1.0),
    "permute_map": lambda net, x, y, n: permute_map(x, 0.5),
    "threshold_map": lambda net, x, y, n: threshold_map(x - 0.5, signed=True),
}


@pytest.mark.parametrize("name", TARGETS)
def test_targets(name):
    holds_on_device(name, TARGETS[name])


def explained(name, **settings):
    """A call of an attribution; where a setting is a function, of n."""
    function = getattr(attribution, name)

    def call(net, x, y, n):
        made = {key: value(n) if callable(value) else value for key, value in settings.items()}
        return function(net, x, y, **made)

    return call


def steps(n):
    return 4 * n


def pieces(n):
    return 6 // n


def of_background(place):
    def call(net, x, y, n):
        background = given(3, 2 * n, *SHAPE).to(x.device if place == "device" else "cpu")
        return attribution.deep_shap(net, x, y, background=background, batch_size=12)

    return call


def of_draws(net, x, y, n):
    background = given(3, 4, *SHAPE).to(x.device)
    return attribution.expected_gradients(net, x, y, background, n_samples=4 * n)


def to_completeness(net, x, y, n):
    return attribution.completeness_gap(net, x, y, given(4, 6, *SHAPE).to(x.device))


def visualised(net, x, y, n):
    return attribution.feature_visualization(net, y, SHAPE, steps=n, jitter=1)


ATTRIBUTIONS = {
    "expected_gradients": of_draws,
    "saliency": explained("saliency", batch_size=pieces),
    "input_x_grad": explained("input_x_grad", output="prob", batch_size=pieces),
    "integrated_gradients": explained("integrated_gradients", steps=steps, batch_size=12),
    "integrated_gradients, pieces": explained("integrated_gradients", steps=4, batch_size=pieces),
    "integrated_gradients, gap": explained(
        "integrated_gradients", steps=steps, method="gausslegendre", return_gap=True
    ),
    "integrated_gradients, baselines": explained(
        "integrated_gradients", steps=4, baseline=lambda n: [torch.zeros(SHAPE), *[0.5] * n]
    ),
    "paper_image_ig": explained("paper_image_ig", batch_size=lambda n: 600 // n),
    "completeness_gap": to_completeness,
    "smoothgrad": explained("smoothgrad", n_samples=steps, batch_size=12),
    "smoothgrad, bounds": explained("smoothgrad", n_samples=steps, bounds=UNIT, absolute=True),
    "vargrad": explained("vargrad", n_samples=steps, batch_size=12),
    "sparsified_smoothgrad": explained("sparsified_smoothgrad", n_samples=steps, batch_size=12),
    "moreau_grad": explained("moreau_grad", steps=steps, average=2, n_samples=4, batch_size=12),
    "moreau_grad, samples": explained(
        "moreau_grad", steps=2, average=2, n_samples=steps, batch_size=12
    ),
    "moreau_grad, patches": explained("moreau_grad", steps=steps, average=2, n_samples=2, patch=3),
    "deep_shap": explained("deep_shap", batch_size=lambda n: 12 // n),
    "deep_shap, background": of_background("device"),
    "deep_shap, background on the host": of_background("host"),
    "feature_visualization": visualised,
}


@pytest.mark.parametrize("name", ATTRIBUTIONS)
def test_attributions(name):
    holds_on_device(name, ATTRIBUTIONS[name])


def of_affine(output):
    return explained("integrated_gradients", output=output, steps=steps)


OF_TABLES = {
    "integrated_gradients, affine": of_affine("logit"),
    "slope_between": of_affine("prob"),
    "derivative": of_affine("loss"),
    "paper_table_ig": explained("paper_table_ig", batch_size=lambda n: 120 // n),
    "OneStep, table": lambda net, x, y, n: OneStep(L1Ball(0.1))(net, x, y),
    "gradient_norms, table": lambda net, x, y, n: gradient_norms(net, x, y, batch_size=6 // n),
}


@pytest.mark.parametrize("name", OF_TABLES)
def test_tables(name):
    holds_on_device(name, OF_TABLES[name], TABLE)


def of_map(name, *args, **settings):
    """A metric of `n` maps, with further arguments as functions of the maps."""
    function = getattr(metrics, name)

    def call(net, x, y, n):
        maps = x.repeat(n, 1, 1, 1) - 0.4
        return function(maps, *[make(maps) for make in args], **settings)

    return call


def flipped(maps):
    return maps.flip(-1)


def left_half(maps):
    return maps[:, 0] * 0 == (torch.arange(8, device=maps.device) > 3)


def left_half_of_host(maps):
    return (torch.arange(8) > 3).expand(len(maps), 8, 8)


MAPS = {
    **{
        name: of_map(name)
        for name in [
            "connectedness",
            "gini",
            "gini_area",
            "gray",
            "lorenz",
            "normalize_map",
            "normalized_entropy",
            "share_above",
            "total_variation",
        ]
    },
    "binary_score": of_map("binary_score", flipped),
    "five_band_score": of_map("five_band_score", flipped, shift=0.1),
    "leakage": of_map("leakage", left_half),
    "pointing_game": of_map("pointing_game", left_half),
    "pointing_game, mask on the host": of_map("pointing_game", left_half_of_host),
    "ssim": of_map("ssim", flipped, sigma=0.8),
    "topk_dice": of_map("topk_dice", flipped, k=0.2),
    "topk_overlap": of_map("topk_overlap", flipped, k=0.2, nonzero=True),
    "rank_correlation": lambda net, x, y, n: rank_correlation(
        x.repeat(n, 1, 1, 1), x.repeat(n, 1, 1, 1).flip(-1)
    ),
    "map_similarity": lambda net, x, y, n: map_similarity(x, x.flip(-1), sigma=0.8),
}


@pytest.mark.parametrize("name", MAPS)
def test_metrics(name):
    holds_on_device(name, MAPS[name])


WEAK = PGD(LInfBall(0.02), 2)


def of_labels(net, x, y, n):
    def fit(labels):
        trained = copy.deepcopy(net)
        with torch.no_grad():
            trained[-1].bias.add_(labels[:4].to(net[-1].bias))
        return trained

    return label_randomization(fit, y, x, y, sigma=0.8)


def relative(net, x, y, n):
    return relative_drop(x.mean((1, 2, 3)), 2 * x.mean((1, 2, 3)))


EVALUATIONS = {
    "accuracy": lambda net, x, y, n: accuracy(net, x, y, batch_size=6 // n),
    "is_correct": lambda net, x, y, n: is_correct(net, x, y, WEAK, batch_size=6 // n),
    "robust_accuracy": lambda net, x, y, n: robust_accuracy(net, x, y, PGD(LInfBall(0.02), n)),
    "worst_case": lambda net, x, y, n: worst_case(net, x, y, [PGD(LInfBall(0.02), n), WEAK]),
    # the strengths come back as they were given, on the host
    "robustness_curve": lambda net, x, y, n: robustness_curve(net, x, y, [0.01, 0.02], WEAK)[1:],
    "robustness_curve, strengths": lambda net, x, y, n: robustness_curve(
        net, x, y, [0.001 * i for i in range(1, n + 1)], WEAK
    )[2][0],
    "map_robustness": lambda net, x, y, n: map_robustness(
        softplus_copy(net), x, y, [0.1], sigma=0.8, steps=n, bounds=UNIT
    )[1:],
    "map_stability": lambda net, x, y, n: map_stability([net, softplus_copy(net)], x, y, sigma=0.8),
    "morf_curve": lambda net, x, y, n: morf_curve(net, x, y, x, steps=n, batch_size=6 // n)[:, :2],
    "aopc_morf": lambda net, x, y, n: aopc_morf(net, x, y, x, patch=4, fill=given(5, *SHAPE)),
    "relative_drop": relative,
    "cascading_randomization": lambda net, x, y, n: cascading_randomization(net, x, y, sigma=0.8),
    "label_randomization": of_labels,
    "gradient_norms": lambda net, x, y, n: gradient_norms(net, x, y, batch_size=6 // n),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_evaluations(name):
    holds_on_device(name, EVALUATIONS[name])


def trained(callback, net, x, y, n):
    """The parameters after one training step; the loaders move the data."""
    data = [values_of(t) for t in (x, y)]
    loaders = tensor_dls(*data, *data, bs=6, device=x.device)
    learn = Learner(loaders, net, nn.CrossEntropyLoss(), opt_func=SGD, cbs=callback(n))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.1)
    return [p.detach() for p in net.parameters()]


TRAINING = {
    "AdversarialTraining": lambda n: AdversarialTraining(PGD(LInfBall(0.1), n), alpha=0.5),
    "FreeAdversarialTraining": lambda n: FreeAdversarialTraining(LInfBall(0.1), 2 * n),
    "RobustMetrics": lambda n: RobustMetrics(PGD(LInfBall(0.1), n)),
    "GradientPenalty": lambda n: GradientPenalty(JacobianNorm(n)),
    "GradientPenalty of groups": lambda n: GradientPenalty(GradNorm(GroupBall(0.1, groups=GROUPS))),
}


@pytest.mark.parametrize("name", TRAINING)
def test_training(name):
    holds_on_device(name, partial(trained, TRAINING[name]))


def test_random_point_by_a_generator_of_the_host():
    """Whose numbers are those that it gives on the host, moved."""
    for ball in (LInfBall(0.1), L1Ball(0.5), L2Ball(0.5)):
        with standing_in() as watch:
            found = ball.random_point(on_device(NET[1]), torch.Generator().manual_seed(0))
        assert watch.waits
        same(found, ball.random_point(NET[1], torch.Generator().manual_seed(0)))


def stretched(net, x, y, n):
    """A weight that is changed in place, and replaced, is the one that counts."""
    dual = WeightedL2(0.1, 0.5 + given(0, *SHAPE))
    results = [dual.h_star(x)]
    dual.weight.mul_(2.0)
    results.append(dual.h_star(x))
    dual.weight = torch.ones(SHAPE)
    return [*results, dual.h_star(x)]


def test_weights_of_now():
    found, waits = ran_on_device(stretched, NET, 1)
    same(found, ran(stretched, copy.deepcopy(NET), 1))
    assert waits == {"duals.on": 3}


@pytest.mark.parametrize("name", ["GroupBall of groups", "WeightedL2"])
def test_copies_of_a_dual(name):
    """What was moved once is moved for all strengths, can be differentiated, and is in no file."""
    dual = copy.deepcopy(DUALS[name])
    before = pickle.dumps(dual)
    with standing_in() as watch:
        x = on_device(NET[1]).requires_grad_()
        with torch.inference_mode():
            dual.h_star(x)
        for eps in (0.1, 0.2):
            torch.autograd.grad(dual.with_eps(eps).h_star(x).sum(), x)
    assert watch.waits == {"duals.on": 1}
    assert pickle.dumps(dual) == before


CALLS = [ADVERSARIES, ATTACKS, PENALTIES, TARGETS, ATTRIBUTIONS, OF_TABLES, MAPS, EVALUATIONS]
CALLS = {name for calls in (DUALS, *CALLS, TRAINING) for name in calls}


def test_every_public_name_is_called():
    modules = [duals, adversary, penalty, attribution, metrics, evaluate, map_adversary, cheap]
    public = {name for module in modules for name in module.__all__}
    called = {name.replace(",", " ").split()[0] for name in CALLS}
    assert public - called == ELSEWHERE.keys()


def test_every_permission_is_needed():
    """After all the others: a place that nothing waits in any more leaves the lists."""
    if RAN != CALLS:
        pytest.skip("needs the runs of all tests before it")
    assert ALLOWED.keys() == WAITED
    assert GROWS.keys() == GREW


# What a GPU refuses, and what makes the host wait for it: the stand-in sees both.

REFUSED = {
    "a sum": lambda x: x + torch.ones(4),
    "a product of matrices": lambda x: x @ torch.ones(4),
    "an index": lambda x: x[torch.tensor([0, 1])],
    "a list as an index": lambda x: x[:, [0, 1]],
    "a mask": lambda x: x[torch.ones(3, dtype=torch.bool)],
    "an index that is written to": lambda x: x.index_put((torch.tensor([0]),), x[0]),
    "joined parts": lambda x: torch.cat([x, torch.ones(1, 4)]),
    "an output": lambda x: torch.add(x, x, out=torch.empty(3, 4)),
    "a generator": lambda x: torch.rand(3, generator=torch.Generator(), device=x.device),
    "a generator of the device": lambda x: torch.rand(3, generator=torch.Generator(x.device)),
    "a weight": lambda x: nn.Linear(4, 2)(x),
}


@pytest.mark.parametrize("name", REFUSED)
def test_stand_in_refuses(name):
    with standing_in(), pytest.raises(MixedDevicesError):
        REFUSED[name](on_device(given(0, 3, 4)))


WAITING = {
    "item": lambda x: x[0, 0].item(),
    "float": lambda x: float(x.sum()),
    "bool": lambda x: bool((x > 0).all()),
    "tolist": lambda x: x.tolist(),
    "equal": torch.equal,
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "masked_select": lambda x: x.masked_select(x > 0.5),
    "a mask": lambda x: x[x > 0.5],
    "a mask that is written to": lambda x: x.index_put_((x[:, 0] > 0,), x.clone()),
    "to the host": lambda x: x.cpu(),
    "from the host": lambda x: torch.zeros(3).to(x.device),
    "from numbers": lambda x: torch.tensor([0.0, 1.0], device=x.device),
    "copied into": lambda x: x.copy_(torch.zeros(3, 4)),
}


@pytest.mark.parametrize("name", WAITING)
def test_stand_in_counts(name):
    with standing_in() as watch:
        x = on_device(given(0, 3, 4))
        WAITING[name](*[x, x] if name == "equal" else [x])
    assert watch.waits == {"outside": 1}


def test_stand_in_lets_go_on():
    """What a GPU does in its own time: also a number of the host beside a tensor, and filling."""
    with standing_in() as watch:
        x = on_device(given(0, 3, 4)).requires_grad_()
        y = (x * torch.tensor(2.0)).masked_fill(x > 0.5, 0.0).sort(1).values[:, :1]
        y = torch.where(y > 0, y, 1.0).cumsum(0) + torch.zeros(3, 1, device=x.device)
        (g,) = torch.autograd.grad(y.square().sum(), x)
        z = g.clone()
        z[z > 0] = 1.0
        z[0].add_(1.0)
    assert not watch.waits
    assert g.device == z.device == DEVICE
    expected = values_of(g).clone()
    expected[expected > 0] = 1.0
    expected[0] += 1.0
    assert torch.equal(values_of(z), expected)


def test_stand_in_has_no_arrays():
    with standing_in(), pytest.raises((TypeError, RuntimeError)):
        on_device(given(0, 3)).numpy()
