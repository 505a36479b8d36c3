"""The joint model of many classes against brute force, CVXPY, and the model of two classes."""

import warnings
from itertools import product

import numpy as np
import pytest
from scipy import sparse
from scipy.special import logsumexp, softmax
from sklearn.datasets import load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import cross_val_predict

from advinterp import multiclass as multiclass_module
from advinterp.estimator import AdversarialClassifier, AdversarialClassifierCV, null_eps
from advinterp.multiclass import JointProblem, joint_gap, solve_joint
from advinterp.solver import LOSSES, EpsBall, EpsBall1, RobustProblem

CLASSES = ["logistic", "softplus_hinge", "hinge"]
BALLS = {
    "inf": lambda e: EpsBall(e),
    "mixed": lambda e: EpsBall(e * (np.arange(len(e)) > 0)),
    "two": lambda e: EpsBall(e, np.zeros(len(e), int)),
    "groups": lambda e: EpsBall(e, np.arange(len(e)) // 2),
    "one": lambda e: EpsBall1(e),
}


def table(n=72, d=4, n_classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return rng.normal(size=(n, d)) + rng.normal(size=(n_classes, d))[y], y


def joint_problem(loss, ball="inf", eps=0.2, l1=0.0, l2=0.0, fit_intercept=True, seed=0):
    X, y = table(seed=seed)
    X = X * [1, 10, 0.1, 1] + [0, 5, 0, 0]
    n, d = X.shape
    q = np.random.default_rng(seed).choice([1.0, 2.0], n)
    sd = X.std(0)
    one = np.ones(d)
    balls = BALLS[ball](eps * sd)
    mean = X.mean(0) * fit_intercept
    penalties = l1 * sd, l2 * sd**2 * one
    return JointProblem(
        RobustProblem(X, y, q / q.sum(), LOSSES[loss], balls, *penalties, fit_intercept, mean, sd),
        3,
    )


@pytest.fixture
def quiet():
    """Warnings of the solver are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def support(cp, ball, w):
    stretched = cp.multiply(ball.e, w)
    if isinstance(ball, EpsBall1):
        return cp.norm_inf(stretched)
    return sum(cp.norm(stretched[np.flatnonzero(ball.groups == k)]) for k in set(ball.groups))


def optimum_by_cvxpy(joint):
    "The least objective that CVXPY finds."
    cp = pytest.importorskip("cvxpy", reason="CVXPY is an optional peer: pip install .[peers]")
    prob = joint.prob
    X = (prob.X - prob.mean) / prob.scale
    W, b = cp.Variable((3, X.shape[1])), cp.Variable(3)
    total = prob.l1 @ cp.sum(cp.abs(W), 0) + prob.l2 @ cp.sum(cp.square(W), 0) / 2
    for y in range(3):
        rows = np.flatnonzero(joint.labels == y)
        leads = [np.zeros(len(rows))]
        for c in {0, 1, 2} - {y}:
            scores = X[rows] @ (W[c] - W[y]) + b[c] - b[y]
            leads.append(scores + support(cp, prob.ball, W[c] - W[y]) + joint.margins.max())
        stack = cp.vstack(leads)
        losses = cp.log_sum_exp(stack, axis=0) if joint.smooth else cp.max(stack, axis=0)
        total = total + prob.q[rows] @ losses
    held = [cp.sum(b) == 0] if prob.fit_intercept else [b == 0]  # one of the equal solutions
    if not prob.l1.any() and not prob.l2.any():
        held.append(cp.sum(W, axis=0) == 0)
    return cp.Problem(cp.Minimize(total), held).solve(solver="CLARABEL")


# --- the optimum and its bound ---
@pytest.mark.parametrize("loss", CLASSES)
@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("l1, l2, fit_intercept", [(0, 0, True), (0.01, 0.02, False)])
def test_the_optimum_of_cvxpy(loss, ball, l1, l2, fit_intercept):
    joint = joint_problem(loss, ball, l1=l1, l2=l2, fit_intercept=fit_intercept)
    found = solve_joint(joint)
    assert found.value == pytest.approx(optimum_by_cvxpy(joint), abs=1e-6)


@pytest.mark.parametrize("loss", CLASSES)
@pytest.mark.parametrize("ball", BALLS)
@pytest.mark.parametrize("l1, l2, fit_intercept", [(0, 0, True), (0.01, 0, False), (0, 0.02, True)])
def test_the_bound_closes(loss, ball, l1, l2, fit_intercept):
    joint = joint_problem(loss, ball, l1=l1, l2=l2, fit_intercept=fit_intercept)
    found = solve_joint(joint)
    assert found.gap < 1e-6
    assert joint.value(found.W, found.b) == found.value
    if not fit_intercept:
        np.testing.assert_array_equal(found.b, 0)


@pytest.mark.parametrize("loss", CLASSES)
@pytest.mark.parametrize("ball", BALLS)
def test_the_bound_is_never_below_what_is_lost(loss, ball):
    rng = np.random.default_rng(0)
    for l2 in (0.0, 0.05):
        joint = joint_problem(loss, ball, l2=l2)
        least = solve_joint(joint)
        for size in (1e-3, 0.1, 1.0):
            W = least.W + size * rng.normal(size=least.W.shape)
            b = least.b + size * rng.normal(size=3)
            A = rng.random(joint.others.shape)
            A *= joint.prob.q[:, None] / A.sum(1, keepdims=True)
            u = np.zeros((3, 3, 4))
            for c, k in ((0, 1), (0, 2), (1, 2)):
                u[c, k] = joint.prob.ball.attain(W[c] - W[k])
                u[k, c] = -u[c, k]
            lost = joint.value(W, b) - least.value
            assert joint_gap(joint, W, b, A, u) >= lost - least.gap - 1e-9


# --- the worst case ---
@pytest.mark.parametrize("loss", CLASSES)
@pytest.mark.parametrize("norm", ["inf", 1])
def test_the_worst_case_by_trying_every_corner(loss, norm, quiet):
    """Equal for the hinge; for the softmax the objective is not below it, and often above."""
    X, y = table(n=60, d=3)
    clf = AdversarialClassifier(0.3, norm, loss, multi_class="joint").fit(X, y)
    corners = np.array(list(product([-1, 1], repeat=3))) if norm == "inf" else np.eye(3)
    margin = dict(logistic=0, softplus_hinge=1, hinge=1)[loss]
    worst = np.full(60, -np.inf)
    for corner in np.vstack([corners, -corners]):
        scores = (X + 0.3 * corner) @ clf.coef_.T + clf.intercept_
        leads = scores - scores[np.arange(60), y][:, None] + margin * (np.arange(3) != y[:, None])
        worst = np.maximum(worst, leads.max(1) if loss == "hinge" else logsumexp(leads, axis=1))
    slack = clf.objective_ - worst.mean()
    if loss == "hinge":
        assert slack == pytest.approx(0, abs=1e-10)
    else:
        assert slack > (1e-3 if norm == 1 else -1e-10)


@pytest.mark.parametrize("loss", CLASSES)
def test_a_third_class_of_no_rows_in_reach_changes_little(loss):
    """For two classes alone the option says nothing: it is the model of two."""
    X, y = table()
    two = y < 2
    plain = AdversarialClassifier(0.2, loss=loss).fit(X[two], y[two])
    joint = AdversarialClassifier(0.2, loss=loss, multi_class="joint").fit(X[two], y[two])
    np.testing.assert_array_equal(plain.coef_, joint.coef_)


# --- the estimator ---
@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return (X - X.mean(0)) / X.std(0), y


def test_better_probabilities_than_one_against_the_rest(iris):
    X, y = iris
    losses = []
    for model in (
        AdversarialClassifier(0.05, multi_class="joint"),
        AdversarialClassifier(0.05),
        LogisticRegression(),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            p = cross_val_predict(model, X, y, cv=5, method="predict_proba")
        losses.append(log_loss(y, p))
    assert losses[0] < 0.5 * min(losses[1:])


def test_probabilities_and_attributions_are_those_of_the_softmax(iris, quiet):
    X, y = iris
    clf = AdversarialClassifier(0.1, multi_class="joint").fit(X, y)
    p = softmax(X @ clf.coef_.T + clf.intercept_, axis=1)
    np.testing.assert_allclose(clf.predict_proba(X), p, atol=1e-12)
    np.testing.assert_allclose(np.exp(clf.predict_log_proba(X)), p, atol=1e-12)
    shown = p.argmax(1)
    baseline = softmax(clf.feature_mean_ @ clf.coef_.T + clf.intercept_)
    change = p[np.arange(150), shown] - baseline[shown]
    np.testing.assert_allclose(clf.attribute(X).sum(1), change, atol=1e-8)
    logits = clf.attribute(X, output="logit")
    np.testing.assert_allclose(logits, (X - X.mean(0)) * clf.coef_[shown], atol=1e-10)
    assert f"probability {p[0].max():.3f}" in str(clf.explain(X[0]))


def test_robust_score_counts_what_the_hinge_saw(iris, quiet):
    """A row whose worst lead stays below 0 is a hit; these are the leads of the objective."""
    X, y = iris
    clf = AdversarialClassifier(0.2, loss="hinge", multi_class="joint", alpha_l2=1e-3).fit(X, y)
    assert clf.score(X, y) >= clf.robust_score(X, y) > 0.7
    hits = 0
    for x, label in zip(X, y):
        worst = np.inf
        for signs in product([-1, 1], repeat=4):
            scores = (x + 0.2 * np.array(signs)) @ clf.coef_.T + clf.intercept_
            rest = np.delete(scores, label).max()
            worst = min(worst, scores[label] - rest)
        hits += worst > 0
    assert clf.robust_score(X, y) == pytest.approx(hits / 150)


def test_features_leave_exactly(iris, quiet):
    X, y = iris
    X = np.c_[X, np.random.default_rng(0).normal(size=(150, 3))]
    clf = AdversarialClassifier(0.45, multi_class="joint").fit(X, y)
    assert not clf.coef_[:, 4:].any() and clf.coef_[:, 2:4].all()
    np.testing.assert_allclose(clf.coef_.sum(0), 0, atol=1e-12)
    strength = null_eps(X, y, multi_class="joint")
    with pytest.warns(UserWarning, match="all weights are zero"):
        constant = AdversarialClassifier(3.0, multi_class="joint").fit(X, y)
    np.testing.assert_allclose(constant.predict_proba(X), 1 / 3, atol=1e-6)
    assert 0.05 < strength < 0.5


@pytest.mark.parametrize("loss", CLASSES)
@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_features_enter_below_the_strength_of_the_pairs(loss, norm, fit_intercept):
    """An upper bound, exact where two classes are alone: at it no feature is in the model."""
    X, y = table(n=90, d=5, seed=2)
    centred = X - X.mean(0)
    params = dict(loss=loss, norm=norm, fit_intercept=fit_intercept, multi_class="joint")
    means = np.array([centred[y == c].mean(0) for c in range(3)])
    size = dict(inf=lambda v: np.abs(v).max(), two=np.linalg.norm, one=lambda v: np.abs(v).sum())
    gauge = size[{"inf": "inf", 2: "two", 1: "one"}[norm]]
    pairs = [gauge(means[c] - means[k]) / 2 for c, k in ((0, 1), (0, 2), (1, 2))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        above = AdversarialClassifier(1.001 * max(pairs), **params).fit(centred, y)
        below = AdversarialClassifier(0.5 * max(pairs), **params).fit(centred, y)
    assert not above.coef_.any()
    assert below.coef_.any()


def test_weights_of_rows_and_sparse_tables(iris, quiet):
    X, y = iris
    weight = np.arange(150) % 3
    params = dict(eps=0.1, multi_class="joint", alpha_l2=0.01)
    weighted = AdversarialClassifier(**params).fit(X, y, sample_weight=weight)
    repeated = AdversarialClassifier(**params).fit(X.repeat(weight, 0), y.repeat(weight))
    np.testing.assert_allclose(weighted.coef_, repeated.coef_, atol=1e-5)
    raw = load_iris().data
    dense = AdversarialClassifier(**params).fit(raw, y)
    thin = AdversarialClassifier(**params).fit(sparse.csr_matrix(raw), y)
    np.testing.assert_allclose(dense.coef_, thin.coef_, atol=1e-5)
    assert max(dense.gap_, thin.gap_, weighted.gap_) < 1e-8


def test_eps_is_chosen_by_folds(iris):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clf = AdversarialClassifierCV(4, 0.1, cv=3, multi_class="joint").fit(*iris)
    assert 0 < clf.eps_ <= clf.cv_results_["eps"].max()
    assert clf.score(*iris) > 0.9


def test_what_does_not_fit_is_refused(iris, monkeypatch):
    X, y = iris
    for arguments, message in (
        (dict(refit="scale"), "refit='scale' with multi_class='joint'"),
        (dict(solver="lbfgs"), "solver='lbfgs' with multi_class='joint'"),
    ):
        with pytest.raises(ValueError, match=message):
            AdversarialClassifier(multi_class="joint", **arguments).fit(X, y)
    with pytest.raises(ValueError, match="multi_class='multinomial'"):
        AdversarialClassifier(multi_class="multinomial").fit(X, y)
    monkeypatch.setattr(multiclass_module, "_most_entries", 100)
    with pytest.raises(ValueError, match="use multi_class='ovr', or fewer rows"):
        AdversarialClassifier(multi_class="joint").fit(X, y)


def test_separable_classes_are_said():
    X, y = table()
    with pytest.warns(ConvergenceWarning, match="separable"):
        clf = AdversarialClassifier(0.1, multi_class="joint").fit(X + 20 * np.eye(4)[y], y)
    assert clf.robust_score(X + 20 * np.eye(4)[y], y) == 1
