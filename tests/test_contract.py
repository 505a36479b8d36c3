"""The public names that other people's scripts rely on: they exist, with these arguments."""

import importlib
import inspect

import pytest
import torch

NAMES = {
    "core": "input_grad frozen set_seed",
    "duals": "L1 LInfBall L2 L2Ball LInf L1Ball GroupL21 GroupBall ElasticNet WeightedL2",
    "attribution": "saliency input_x_grad integrated_gradients smoothgrad vargrad "
    "sparsified_smoothgrad "
    "moreau_grad deep_shap completeness_gap",
    "adversary": "OneStep PGD n_fgsm TRADES",
    "penalty": "GradNorm JacobianNorm TargetMap StableIG WeightNorm MapPenalty RightReasons "
    "GradientStability",
    "linear": "Logistic Hinge SoftplusHinge adv_perturbation adv_loss adv_grad feat_trans "
    "directed_strength weighted_average expected_update update_bound linear_ig stable_ig_risk",
    "data": "load get_data",
    "callbacks": "AdversarialTraining FreeAdversarialTraining GradientPenalty RobustMetrics "
    "WeightAverage OverfittingAlarm",
    "train": "adv_learner",
    "estimator": "AdversarialClassifier AdversarialRegressor AdversarialClassifierCV "
    "adversarial_path null_eps explain",
    "metrics": "gini topk_overlap topk_dice ssim five_band_score binary_score normalized_entropy",
    "map_adversary": "map_attack",
    "interpretation": "AttributionInterpretation compare_maps",
    "evaluate": "accuracy robust_accuracy robustness_curve worst_case map_attack map_robustness "
    "map_stability aopc_morf cascading_randomization label_randomization gradient_norms "
    "feature_impact output_stability f_fidelity",
    "roar": "diff_roar roar kar",
    "study": "compare Results Experiment Evaluation Method",
    "spec": "to_spec from_spec register",
    "papers": "verdict",
}

ARGUMENTS = {
    "papers.verdict": "low high published",
    "penalty.MapPenalty": "attribution metric",
    "penalty.RightReasons": "masks",
    "penalty.GradientStability": "ball distance",
    "adversary.n_fgsm": "eps",
    "callbacks.WeightAverage": "decay",
    "evaluate.output_stability": "model x y",
    "evaluate.f_fidelity": "model x y",
    "estimator.null_eps": "X y level",
    "spec.to_spec": "made",
    "spec.register": "name cls",
    "core.input_grad": "model x y loss_func create_graph",
    "core.frozen": "model training",
    "core.set_seed": "seed",
    "adversary.OneStep": "dual bounds",
    "adversary.PGD": "dual steps step_size random_start restarts momentum bounds",
    "linear.adv_perturbation": "w y eps",
    "linear.adv_loss": "w x y eps loss",
    "linear.linear_ig": "act w x u b",
    "linear.expected_update": "w x y eps loss p",
    "linear.stable_ig_risk": "w x y eps loss",
    "linear.directed_strength": "x y p",
    "linear.weighted_average": "w q S",
    "train.adv_learner": "dls model adversary penalty pen_weight free_replays",
    "callbacks.FreeAdversarialTraining": "dual replays",
    "callbacks.GradientPenalty": "penalty weight",
    "metrics.topk_overlap": "a b k",
    "map_adversary.map_attack": "model x y eps",
    "evaluate.aopc_morf": "model x y map patch",
    "evaluate.map_stability": "models x y attribution",
    "metrics.ssim": "a b data_range",
    "attribution.completeness_gap": "model x y map baseline",
}


def public(module: str):
    return importlib.import_module(f"advinterp.{module}")


PAIRS = [(module, name) for module, names in NAMES.items() for name in names.split()]


@pytest.mark.filterwarnings("ignore:.*the old name goes:FutureWarning")
@pytest.mark.parametrize("module,name", PAIRS)
def test_name(module, name):
    assert hasattr(public(module), name)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments(name):
    """The arguments come first, in this order; further ones may follow."""
    module, function = name.split(".")
    found = list(inspect.signature(getattr(public(module), function)).parameters)
    wanted = ARGUMENTS[name].split()
    assert found[: len(wanted)] == wanted


def test_two_names_of_one_dual():
    from advinterp import duals as d

    assert (d.L1, d.L2, d.LInf, d.GroupL21) == (d.LInfBall, d.L2Ball, d.L1Ball, d.GroupBall)


@pytest.mark.parametrize("name", NAMES["attribution"].split()[:-1])
@pytest.mark.parametrize("output", ["logit", "prob"])
def test_attributions_share_one_calling_form(name, output):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    x = torch.randn(4, 6)
    maps = getattr(public("attribution"), name)(net, x, torch.tensor([0, 1, 2, 0]), output=output)
    assert maps.shape == x.shape
    assert maps.isfinite().all()


def test_load_has_the_six_fields():
    digits = public("data").load("digits")
    assert digits._fields[:6] == (
        "x",
        "y",
        "x_test",
        "y_test",
        "feature_names",
        "class_names",
    )
    assert digits.x_test is None
    assert len(digits.x) == len(digits.y) == 1797
