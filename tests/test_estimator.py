"""The estimators against scikit-learn's own checks, other solvers, and brute force."""

import os
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from scipy import sparse
from scipy.special import expit
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import ColumnTransformer, make_column_selector, make_column_transformer
from sklearn.datasets import load_breast_cancer, load_iris, make_classification
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import ElasticNet, LinearRegression, LogisticRegression
from sklearn.metrics import log_loss, r2_score
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_validate
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    KBinsDiscretizer,
    MinMaxScaler,
    OneHotEncoder,
    StandardScaler,
)
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from advinterp import estimator as estimator_module
from advinterp import solver as solver_module
from advinterp.data import load
from advinterp.duals import ElasticNet as ElasticNetDual
from advinterp.duals import GroupBall, L1Ball, L2Ball, LInfBall
from advinterp.estimator import (
    AdversarialClassifier,
    AdversarialClassifierCV,
    AdversarialRegressor,
    AdversarialRegressorCV,
    adversarial_path,
    class_strengths,
    explain,
    null_eps,
)
from advinterp.solver import LOSSES, EpsBall, EpsBall1, RobustProblem, duality_gap, solve
from tests.cvxpy_oracle import optimum_by_cvxpy


# --- scikit-learn's conventions ---
def not_expected(estimator):
    """Permutations of weighted rows are not those of repeated rows: the rows of (7) are drawn.

    They decide where eps is that of (7), and for the noise of the checks for regressors.
    """
    drawn = getattr(estimator, "eps", None) == "null"
    drawn = drawn or isinstance(estimator, AdversarialRegressorCV)
    names = [f"check_sample_weight_equivalence_on_{kind}_data" for kind in ("dense", "sparse")]
    return dict.fromkeys(names if drawn else [], "weights of the rows are no repetitions")


@parametrize_with_checks(
    [
        AdversarialClassifier(),
        AdversarialClassifier(loss="hinge", alpha_l2=0.01),
        AdversarialRegressor(),
        AdversarialClassifierCV(eps_grid=2, cv=3),
        AdversarialClassifier(eps="null", refit="relaxed", norm=2),
        AdversarialRegressorCV(eps_grid=2, cv=3),
    ],
    expected_failed_checks=not_expected,
)
def test_sklearn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


def model_of(loss, norm, **params):
    kind = AdversarialRegressor if LOSSES[loss].signed else AdversarialClassifier
    return kind(eps=0.05, loss=loss, norm=norm, **params)


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_sklearn_with_every_loss_and_norm(loss, norm):
    """Two solutions of one problem may differ where it has many: see the test below."""
    many = loss in ("hinge", "absolute") or (loss != "squared" and norm == 1)
    names = [f"check_sample_weight_equivalence_on_{kind}_data" for kind in ("dense", "sparse")]
    expected = dict.fromkeys(names if many else [], "fifteen rows in thirty columns")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(
            model_of(loss, norm), on_fail=None, expected_failed_checks=expected
        )
    assert len(results) > 50
    assert not [result["check_name"] for result in results if result["status"] == "failed"]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_weights_of_rows_are_repetitions(loss, norm):
    """More columns than rows: the objectives agree, and the weights where only one is best."""
    rng = np.random.default_rng(42)
    X = rng.random((15, 30))
    y = rng.integers(0, 2, 15)
    weight = rng.integers(0, 5, 15)
    more = X.repeat(weight, 0), y.repeat(weight)
    for alpha in (0.0, 0.01):
        weighted = model_of(loss, norm, alpha_l2=alpha).fit(X, y, sample_weight=weight)
        repeated = model_of(loss, norm, alpha_l2=alpha).fit(*more)
        assert weighted.objective_ == pytest.approx(repeated.objective_, abs=1e-8)
    reach = sum(np.sqrt(2 * model.gap_ / 0.01) for model in (weighted, repeated))
    assert reach < 0.01
    assert np.linalg.norm(weighted.coef_ - repeated.coef_) <= reach + 1e-7  # strong convexity


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y


@pytest.fixture(scope="module")
def noisy():
    return make_classification(
        300, 12, n_informative=5, n_redundant=0, flip_y=0.2, class_sep=0.6, random_state=0
    )


@pytest.fixture(scope="module")
def noisy_frame(noisy):
    return pd.DataFrame(noisy[0], columns=[f"f{i}" for i in range(12)])


def test_pandas_pickle_clone_and_html(noisy, noisy_frame):
    _, y = noisy
    clf = AdversarialClassifier(eps=0.1).fit(noisy_frame, y)
    assert list(clf.feature_names_in_) == list(noisy_frame.columns)
    assert "AdversarialClassifier" in clf._repr_html_()
    again = pickle.loads(pickle.dumps(clf))
    assert (again.predict(noisy_frame) == clf.predict(noisy_frame)).all()
    assert clone(clf).get_params() == clf.get_params()
    assert not hasattr(clone(clf), "coef_")
    strongest = np.abs(clf.attribute(noisy_frame)).mean(0).argmax()
    assert clf.feature_impact(noisy_frame).index[0] == f"f{strongest}"


def test_metadata_routing(noisy):
    X, y = noisy
    weight = np.linspace(0.1, 2, len(y))

    def first_coef(pipe, **kwargs):
        result = cross_validate(pipe, X, y, return_estimator=True, **kwargs)
        return result["estimator"][0][-1].coef_

    with config_context(enable_metadata_routing=True):
        clf = AdversarialClassifier(eps=0.01)
        clf.set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        pipe = make_pipeline(MinMaxScaler(), clf)
        weighted = first_coef(pipe, params=dict(sample_weight=weight))
    plain = first_coef(pipe)
    assert np.abs(weighted - plain).max() > 1e-3


@pytest.mark.parametrize(
    "penalty, settings",
    [
        (dict(), dict(C=np.inf)),
        (dict(alpha_l2=0.01), dict(C=1 / 3.0)),
        (dict(alpha_l1=0.01), dict(C=1 / 3.0, l1_ratio=1.0, solver="saga", random_state=0)),
    ],
)
def test_eps_zero_is_logistic_regression(noisy, penalty, settings):
    settings = {"solver": "newton-cholesky", **settings}
    theirs = LogisticRegression(**settings, tol=1e-10, max_iter=20_000).fit(*noisy)
    ours = AdversarialClassifier(eps=0, **penalty).fit(*noisy)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-5)


@pytest.mark.parametrize(
    "penalty, theirs",
    [
        (dict(), LinearRegression()),
        (dict(alpha_l1=0.05, alpha_l2=0.05), ElasticNet(alpha=0.1, l1_ratio=0.5, tol=1e-12)),
    ],
)
def test_eps_zero_is_least_squares_and_elastic_net(noisy, penalty, theirs):
    X, _ = noisy
    y = X @ np.arange(12.0) + np.random.default_rng(0).normal(size=300)
    ours = AdversarialRegressor(eps=0, **penalty).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.fit(X, y).coef_, atol=1e-5)


