"""The solver on tables as users bring them: any units, any loss, and a bound to be relied on."""

import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import SVC

from advinterp.estimator import AdversarialClassifier, AdversarialRegressor
from advinterp.solver import LOSSES, EpsBall, EpsBall1, RobustProblem, solve
from tests.cvxpy_oracle import optimum_by_cvxpy


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 6))
    return X, X @ [1, -1, 0.5, 0, 0, 0] + rng.normal(size=300) > 0


@pytest.fixture(scope="module")
def cancer():
    return load_breast_cancer(return_X_y=True)


@pytest.fixture
def quiet():
    """Warnings of the solver are errors: it says that it did not converge."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# --- units ---
@pytest.mark.parametrize("loss", ["squared", "absolute"])
@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("size", [1e-8, 1e7])
def test_units_of_the_targets_change_nothing(loss, norm, size, quiet):
    X, y = load_diabetes(return_X_y=True)
    X = X / X.std(0)
    y = (y - y.mean()) / y.std()
    plain = AdversarialRegressor(loss=loss, norm=norm).fit(X, y)
    scaled = AdversarialRegressor(loss=loss, norm=norm).fit(X, y * size + 2 * size)
    worth = size**2 if loss == "squared" else size
    assert scaled.objective_ == pytest.approx(plain.objective_ * worth, rel=1e-8)
    assert scaled.gap_ <= 1e-7 * worth
    np.testing.assert_allclose(scaled.coef_ / size, plain.coef_, atol=1e-5)
    np.testing.assert_array_equal(scaled.coef_ == 0, plain.coef_ == 0)


@pytest.mark.parametrize("eps", [0, 0.01])
@pytest.mark.parametrize("alpha", [1e-4, 1e-2, 1])
def test_a_quadratic_penalty_on_raw_columns(cancer, eps, alpha, quiet):
    clf = AdversarialClassifier(eps=eps, alpha_l2=alpha).fit(*cancer)
    assert clf.gap_ < 1e-9


@pytest.mark.parametrize("eps, best", [(0.005, 0.066345), (0.05, 0.103773), (0.2, 0.113392)])
def test_groups_on_raw_columns(cancer, eps, best, quiet):
    """The optima are those of CVXPY."""
    clf = AdversarialClassifier(eps=eps, groups=np.arange(30) // 3).fit(*cancer)
    assert clf.objective_ == pytest.approx(best, abs=1e-6)
    assert clf.gap_ < 1e-9


@pytest.mark.parametrize("arguments", [dict(), dict(norm=2), dict(loss="hinge")])
@pytest.mark.parametrize("eps", [0, 0.1])
def test_sparse_columns_far_from_zero(noisy, arguments, eps, quiet):
    X, y = noisy
    dense = AdversarialClassifier(eps=eps, **arguments).fit(X, y)
    far = AdversarialClassifier(eps=eps, **arguments).fit(sparse.csr_matrix(X + 1e6), y)
    assert far.objective_ == pytest.approx(dense.objective_, abs=1e-8)
    assert far.gap_ < 1e-7


# --- the bound ---
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", ["inf", 2, 1])
def test_columns_very_far_from_zero(noisy, loss, norm):
    """The model of the column that is moved back, to the digits that an intercept has there."""
    X, labels = noisy
    X = X.copy()
    X[:, 0] = np.round(X[:, 0], 2) + 1e8
    X[:, 0] -= 1e8  # as it is stored there
    is_signed = LOSSES[loss].signed
    model = AdversarialRegressor if is_signed else AdversarialClassifier
    y = X[:, 0] + X[:, 1] + np.sin(np.arange(300)) if is_signed else labels
    near = model(eps=0.05, norm=norm, loss=loss).fit(X, y)
    X[:, 0] += 1e8
    for table in (X, sparse.csr_array(X)):
        far = model(eps=0.05, norm=norm, loss=loss).fit(table, y)
        assert far.gap_ < 1e-7
        assert far.objective_ == pytest.approx(near.objective_, abs=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("kind", [EpsBall, EpsBall1])
def test_sparse_arrays_are_sparse_matrices(noisy, loss, kind):
    X = np.where(np.abs(noisy[0]) > 0.5, noisy[0], 0)
    y = np.where(noisy[1], 1.0, -1.0)
    none, one = np.zeros(6), np.ones(6)
    answers = []
    for table in (sparse.csr_array(X), sparse.csr_matrix(X)):
        ball = kind(0.1 * one)
        q = np.full(300, 1 / 300)
        prob = RobustProblem(table, y, q, LOSSES[loss], ball, none, none, True, none, one)
        answers.append(solve(prob))
    assert answers[0].gap < 1e-7
    np.testing.assert_allclose(answers[0].w, answers[1].w, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eps", np.geomspace(1e-4, 1, 12))
def test_no_false_alarm_on_raw_columns(cancer, eps, quiet):
    assert AdversarialClassifier(eps=eps).fit(*cancer).gap_ < 1e-8


@pytest.mark.parametrize("norm", ["inf", 2, 1])
@pytest.mark.parametrize("eps", [0.005, 0.05, 0.4])
def test_no_false_alarm_of_the_hinge(cancer, norm, eps, quiet):
    assert AdversarialClassifier(eps=eps, loss="hinge", norm=norm).fit(*cancer).gap_ < 1e-7


@pytest.mark.parametrize("norm", ["inf", 2])
@pytest.mark.parametrize("eps", [1e-300, 1e-14, 1e-10, 1e-8, 1e-6])
def test_strengths_lost_in_rounding(noisy, norm, eps, quiet):
    clf = AdversarialClassifier(eps=eps, norm=norm).fit(*noisy)
    without = AdversarialClassifier(eps=0).fit(*noisy)
    assert clf.objective_ == pytest.approx(without.objective_, abs=1e-5)
    assert clf.gap_ < 1e-9


@pytest.mark.parametrize("loss", ["absolute", "squared"])
def test_rows_of_no_weight(noisy, loss, quiet):
    X, _ = noisy
    y = X[:, 0] + np.abs(X[:, 1])
    weight = np.arange(300) % 2
    weighted = AdversarialRegressor(loss=loss).fit(X, y, sample_weight=weight)
    without = AdversarialRegressor(loss=loss).fit(X[weight > 0], y[weight > 0])
    np.testing.assert_allclose(weighted.coef_, without.coef_, atol=1e-6)
    assert weighted.gap_ < 1e-7


def random_problem(seed):
    """Any loss, ball, penalty and units, with rows of no weight."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(12, 60))
    d = int(rng.integers(1, 9))
    X = rng.normal(size=(n, d)) * np.exp(rng.normal(size=d)) + rng.normal(size=d) * 5
    if seed % 3 == 0:
        X = (X > X.mean(0)).astype(float)
    y = (X - X.mean(0)) @ rng.normal(size=d) + rng.normal(size=n) * 2
    loss = LOSSES[rng.choice(list(LOSSES))]
    y = y if loss.signed else np.where(y > np.median(y), 1.0, -1.0)
    q = rng.choice([0.0, 1.0, 1.0, 3.0], n)
    q = q / q.sum()
    e = rng.choice([0, 0.02, 0.1, 0.4]) * rng.choice([0.0, 1.0, 1.0, 2.0], d)
    groups = [None, np.zeros(d, int), np.arange(d) // 2][rng.integers(3)]
    ball = EpsBall1(e) if rng.random() < 0.25 else EpsBall(e, groups)
    l1 = np.full(d, rng.choice([0, 0, 0.02]))
    l2 = np.full(d, rng.choice([0, 0, 0.05]))
    mean = q @ X
    sd = np.sqrt(q @ (X - mean) ** 2)
    intercept = rng.random() < 0.8
    sd = np.where(sd > 0, sd, 1)
    return RobustProblem(X, y, q, loss, ball, l1, l2, intercept, mean * intercept, sd)


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
def test_the_bound_over_random_problems():
    """Never below what is left to gain, and never above 1e-6 where nothing is."""
    pytest.importorskip("cvxpy", reason="CVXPY is an optional peer: pip install .[peers]")
    for seed in range(100):
        prob = random_problem(seed)
        solution = solve(prob)
        if solution.separated:
            continue
        _, w, b = optimum_by_cvxpy(prob)
        above = prob.value(solution.w, solution.b) - prob.value(w, b)
        assert above <= 1e-6, seed
        assert above - 1e-7 <= solution.gap < 1e-6 * max(1, prob.q @ prob.y**2), seed


@pytest.mark.parametrize("seed", range(8))
def test_a_search_that_stops_early_is_no_worse_than_the_constant(seed):
    for max_iter in (1, 2, 5):
        prob = random_problem(seed)
        stopped = solve(prob, max_iter=max_iter)
        full = solve(prob)
        value = prob.value(stopped.w, stopped.b)
        constants = [prob.value(0 * stopped.w, b) for b in np.linspace(-3, 3, 25)]
        assert value <= (min(constants) if prob.fit_intercept else constants[12]) + 1e-9
        if not full.separated:
            assert stopped.gap >= value - prob.value(full.w, full.b) - 1e-9


# --- zeros and separable rows ---
@pytest.mark.parametrize(
    "arguments", [dict(norm=1), dict(loss="hinge"), dict(loss="hinge", norm=2)]
)
def test_a_constant_model_has_true_zeros(noisy, arguments):
    with pytest.warns(UserWarning, match="constant"):
        clf = AdversarialClassifier(eps=5, **arguments).fit(*noisy)
    assert not clf.coef_.any()
    assert clf.gap_ < 1e-9


@pytest.mark.parametrize("n_columns", [20, 300])
@pytest.mark.parametrize("eps", [0, 0.05])
def test_separable_rows_converge(n_columns, eps):
    """Wide or not: the optimum with the small penalty that the warning names, by its gradient."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, n_columns))
    y = np.sign(X[:, 0] + 0.1 * rng.normal(size=60))
    X[:, 0] += 2 * y
    with pytest.warns(ConvergenceWarning, match="separable") as got:
        clf = AdversarialClassifier(eps=eps).fit(X, y)
    assert "of their optimum" not in str(got[0].message)
    w = clf.coef_[0]
    z = eps * np.abs(w).sum() - y * clf.decision_function(X)
    a = np.exp(z) / (1 + np.exp(z)) / 60
    pull = (y * a) @ X - 1e-8 * w * X.var(0)
    limit = eps * a.sum()
    active = w != 0
    np.testing.assert_allclose(pull[active], limit * np.sign(w[active]), atol=1e-6 * a.sum())
    assert (np.abs(pull) <= limit + 1e-6 * a.sum()).all()


def test_separable_rows_that_do_not_converge_say_so():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 20))
    y = np.sign(X[:, 0])
    with pytest.warns(ConvergenceWarning, match="to .* of their optimum"):
        AdversarialClassifier(eps=0, max_iter=20, tol=1e-12).fit(X, y)


@pytest.mark.parametrize("eps", [0, 0.05])
def test_the_hinge_has_the_widest_margin(eps):
    """The support vector machine's, and under attack no narrower than that of the logistic loss."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 60))
    X /= X.std(0)
    y = X[:, 0] > 0
    signs = np.where(y, 1, -1)

    def margin(coef, scores):
        return (signs * scores - eps * np.abs(coef).sum()).min() / np.linalg.norm(coef)

    hinge = AdversarialClassifier(eps, loss="hinge", alpha_l2=1e-6).fit(X, y)
    reached = margin(hinge.coef_, hinge.decision_function(X))
    with pytest.warns(ConvergenceWarning, match="loss='hinge' with alpha_l2=1e-6"):
        logistic = AdversarialClassifier(eps).fit(X, y)
    assert margin(logistic.coef_, logistic.decision_function(X)) < 0.99 * reached
    if eps == 0:
        machine = SVC(kernel="linear", C=1e8, tol=1e-8).fit(X, y)
        widest = margin(machine.coef_, machine.decision_function(X))
        assert reached == pytest.approx(widest, rel=1e-5)


# --- wide tables ---
@pytest.mark.parametrize("arguments", [dict(), dict(loss="softplus_hinge"), dict(alpha_l1=0.01)])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_wide_tables_sparse_or_dense(arguments, fit_intercept, quiet):
    """Certified, so right; and a sparse table is solved as the dense one, far from zero or not."""
    rng = np.random.default_rng(1)
    X = np.where(rng.random((400, 900)) < 0.1, rng.normal(size=(400, 900)), 0)
    X[:, 30] += 100 * fit_intercept
    y = X[:, :20].sum(1) + rng.normal(size=400) > 0
    settings = dict(eps=0.03, fit_intercept=fit_intercept, **arguments)
    dense = AdversarialClassifier(**settings).fit(X, y)
    by_sparse = AdversarialClassifier(**settings).fit(sparse.csr_matrix(X), y)
    assert max(dense.gap_, by_sparse.gap_) < 1e-8
    assert by_sparse.objective_ == pytest.approx(dense.objective_, abs=1e-8)
    assert 5 < np.count_nonzero(dense.coef_) < 200


def words(n_rows, n_words, seed=0):
    """Rows of a few rare words each, and labels by some of the words."""
    rng = np.random.default_rng(seed)
    share = 1 / (np.arange(n_words) + 10)
    rows = np.repeat(np.arange(n_rows), 40)
    chosen = rng.choice(n_words, len(rows), p=share / share.sum())
    X = sparse.csr_array((np.ones(len(rows)), (rows, chosen)), (n_rows, n_words))
    scores = X @ (rng.normal(size=n_words) * (rng.random(n_words) < 0.3))
    return X, scores > rng.normal(size=n_rows)


def test_nearly_separable_words(quiet):
    """Where coordinates one by one crawl, Newton's method goes on to a proven optimum."""
    X, y = words(1500, 1000)
    clf = AdversarialClassifier(eps=0.005).fit(X, y)
    assert clf.gap_ < 1e-8
    assert np.count_nonzero(clf.coef_) > 200


def test_wide_tables_without_a_gram_matrix(monkeypatch, quiet):
    """Where too many weights are active for one the bound comes from a ball a little smaller."""
    rng = np.random.default_rng(1)
    X = rng.normal(size=(500, 400))
    y = X[:, :20].sum(1) + 3 * rng.normal(size=500) > 0
    by_newton = AdversarialClassifier(eps=0.1).fit(X, y)
    monkeypatch.setattr("advinterp.solver._max_active", 3)
    without = AdversarialClassifier(eps=0.1).fit(X, y)
    assert without.gap_ < 1e-8
    assert without.objective_ == pytest.approx(by_newton.objective_, abs=1e-8)
    np.testing.assert_array_equal(without.coef_ == 0, by_newton.coef_ == 0)


def test_a_wide_warm_start_is_shorter():
    rng = np.random.default_rng(1)
    X = rng.normal(size=(300, 500))
    y = X[:, :10].sum(1) + 3 * rng.normal(size=300) > 0
    clf = AdversarialClassifier(eps=0.15, warm_start=True).fit(X, y)
    first = clf.n_iter_[0]
    assert clf.fit(X, y).n_iter_[0] < first


# --- hinge and absolute loss by an interior point of their own ---
@pytest.mark.parametrize("alpha_l1, alpha_l2", [(0, 0), (0.01, 0), (0, 0.02)])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("loss", ["hinge", "absolute", "squared"])
def test_two_solvers_of_kinked_losses_agree(
    noisy, loss, alpha_l1, alpha_l2, fit_intercept, monkeypatch, quiet
):
    model = AdversarialClassifier if loss == "hinge" else AdversarialRegressor
    clf = model(loss=loss, alpha_l1=alpha_l1, alpha_l2=alpha_l2, fit_intercept=fit_intercept)
    X = noisy[0]
    y = noisy[1] if loss == "hinge" else X[:, 0] - X[:, 1] + np.sin(np.arange(300)) + 5
    noisy = X, y
    own = clf.fit(*noisy)
    objective, coef = own.objective_, own.coef_
    assert own.gap_ < 1e-7
    monkeypatch.setattr("advinterp.solver._by_blas", lambda *_: None)
    by_cone = clf.fit(*noisy)
    assert objective == pytest.approx(by_cone.objective_, abs=1e-7)
    np.testing.assert_allclose(coef, by_cone.coef_, atol=1e-4)


def test_a_hinge_that_is_not_certified_goes_to_the_cone_solver(noisy, monkeypatch, quiet):
    good = AdversarialClassifier(loss="hinge").fit(*noisy)

    def spoilt(X, y, q, *_, **__):
        return np.ones(X.shape[1]), 0.0, np.tile(q / 2, (2, 1)), 1

    monkeypatch.setattr("advinterp.solver.interior_point", spoilt)
    again = AdversarialClassifier(loss="hinge").fit(*noisy)
    assert again.objective_ == pytest.approx(good.objective_, abs=1e-7)
