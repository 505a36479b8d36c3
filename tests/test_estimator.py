"The estimators against scikit-learn's own checks, other solvers, and brute force."

import os
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib import parallel_config
from scipy import sparse
from scipy.special import expit
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, make_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import ElasticNet, LinearRegression, LogisticRegression
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from advinterp.duals import ElasticNet as ElasticNetDual
from advinterp.duals import GroupBall, L1Ball, L2Ball, LInfBall
from advinterp.estimator import (
    AdversarialClassifier,
    AdversarialClassifierCV,
    AdversarialRegressor,
    adversarial_path,
    class_strengths,
)
from advinterp.solver import EpsBall, EpsBall1, RobustProblem, _losses, duality_gap, solve


# --- scikit-learn's conventions -------------------------------------------------------------------------------------
@parametrize_with_checks(
    [
        AdversarialClassifier(),
        AdversarialClassifier(loss="hinge", alpha_l2=0.01),
        AdversarialRegressor(),
        AdversarialClassifierCV(eps_grid=2, cv=3),
    ]
)
def test_sklearn(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y


@pytest.fixture(scope="module")
def noisy():
    X, y = make_classification(
        300, 12, n_informative=5, n_redundant=0, flip_y=0.2, class_sep=0.6, random_state=0
    )
    return X, y


def test_pandas_pickle_clone_html_and_routing(noisy):
    X, y = noisy
    F = pd.DataFrame(X, columns=[f"f{i}" for i in range(12)])
    clf = AdversarialClassifier(eps=0.1).fit(F, y)
    assert (
        list(clf.feature_names_in_) == list(F.columns)
        and "AdversarialClassifier" in clf._repr_html_()
    )
    assert (pickle.loads(pickle.dumps(clf)).predict(F) == clf.predict(F)).all()
    assert clone(clf).get_params() == clf.get_params() and not hasattr(clone(clf), "coef_")
    assert list(clf.feature_impact(F).index[:1]) == [
        f"f{np.abs(clf.attribute(F)).mean(0).argmax()}"
    ]
    with config_context(enable_metadata_routing=True):
        pipe = make_pipeline(
            MinMaxScaler(), AdversarialClassifier(eps=0.01).set_fit_request(sample_weight=True)
        )
        w = np.linspace(0.1, 2, len(y))
        got = cross_validate(pipe, X, y, params=dict(sample_weight=w), return_estimator=True)[
            "estimator"
        ][0][-1].coef_
        with config_context(enable_metadata_routing=False):
            plain = cross_validate(pipe, X, y, return_estimator=True)["estimator"][0][-1].coef_
    assert np.abs(got - plain).max() > 1e-3


# --- the optimum ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kw,ref",
    [
        (dict(), dict(C=np.inf)),
        (dict(alpha_l2=0.01), dict(C=1 / 3.0)),
        (dict(alpha_l1=0.01), dict(C=1 / 3.0, l1_ratio=1.0, solver="saga", random_state=0)),
    ],
)
def test_eps_zero_is_logistic_regression(noisy, kw, ref):
    X, y = noisy
    theirs = LogisticRegression(
        **{"solver": "newton-cholesky", **ref}, tol=1e-10, max_iter=20_000
    ).fit(X, y)
    ours = AdversarialClassifier(eps=0, **kw).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-5)


def test_eps_zero_is_least_squares_and_elastic_net(noisy):
    X, _ = noisy
    y = X @ np.arange(12.0) + np.random.default_rng(0).normal(size=300)
    np.testing.assert_allclose(
        AdversarialRegressor(eps=0).fit(X, y).coef_, LinearRegression().fit(X, y).coef_, atol=1e-5
    )
    ours = AdversarialRegressor(eps=0, alpha_l1=0.05, alpha_l2=0.05).fit(X, y)
    np.testing.assert_allclose(
        ours.coef_, ElasticNet(alpha=0.1, l1_ratio=0.5, tol=1e-12).fit(X, y).coef_, atol=1e-5
    )