def make_problem(loss, ball, l1, l2, fit_intercept, seed=0, n=90, d=8):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * [1, 1, 3, 0.1, 1, 1, 1, 1]
    targets = X @ [1, -1, 0.3, 5, 0, 0, 0, 0.2] + rng.normal(size=n) * 1.5 + 0.5
    return RobustProblem(
        X,
        targets if LOSSES[loss].signed else np.sign(targets),
        rng.dirichlet(np.ones(n) * 5),
        LOSSES[loss],
        ball,
        np.full(d, l1),
        np.full(d, l2),
        fit_intercept,
        X.mean(0) if fit_intercept else np.zeros(d),
        X.std(0),
    )


ALL = np.full(8, 0.1)
MIXED = np.array([0, 0.1, 0.1, 0.01, 0.1, 0.1, 0, 0.1])
GROUPS = np.array([0, 0, 1, 1, 1, 2, 3, 3])
BALLS = dict(
    inf=EpsBall(ALL),
    inf_mixed=EpsBall(MIXED),
    two=EpsBall(ALL, GROUPS * 0),
    two_mixed=EpsBall(MIXED, GROUPS * 0),
    one=EpsBall1(ALL),
    one_mixed=EpsBall1(MIXED),
    groups=EpsBall(ALL, GROUPS),
    none=EpsBall(0 * ALL),
)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize(
    "l1, l2, fit_intercept", [(0, 0, True), (0.02, 0, False), (0, 0.05, True), (0.02, 0.05, False)]
)
def test_no_worse_than_cvxpy_and_gap_is_a_bound(loss, ball, l1, l2, fit_intercept):
    prob = make_problem(loss, BALLS[ball], l1, l2, fit_intercept)
    best = optimum_by_cvxpy(prob)[0]
    w, b, gap, *_ = solve(prob)
    above = prob.value(w, b) - best
    assert above <= 1e-7
    assert above - 1e-7 <= gap < 1e-5
    w, b, gap, *_ = solve(prob, max_iter=3)  # stopped early: the bound must still hold
    assert gap >= prob.value(w, b) - best - 1e-7


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(LOSSES)),
    st.sampled_from(sorted(BALLS)),
    st.sampled_from([0.0, 0.03]),
    st.sampled_from([0.0, 0.03]),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_gap_bounds_any_model_with_any_masses(loss, ball, l1, l2, fit_intercept, seed):
    prob = make_problem(loss, BALLS[ball], l1, l2, fit_intercept, seed % 5, n=40)
    w, b, *_ = solve(prob)
    best = prob.value(w, b)
    rng = np.random.default_rng(seed)
    w = w + rng.normal(size=8) * rng.choice([1e-3, 0.1, 1])
    b = (b + rng.normal() * 0.1) * fit_intercept
    masses = prob.q * rng.uniform(0, 1, 40)
    if prob.loss.signed:
        masses = masses, masses * rng.uniform(-1, 1, 40)
    assert duality_gap(prob, w, b, masses) >= prob.value(w, b) - best - 1e-9


@pytest.mark.parametrize("loss", ["logistic", "softplus_hinge"])
@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("l1, l2", [(0, 0), (0.02, 0), (0, 0.05), (0.02, 0.05)])
def test_the_gap_at_the_best_masses_is_what_is_lost(loss, ball, l1, l2):
    """They are the slopes of the loss at the optimum; a bound that is too tight shows here."""
    prob = make_problem(loss, BALLS[ball], l1, l2, True)
    w, b, *_ = solve(prob)
    masses = prob.q * prob.loss.dg(prob.args(w, b))
    direction = np.random.default_rng(0).normal(size=8)
    for length in (1e-3, 1e-2, 0.1):
        worse = w + length * direction
        lost = prob.value(worse, b) - prob.value(w, b)
        gap = duality_gap(prob, worse, b, masses)
        assert gap >= lost - 1e-8
        assert not l2 or gap <= 2 * lost + 1e-4


@pytest.mark.parametrize("ball", sorted(set(BALLS) - {"none"}))
def test_gauge_and_support_are_polar(ball):
    """`<w, c> <= gauge(c) * support(w)`, an equality where `c` attains the support of `w`."""
    ball = BALLS[ball]
    rng = np.random.default_rng(0)
    for w, c in rng.normal(size=(50, 2, 8)):
        c = np.where(ball.e > 0, c, 0)
        assert w @ c <= ball.gauge(c) * ball.support(w) * (1 + 1e-12)
        attained = ball.attain(w)
        assert w @ attained == pytest.approx(ball.support(w))
        assert ball.gauge(attained) == pytest.approx(1)
        assert ball.gauge(ball.near(c, 0.5, w)) <= 0.5 * (1 + 1e-12)


@pytest.mark.parametrize("ball", ["inf", "inf_mixed", "two", "groups"])
def test_two_solvers_agree(ball):
    prob = make_problem("logistic", BALLS[ball], 0, 0, True)
    smooth = solve(prob, solver="lbfgs")
    conic = solve(prob, solver="conic")
    assert smooth.gap < 1e-10
    np.testing.assert_allclose(smooth.w, conic.w, atol=1e-4)
    assert abs(prob.value(smooth.w, smooth.b) - prob.value(conic.w, conic.b)) < 1e-8


def test_solving_leaves_the_problem_as_it_was():
    prob = make_problem("logistic", BALLS["groups"], 0, 0, True)
    w = np.ones(8)
    before = prob.value(w, 0.1)
    solve(prob)
    assert prob.ball.mu == 0
    assert prob.value(w, 0.1) == before


def test_better_than_a_thousand_epochs_of_sgd(noisy):
    X, y = noisy
    signs = 2 * y - 1
    rng = np.random.default_rng(0)
    w = np.zeros(12)
    b = 0.0
    for epoch in range(1000):
        lr = 0.5 / np.sqrt(1 + epoch)
        for batch in rng.permutation(300).reshape(10, 30):
            s = signs[batch]
            a = expit(0.1 * np.abs(w).sum() - s * (X[batch] @ w + b))
            grad = a.mean() * 0.1 * np.sign(w) - (a * s) @ X[batch] / 30
            w = w - lr * grad
            b = b + lr * (a * s).mean()
    sgd = np.logaddexp(0, 0.1 * np.abs(w).sum() - signs * (X @ w + b)).mean()
    clf = AdversarialClassifier(eps=0.1).fit(X, y)
    assert clf.objective_ < sgd < clf.objective_ + 0.01


def test_exactly_zero_beyond_the_strongest_feature(noisy):
    X, y = noisy
    top = np.abs(class_strengths(X, y)).max()
    with pytest.warns(UserWarning, match="constant"):
        clf = AdversarialClassifier(eps=top * (1 + 1e-6)).fit(X, y)
    assert not clf.coef_.any()
    np.testing.assert_allclose(clf.predict_proba(X)[:, 1], y.mean(), atol=1e-9)
    assert np.count_nonzero(AdversarialClassifier(eps=top * (1 - 1e-4)).fit(X, y).coef_) == 1


