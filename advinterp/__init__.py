"""Adversarial and regularised training for concise, stable, structured feature attributions.

    from advinterp import PGD, LInfBall, adv_learner, gini, compare

The names below are loaded when they are used first: `import advinterp` alone stays light.
"""

import importlib
import sys

from . import _deprecated

__version__ = "0.1.0"

_deprecated.install()

_HOMES = {
    "core": "input_grad frozen set_seed",
    "duals": "LInfBall L1Ball L2Ball GroupBall ElasticNet WeightedL2 L1 L2 LInf GroupL21",
    "adversary": "OneStep PGD Harmonise",
    "penalty": "GradNorm JacobianNorm TargetMap StableIG WeightNorm",
    "priors": "MapPenalty RightReasons GradientStability",
    "cheap": "n_fgsm TRADES",
    "attribution": "saliency input_x_grad integrated_gradients smoothgrad vargrad "
    "sparsified_smoothgrad moreau_grad deep_shap expected_gradients completeness_gap",
    "metrics": "gini topk_overlap ssim",
    "estimator": "AdversarialClassifier AdversarialRegressor AdversarialClassifierCV "
    "adversarial_path",
    "data": "load get_data",
    "parts": "bring_data",
    "callbacks": "AdversarialTraining FreeAdversarialTraining GradientPenalty RobustMetrics",
    "averages": "WeightAverage",
    "alarm": "OverfittingAlarm",
    "train": "adv_learner",
    "evaluate": "accuracy robust_accuracy robustness_curve",
    "stability": "output_stability",
    "fidelity": "f_fidelity",
    "interpretation": "AttributionInterpretation compare_maps",
    "spec": "from_spec to_spec",
    "comparison": "compare",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    if "fastai.learner" in sys.modules:  # its Learners get `adversarial`, `explain` and their kin
        importlib.import_module(f"{__name__}.interpretation")
    return value


def __dir__():
    return sorted({*globals(), *__all__})