def _problem(loss, ball, l1, l2, fit_intercept, seed=0, n=90, d=8):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * [1, 1, 3, 0.1, 1, 1, 1, 1]
    f = X @ [1, -1, 0.3, 5, 0, 0, 0, 0.2] + rng.normal(size=n) * 1.5 + 0.5
    m, s = (X.mean(0) if fit_intercept else np.zeros(d)), X.std(0)
    return RobustProblem(
        X,
        f if _losses[loss].signed else np.sign(f),
        rng.dirichlet(np.ones(n) * 5),
        _losses[loss],
        ball,
        np.full(d, l1),
        np.full(d, l2),
        fit_intercept,
        m,
        s,
    )


_e, _mixed, _groups = (
    np.full(8, 0.1),
    np.array([0, 0.1, 0.1, 0.01, 0.1, 0.1, 0, 0.1]),
    np.array([0, 0, 1, 1, 1, 2, 3, 3]),
)
_balls = dict(
    inf=EpsBall(_e),
    inf_mixed=EpsBall(_mixed),
    two=EpsBall(_e, _groups * 0),
    two_mixed=EpsBall(_mixed, _groups * 0),
    one=EpsBall1(_e),
    one_mixed=EpsBall1(_mixed),
    groups=EpsBall(_e, _groups),
    none=EpsBall(0 * _e),
)


def _reference(p):
    cp = pytest.importorskip("cvxpy", reason="CVXPY is an optional peer: pip install .[peers]")
    w, b, B = cp.Variable(8), cp.Variable(), p.ball
    if isinstance(B, EpsBall1):
        R = cp.max(cp.multiply(B.e, cp.abs(w)))
    else:
        R = sum(
            cp.norm(cp.multiply(B.e[B.groups == k], w[B.groups == k]))
            for k in range(B.groups.max() + 1)
        )
    f = (p.X - p.mean) / p.scale @ w + b
    z = cp.abs(p.y - f) + R if p.loss.signed else R - cp.multiply(p.y, f)
    g = {
        "Softplus": lambda: cp.logistic(z + getattr(p.loss, "shift", 0)),
        "HingeLoss": lambda: cp.pos(1 + z),
        "Squared": lambda: cp.square(z) / 2,
        "Absolute": lambda: z,
    }[type(p.loss).__name__]()
    program = cp.Problem(
        cp.Minimize(p.q @ g + p.l1 @ cp.abs(w) + cp.sum(cp.multiply(p.l2, cp.square(w))) / 2),
        [] if p.fit_intercept else [b == 0],
    )
    return program.solve(solver="CLARABEL")


@pytest.mark.parametrize("loss", _losses)
@pytest.mark.parametrize("ball", _balls)
def test_no_worse_than_cvxpy_and_gap_is_a_bound(loss, ball):
    for i, (l1, l2) in enumerate([(0, 0), (0.02, 0), (0, 0.05), (0.02, 0.05)]):
        p = _problem(loss, _balls[ball], l1, l2, i % 2 == 0)
        best = _reference(p)
        w, b, gap, *_ = solve(p)
        assert p.value(w, b) <= best + 1e-7 and p.value(w, b) - best - 1e-7 <= gap < 1e-5
        w, b, gap, *_ = solve(p, max_iter=3)  # stopped early: the bound must still hold
        assert gap >= p.value(w, b) - best - 1e-7


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(_losses)),
    st.sampled_from(sorted(_balls)),
    st.sampled_from([0.0, 0.03]),
    st.sampled_from([0.0, 0.03]),
    st.booleans(),
    st.integers(0, 10_000),
)
def test_gap_bounds_any_model_with_any_masses(loss, ball, l1, l2, fit_intercept, seed):
    p = _problem(loss, _balls[ball], l1, l2, fit_intercept, seed % 5, n=40)
    w, b, *_ = solve(p)
    best, rng = p.value(w, b), np.random.default_rng(seed)
    u, c = (
        w + rng.normal(size=8) * rng.choice([1e-3, 0.1, 1]),
        (b + rng.normal() * 0.1) * fit_intercept,
    )
    A = p.q * rng.uniform(0, 1, 40)
    assert (
        duality_gap(p, u, c, (A, A * rng.uniform(-1, 1, 40)) if p.loss.signed else A)
        >= p.value(u, c) - best - 1e-9
    )