# --- arguments ---
@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(eps=-0.1), "eps=-0.1"),
        (dict(eps=np.nan), "eps=nan"),
        (dict(eps=[0.1] * 11), "eps has shape"),
        (dict(eps=[np.inf] * 12), "finite numbers"),
        (dict(norm=3), "norm=3"),
        (dict(norm=ElasticNetDual(0.1, 0.1)), "expected 'inf', 2, 1"),
        (dict(norm=GroupBall(0.1)), "patches are for images"),
        (dict(norm=2, groups=[0] * 12), "groups with norm=2"),
        (dict(groups=[0, 1]), "groups has shape"),
        (dict(loss="log"), "loss='log'"),
        (dict(alpha_l1=-1.0), "alpha_l1=-1"),
        (dict(alpha_l2=np.nan), "alpha_l2=nan"),
        (dict(tol=-1), "tol=-1"),
        (dict(max_iter=0), "max_iter=0"),
        (dict(solver="sgd"), "solver='sgd'"),
    ],
)
def test_bad_arguments(noisy, arguments, message):
    with pytest.raises(ValueError, match=message):
        AdversarialClassifier(**arguments).fit(*noisy)


@pytest.mark.parametrize("cls", [AdversarialClassifier, AdversarialRegressor])
def test_two_strengths_are_refused(noisy, cls):
    "A ball has an eps of its own: neither silently wins, not even where they are equal."
    for eps in (0.1, 0.3):
        with pytest.raises(ValueError, match=rf"eps={eps} and norm=L2Ball\(0\.3\)"):
            cls(eps=eps, norm=L2Ball(0.3)).fit(*noisy)
    ball = GroupBall(0.1, groups=torch.arange(12) // 2)
    with pytest.raises(ValueError, match=r"groups=.* and norm=GroupBall"):
        cls(norm=ball, groups=np.arange(12)).fit(*noisy)


def test_a_ball_is_kept_by_clone_and_by_set_params(noisy):
    clf = AdversarialClassifier(norm=L2Ball(0.3))
    expected = AdversarialClassifier(eps=0.3, norm=2).fit(*noisy)
    np.testing.assert_array_equal(clone(clf).fit(*noisy).coef_, expected.coef_)
    expected.set_params(eps=None, norm=L2Ball(0.3))
    np.testing.assert_array_equal(expected.fit(*noisy).coef_, clf.fit(*noisy).coef_)


def test_the_default_strength(noisy):
    default = AdversarialClassifier().fit(*noisy)
    np.testing.assert_array_equal(default.coef_, AdversarialClassifier(eps=0.1).fit(*noisy).coef_)


def test_bad_data(noisy):
    X, y = noisy
    with pytest.raises(ValueError, match="one class"):
        AdversarialClassifier().fit(X, y * 0)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        AdversarialClassifier().fit(X, y, np.where(y, -1, 1))
    with pytest.raises(ValueError, match="eps='a': expected one of 'null'"):
        AdversarialClassifier(eps="a").fit(X, y)
    with pytest.raises(ValueError, match="eps_grid"):
        adversarial_path(X, y, [])
    with pytest.raises(ValueError, match="eps_grid=0"):
        AdversarialClassifierCV(eps_grid=0).fit(X, y)
    with pytest.raises(ValueError, match="expected both"):
        adversarial_path(X, y, [0.1], X_test=X)
    with pytest.raises(AttributeError, match="predict_proba") as error:
        AdversarialClassifier(loss="hinge").fit(X, y).predict_proba(X)
    assert "not probabilities" in str(error.value.__cause__)


def test_a_grid_of_strengths_refuses_a_ball(noisy):
    with pytest.raises(ValueError, match="brings one eps"):
        adversarial_path(*noisy, [0.1], norm=LInfBall(0.1))
    with pytest.raises(ValueError, match="brings one eps"):
        AdversarialClassifierCV(norm=LInfBall(0.1)).fit(*noisy)


@pytest.mark.parametrize(
    "estimator",
    [AdversarialClassifier(eps=0.01), AdversarialClassifier(eps=0), AdversarialRegressor()],
)
def test_constant_columns_get_no_weight(noisy, estimator):
    X, y = noisy
    with_constants = np.c_[X, np.full(300, 1e6), np.zeros(300)]
    plain = np.ravel(clone(estimator).fit(X, y).coef_)
    padded = np.ravel(clone(estimator).fit(with_constants, y).coef_)
    np.testing.assert_allclose(padded, [*plain, 0, 0], atol=1e-5)


def test_separable_rows(cancer):
    X, y = cancer
    with pytest.warns(ConvergenceWarning, match="raise eps, set alpha_l2") as got:
        clf = AdversarialClassifier(eps=0).fit(X, y)
    assert [warning.filename for warning in got] == [__file__]  # it points at the call of fit
    assert clf.score(X, y) == 1
    assert np.isfinite(clf.coef_).all()
    assert clf.gap_ > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdversarialClassifier(eps=0, loss="hinge").fit(X, y)
        AdversarialClassifier(eps=0.1).fit(X, y)


@pytest.mark.parametrize("limit", ["_max_active", "_max_nnls"])
def test_beyond_the_dense_limits(cancer, noisy, monkeypatch, limit):
    # separable rows are minimised with a small penalty, which the objective leaves out
    cases = (0.02, noisy, 2e-6), (0.01, noisy, 2e-6), (0, cancer, 1e-4)

    def fits():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [AdversarialClassifier(eps=eps).fit(*data) for eps, data, _ in cases]

    full = fits()
    monkeypatch.setattr(solver_module, limit, 3)
    for dense, beyond, (*_, enough) in zip(full, fits(), cases):
        assert beyond.gap_ >= beyond.objective_ - dense.objective_
        assert abs(dense.objective_ - beyond.objective_) < enough


def test_early_stop_warns(noisy):
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        AdversarialClassifier(max_iter=2).fit(*noisy)


def test_untouchable_features_and_vectors(noisy):
    eps = np.full(12, 5.0)
    eps[3] = 0
    clf = AdversarialClassifier(eps=eps).fit(*noisy)
    assert np.flatnonzero(clf.coef_).tolist() == [3]
    vector = AdversarialClassifier(eps=np.full(12, 0.1)).fit(*noisy)
    number = AdversarialClassifier(eps=0.1).fit(*noisy)
    np.testing.assert_allclose(vector.coef_, number.coef_, atol=1e-9)


@pytest.mark.parametrize(
    "dual, norm", [(LInfBall(0.1), "inf"), (L2Ball(0.1), 2), (L1Ball(0.1), 1)], ids=repr
)
def test_duals_are_norms(noisy, dual, norm):
    X, y = noisy
    by_dual = AdversarialClassifier(norm=dual).fit(X, y)
    by_norm = AdversarialClassifier(eps=0.1, norm=norm).fit(X, y)
    np.testing.assert_allclose(by_dual.coef_, by_norm.coef_, atol=1e-9)
    support = float(dual.h_star(torch.tensor(by_norm.coef_))[0])
    z = support - (2 * y - 1) * by_norm.decision_function(X)
    assert abs(np.logaddexp(0, z).mean() - by_norm.objective_) < 1e-12


def test_groups_leave_together(noisy):
    X, y = noisy
    groups = np.repeat(list("abcdef"), 2)
    clf = AdversarialClassifier(eps=0.2, groups=groups).fit(X, y)
    first, second = (clf.coef_[0] != 0).reshape(6, 2).T
    assert (first == second).all()
    assert 0 < first.sum() < 6
    assert clf.gap_ < 1e-9
    assert clf.feature_impact(X).index[0] in set("abcdef")


def test_standardize_is_eps_per_deviation(noisy):
    X, y = noisy
    X = X * np.geomspace(0.01, 100, 12) + 3
    penalties = dict(alpha_l1=0.01, alpha_l2=0.01)
    by_hand = AdversarialClassifier(eps=0.1, **penalties).fit((X - X.mean(0)) / X.std(0), y)
    clf = AdversarialClassifier(eps=0.1, standardize=True, **penalties)
    np.testing.assert_allclose(clf.fit(X, y).coef_ * X.std(0), by_hand.coef_, atol=1e-8)
    sparse_coef = clf.fit(sparse.csr_matrix(X), y).coef_
    np.testing.assert_allclose(sparse_coef * X.std(0), by_hand.coef_, atol=1e-6)


@pytest.mark.parametrize(
    "arguments",
    [dict(), dict(norm=2), dict(loss="hinge"), dict(loss="softplus_hinge", alpha_l1=0.01)],
)
def test_sparse_is_dense(noisy, arguments):
    X, y = noisy
    X = np.where(np.abs(X) > 0.7, X, 0)
    table = sparse.csr_matrix(X)
    by_dense = AdversarialClassifier(eps=0.05, **arguments).fit(X, y)
    by_sparse = AdversarialClassifier(eps=0.05, **arguments).fit(table, y)
    assert abs(by_dense.objective_ - by_sparse.objective_) < 1e-8
    np.testing.assert_allclose(by_dense.coef_, by_sparse.coef_, atol=1e-4)
    scores = by_sparse.decision_function(X)
    np.testing.assert_allclose(by_sparse.decision_function(table), scores, atol=1e-12)


def test_memory_map_is_not_copied(noisy, tmp_path, monkeypatch):
    X, y = noisy
    mapped = np.memmap(tmp_path / "x", float, "w+", shape=X.shape)
    mapped[:] = X
    seen = []

    class Recorded(RobustProblem):
        def __init__(self, X, *args, **kwargs):
            seen.append(X)
            super().__init__(X, *args, **kwargs)

    monkeypatch.setattr(estimator_module, "RobustProblem", Recorded)
    monkeypatch.setattr(estimator_module, "_by_columns", lambda X: X)  # as above 256 MiB
    clf = AdversarialClassifier().fit(mapped, y)
    assert np.shares_memory(seen[0], mapped)
    np.testing.assert_allclose(clf.coef_, AdversarialClassifier().fit(X, y).coef_, atol=1e-9)


def test_warm_start(noisy):
    clf = AdversarialClassifier(eps=0.1, warm_start=True).fit(*noisy)
    first = clf.n_iter_[0]
    assert clf.fit(*noisy).n_iter_[0] < first


def test_class_weight_is_a_weight_of_the_rows(noisy):
    X, y = noisy
    by_class = AdversarialClassifier(class_weight={0: 3.0, 1: 1.0}).fit(X, y)
    by_row = AdversarialClassifier().fit(X, y, np.where(y == 0, 3.0, 1.0))
    np.testing.assert_allclose(by_class.coef_, by_row.coef_, atol=1e-9)


# --- what the estimator says ---
def steepest(norm, v):
    """The move of length 1 in a norm that adds most to `<v, x>`, row by row."""
    size = np.abs(v)
    steps = {
        "inf": np.sign(v),
        2: v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12),
        1: np.sign(v) * (size == size.max(1, keepdims=True)),
    }
    return steps[norm]


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_robust_score_by_brute_force(norm, scale):
    X, y = load_iris(return_X_y=True)
    clf = AdversarialClassifier(eps=0.3, norm=norm, alpha_l2=0.001).fit(X, y)
    safe = np.ones(150, bool)
    for c in range(3):
        v = clf.coef_[c] - clf.coef_[y]  # the attack on the lead of y over c
        scores = clf.decision_function(X + scale * 0.3 * steepest(norm, v))
        safe &= (y == c) | (scores[range(150), y] > scores[:, c])
    assert clf.robust_score(X, y, scale) == safe.mean() <= clf.score(X, y)


