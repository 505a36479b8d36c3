"The estimators against scikit-learn's own checks, other solvers, and brute force."
import warnings
import numpy as np, pytest
from sklearn.utils.estimator_checks import parametrize_with_checks
from advinterp.estimator import AdversarialClassifier

@parametrize_with_checks([AdversarialClassifier()])
def test_sklearn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        check(estimator)