@pytest.mark.parametrize("ball", ["inf", "inf_mixed", "two", "groups"])
def test_two_solvers_agree(ball):
    p = _problem("logistic", _balls[ball], 0, 0, True)
    (w, b, gap, *_), (v, c, *_) = solve(p, solver="lbfgs"), solve(p, solver="conic")
    assert gap < 1e-10
    np.testing.assert_allclose(w, v, atol=1e-4)
    assert abs(p.value(w, b) - p.value(v, c)) < 1e-8


def test_better_than_a_thousand_epochs_of_sgd(noisy):
    X, y = noisy
    s, rng, w, b = 2 * y - 1, np.random.default_rng(0), np.zeros(12), 0.0
    for epoch in range(1000):
        for B in rng.permutation(300).reshape(10, 30):
            a = expit(0.1 * np.abs(w).sum() - s[B] * (X[B] @ w + b))
            lr = 0.5 / np.sqrt(1 + epoch)
            w, b = (
                w - lr * (a.mean() * 0.1 * np.sign(w) - (a * s[B]) @ X[B] / 30),
                b + lr * (a * s[B]).mean(),
            )
    sgd = np.logaddexp(0, 0.1 * np.abs(w).sum() - s * (X @ w + b)).mean()
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


# --- arguments ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "kw,msg",
    [
        (dict(eps=-0.1), "eps=-0.1"),
        (dict(eps=np.nan), "eps=nan"),
        (dict(eps=[0.1] * 11), "eps has shape"),
        (dict(eps=[np.inf] * 12), "finite numbers"),
        (dict(norm=3), "norm=3"),
        (dict(norm=ElasticNetDual(0.1, 0.1)), "expected .inf., 2, 1"),
        (dict(norm=GroupBall(0.1)), "patches are for images"),
        (dict(norm=2, groups=[0] * 12), "groups with norm=2"),
        (dict(groups=[0, 1]), "groups has shape"),
        (dict(loss="log"), "loss='log'"),
        (dict(alpha_l1=-1.0), "alpha_l1=-1"),
        (dict(alpha_l2=np.nan), "alpha_l2=nan"),
        (dict(tol=-1), "tol=-1"),
        (dict(max_iter=0), "max_iter=0"),
        (dict(solver="sgd"), "solver='sgd'"),
        (dict(multi_class="multinomial"), "multi_class"),
    ],
)
def test_bad_arguments(noisy, kw, msg):
    with pytest.raises(ValueError, match=msg):
        AdversarialClassifier(**kw).fit(*noisy)


def test_bad_data(noisy):
    X, y = noisy
    with pytest.raises(ValueError, match="one class"):
        AdversarialClassifier().fit(X, y * 0)
    with pytest.raises(ValueError, match="[Nn]egative"):
        AdversarialClassifier().fit(X, y, np.where(y, -1, 1))
    with pytest.raises(TypeError, match="eps"):
        AdversarialClassifier(eps="a").fit(X, y)
    with pytest.raises(ValueError, match="eps_grid"):
        adversarial_path(X, y, [])
    with pytest.raises(ValueError, match="brings one eps"):
        adversarial_path(X, y, [0.1], norm=LInfBall(0.1))
    with pytest.raises(ValueError, match="expected both"):
        adversarial_path(X, y, [0.1], X_test=X)
    with pytest.raises(AttributeError, match="predict_proba") as e:
        AdversarialClassifier(loss="hinge").fit(X, y).predict_proba(X)
    assert "not probabilities" in str(e.value.__cause__)