@pytest.mark.parametrize("scale", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_robust_score_of_two_classes(norm, scale):
    X, y = load_iris(return_X_y=True)
    X, y = X[50:], y[50:]  # classes 1 and 2, which overlap
    clf = AdversarialClassifier(eps=0.1, norm=norm).fit(X, y)
    away = np.where(y == 2, -1, 1)[:, None] * clf.coef_
    attacked = X + scale * 0.1 * steepest(norm, away)
    assert clf.robust_score(X, y, scale) == clf.score(attacked, y) < clf.score(X, y)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_attributions_are_complete(seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(40, 4))
    y = np.arange(40) % 2
    u = rng.normal(size=4)
    X[:, 0] += y * 2
    clf = AdversarialClassifier(eps=0.1, alpha_l2=0.01).fit(X, y)
    change = clf.predict_proba(X)[:, 1] - clf.predict_proba(u[None])[0, 1]
    np.testing.assert_allclose(clf.attribute(X, u).sum(1), change, atol=1e-10)
    np.testing.assert_allclose(clf.attribute(X, u, "logit"), (X - u) * clf.coef_, atol=1e-12)
    reg = AdversarialRegressor().fit(X, X[:, 0])
    change = reg.predict(X) - reg.predict(u[None])[0]
    np.testing.assert_allclose(reg.attribute(X, u).sum(1), change, atol=1e-10)


def test_explain(noisy, noisy_frame):
    _, y = noisy
    clf = AdversarialClassifier(eps=0.1).fit(noisy_frame, y)
    row = noisy_frame.iloc[[3]]
    because = clf.explain(row, n=2)
    attributions = clf.attribute(row)[0] * (1 if clf.predict(row)[0] == 1 else -1)
    largest = np.abs(attributions).argmax()
    assert len(because.frame) == 2
    assert because.frame.attribution[0] == attributions[largest]
    assert because.frame.feature[0].startswith(f"f{largest} = ")
    assert len(str(because).splitlines()) == 2
    assert f"class {clf.predict(row)[0]}" in str(because)
    assert len(because.plot().patches) == 2
    with pytest.warns(FutureWarning, match="n="):
        assert str(clf.explain(row, k=2)) == str(because)
    with pytest.raises(ValueError, match="n=-1"):
        clf.explain(row, n=-1)
    grouped = clf.explain(row, n=6, groups=np.repeat(range(6), 2))
    assert abs(grouped.frame.attribution.sum() - attributions.sum()) < 1e-12


def test_path_is_the_fits_along_it(cancer):
    X, y = cancer
    train, test = (X[::2], y[::2]), dict(X_test=X[1::2], y_test=y[1::2])
    path = adversarial_path(*train, [0.05, 0.3, 0.1], alpha_grid=[0, 0.02], **test)
    assert list(path.frame.eps) == [0.3, 0.1, 0.05] * 2
    assert path.coef.shape == (6, 1, 30)
    for row, coef in zip(path.frame.itertuples(), path.coef):
        clf = AdversarialClassifier(eps=row.eps, alpha_l1=row.alpha_l1).fit(*train)
        np.testing.assert_allclose(coef, clf.coef_, atol=1e-6)
        assert row.accuracy == clf.score(X[1::2], y[1::2])
        assert row.n_active == np.count_nonzero(clf.coef_)
    assert len(path.plot().lines) > 6


def test_cross_validation_chooses_the_largest_eps_within_the_tolerance(cancer):
    X, y = cancer
    clf = AdversarialClassifierCV(eps_grid=5, cv=3, tolerance=0.02).fit(X, y)
    results = pd.DataFrame(clf.cv_results_)
    assert len(results) == 5
    assert results.eps.is_monotonic_increasing
    good = results.mean_accuracy >= results.mean_accuracy.max() - 0.02
    assert clf.eps_ == results.eps[good].max()
    with parallel_config("threading"):
        in_threads = clone(clf).set_params(n_jobs=2).fit(X, y)
    assert in_threads.eps_ == clf.eps_
    assert (in_threads.coef_ == clf.coef_).all()
    assert clf.predict_proba(X).shape == (569, 2)


def test_the_grid_ends_where_no_class_has_a_feature_left():
    X, y = load_iris(return_X_y=True)
    clf = AdversarialClassifierCV(eps_grid=4, cv=2, alpha_l2=0.01).fit(X, y)
    end = 4 * clf.cv_results_["eps"][1]
    with pytest.warns(UserWarning, match="all weights are zero"):
        assert not AdversarialClassifier(eps=1.01 * end, alpha_l2=0.01).fit(X, y).coef_.any()
    assert AdversarialClassifier(eps=0.98 * end, alpha_l2=0.01).fit(X, y).coef_.any()


# --- the paper's tables ---
@pytest.mark.skipif(
    "ADVINTERP_DATA" not in os.environ,
    reason="ADVINTERP_DATA is not set: no Mushroom and Spambase here",
)
@pytest.mark.parametrize("name", ["mushroom", "spambase"])
def test_concise_at_little_cost(name):
    table = load(name)
    X = table.x
    if name == "spambase":
        X = StandardScaler().fit_transform(X)
    elif not set(np.unique(X)) <= {0, 1}:
        X = OneHotEncoder().fit_transform(X).toarray()
    y = table.y
    path = adversarial_path(X[::2], y[::2], [0.1, 0.01], X_test=X[1::2], y_test=y[1::2])
    strong, weak = path.frame.iloc[0], path.frame.iloc[1]
    assert strong.gap < 1e-9
    assert strong.gini > weak.gini + 0.04
    assert strong.accuracy > weak.accuracy - 0.06
    assert strong.robust_accuracy > 0.7


def test_labels_as_a_column_count_as_labels():
    """Every score takes `(n, 1)`, as fit does, and no other number of labels."""
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    column = y[:, None]
    model = AdversarialClassifier(eps=0.1).fit(X, y)
    assert model.robust_score(X, column) == model.robust_score(X, y) > 0.9
    measured = [
        adversarial_path(X, labels, [0.05], X_test=X, y_test=labels).frame.robust_accuracy[0]
        for labels in (y, column)
    ]
    assert measured[0] == measured[1]
    assert adversarial_path(X, column, [0.05]).frame.robust_accuracy[0] == measured[0]
    with pytest.raises(ValueError, match="569 labels, one for each row of X, got 10"):
        model.robust_score(X, y[:10])


def test_a_row_of_a_table_is_explained():
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    model = AdversarialClassifier(eps=0.1).fit(X, y)
    row = model.explain(X.iloc[3])
    assert str(row) == str(model.explain(X.iloc[[3]]))


# --- weights and labels ---
@pytest.fixture(scope="module")
def line():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(120, 6)) * [1, 1, 2, 0.5, 1, 1]
    return X, X @ [1.0, -1, 0.3, 0, 0, 0] + rng.normal(size=120)


def test_balanced_counts_the_rows_by_their_weights(noisy):
    X, y = noisy
    times = np.where(y == 0, np.arange(300) % 3, 1)
    weighted = AdversarialClassifier(class_weight="balanced", standardize=True).fit(X, y, times)
    rows = np.repeat(np.arange(300), times)
    repeated = clone(weighted).fit(X[rows], y[rows])
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-8)
    settings = dict(class_weight="balanced", tol=1e-10, max_iter=5000)
    theirs = LogisticRegression(C=1.0, **settings).fit(X, y, times)
    factor = 1 / times.sum()  # the penalty of scikit-learn's C is per sum of weights
    ours = AdversarialClassifier(eps=0, alpha_l2=factor, class_weight="balanced")
    np.testing.assert_allclose(ours.fit(X, y, times).coef_, theirs.coef_, atol=1e-5)


def test_class_weights_are_weights_of_the_rows_where_columns_are_standardized(noisy):
    X, y = noisy
    X = X * np.geomspace(0.1, 10, 12) + y[:, None]
    by_class = AdversarialClassifier(class_weight={0: 5.0, 1: 1.0}, standardize=True).fit(X, y)
    by_row = AdversarialClassifier(standardize=True).fit(X, y, np.where(y == 0, 5.0, 1.0))
    np.testing.assert_allclose(by_class.coef_, by_row.coef_, atol=1e-9)
    for bad in ({0: 0.0, 1: 1.0}, {0: -1.0, 1: 1.0}, {0: np.nan, 1: 1.0}):
        with pytest.raises(ValueError, match="class_weight="):
            AdversarialClassifier(class_weight=bad).fit(X, y)


def test_rows_of_weight_zero_are_no_rows(noisy):
    X, y = noisy
    weight = np.r_[np.ones(200), np.zeros(100)]
    test = dict(X_test=X, y_test=y, test_weight=weight)
    weighted = adversarial_path(X, y, [0.05, 0.2], sample_weight=weight, **test)
    removed = adversarial_path(X[:200], y[:200], [0.05, 0.2])
    measured = ["accuracy", "robust_accuracy", "gini", "n_active", "objective"]
    pd.testing.assert_frame_equal(weighted.frame[measured], removed.frame[measured], atol=1e-8)
    assert null_eps(X, y, sample_weight=weight) == pytest.approx(null_eps(X[:200], y[:200]))