@pytest.mark.parametrize(
    "est", [AdversarialClassifier(eps=0.01), AdversarialClassifier(eps=0), AdversarialRegressor()]
)
def test_constant_columns_get_no_weight(noisy, est):
    X, y = noisy
    const = np.c_[X, np.full(300, 1e6), np.zeros(300)]
    a, b = clone(est).fit(X, y), clone(est).fit(const, y)
    np.testing.assert_allclose(np.ravel(b.coef_), np.r_[np.ravel(a.coef_), 0, 0], atol=1e-5)


def test_separable_rows(cancer):
    X, y = cancer
    with pytest.warns(ConvergenceWarning, match="raise eps, or set alpha_l2"):
        clf = AdversarialClassifier(eps=0).fit(X, y)
    assert clf.score(X, y) == 1 and np.isfinite(clf.coef_).all() and clf.gap_ > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AdversarialClassifier(eps=0, loss="hinge").fit(X, y)
        AdversarialClassifier(eps=0.1).fit(X, y)


@pytest.mark.parametrize("limit", ["_max_active", "_max_nnls"])
def test_beyond_the_dense_limits(cancer, noisy, monkeypatch, limit):
    from advinterp import solver

    def fits():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [
                AdversarialClassifier(eps=eps).fit(*data)
                for eps, data in ((0.02, noisy), (0.01, noisy), (0, cancer))
            ]

    full = fits()
    monkeypatch.setattr(solver, limit, 3)
    for a, b in zip(full, fits()):
        assert b.gap_ >= b.objective_ - a.objective_ and abs(a.objective_ - b.objective_) < 2e-6


def test_early_stop_warns(noisy):
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        AdversarialClassifier(max_iter=2).fit(*noisy)


def test_untouchable_features_and_vectors(noisy):
    X, y = noisy
    e = np.full(12, 5.0)
    e[3] = 0
    clf = AdversarialClassifier(eps=e).fit(X, y)
    assert np.flatnonzero(clf.coef_).tolist() == [3]
    np.testing.assert_allclose(
        AdversarialClassifier(eps=np.full(12, 0.1)).fit(X, y).coef_,
        AdversarialClassifier(eps=0.1).fit(X, y).coef_,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    "dual,kw",
    [(LInfBall(0.1), dict(norm="inf")), (L2Ball(0.1), dict(norm=2)), (L1Ball(0.1), dict(norm=1))],
)
def test_duals_are_norms(noisy, dual, kw):
    X, y = noisy
    np.testing.assert_allclose(
        AdversarialClassifier(norm=dual).fit(X, y).coef_,
        AdversarialClassifier(eps=0.1, **kw).fit(X, y).coef_,
        atol=1e-9,
    )
    w = np.random.default_rng(0).normal(size=12)
    import torch

    assert (
        abs(
            float(dual.h_star(torch.tensor(w)[None]))
            - AdversarialClassifier(eps=0.1, **kw).fit(X, y)._ball.support(w)
        )
        < 1e-12
    )


def test_groups_leave_together(noisy):
    X, y = noisy
    groups = np.repeat(list("abcdef"), 2)
    clf = AdversarialClassifier(eps=0.2, groups=groups).fit(X, y)
    on = (clf.coef_[0] != 0).reshape(6, 2)
    assert (on[:, 0] == on[:, 1]).all() and 0 < on[:, 0].sum() < 6 and clf.gap_ < 1e-9
    assert list(clf.feature_impact(X).index[:1])[0] in "abcdef"