def test_strengths_by_name(noisy, noisy_frame):
    _, y = noisy
    strengths = np.linspace(0.01, 0.3, 12)
    expected = AdversarialClassifier(eps=strengths).fit(noisy_frame, y)
    by_name = pd.Series(strengths, noisy_frame.columns)
    for eps in (by_name, by_name[::-1], by_name[::-1].to_dict()):
        found = AdversarialClassifier(eps=eps).fit(noisy_frame, y)
        np.testing.assert_array_equal(found.coef_, expected.coef_)
    without_names = AdversarialClassifier(eps=pd.Series(strengths)).fit(*noisy)
    np.testing.assert_array_equal(without_names.coef_, expected.coef_)
    for bad in (by_name[1:], by_name.rename({"f0": "g"}), {"f0": 0.1}, pd.Series([0.1, 0.2])):
        with pytest.raises(ValueError, match="eps: expected one strength for each column"):
            AdversarialClassifier(eps=bad).fit(noisy_frame, y)


def test_probabilities_of_far_rows():
    X, y = load_iris(return_X_y=True)
    model = AdversarialClassifier(eps=0.1).fit(X, y)
    far = np.r_[1e4 * np.eye(4), -1e4 * np.eye(4)]
    p = model.predict_proba(far)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (p[np.arange(8), model.predict(far)] == p.max(1)).all()
    assert np.isfinite(model.predict_log_proba(far)).all()
    two = AdversarialClassifier(eps=0.1).fit(X[50:], y[50:])
    assert np.isfinite(two.predict_log_proba(far)).all()


def test_labels_that_training_has_not_seen_are_errors(noisy):
    X, y = noisy
    model = AdversarialClassifier(eps=0.05).fit(X, y)
    strange = np.where(np.arange(300) < 150, y, 7)
    assert model.robust_score(X, strange) == model.robust_score(X[:150], y[:150]) / 2
    path = adversarial_path(X, y, [0.05], X_test=X, y_test=strange)
    assert path.frame.accuracy[0] == model.score(X[:150], y[:150]) / 2
    assert model.robust_score(X, strange.astype(str)) == 0


def test_a_class_that_a_fold_lacks():
    X, y = load_iris(return_X_y=True)
    rows = np.r_[0:100, 100:102]
    folds = [(np.arange(0, 100), np.arange(100, 102)), (np.arange(20, 102), np.arange(0, 20))]
    model = AdversarialClassifierCV(eps_grid=2, cv=folds, alpha_l2=0.01).fit(X[rows], y[rows])
    assert model.cv_results_["mean_accuracy"].max() <= 20 / 22


@pytest.mark.parametrize(
    "arguments, error",
    [
        (dict(fit_intercept="no"), TypeError),
        (dict(standardize=1), TypeError),
        (dict(warm_start=None), TypeError),
        (dict(norm=True), ValueError),
        (dict(norm=[2]), ValueError),
        (dict(refit="both"), ValueError),
        (dict(eps="nul"), ValueError),
    ],
)
def test_settings_of_another_kind_are_refused(noisy, arguments, error):
    with pytest.raises(error, match=f"{next(iter(arguments))}="):
        AdversarialClassifier(**arguments).fit(*noisy)


@pytest.mark.parametrize("grid", [[-0.1], [np.nan], [[0.1]], 0.1, ["a"], None, [True]])
def test_grids_that_are_no_strengths_are_refused(noisy, grid):
    with pytest.raises(ValueError, match="eps_grid="):
        adversarial_path(*noisy, grid)
    if grid is not None:
        with pytest.raises(ValueError, match="alpha_grid="):
            adversarial_path(*noisy, [0.1], alpha_grid=grid)


def test_workers_over_the_classes_change_nothing():
    X, y = load_iris(return_X_y=True)
    with parallel_config("threading"):
        two = AdversarialClassifier(eps=0.1, n_jobs=2).fit(X, y)
    np.testing.assert_array_equal(two.coef_, AdversarialClassifier(eps=0.1).fit(X, y).coef_)


# --- refit ---
@pytest.mark.parametrize("loss", ["logistic", "hinge", "softplus_hinge"])
@pytest.mark.parametrize("refit", ["scale", "relaxed"])
def test_a_refit_lowers_the_plain_loss_on_the_same_features(noisy, loss, refit):
    X, y = noisy

    def plain_loss(model):
        z = -(2 * y - 1) * model.decision_function(X)
        return LOSSES[loss].g(z).mean()

    solved = AdversarialClassifier(eps=0.1, loss=loss).fit(X, y)
    model = clone(solved).set_params(refit=refit).fit(X, y)
    assert plain_loss(model) < plain_loss(solved) - 1e-3
    assert ((model.coef_ != 0) == (solved.coef_ != 0)).all()
    if refit == "scale":
        ratio = model.coef_[solved.coef_ != 0] / solved.coef_[solved.coef_ != 0]
        np.testing.assert_allclose(ratio, ratio[0])
        for factor in (0.99, 1.01):  # no other length is better
            longer = clone(model).fit(X, y)
            longer.coef_ = model.coef_ * factor
            assert plain_loss(longer) > plain_loss(model)
    assert model.objective_ == solved.objective_
    assert list(model.refit_scores_.index) == ["solved", "refit"]


def test_a_path_shows_both_sides_of_a_refit(cancer):
    X, y = cancer
    train, test = (X[::2], y[::2]), dict(X_test=X[1::2], y_test=y[1::2])
    refit = adversarial_path(*train, [0.3], refit="relaxed", **test).frame.iloc[0]
    solved = adversarial_path(*train, [0.3], **test).frame.iloc[0]
    assert refit.solved_accuracy == solved.accuracy
    assert refit.solved_robust_accuracy == solved.robust_accuracy
    model = AdversarialClassifier(eps=0.3, refit="relaxed").fit(*train)
    assert refit.robust_accuracy == model.robust_score(X[1::2], y[1::2])
    assert refit.n_active == solved.n_active


def test_warm_starts_are_those_of_the_solved_problem(noisy):
    model = AdversarialClassifier(eps=0.1, warm_start=True, refit="relaxed").fit(*noisy)
    first = model.n_iter_[0]
    assert model.fit(*noisy).n_iter_[0] < first
    reg = AdversarialRegressor(eps=0.1, warm_start=True).fit(noisy[0], noisy[0][:, 0])
    np.testing.assert_allclose(reg.fit(noisy[0], noisy[0][:, 0]).coef_, reg.coef_)


# --- eps without cross-validation ---
@pytest.mark.parametrize(
    "params",
    [
        dict(),
        dict(norm=2),
        dict(norm=1),
        dict(fit_intercept=False),
        dict(standardize=True),
        dict(loss="hinge"),
        dict(class_weight={0: 3.0, 1: 1.0}, fit_intercept=False),
        dict(loss="squared"),
        dict(loss="absolute"),
        dict(loss="squared", fit_intercept=False),
    ],
    ids=str,
)
def test_features_enter_below_the_strength_of_the_theory(noisy, params):
    """The gauge at rest, which permutations are compared by, is where the first feature enters."""
    X, y = noisy
    X = X * np.geomspace(0.5, 2, 12) + 0.3
    if params.get("loss") in ("squared", "absolute"):
        y = y + X[:, 0]
    est = estimator_module._estimator({**params, "eps": 1.0})
    data = est._data(X, y, None)
    (entry,) = estimator_module._entry_strengths(est, data, [data.target])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        above = est.set_params(eps=entry * 1.001).fit(X, y).coef_
        below = est.set_params(eps=entry * 0.98).fit(X, y).coef_
    assert np.abs(above).max() < 1e-6
    assert np.abs(below).max() > 1e-6 or params.get("loss") == "hinge"  # (5) is one-sided there


def test_null_strength_is_the_quantile_of_permutations():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(50, 8)), np.arange(50) % 2
    strict, loose = null_eps(X, y, level=0.01), null_eps(X, y, level=0.5)
    assert strict > null_eps(X, y) > loose > 0
    many = null_eps(X, y, n_permutations=1999, random_state=1)
    draws = [np.abs(class_strengths(X, rng.permutation(y))).max() for _ in range(2000)]
    assert many == pytest.approx(np.quantile(draws, 0.95), rel=0.05)
    assert null_eps(10 * X, y) == pytest.approx(10 * null_eps(X, y))
    assert null_eps(sparse.csr_matrix(X), y) == pytest.approx(null_eps(X, y))
    model = AdversarialClassifier(eps="null")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert model.fit(X, y).eps_ == null_eps(X, y)
    names = ["a", "b", "c"]
    assert null_eps(X, np.resize(names, 50)) > null_eps(X, y) * 0.5


def test_null_strength_of_a_regression(line):
    X, y = line
    model = AdversarialRegressor(eps="null").fit(X, y)
    assert model.eps_ == null_eps(X, y, loss="squared")
    assert set(np.flatnonzero(model.coef_)) >= {0, 1}


# --- choosing eps ---
@pytest.mark.parametrize("rule", ["tolerance", "one-se", "null"])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_no_feature_on_pure_noise(rule, n_classes):
    rng = np.random.default_rng(3)
    X, y = rng.normal(size=(90, 30)), np.arange(90) % n_classes
    with pytest.warns(UserWarning, match="no feature is stronger than chance"):
        model = AdversarialClassifierCV(eps_grid=4, cv=3, rule=rule).fit(X, y)
    assert not model.coef_.any()
    picks = AdversarialClassifierCV(eps_grid=4, cv=3, level=1).fit(X, y)
    assert picks.null_eps_ is None
    assert picks.coef_.any()  # what the check of the level is for


def test_rules_scorers_and_groups_of_rows(noisy):
    X, y = noisy
    by_loss = AdversarialClassifierCV(eps_grid=5, cv=3, scoring="neg_log_loss", tolerance=0)
    results = pd.DataFrame(by_loss.fit(X, y).cv_results_)
    assert by_loss.eps_ == results.eps[results.mean_score.idxmax()]
    fold = [(np.arange(0, 200), np.arange(200, 300))]
    one = clone(by_loss).set_params(cv=fold).fit(X, y)
    model = AdversarialClassifier(eps=one.cv_results_["eps"][2]).fit(X[:200], y[:200])
    expected = -log_loss(y[200:], model.predict_proba(X[200:]))
    assert one.cv_results_["mean_score"][2] == pytest.approx(expected, abs=1e-5)
    cautious = AdversarialClassifierCV(eps_grid=8, rule="one-se").fit(X, y)
    results = pd.DataFrame(cautious.cv_results_)
    best = results.mean_accuracy.idxmax()
    near = results.mean_accuracy >= results.mean_accuracy[best] - results.std_accuracy[best] / 2
    assert cautious.eps_ == results.eps[near].max()
    null = AdversarialClassifierCV(eps_grid=3, rule="null").fit(X, y)
    assert null.eps_ == null_eps(X, y) == null.null_eps_
    assert null.eps_ in null.cv_results_["eps"]

    class Recorded(GroupKFold):
        seen = None

        def split(self, X, y=None, groups=None):
            Recorded.seen = groups
            return super().split(X, y, groups)

    AdversarialClassifierCV(eps_grid=2, cv=Recorded(3)).fit(X, y, groups=np.arange(300) // 10)
    assert len(Recorded.seen) == 300
    with pytest.raises(ValueError, match="rule='best'"):
        AdversarialClassifierCV(rule="best").fit(X, y)


def test_regression_has_a_path_and_a_cross_validation(line):
    X, y = line
    path = adversarial_path(X, y, [0.05, 0.3], loss="squared")
    for row, coef in zip(path.frame.itertuples(), path.coef):
        reg = AdversarialRegressor(eps=row.eps).fit(X, y)
        np.testing.assert_allclose(coef[0], reg.coef_, atol=1e-5)
        assert row.r2 == pytest.approx(reg.score(X, y), abs=1e-6)
        assert row.robust_r2 == pytest.approx(reg.robust_score(X, y), abs=1e-6)
    attacked = X - 0.05 * np.sign(y - reg.predict(X))[:, None] * np.sign(reg.coef_)
    assert reg.robust_score(X, y) == pytest.approx(r2_score(y, reg.predict(attacked)))
    assert len(path.plot().lines) > 6
    model = AdversarialRegressorCV(eps_grid=5, cv=3).fit(X, y)
    results = pd.DataFrame(model.cv_results_)
    assert model.eps_ == results.eps[results.mean_r2 >= results.mean_r2.max() - 0.01].max()
    refit = AdversarialRegressor(eps=0.3, refit="relaxed").fit(X, y)
    on = refit.coef_ != 0
    theirs = LinearRegression().fit(X[:, on], y)
    np.testing.assert_allclose(refit.coef_[on], theirs.coef_, atol=1e-5)


def test_a_path_is_in_units_of_eps(noisy):
    X, y = noisy
    units = np.geomspace(0.01, 100, 12)
    standard = (X - X.mean(0)) / X.std(0)
    by_hand = adversarial_path(standard, y, [0.05, 0.2])
    path = adversarial_path(X * units + 3, y, [0.05, 0.2], standardize=True)
    np.testing.assert_allclose(path.strength, by_hand.strength, atol=1e-9)
    shown = [np.sort(p.plot().lines[-1].get_ydata()) for p in (path, by_hand)]
    np.testing.assert_allclose(*shown, atol=1e-7)
    weights = [[line.get_ydata() for line in p.plot().lines] for p in (path, by_hand)]
    assert max(np.max(np.abs(w)) for w in weights[0]) == pytest.approx(
        max(np.max(np.abs(w)) for w in weights[1])
    )


# --- explanations ---
def test_attributions_of_a_sparse_table_stay_sparse(noisy):
    X, y = noisy
    X = np.where(np.abs(X) > 0.7, X, 0)
    model = AdversarialClassifier(eps=0.2).fit(X, y)
    maps = model.attribute(sparse.csr_matrix(X), baseline=0.0)
    assert sparse.issparse(maps)
    np.testing.assert_allclose(maps.toarray(), model.attribute(X, baseline=0.0), atol=1e-12)
    dense, from_sparse = model.feature_impact(X), model.feature_impact(sparse.csr_matrix(X))
    pd.testing.assert_series_equal(dense, from_sparse)
    assert str(model.explain(sparse.csr_matrix(X[:1]))) == str(model.explain(X[:1]))


def test_the_baseline_is_the_training_mean(line):
    X, y = line
    labels = (y > 0).astype(int)
    model = AdversarialClassifier(eps=0.1).fit(X + 100, labels)
    mean = model.attribute((X + 100).mean(0)[None])
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose(model.feature_mean_, (X + 100).mean(0))
    for bad in (np.zeros(3), np.nan, pd.Series(np.zeros(2))):
        with pytest.raises(ValueError, match="baseline="):
            model.attribute(X, baseline=bad)


@pytest.mark.parametrize("far", [1.0, 50.0])
def test_attributions_of_many_classes_add_up_to_the_probability_shown(far):
    X, y = load_iris(return_X_y=True)
    model = AdversarialClassifier(eps=0.05, alpha_l2=0.001).fit(X, y)
    rows = X.mean(0) + far * (X - X.mean(0))
    start = X[3]
    predicted = model.predict(rows)
    change = model.predict_proba(rows) - model.predict_proba(start[None])
    total = model.attribute(rows, start).sum(1)
    np.testing.assert_allclose(total, change[np.arange(150), predicted], atol=1e-9)
    one = model.explain(X[70], n=4)
    shown = model.predict_proba(X[70:71]).max()
    at_mean = model.predict_proba(X.mean(0)[None])[0, model.predict(X[70:71])[0]]
    assert one.frame.attribution.sum() == pytest.approx(shown - at_mean)
    assert one.towards in one.outcome


def test_explanations_are_towards_the_class_shown(noisy):
    X, y = noisy
    model = AdversarialClassifier(eps=0.1).fit(X, y)
    at_mean = model.predict_proba(X.mean(0)[None])[0]
    for label in (0, 1):
        row = X[np.flatnonzero(model.predict(X) == label)[0]]
        why = model.explain(row, n=12)
        assert why.outcome.startswith(f"class {label}")
        assert why.towards == f"class {label}"
        gained = model.predict_proba(row[None]).max() - at_mean[label]
        assert why.frame.attribution.sum() == pytest.approx(gained)


# --- pipelines ---
@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        dict(
            age=rng.integers(20, 70, 200).astype(float),
            work=rng.choice(["private", "state", "self"], 200),
            hours=rng.normal(40, 8, 200),
            sex=rng.choice(["f", "m"], 200),
            noise=rng.normal(size=200),
        )
    )
    y = (table.age / 20 + 2 * (table.work == "state") + rng.normal(size=200) > 2.6).astype(int)
    return table, y