def test_standardize_is_eps_per_deviation(noisy):
    X, y = noisy
    X = X * np.geomspace(0.01, 100, 12) + 3
    a = AdversarialClassifier(eps=0.1, alpha_l1=0.01, alpha_l2=0.01, standardize=True).fit(X, y)
    b = AdversarialClassifier(eps=0.1, alpha_l1=0.01, alpha_l2=0.01).fit(
        (X - X.mean(0)) / X.std(0), y
    )
    np.testing.assert_allclose(a.coef_ * X.std(0), b.coef_, atol=1e-8)
    c = AdversarialClassifier(eps=0.1, alpha_l1=0.01, alpha_l2=0.01, standardize=True).fit(
        sparse.csr_matrix(X), y
    )
    np.testing.assert_allclose(a.coef_ * X.std(0), c.coef_ * X.std(0), atol=1e-6)


@pytest.mark.parametrize(
    "kw", [dict(), dict(norm=2), dict(loss="hinge"), dict(loss="softplus_hinge", alpha_l1=0.01)]
)
def test_sparse_is_dense(noisy, kw):
    X, y = noisy
    X = np.where(np.abs(X) > 0.7, X, 0)
    a, b = (
        AdversarialClassifier(eps=0.05, **kw).fit(X, y),
        AdversarialClassifier(eps=0.05, **kw).fit(sparse.csr_matrix(X), y),
    )
    assert abs(a.objective_ - b.objective_) < 1e-8
    np.testing.assert_allclose(a.coef_, b.coef_, atol=1e-4)
    np.testing.assert_allclose(
        b.decision_function(sparse.csr_matrix(X)), b.decision_function(X), atol=1e-12
    )


def test_memory_map_is_not_copied(noisy, tmp_path, monkeypatch):
    import advinterp.estimator as E

    X, y = noisy
    m = np.memmap(tmp_path / "x", float, "w+", shape=X.shape)
    m[:] = X
    monkeypatch.setattr(E, "_by_columns", lambda X: X)  # what happens above 256 MiB
    seen, old = [], E.RobustProblem
    monkeypatch.setattr(E, "RobustProblem", lambda X, *a: (seen.append(X), old(X, *a))[1])
    clf = AdversarialClassifier().fit(m, y)
    assert np.shares_memory(seen[0], m)
    np.testing.assert_allclose(clf.coef_, AdversarialClassifier().fit(X, y).coef_, atol=1e-9)


def test_warm_start_and_class_weight(noisy):
    X, y = noisy
    clf = AdversarialClassifier(eps=0.1, warm_start=True).fit(X, y)
    first = clf.n_iter_[0]
    assert clf.fit(X, y).n_iter_[0] < first
    a = AdversarialClassifier(class_weight={0: 3.0, 1: 1.0}).fit(X, y)
    b = AdversarialClassifier().fit(X, y, np.where(y == 0, 3.0, 1.0))
    np.testing.assert_allclose(a.coef_, b.coef_, atol=1e-9)


# --- what the estimator says ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_robust_score_by_brute_force(norm):
    X, y = load_iris(return_X_y=True)
    clf = AdversarialClassifier(eps=0.3, norm=norm, alpha_l2=0.001).fit(X, y)
    safe = np.ones(150, bool)
    for c in range(3):
        v = clf.coef_[c] - clf.coef_[y]  # the attack on the lead of y over c
        step = {
            "inf": np.sign(v),
            2: v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12),
            1: np.sign(v) * (np.abs(v) == np.abs(v).max(1, keepdims=True)),
        }[norm]
        f = clf.decision_function(X + 0.3 * step)
        safe &= (y == c) | (f[range(150), y] > f[:, c])
    assert clf.robust_score(X, y) == safe.mean() <= clf.score(X, y)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000))
def test_attributions_are_complete(seed):
    rng = np.random.default_rng(seed)
    X, y, u = rng.normal(size=(40, 4)), np.arange(40) % 2, rng.normal(size=4)
    X[:, 0] += y * 2
    clf = AdversarialClassifier(eps=0.1, alpha_l2=0.01).fit(X, y)
    np.testing.assert_allclose(
        clf.attribute(X, u).sum(1),
        clf.predict_proba(X)[:, 1] - clf.predict_proba(u[None])[0, 1],
        atol=1e-10,
    )
    np.testing.assert_allclose(clf.attribute(X, u, "logit"), (X - u) * clf.coef_, atol=1e-12)
    reg = AdversarialRegressor().fit(X, X[:, 0])
    np.testing.assert_allclose(
        reg.attribute(X, u).sum(1), reg.predict(X) - reg.predict(u[None])[0], atol=1e-10
    )


def test_explain(noisy):
    X, y = noisy
    F = pd.DataFrame(X, columns=[f"f{i}" for i in range(12)])
    clf = AdversarialClassifier(eps=0.1).fit(F, y)
    ex = clf.explain(F.iloc[[3]], k=2)
    a = clf.attribute(F.iloc[[3]])[0]
    j = np.abs(a).argmax()
    assert (
        len(ex.frame) == 2
        and ex.frame.attribution[0] == a[j]
        and ex.frame.feature[0].startswith(f"f{j} = ")
    )
    assert len(str(ex).splitlines()) == 2 and f"class {clf.predict(F.iloc[[3]])[0]}" in str(ex)
    assert len(ex.plot().patches) == 2
    grouped = clf.explain(F.iloc[[3]], groups=np.repeat(range(6), 2))
    assert abs(grouped.frame.attribution.sum() - a.sum()) < 0.1 and len(grouped.frame) <= 5


def test_path_and_cv(cancer):
    X, y = cancer
    path = adversarial_path(
        X[::2], y[::2], [0.05, 0.3, 0.1], alpha_grid=[0, 0.02], X_test=X[1::2], y_test=y[1::2]
    )
    assert list(path.frame.eps) == [0.3, 0.1, 0.05] * 2 and path.coef.shape == (6, 1, 30)
    for i in range(6):
        clf = AdversarialClassifier(eps=path.frame.eps[i], alpha_l1=path.frame.alpha_l1[i]).fit(
            X[::2], y[::2]
        )
        np.testing.assert_allclose(path.coef[i], clf.coef_, atol=1e-6)
        assert path.frame.accuracy[i] == clf.score(X[1::2], y[1::2]) and path.frame.n_active[
            i
        ] == np.count_nonzero(clf.coef_)
    a = AdversarialClassifierCV(eps_grid=5, cv=3, tolerance=0.02).fit(X, y)
    with parallel_config("threading"):
        b = AdversarialClassifierCV(eps_grid=5, cv=3, n_jobs=2, tolerance=0.02).fit(X, y)
    assert a.eps_ == b.eps_ and (a.coef_ == b.coef_).all() and a.predict_proba(X).shape == (569, 2)
    assert len(path.plot().lines) > 6


# --- the paper's tables ---------------------------------------------------------------------------------------------
@pytest.mark.skipif(
    "ADVINTERP_DATA" not in os.environ,
    reason="ADVINTERP_DATA is not set: no Mushroom and Spambase here",
)
@pytest.mark.parametrize("name,eps", [("mushroom", 0.1), ("spambase", 0.1)])
def test_concise_at_little_cost(name, eps):
    from sklearn.preprocessing import OneHotEncoder

    from advinterp.data import load

    t = load(name)
    X = (
        StandardScaler().fit_transform(t.x)
        if name == "spambase"
        else (
            t.x if set(np.unique(t.x)) <= {0, 1} else OneHotEncoder().fit_transform(t.x).toarray()
        )
    )
    path = adversarial_path(X[::2], t.y[::2], [eps, 0.01], X_test=X[1::2], y_test=t.y[1::2])
    strong, weak = path.frame.iloc[0], path.frame.iloc[1]
    assert (
        strong.gap < 1e-9
        and strong.gini > weak.gini + 0.04
        and strong.accuracy > weak.accuracy - 0.06
        and strong.robust_accuracy > 0.7
    )