WORDS, NUMBERS = ["work", "sex"], ["age", "hours", "noise"]
BY_TYPE = make_column_selector(dtype_include=float)
SCALED = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
PIPES = {
    "columns": make_column_transformer((OneHotEncoder(drop="if_binary"), WORDS), (SCALED, NUMBERS)),
    "sparse": make_column_transformer(
        (StandardScaler(), BY_TYPE), (OneHotEncoder(), [1, 3]), sparse_threshold=1.0
    ),
    "remainder": ColumnTransformer(
        [("words", OneHotEncoder(sparse_output=False), WORDS)], remainder="passthrough"
    ),
    "slices": ColumnTransformer(
        [
            ("words", OneHotEncoder(), slice(1, 2)),
            ("dropped", "drop", ["hours"]),
            ("bins", KBinsDiscretizer(3, strategy="uniform"), ["age"]),
        ]
    ),
    "union": make_pipeline(
        make_column_transformer((OneHotEncoder(), WORDS), ("passthrough", NUMBERS)),
        FeatureUnion([("best", SelectKBest(k=4)), ("scaled", StandardScaler(with_mean=False))]),
    ),
}


@pytest.mark.parametrize("output", ["prob", "logit"])
@pytest.mark.parametrize("name", PIPES)
def test_a_pipeline_is_explained_in_raw_columns(people, name, output):
    """The columns made of a raw column are those that change with it."""
    table, y = people
    pipe = make_pipeline(clone(PIPES[name]), AdversarialClassifier(eps=0.03)).fit(table, y)
    row = table.iloc[[7]]
    why = explain(pipe, row, n=99, output=output)
    by_column = {text.split(" = ")[0]: a for text, a in why.frame.values}
    assert set(by_column) <= set(table)
    assert explain(pipe, table.iloc[7], n=99, output=output).frame.equals(why.frame)
    est, made = pipe[-1], pipe[:-1].transform(row)
    made = made.toarray() if sparse.issparse(made) else np.asarray(made)
    sign = 1 if pipe.predict(row)[0] == 1 else -1
    parts = sign * est.attribute(made, output=output)[0]
    assert sum(by_column.values()) == pytest.approx(parts.sum())
    for column in table if output == "logit" else ():
        made_of_it = np.zeros(made.shape[1], bool)
        for value in table[column].unique()[:4]:
            moved = pipe[:-1].transform(row.assign(**{column: value}))
            made_of_it |= (moved.toarray()[0] if sparse.issparse(moved) else moved[0]) != made[0]
        assert by_column.get(column, 0) == pytest.approx(parts[made_of_it].sum())


def test_values_are_shown_as_they_came(people):
    table, y = people
    pipe = make_pipeline(clone(PIPES["columns"]), AdversarialClassifier(eps=0.03)).fit(table, y)
    text = str(explain(pipe, table.iloc[7]))
    assert f"work = {table.work[7]}" in text or f"age = {table.age[7]:.3g}" in text
    search = GridSearchCV(pipe, {"adversarialclassifier__eps": [0.03]}, cv=2).fit(table, y)
    assert str(explain(search, table.iloc[7])) == text
    from_row = explain(pipe, table.iloc[7], baseline=table.iloc[7])
    assert len(from_row.frame) == 0
    with pytest.raises(ValueError, match="2 rows"):
        explain(pipe, table[:2])


def test_arrays_and_regression_go_through_a_pipeline(line):
    X, y = line
    pipe = make_pipeline(StandardScaler(), AdversarialRegressor(eps=0.1)).fit(X, y)
    why = explain(pipe, X[0])
    assert why.frame.feature[0].startswith(("x0 = ", "x1 = ", "x2 = "))
    moved = pipe.predict(X[:1])[0] - pipe[-1].predict(np.zeros((1, 6)))[0]
    assert why.frame.attribution.sum() == pytest.approx(moved)
    assert str(explain(pipe[-1], X[0])) == str(pipe[-1].explain(X[0]))


@pytest.mark.parametrize("step", [PCA(2), FunctionTransformer(np.abs)], ids=["pca", "function"])
def test_what_cannot_be_followed_is_refused(line, step):
    X, y = line
    pipe = make_pipeline(step, AdversarialRegressor()).fit(X, y)
    with pytest.raises(ValueError, match="cannot be followed"):
        explain(pipe, X[0])
    with pytest.raises(TypeError, match="ends in LinearRegression"):
        explain(LinearRegression().fit(X, y), X[0])
